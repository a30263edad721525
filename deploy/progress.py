"""One line that tells how far something is. Nothing but the standard library: it runs before anything is installed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

_TERMINAL_SECONDS = 0.5
_QUIET_SECONDS = 10.0
"""Between two lines where nobody watches."""
_COLUMNS = 100
_REMEMBERED_LINES = 40


class ProgressLine:
    """`with ProgressLine("pip") as line: ... line.state = "unpacking"`, drawn by a thread of its own.

    So it goes on while the one who works is silent, as pip is for a minute of unpacking.
    """

    def __init__(self, label: str) -> None:
        self.state = "starting"
        """What is going on; set it as often as you like."""
        self._label = label
        self._started = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.state = "done" if kind is None else "failed"
        self._show("\n")

    def _run(self) -> None:
        while not self._over.wait(_TERMINAL_SECONDS if self._on_terminal else _QUIET_SECONDS):
            self._show("" if self._on_terminal else "\n")

    def _show(self, end: str) -> None:
        text = f"{self._label}, {time.monotonic() - self._started:4.0f} s: {self.state}"
        line = f"\r{text[:_COLUMNS]:<{_COLUMNS}}" if self._on_terminal else text
        print(line, end=end, file=sys.stderr, flush=True)


def run_with_progress(label: str, command: Sequence[str], states: Callable[[Iterator[str]], Iterable[str]]) -> None:
    """Run a command that says much, and show one line of it.

    Args:
        label: of the line.
        command: to run.
        states: from the command's lines to what the line shows, as they come.

    Raises:
        CalledProcessError: the command failed; `output` is the end of what it said.
    """
    last: deque[str] = deque(maxlen=_REMEMBERED_LINES)

    def remember(lines: Iterable[str]) -> Iterator[str]:
        for said in lines:
            last.append(said)
            yield said

    with ProgressLine(label) as line:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        ) as process:
            for state in states(remember(process.stdout or ())):
                line.state = state
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, "".join(last))
