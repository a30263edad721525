"""Time, so that tests can hold it in their hands. Only shells read it; pure parts are told."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a shell reads the time."""

    def now(self) -> int:
        """Microseconds since the Unix epoch."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        """Microseconds since the Unix epoch."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()


class ManualClock:
    """A clock that a test moves."""

    def __init__(self, now: int = 1_700_000_000_000_000) -> None:
        self._now = now

    def now(self) -> int:
        """Microseconds since the Unix epoch."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the Unix epoch, as far as the test has moved them."""
        return self._now / 1e6

    def advance(self, seconds: float) -> None:
        """Move the clock on."""
        self._now += int(seconds * 1e6)
