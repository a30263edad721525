"""The command's side of Kafka: one record written, or a topic read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from services.cli.output import CommandError
from shared.codec import CodecError, decode_verdict
from shared.events import Verdict
from shared.settings import ServiceSettings
from shared.topics import VERDICTS, Topic, partition_of

CONNECT_MS = 5_000
ACKNOWLEDGE_SECONDS = 15.0
POLL_MS = 500


@contextmanager
def _reachable(settings: ServiceSettings) -> Iterator[None]:
    """
    Raises:
        CommandError: Kafka fails inside the block.
    """
    try:
        yield
    except KafkaError as error:
        hint = "start it, or set PORTCULLIS_KAFKA to host:port"
        raise CommandError(f"Kafka does not answer at {settings.kafka} ({type(error).__name__}); {hint}") from error


def publish(settings: ServiceSettings, topic: Topic, account: str, value: bytes) -> tuple[int, int]:
    """Write one record under an account's key and wait until all replicas have it; its partition and offset.

    Raises:
        CommandError: Kafka does not answer, or the topic is not there.
    """
    with _reachable(settings):
        _require(settings, topic)
        producer = KafkaProducer(
            bootstrap_servers=settings.kafka.split(","),
            bootstrap_timeout_ms=CONNECT_MS,
            max_block_ms=CONNECT_MS,
            acks="all",
        )
        try:
            place = partition_of(account, settings.partitions)
            sent = producer.send(settings.topic(topic), value, account.encode(), partition=place)
            written = sent.get(timeout=ACKNOWLEDGE_SECONDS)
        finally:
            producer.close(timeout=1)
    return int(written.partition), int(written.offset)


def _require(settings: ServiceSettings, topic: Topic) -> None:
    with _consumer(settings) as consumer:
        _partitions(consumer, settings, topic)


@contextmanager
def _consumer(settings: ServiceSettings) -> Iterator[Any]:
    consumer = KafkaConsumer(
        bootstrap_servers=settings.kafka.split(","),
        bootstrap_timeout_ms=CONNECT_MS,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        allow_auto_create_topics=False,
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _partitions(consumer: Any, settings: ServiceSettings, topic: Topic) -> list[TopicPartition]:
    name = settings.topic(topic)
    found = len(consumer.partitions_for_topic(name) or ())
    if not found:
        raise CommandError(f"there is no topic {name} at {settings.kafka}; run `portcullis topics create`")
    if found != settings.partitions:
        raise CommandError(f"{name} has {found} partitions: set PORTCULLIS_PARTITIONS={found}")
    return [TopicPartition(name, number) for number in range(found)]


def read_all(settings: ServiceSettings, topic: Topic) -> list[Any]:
    """All records that are in a topic now.

    Raises:
        CommandError: Kafka does not answer, or the topic is not there.
    """
    records: list[Any] = []
    with _reachable(settings), _consumer(settings) as consumer:
        partitions = _partitions(consumer, settings, topic)
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for polled in consumer.poll(POLL_MS).values():
                records += polled
    return records


def read_verdicts(settings: ServiceSettings) -> Iterator[tuple[str, Verdict | None]]:
    """Account and verdict of every record that is in the topic now, in order; None where a verdict was taken back.

    Raises:
        CommandError: Kafka does not answer, the topic is not there, or a record is no verdict.
    """
    for record in read_all(settings, VERDICTS):
        if record.value is None:
            yield (record.key or b"").decode(errors="replace"), None
            continue
        try:
            verdict = decode_verdict(record.value)
        except CodecError as error:
            raise CommandError(f"{record.topic} at {record.partition}:{record.offset}: {error}") from error
        yield verdict.account, verdict


def follow(settings: ServiceSettings, topic: Topic, from_beginning: bool) -> Iterator[Any]:
    """The records of a topic as they come, without end.

    Raises:
        CommandError: Kafka does not answer, or the topic is not there.
    """
    with _reachable(settings), _consumer(settings) as consumer:
        partitions = _partitions(consumer, settings, topic)
        consumer.assign(partitions)
        if not from_beginning:
            consumer.seek_to_end(*partitions)
        while True:
            for polled in consumer.poll(POLL_MS).values():
                yield from polled
