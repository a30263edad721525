"""Reads a topic without a group, from stored offsets or its beginning, and goes on for good."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from shared.clock import Clock
from shared.kafka_clients import connect, words
from shared.log import get_logger

log = get_logger(__name__)

HEARTBEAT_SECONDS = 1.0
POLL_MS = 200
RETRY_SECONDS = 1.0


def _from_the_beginning() -> Mapping[int, int]:
    return {}


class TopicReader:
    """A consumer thread that hands on records, partition by partition, and tries on where a broker is away."""

    def __init__(
        self,
        brokers: str,
        topic: str,
        partitions: int,
        take: Callable[[Sequence[Any]], None],
        clock: Clock,
        timeout_ms: int = 3000,
        positions: Callable[[], Mapping[int, int]] = _from_the_beginning,
    ) -> None:
        """
        Args:
            brokers: host:port, separated by commas.
            topic: made by the deployment, waited for here.
            partitions: that it must have.
            take: called in this reader's thread with kafka-python's records of one partition, in order. Nothing is
                read until it returns, and what it was given counts as read then. It raises `CancelledError` where it
                had to wait and `stopping` was set meanwhile: the thread ends.
            clock: for the age of what is known.
            timeout_ms: until a broker counts as away.
            positions: called once in this reader's thread, at the first connection: the offset to begin at, by
                partition; the first that there is where it names none. It may raise what `take` may, or KafkaError.
        """
        self._brokers = brokers
        self._topic = topic
        self._partitions = [TopicPartition(topic, partition) for partition in range(partitions)]
        self._take = take
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._first_positions = positions
        self._positions: dict[TopicPartition, int] | None = None
        self._caught_up = threading.Event()
        self.stopping = threading.Event()
        self._answered_at = clock.monotonic()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name=f"reader-{topic}", daemon=True)

    @property
    def caught_up(self) -> bool:
        """Whether everything that was in the topic at the start has been taken."""
        return self._caught_up.is_set()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def age(self) -> float:
        """Seconds since the broker last answered."""
        return self._clock.monotonic() - self._answered_at

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; it does within a poll."""
        self.stopping.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, if it was ever started."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                consumer = self._connect()
            except ConnectionError as error:
                self._complain(error)
                self.stopping.wait(RETRY_SECONDS)
                continue
            try:
                self._read(consumer)
            except (KafkaError, OSError) as error:
                self._complain(error)
                self.stopping.wait(RETRY_SECONDS)
            except CancelledError:
                return
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
        if self._positions is None:
            first = self._first_positions()
            self._positions = {TopicPartition(self._topic, number): offset for number, offset in first.items()}
        consumer.assign(self._partitions)
        for partition, position in self._positions.items():
            consumer.seek(partition, position)
        ends = consumer.end_offsets(self._partitions, timeout_ms=self._timeout_ms)
        self._note_answer()
        while not self.stopping.is_set():
            for partition, records in consumer.poll(timeout_ms=POLL_MS).items():
                self._take(records)
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

    def _note_answer(self) -> None:
        self._answered_at = self._clock.monotonic()
        self._complained = False

    def _complain(self, error: Exception) -> None:
        """Say it once, not at every attempt."""
        if not self._complained:
            log.warning("topic cannot be read, trying on", topic=self._topic, error=words(error))
            self._complained = True
