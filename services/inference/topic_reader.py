"""Keeps a table from a topic: reads all of it from the beginning, without a group, and goes on for good."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from services.inference.kafka_clients import connect, words
from shared.clock import Clock
from shared.log import get_logger

log = get_logger(__name__)

Entry = tuple[str, bytes | None]
"""A record's key and value; None is a tombstone."""

HEARTBEAT_SECONDS = 1.0
POLL_MS = 200
RETRY_SECONDS = 1.0


class TopicReader:
    """A consumer thread that hands records to the event loop, so that the table needs no lock."""

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
        self._brokers = brokers
        self._topic = topic
        self._partitions = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._apply = apply
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._positions: dict[TopicPartition, int] = {}
        self._caught_up = threading.Event()
        self._stopping = threading.Event()
        self._answered_at = clock.monotonic()
        self._complained = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"reader-{topic}", daemon=True)

    @property
    def caught_up(self) -> bool:
        """Whether everything that was in the topic at the start has been applied."""
        return self._caught_up.is_set()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def age(self) -> float:
        """Seconds since the broker last answered."""
        return self._clock.monotonic() - self._answered_at

    def start(self) -> None:
        """Begin to read; called in the event loop that applies the records."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; it does within a poll."""
        self._stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, not in the event loop: the thread may be waiting for it."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                consumer = self._connect()
            except ConnectionError as error:
                self._complain(error)
                self._stopping.wait(RETRY_SECONDS)
                continue
            try:
                self._read(consumer)
            except (KafkaError, OSError) as error:
                self._complain(error)
                self._stopping.wait(RETRY_SECONDS)
            except CancelledError:
                return  # the event loop has ended
            finally:
                consumer.close(autocommit=False, timeout_ms=self._timeout_ms)

    def _connect(self) -> Any:
        return connect(
            KafkaConsumer,
            self._brokers,
            self._timeout_ms,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            request_timeout_ms=max(self._timeout_ms, 2000),
            reconnect_backoff_max_ms=1000,
            fetch_max_wait_ms=POLL_MS,
            metrics_enabled=False,
        )

    def _read(self, consumer: Any) -> None:
        found = consumer.partitions_for_topic(self._topic)
        if found is None or len(found) != len(self._partitions):
            raise KafkaError(
                f"topic {self._topic} has {len(found or ())} partitions, settings say {len(self._partitions)}"
            )
        consumer.assign(self._partitions)
        for partition, position in self._positions.items():
            consumer.seek(partition, position)
        ends = consumer.end_offsets(self._partitions, timeout_ms=self._timeout_ms)
        self._note_answer()
        while not self._stopping.is_set():
            for partition, records in consumer.poll(timeout_ms=POLL_MS).items():
                self._hand_over([((record.key or b"").decode(errors="replace"), record.value) for record in records])
                self._positions[partition] = records[-1].offset + 1
                self._note_answer()
            if not self.caught_up and all(self._position(consumer, p) >= end for p, end in ends.items()):
                log.info("topic read to its end", topic=self._topic, records=sum(ends.values()))
                self._caught_up.set()
            if self.age() > HEARTBEAT_SECONDS:
                # A poll without records says nothing of the broker's health.
                consumer.end_offsets(self._partitions, timeout_ms=self._timeout_ms)
                self._note_answer()

    def _position(self, consumer: Any, partition: TopicPartition) -> int:
        return int(consumer.position(partition, timeout_ms=self._timeout_ms) or 0)

    def _hand_over(self, entries: list[Entry]) -> None:
        """Apply in the event loop, and wait for it, so that a long topic does not pile up there."""
        assert self._loop is not None

        async def apply() -> None:
            self._apply(entries)

        try:
            handed = asyncio.run_coroutine_threadsafe(apply(), self._loop)
        except RuntimeError as error:
            raise CancelledError from error
        while not self._stopping.is_set():
            try:
                return handed.result(timeout=POLL_MS / 1000)
            except TimeoutError:
                continue
        raise CancelledError

    def _note_answer(self) -> None:
        self._answered_at = self._clock.monotonic()
        self._complained = False

    def _complain(self, error: Exception) -> None:
        """Say it once, not at every attempt."""
        if not self._complained:
            log.warning("topic cannot be read, trying on", topic=self._topic, error=words(error))
            self._complained = True
