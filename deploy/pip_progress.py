"""Runs pip and shows one line of progress instead of hundreds: python -m deploy.pip_progress ARGUMENTS...

Works with nothing but the standard library: it runs before anything is installed. What pip warns of is printed as it
is; where it fails, so is the end of what it said.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

from deploy.progress import run_with_progress

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


def _shown_warnings(lines: Iterator[str]) -> Iterator[str]:
    """The same lines; pip's warnings and errors are printed on the way."""
    for line in lines:
        if line.startswith(("WARNING", "ERROR")):
            print(f"\n{line}", end="", file=sys.stderr)
        yield line


def main() -> int:
    """Run pip; its exit status is this program's."""
    install = [sys.executable, "-m", "pip", "install", "--progress-bar", _progress_bar(), "--disable-pip-version-check"]
    try:
        run_with_progress("pip", [*install, *sys.argv[1:]], lambda lines: states(_shown_warnings(lines)))
    except subprocess.CalledProcessError as error:
        print(error.output, file=sys.stderr)
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
