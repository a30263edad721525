"""Topics have one name and one shape, and an account has one partition: the one Kafka's own clients would choose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import DefaultPartitioner

from shared.topics import READ_BY_STREAMS, TOPICS, Cleanup, all_topics, partition_of


class Cluster:
    """As much of a cluster's metadata as kafka-python's partitioner asks for: one topic."""

    def __init__(self, partitions: int) -> None:
        self.partitions = set(range(partitions))

    def topics(self) -> set[str]:
        return {"queries"}

    def partitions_for_topic(self, topic: str) -> set[int]:
        return self.partitions

    available_partitions_for_topic = partitions_for_topic


@given(account=st.text(min_size=1), partitions=st.integers(1, 64))
def test_an_account_lives_where_kafkas_default_partitioner_puts_it(account: str, partitions: int) -> None:
    key = account.encode()
    chosen = DefaultPartitioner().partition("queries", key, key, b"", b"", Cluster(partitions))
    assert partition_of(account, partitions) == chosen


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        # From Apache Kafka's own UtilsTest.testMurmur2.
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_the_partition_is_that_of_javas_murmur2(key: str, hashed: int) -> None:
    for partitions in (1, 3, 4, 16, 97, 4096):
        assert partition_of(key, partitions) == (hashed & 0x7FFFFFFF) % partitions


@pytest.mark.parametrize("partitions", [0, -1])
def test_no_account_lives_in_no_partition(partitions: int) -> None:
    with pytest.raises(ValueError, match="partitions must be positive"):
        partition_of("ann", partitions)


def test_topics_that_streams_read_have_a_dead_topic_that_keeps_records_whatever_the_source_does() -> None:
    dead = {topic.name: topic for topic in all_topics()}
    for topic in READ_BY_STREAMS:
        grave = dead[f"{topic.name}.dead"]
        assert grave.cleanup is Cleanup.DELETE
        assert grave.max_message_bytes == topic.max_message_bytes


def test_names_are_unique() -> None:
    names = [topic.name for topic in all_topics()]
    assert len(set(names)) == len(names) == len(TOPICS) + len(READ_BY_STREAMS)


def test_only_verdicts_and_overrides_keep_the_last_word_for_good() -> None:
    compacted = [topic.name for topic in TOPICS if topic.config()["cleanup.policy"] == "compact"]
    assert compacted == ["verdicts", "overrides"]
    assert all("retention.ms" not in topic.config() for topic in TOPICS if topic.cleanup is Cleanup.COMPACT)
