"""Every topic: its name, what it keeps, who writes it; and the partition in which an account's history lives.

The only place that names topics. An account belongs, in every topic that a stateful service reads, to the partition
that Kafka's default partitioner gives its name, so that one account's whole history meets in one worker.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kafka.partitioner.default import murmur2

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Cleanup(enum.StrEnum):
    """What Kafka does with old records."""

    DELETE = "delete"
    COMPACT = "compact"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the contract, without the deployment's prefix."""

    name: str
    cleanup: Cleanup
    retention_ms: int
    """Milliseconds before a record may be deleted; -1 keeps it for good. Ignored by compacted topics."""
    max_message_bytes: int = 8 * 1024 * 1024

    @property
    def dead(self) -> Topic:
        """Where a record goes that nobody can read, untouched, with the error in its headers."""
        return Topic(f"{self.name}.dead", Cleanup.DELETE, 14 * DAY_MS, self.max_message_bytes)

    def config(self) -> dict[str, str]:
        """The topic's configuration as Kafka names it."""
        config = {"cleanup.policy": self.cleanup.value, "max.message.bytes": str(self.max_message_bytes)}
        if self.cleanup is Cleanup.DELETE:
            config["retention.ms"] = str(self.retention_ms)
        return config


QUERIES = Topic("queries", Cleanup.DELETE, 3 * DAY_MS)
SIGNALS = Topic("signals", Cleanup.DELETE, 7 * DAY_MS)
VERDICTS = Topic("verdicts", Cleanup.COMPACT, -1)
OVERRIDES = Topic("overrides", Cleanup.COMPACT, -1)
PERTURBED = Topic("perturbed", Cleanup.DELETE, -1)
RESPONSE_NOTES = Topic("response-notes", Cleanup.DELETE, 3 * DAY_MS)
ALERTS = Topic("alerts", Cleanup.DELETE, 30 * DAY_MS)

TOPICS = (QUERIES, SIGNALS, VERDICTS, OVERRIDES, PERTURBED, RESPONSE_NOTES, ALERTS)
READ_BY_STREAMS = (QUERIES, SIGNALS, OVERRIDES)
"""Topics with a dead topic beside them."""


def all_topics() -> tuple[Topic, ...]:
    """Every topic that a deployment needs, dead topics included."""
    return TOPICS + tuple(topic.dead for topic in READ_BY_STREAMS)


def partition_of(account: str, partitions: int) -> int:
    """The partition of an account: Kafka's default partitioner applied to its name.

    Raises:
        ValueError: `partitions` is not positive.
    """
    if partitions < 1:
        raise ValueError(f"partitions must be positive, not {partitions}")
    return int((murmur2(account.encode()) & 0x7FFFFFFF) % partitions)
