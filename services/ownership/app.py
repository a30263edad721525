"""The ownership service: brings the topic `perturbed` into the registry, record by record, and says how it goes.

While nothing can be written (a full disk, a database that is away) it reads nothing, is not ready, says so and goes on
by itself. Nothing is lost meanwhile: the topic is kept for good, and offsets are stored with the records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from services.ownership.registry import Registry, RegistryUnavailableError, SourceRecord
from services.ownership.settings import OwnershipSettings
from shared.clock import Clock, SystemClock
from shared.log import get_logger
from shared.metrics import OWNERSHIP_RECORDS, OWNERSHIP_UNAVAILABLE
from shared.topic_reader import TopicReader
from shared.topics import PERTURBED
from shared.topics_admin import topic_id

log = get_logger(__name__)

RETRY_SECONDS = 1.0
REMIND_SECONDS = 60.0
"""How often the log says again that nothing can be kept."""

ResultType = TypeVar("ResultType")


class OwnershipService:
    """One process of the service. Several on one registry do each other no harm, and no good."""

    def __init__(self, settings: OwnershipSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._registry: Registry | None = None
        self._topic_id = ""
        self._available = False
        self._reader = TopicReader(
            settings.kafka,
            settings.topic(PERTURBED),
            settings.partitions,
            self._take,
            self._clock,
            positions=self._positions,
        )

    def live(self) -> bool:
        """Whether a restart would not help."""
        return self._reader.alive

    def ready(self) -> bool:
        """Whether what was in the topic at the start is kept, and what comes now can be."""
        return self._available and self._reader.caught_up and self._reader.alive

    def start(self) -> None:
        """Open the registry, or make it, and begin to read.

        Raises:
            RegistryError: the setting names no database that could be used; one that is full or away is waited for.
        """
        try:
            self._registry = Registry.create(self._settings.registry)
            self._available = True
        except RegistryUnavailableError as error:
            self._report(error)
        self._reader.start()

    def stop(self, timeout: float) -> None:
        """End within `timeout` seconds; what was read and not kept is read again at the next start."""
        self._reader.stop()
        self._reader.join(timeout)
        if self._registry is not None:
            self._registry.close()

    def _positions(self) -> Mapping[int, int]:
        self._topic_id = topic_id(self._settings, PERTURBED)
        positions = self._patiently(lambda registry: registry.positions(self._topic_id))
        log.info("goes on", topic_id=self._topic_id, positions=dict(positions))
        return positions

    def _take(self, records: Sequence[Any]) -> None:
        sources = [SourceRecord(self._topic_id, record.partition, record.offset, record.value) for record in records]
        appended = self._patiently(lambda registry: registry.append(sources))
        for outcome, count in (
            ("kept", appended.kept),
            ("repeated", appended.repeated),
            ("rejected", len(appended.rejected)),
        ):
            OWNERSHIP_RECORDS.labels(outcome).inc(count)
        for rejected in appended.rejected:
            log.error(
                "record is no evidence and kept aside",
                partition=rejected.source.partition,
                offset=rejected.source.offset,
                reason=rejected.reason,
            )

    def _patiently(self, action: Callable[[Registry], ResultType]) -> ResultType:
        """Do it as soon as the registry can be used.

        Raises:
            CancelledError: the service ends.
        """
        reported_at: float | None = None
        while True:
            try:
                if self._registry is None:
                    self._registry = Registry.create(self._settings.registry)
                result = action(self._registry)
            except RegistryUnavailableError as error:
                self._available = False
                now = self._clock.monotonic()
                if reported_at is None or now - reported_at >= REMIND_SECONDS:
                    self._report(error)
                    reported_at = now
                if self._reader.stopping.wait(RETRY_SECONDS):
                    raise CancelledError from error
                continue
            if not self._available:
                log.info("registry can be used again")
            self._available = True
            for reason in ("full", "away"):
                OWNERSHIP_UNAVAILABLE.labels(reason).set(0)
            return result

    def _report(self, error: RegistryUnavailableError) -> None:
        log.error(
            "registry is full, nothing is kept until there is room"
            if error.full
            else "registry cannot be used, nothing is kept until it can",
            error=str(error),
        )
        OWNERSHIP_UNAVAILABLE.labels("full").set(error.full)
        OWNERSHIP_UNAVAILABLE.labels("away").set(not error.full)
