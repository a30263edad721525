"""Workers as processes on a real Kafka, killed, misled and cut off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.kafka.broker import Broker, LocalBroker
from shared.bundle import DETECTORS, Bundle
from shared.codec import encode_queries
from shared.datasets import load_fashion_mnist
from shared.events import QueryBatch
from shared.settings import REPOSITORY_BUNDLE, ServiceSettings
from shared.topics import partition_of
from shared.topics_admin import create_topics
from tests.support.photographs import photograph_stream
from tests.support.streams import (
    PARTITIONS,
    Reader,
    SignalReader,
    Signals,
    accounts_of,
    produce,
    produce_queries,
    query_batch,
    query_stream,
    running_worker,
    same_signal,
)

pytestmark = pytest.mark.kafka


def make_topics(address: str, prefix: str) -> None:
    create_topics(ServiceSettings(kafka=address, topic_prefix=prefix, partitions=PARTITIONS))


@pytest.fixture
def prefix(broker: Broker, topic_prefix: str) -> str:
    make_topics(broker.address, topic_prefix)
    return topic_prefix


@pytest.fixture
def signals(broker: Broker, prefix: str) -> Iterator[SignalReader]:
    with SignalReader(broker.address, prefix) as reader:
        yield reader


def expected_signals(batches: list[tuple[int, QueryBatch]]) -> int:
    """One for each account of each batch."""
    return sum(len(set(batch.accounts)) for _, batch in batches)


def uninterrupted(address: str, batches: list[tuple[int, QueryBatch]], folder: Path) -> Signals:
    """What a worker that nothing happens to says of the same input."""
    prefix = f"reference-{time.monotonic_ns()}-"
    make_topics(address, prefix)
    produce_queries(address, prefix, batches)
    folder.mkdir()
    with running_worker(address, prefix, folder), SignalReader(address, prefix) as reader:
        reader.until_found(expected_signals(batches), timeout=60)
        return reader.found


def assert_same(found: Signals, expected: Signals) -> None:
    assert found.keys() == expected.keys()
    others = [identity for identity in expected if not same_signal(found[identity], expected[identity])]
    assert not others, f"{len(others)} differ: {found[others[0]]} is not {expected[others[0]]}"


def test_every_shipped_detector_killed_in_mid_stream_ends_with_the_signals_of_an_uninterrupted_run(
    broker: Broker, prefix: str, signals: SignalReader, tmp_path: Path
) -> None:
    """As the services run them, on the bundle of this repository, with their states on disk."""
    bundle, images = Bundle.load(REPOSITORY_BUNDLE), load_fashion_mnist("test").images
    batches = list(photograph_stream(bundle, images, 300, rows=8, accounts=24, partitions=PARTITIONS, seed=3))
    each = expected_signals(batches)
    produce_queries(broker.address, prefix, batches)
    for number, name in enumerate(DETECTORS):
        slowly = {"take_records": "4", "store": "rocksdb", "data_folder": str(tmp_path / name)}
        with running_worker(broker.address, prefix, tmp_path, f"services.{name}", **slowly) as worker:
            signals.until_found(number * each + each // 4, timeout=60)
            worker.kill()
            signals.poll(1.0)
            before = len(signals.found)
            assert before < (number + 1) * each, f"{name} had finished before it was killed; send it more"
            worker.start()
            signals.until_found(before + 1, timeout=15)
            signals.until_found((number + 1) * each, timeout=60)
    reference = f"reference-{prefix}"
    make_topics(broker.address, reference)
    produce_queries(broker.address, reference, batches)
    with ExitStack() as stack, SignalReader(broker.address, reference) as undisturbed:
        for name in DETECTORS:
            stack.enter_context(running_worker(broker.address, reference, tmp_path, f"services.{name}"))
        undisturbed.until_found(len(DETECTORS) * each, timeout=60)
    assert_same(signals.found, undisturbed.found)


def test_records_that_cannot_be_used_go_to_the_dead_topic_and_the_worker_goes_on(
    broker: Broker, prefix: str, signals: SignalReader, tmp_path: Path
) -> None:
    accounts = accounts_of(0, 2)
    other_version = encode_queries(query_batch(accounts, 1, version="2"))
    values = [b"no protobuf \xff", other_version, b"", encode_queries(query_batch(accounts, 2))]
    produce(broker.address, f"{prefix}queries", ((0, value) for value in values))
    with (
        running_worker(broker.address, prefix, tmp_path) as worker,
        Reader(broker.address, f"{prefix}queries.dead") as dead,
    ):
        signals.until_found(2, timeout=40)
        dead.until(lambda: len(dead.records) == 3, timeout=10)
        assert "portcullis_dead_letters_total" in worker.metrics()
        assert worker.stop() == 0
    assert dead.values == values[:3]
    headers = [dict(record.headers) for record in dead.records]
    assert [h["portcullis-reason"] for h in headers] == [b"undecodable", b"version", b"undecodable"]
    assert [h["portcullis-offset"] for h in headers] == [b"0", b"1", b"2"]
    assert {h["portcullis-topic"] for h in headers} == {f"{prefix}queries".encode()}
    assert b"('toy', '2')" in headers[1]["portcullis-error"]


def test_a_batch_published_twice_counts_once(
    broker: Broker, prefix: str, signals: SignalReader, tmp_path: Path
) -> None:
    accounts = accounts_of(0, 2)
    batch, later = query_batch(accounts, 1), query_batch(accounts, 2)
    produce_queries(broker.address, prefix, [(0, batch), (0, batch)])
    with running_worker(broker.address, prefix, tmp_path) as worker:
        signals.until_found(2, timeout=40)
        assert worker.stop() == 0
        produce_queries(broker.address, prefix, [(0, batch), (0, later)])
        worker.start()
        signals.until_found(4, timeout=40)
    found = signals.found
    assert {(offset, one.queries) for (_, _, offset, _), one in found.items()} == {(0, 1), (3, 2)}


def test_a_bug_ends_the_worker_and_acknowledges_nothing(
    broker: Broker, prefix: str, signals: SignalReader, tmp_path: Path
) -> None:
    produce_queries(broker.address, prefix, [(partition_of("cursed", PARTITIONS), query_batch(["cursed"], 1))])
    with running_worker(broker.address, prefix, tmp_path, cursed="true") as worker:
        assert worker.wait(timeout=40) == 1
        assert "step failed at queries" in worker.log.read_text()
        assert "ZeroDivisionError" in worker.log.read_text()
    with running_worker(broker.address, prefix, tmp_path):
        signals.until_found(1, timeout=40)


def test_a_partition_that_moves_keeps_its_state(
    broker: Broker, prefix: str, signals: SignalReader, tmp_path: Path
) -> None:
    batches = list(query_stream(seed=9, batches=300))
    thirds = batches[:100], batches[100:200], batches[200:]
    with running_worker(broker.address, prefix, tmp_path, instance="one") as one:
        produce_queries(broker.address, prefix, thirds[0])
        signals.until_found(expected_signals(thirds[0]), timeout=40)
        with running_worker(broker.address, prefix, tmp_path, instance="two") as two:
            two.wait_ready()
            produce_queries(broker.address, prefix, thirds[1])
            signals.until_found(expected_signals(batches[:200]), timeout=60)
            assert "portcullis_worker_queries_total" in two.metrics()
            one.kill()
            produce_queries(broker.address, prefix, thirds[2])
            signals.until_found(expected_signals(batches), timeout=60)
    assert_same(signals.found, uninterrupted(broker.address, batches, tmp_path / "reference"))


def test_a_worker_waits_for_kafka_and_outlives_its_absence(tmp_path: Path) -> None:
    batches = list(query_stream(seed=11, batches=200))
    broker = LocalBroker(tmp_path / "kafka")
    with running_worker(broker.address, "", tmp_path) as worker:
        worker.wait_logged("Kafka does not answer")
        assert worker.healthy("live")
        assert not worker.healthy("ready")
        with broker:
            worker.wait_logged("topics are missing")
            assert not worker.healthy("ready")
            make_topics(broker.address, "")
            worker.wait_ready()
            with SignalReader(broker.address, "") as signals:
                produce_queries(broker.address, "", batches[:100])
                signals.until_found(expected_signals(batches[:100]), timeout=40)
                broker.kill()
                time.sleep(5)
                broker.start()
                produce_queries(broker.address, "", batches[100:])
                signals.until_found(expected_signals(batches), timeout=60)
                worker.wait_ready()
                assert worker.stop() == 0
                found = signals.found
            assert_same(found, uninterrupted(broker.address, batches, tmp_path / "reference"))
