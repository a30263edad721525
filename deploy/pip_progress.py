"""Runs pip and shows one line of progress instead of hundreds: python -m deploy.pip_progress ARGUMENTS...

Works with nothing but the standard library: it runs before anything is installed. What pip warns of is printed as it
is; where it fails, so is the end of what it said.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from deploy.progress import ProgressLine

_COLLECTING = re.compile(r"\s*(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)")
_DOWNLOADING = re.compile(r"\s*(?:Downloading|Using cached) (\S+?)(?:-\d\S*)?(?: \((.+)\))?$")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_INSTALLING = re.compile(r"Installing collected packages: (.+)")


def states(lines: Iterator[str]) -> Iterator[str]:
    """What to show after each line of pip's that means progress."""
    seen: set[str] = set()
    downloading = ""
    for line in lines:
        if match := _COLLECTING.match(line):
            seen.add(match[1])
            yield f"resolving, {len(seen)} packages so far: {match[1]}"
        elif match := _DOWNLOADING.match(line):
            downloading = f"downloading {match[1].rsplit('/', 1)[-1]}" + (f" ({match[2]})" if match[2] else "")
            yield downloading
        elif (match := _PROGRESS.match(line)) and int(match[2]):
            yield f"{downloading} {100 * int(match[1]) // int(match[2])}%"
        elif match := _INSTALLING.match(line):
            yield f"unpacking {match[1].count(',') + 1} packages"


def _progress_bar() -> str:
    """How this environment's pip tells how far a download is, as far as it can: old ones draw bars or nothing."""
    major, minor = (int(part) for part in version("pip").split(".")[:2])
    return "raw" if (major, minor) >= (24, 1) else "off"


def _run(command: list[str], line: ProgressLine, last: deque[str]) -> None:
    """
    Raises:
        CalledProcessError: pip failed.
    """

    def remember(output: Iterable[str]) -> Iterator[str]:
        for said in output:
            last.append(said)
            if said.startswith(("WARNING", "ERROR")):
                print(f"\n{said}", end="", file=sys.stderr)
            yield said

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as pip:
        for state in states(remember(pip.stdout or ())):
            line.state = state
    if pip.returncode:
        raise subprocess.CalledProcessError(pip.returncode, command)


def main() -> int:
    """Run pip; its exit status is this program's."""
    install = [sys.executable, "-m", "pip", "install", "--progress-bar", _progress_bar(), "--disable-pip-version-check"]
    last: deque[str] = deque(maxlen=40)
    try:
        with ProgressLine("pip") as line:
            _run([*install, *sys.argv[1:]], line, last)
    except subprocess.CalledProcessError as error:
        print("".join(last), file=sys.stderr)
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
