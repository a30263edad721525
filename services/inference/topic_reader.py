"""Keeps a table from a topic: reads all of it from the beginning, and goes on for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

from shared import topic_reader
from shared.clock import Clock
from shared.topic_reader import POLL_MS

Entry = tuple[str, bytes | None]
"""A record's key and value; None is a tombstone."""


class TopicReader(topic_reader.TopicReader):
    """A consumer thread that hands records to the event loop, so that the table needs no lock.

    To be joined outside the event loop: the thread may be waiting for it.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        partitions: int,
        apply: Callable[[Sequence[Entry]], None],
        clock: Clock,
        timeout_ms: int = 3000,
    ) -> None:
        """
        Args:
            brokers: host:port, separated by commas.
            topic: read whole; made by the deployment, waited for here.
            partitions: that it must have.
            apply: called in the event loop with records of one partition, in order.
            clock: for the age of what is known.
            timeout_ms: until a broker counts as away.
        """
        super().__init__(brokers, topic, partitions, self._hand_over, clock, timeout_ms)
        self._apply = apply
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to read; called in the event loop that applies the records."""
        self._loop = asyncio.get_running_loop()
        super().start()

    def _hand_over(self, records: Sequence[Any]) -> None:
        """Apply in the event loop, and wait for it, so that a long topic does not pile up there."""
        assert self._loop is not None
        entries = [((record.key or b"").decode(errors="replace"), record.value) for record in records]

        async def apply() -> None:
            self._apply(entries)

        try:
            handed = asyncio.run_coroutine_threadsafe(apply(), self._loop)
        except RuntimeError as error:  # the event loop has ended
            raise CancelledError from error
        while not self.stopping.is_set():
            try:
                return handed.result(timeout=POLL_MS / 1000)
            except TimeoutError:
                continue
        raise CancelledError
