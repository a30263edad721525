"""Reads the topics from their beginning, as any team may, and keeps the demo's ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from deploy.demo_ledger import Ledger
from shared.codec import decode_queries, decode_signals, decode_verdict
from shared.settings import ServiceSettings
from shared.topics import QUERIES, SIGNALS, VERDICTS

POLL_MS = 200
MOST_RECORDS = 1000
GATHER_BYTES = 1024 * 1024
GATHER_MS = 400
"""The broker answers when it has so many bytes, or after so long: an answer for each record would cost a tenth of the
machine that the demo shares."""


class Observer:
    """A thread that reads without a consumer group: it disturbs nobody and leaves nothing behind."""

    def __init__(self, settings: ServiceSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._failure is not None:
            raise RuntimeError("the demo's observer has stopped") from self._failure

    def _run(self) -> None:
        try:
            self._observe()
        except BaseException as error:  # noqa: BLE001 - handed over to `check`
            self._failure = error

    def _observe(self) -> None:
        take: dict[str, Callable[[bytes], None]] = {
            self._settings.topic(QUERIES): lambda value: self._ledger.queries(decode_queries(value)),
            self._settings.topic(SIGNALS): lambda value: self._ledger.signals(decode_signals(value)),
            self._settings.topic(VERDICTS): lambda value: self._ledger.verdict(decode_verdict(value)),
        }
        consumer = KafkaConsumer(
            bootstrap_servers=self._settings.kafka.split(","),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=MOST_RECORDS,
            fetch_min_bytes=GATHER_BYTES,
            fetch_max_wait_ms=GATHER_MS,
            metrics_enabled=False,
        )
        try:
            partitions = [TopicPartition(topic, p) for topic in take for p in range(self._settings.partitions)]
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            while not self._stop.is_set():
                fetched: dict[TopicPartition, list[ConsumerRecord]] = consumer.poll(timeout_ms=POLL_MS)
                with self._ledger.lock:
                    for partition, records in fetched.items():
                        for record in records:
                            if record.value is not None:  # a compacted topic's tombstone
                                take[partition.topic](record.value)
        finally:
            consumer.close()
