"""Runs pip and shows one line of progress instead of hundreds: pip_progress.py ARGUMENTS...

Works with nothing but the standard library: it runs before anything is installed. What pip warns of is printed as it
is; where it fails, so is the end of what it said.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.metadata import version

_COLLECTING = re.compile(r"\s*(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)")
_DOWNLOADING = re.compile(r"\s*(?:Downloading|Using cached) (\S+?)(?:-\d\S*)?(?: \((.+)\))?$")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_INSTALLING = re.compile(r"Installing collected packages: (.+)")
_QUIET_SECONDS = 10.0


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


class Display:
    """One line about what pip does, from a thread of its own: unpacking takes a minute in which pip says nothing."""

    def __init__(self) -> None:
        self.state = "starting"
        self._started = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self, succeeded: bool) -> None:
        """Replace the line by the last one."""
        self._over.set()
        self._thread.join()
        self.state = "done" if succeeded else "failed"
        self._show("\n")

    def _run(self) -> None:
        while not self._over.wait(0.5 if self._on_terminal else _QUIET_SECONDS):
            self._show("" if self._on_terminal else "\n")

    def _show(self, end: str) -> None:
        text = f"pip, {time.monotonic() - self._started:4.0f} s: {self.state}"
        print(f"\r{text[:100]:<100}" if self._on_terminal else text, end=end, file=sys.stderr, flush=True)


def main() -> int:
    """Run pip; its exit status is this program's."""
    command = [sys.executable, "-m", "pip", "install", "--progress-bar", _progress_bar(), "--disable-pip-version-check"]
    last: deque[str] = deque(maxlen=40)
    display = Display()

    def remember(lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            last.append(line)
            if line.startswith(("WARNING", "ERROR")):
                print(f"\n{line}", end="", file=sys.stderr)
            yield line

    with subprocess.Popen(
        [*command, *sys.argv[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    ) as pip:
        for state in states(remember(pip.stdout or ())):
            display.state = state
    display.close(succeeded=pip.returncode == 0)
    if pip.returncode:
        print("".join(last), file=sys.stderr)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main())
