"""The producer's end of Kafka: a connection that is known to work, until it fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kafka import KafkaProducer
from kafka.errors import (
    InvalidRecordError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

from services.inference.spool import Record
from shared.kafka_clients import connect, words

_REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidRecordError)
"""What a broker says of a record that it will never take."""


ROUND_BYTES = 3 * 1024 * 1024
"""Of the records that are under way at a time."""
GATHER_MS = 100
"""Longer than it takes to hand a round to the producer; a flush follows at once."""


class LinkError(ConnectionError):
    """Kafka cannot be used now; the message says why."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of some records; those in neither list were acknowledged."""

    undelivered: Sequence[Record] = ()
    """In order; some may have arrived, their acknowledgement lost."""
    refused: Sequence[Record] = ()
    """Never to be taken."""
    error: str = ""


class Link(Protocol):
    """A connection to Kafka."""

    def deliver(self, records: Sequence[Record]) -> Delivery:
        """Send records and wait for the acknowledgements; within each partition they arrive in order."""

    def close(self) -> None:
        """Give up whatever is still unacknowledged."""


class KafkaLink:
    """A connection by kafka-python: acks=all, idempotent."""

    def __init__(
        self, brokers: str, topics: Sequence[str], partitions: int, timeout_ms: int, most_record_bytes: int
    ) -> None:
        """Connect; takes `timeout_ms` at most where nobody answers.

        Args:
            brokers: host:port, separated by commas.
            topics: that must exist: they are made by the deployment, with its partitions and retention.
            partitions: that each of them must have.
            timeout_ms: until a delivery is given up.
            most_record_bytes: of one record.

        Raises:
            LinkError: no broker answers, or a topic is missing or has other partitions.
        """
        self._timeout = timeout_ms / 1000
        try:
            self._producer = connect(
                KafkaProducer,
                brokers,
                timeout_ms,
                acks="all",
                enable_idempotence=True,
                max_block_ms=timeout_ms,
                request_timeout_ms=timeout_ms - GATHER_MS,
                delivery_timeout_ms=timeout_ms,
                linger_ms=GATHER_MS,
                batch_size=2 * ROUND_BYTES,
                reconnect_backoff_max_ms=1000,
                max_request_size=most_record_bytes,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        except ConnectionError as error:
            raise LinkError(str(error)) from error
        try:
            self._check(topics, partitions)
        except LinkError:
            self.close()
            raise

    def _check(self, topics: Sequence[str], partitions: int) -> None:
        for topic in topics:
            try:
                found = self._producer.partitions_for(topic)
            except KafkaError as error:
                raise LinkError(f"topic {topic} is not there ({words(error)})") from error
            if found is None or len(found) != partitions:
                raise LinkError(f"topic {topic} has {len(found or ())} partitions, settings say {partitions}")

    def deliver(self, records: Sequence[Record]) -> Delivery:
        """See `Link.deliver`."""
        refused: list[Record] = []
        start = 0
        for end in _round_ends(records):
            outcome = self._deliver_round(records[start:end])
            refused += outcome.refused
            if outcome.undelivered:
                return Delivery((*outcome.undelivered, *records[end:]), tuple(refused), outcome.error)
            start = end
        return Delivery((), tuple(refused), "refused" if refused else "")

    def _deliver_round(self, records: Sequence[Record]) -> Delivery:
        """All records of one partition go as one batch of Kafka's, taken whole or not at all.

        Otherwise the first could expire while a broker comes back, and the second arrive before it is sent again.
        """
        sent: list[tuple[Record, Any]] = []
        refused: list[Record] = []
        error = ""
        for record in records:
            try:
                future = self._producer.send(record.topic, record.value, key=record.key, partition=record.partition)
            except _REFUSED as failure:
                error = words(failure)
                refused.append(record)
            except (KafkaError, ValueError) as failure:  # ValueError: the topic has lost a partition
                error = words(failure)
                break
            else:
                sent.append((record, future))
        unsent = records[len(sent) + len(refused) :]
        deadline = time.monotonic() + self._timeout + 1.0
        with contextlib.suppress(KafkaError):  # each record's own future says what became of it
            self._producer.flush(timeout=self._timeout + 1.0)
        undelivered: list[Record] = []
        for record, future in sent:
            try:
                future.get(timeout=max(0.0, deadline - time.monotonic()))
            except _REFUSED as failure:
                error = words(failure)
                refused.append(record)
            except KafkaError as failure:
                error = words(failure)
                undelivered.append(record)
        return Delivery((*undelivered, *unsent), tuple(refused), error)

    def close(self) -> None:
        """See `Link.close`."""
        try:
            self._producer.close(timeout=0)
        except KafkaTimeoutError:
            # With records under way it gives up before it has stopped its thread.
            self._producer._sender.force_close()


def _round_ends(records: Sequence[Record]) -> Iterator[int]:
    """Where to cut records into rounds of at most `ROUND_BYTES`, or of one record."""
    size = 0
    for position, record in enumerate(records):
        if size and size + len(record.value) > ROUND_BYTES:
            yield position
            size = 0
        size += len(record.value)
    if records:
        yield len(records)
