"""Publishing: nothing lost, nothing reordered, whatever the broker does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.inference.link import Delivery, LinkError
from services.inference.publisher import (
    AcceptedQueries,
    Destination,
    Limits,
    Publisher,
    State,
    note_records,
    perturbed_records,
    query_batches,
)
from services.inference.spool import Record, Spool
from shared.clock import SystemClock
from shared.codec import decode_perturbed, decode_queries, decode_response_note
from shared.events import Action, PerturbedAnswer, ResponseNote
from shared.metrics import EVENTS_FAILED
from shared.topics import partition_of

TO = Destination("queries", "perturbed", "response-notes", partitions=4, model_name="fashion", model_version="1")


class Broker:
    """A broker in memory that can be away or slow, and can take records without acknowledging them."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.acknowledges = threading.Event()
        self.acknowledges.set()
        self.refuses = False
        self.answers = threading.Event()
        self.answers.set()
        self.records: list[Record] = []

    def connect(self) -> BrokerLink:
        self.answers.wait()
        if not self.there.is_set():
            raise LinkError("no broker answers")
        return BrokerLink(self)

    def queries(self) -> list[str]:
        """Query ids in the order of arrival, of batches that had not arrived before."""
        seen: dict[bytes, None] = {}
        ids: list[str] = []
        for record in self.records:
            batch = decode_queries(record.value)
            if batch.batch_id not in seen:
                ids += batch.query_ids
            seen[batch.batch_id] = None
        return ids


class BrokerLink:
    """A link to it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def deliver(self, records: Sequence[Record]) -> Delivery:
        if not self._broker.there.is_set():
            return Delivery(tuple(records), error="gone")
        if self._broker.refuses:
            return Delivery(refused=tuple(records), error="too large")
        self._broker.records += records
        return Delivery() if self._broker.acknowledges.is_set() else Delivery(tuple(records), error="no answer")

    def close(self) -> None:
        """Nothing to give up."""


def queries(number: int, account: str = "alice", rows: int = 1) -> AcceptedQueries:
    return AcceptedQueries(
        account=account,
        request_id=f"r{number}",
        query_ids=[f"{number}-{row}" for row in range(rows)],
        accepted_at=1_700_000_000_000_000 + number,
        inputs=np.full((rows, 1, 4, 4), number % 256, dtype=np.uint8),
        logits=np.zeros((rows, 3), dtype=np.float32),
        answers=np.zeros((rows, 3), dtype=np.float32),
        action=Action.ALLOW,
        perturbed=np.zeros(rows, dtype=np.bool_),
    )


def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def start(tmp_path: Path, broker: Broker) -> Iterator[Callable[..., Publisher]]:
    started: list[Publisher] = []

    def make(queue_rows: int = 1000, spool_bytes: int = 10**8, linger: float = 0.001) -> Publisher:
        limits = Limits(queue_rows=queue_rows, linger_seconds=linger, batch_rows=8)
        publisher = Publisher(TO, limits, Spool(tmp_path / "spool", spool_bytes), broker.connect, SystemClock())
        publisher.start()
        started.append(publisher)
        return publisher

    yield make
    for publisher in started:
        publisher.close(0.5)


def test_batches_hold_one_partition_each_in_order_and_as_many_rows_as_allowed() -> None:
    accepted = [queries(number, account=f"account-{number % 7}", rows=3) for number in range(30)]
    records = query_batches(accepted, TO, most_rows=8)
    for record in records:
        batch = decode_queries(record.value)
        assert {partition_of(account, 4) for account in batch.accounts} == {record.partition}
        assert record.key == str(record.partition).encode()
        assert len(batch) == record.rows <= 8
        assert (batch.inputs[:, 0, 0, 0] == [int(i.split("-")[0]) for i in batch.query_ids]).all()
        assert batch.accepted_at.tolist() == [1_700_000_000_000_000 + int(r[1:]) for r in batch.request_ids]
    for account in {request.account for request in accepted}:
        told = [
            query_id
            for record in records
            for query_id, of in zip(
                decode_queries(record.value).query_ids, decode_queries(record.value).accounts, strict=True
            )
            if of == account
        ]
        assert told == [i for request in accepted if request.account == account for i in request.query_ids]


def test_a_spoiled_answer_is_published_under_its_account() -> None:
    answer = PerturbedAnswer(
        "q", "alice", "fashion", "1", 5, "amao", 2**64 - 1, "phash", 8,
        np.zeros((1, 4, 4), np.uint8), np.zeros(3, np.float32), np.ones(3, np.float32),
    )  # fmt: skip
    spoiled = replace(queries(1), spoiled=(answer,))
    (record,) = perturbed_records([spoiled], TO)
    assert (record.topic, record.key, record.partition) == ("perturbed", b"alice", partition_of("alice", 4))
    assert decode_perturbed(record.value).perceptual_hash == 2**64 - 1


def test_a_response_note_is_published_under_its_account() -> None:
    note = ResponseNote("alice", "fashion", "1", "amao", 5, b"note")
    (record,) = note_records([queries(0), replace(queries(1), note=note)], TO)
    assert (record.topic, record.key, record.partition) == ("response-notes", b"alice", partition_of("alice", 4))
    assert decode_response_note(record.value) == note


def test_queries_arrive_in_order(start: Callable[..., Publisher], broker: Broker) -> None:
    broker.there.set()
    publisher = start()
    for number in range(200):
        assert publisher.offer(queries(number))
    until(lambda: len(broker.queries()) == 200)
    assert broker.queries() == [f"{number}-0" for number in range(200)]
    assert publisher.state is State.CONNECTED


def test_while_the_broker_is_away_queries_wait_on_disk_and_arrive_in_order_afterwards(
    start: Callable[..., Publisher], broker: Broker
) -> None:
    publisher = start(queue_rows=20)
    for number in range(100):
        until(lambda number=number: publisher.offer(queries(number)))  # type: ignore[misc]
    assert publisher.state is State.AWAY
    broker.there.set()
    for number in range(100, 200):
        until(lambda number=number: publisher.offer(queries(number)))  # type: ignore[misc]
    until(lambda: len(broker.queries()) == 200)
    assert broker.queries() == [f"{number}-0" for number in range(200)]
    until(lambda: publisher.state is State.CONNECTED)


def test_a_broker_that_comes_and_goes_costs_no_query_and_no_order(
    start: Callable[..., Publisher], broker: Broker
) -> None:
    broker.there.set()
    publisher = start()
    for number in range(300):
        if number % 60 == 30:
            broker.there.clear()
        if number % 60 == 0:
            broker.there.set()
        assert publisher.offer(queries(number))
        time.sleep(0.002)
    broker.there.set()
    until(lambda: len(broker.queries()) == 300)
    assert broker.queries() == [f"{number}-0" for number in range(300)]


def test_a_batch_whose_acknowledgement_was_lost_is_sent_again_under_the_same_id(
    start: Callable[..., Publisher], broker: Broker
) -> None:
    broker.there.set()
    broker.acknowledges.clear()
    publisher = start()
    publisher.offer(queries(1))
    until(lambda: len(broker.records) >= 1)
    broker.acknowledges.set()
    until(lambda: len(broker.records) >= 2 and publisher.state is State.CONNECTED)
    ids = {decode_queries(record.value).batch_id for record in broker.records}
    assert len(ids) == 1
    assert broker.queries() == ["1-0"]


def test_with_spool_and_queue_full_queries_are_refused_and_none_that_was_taken_is_lost(
    start: Callable[..., Publisher], broker: Broker
) -> None:
    publisher = start(queue_rows=10, spool_bytes=2000)
    taken = []
    for number in range(500):
        if publisher.offer(queries(number)):
            taken.append(f"{number}-0")
        else:
            time.sleep(0.002)
    assert 10 <= len(taken) < 100
    assert not publisher.has_room(1)
    broker.there.set()
    until(lambda: len(broker.queries()) == len(taken))
    assert broker.queries() == taken
    until(lambda: publisher.has_room(1))


def test_closing_brings_everything_to_kafka(start: Callable[..., Publisher], broker: Broker) -> None:
    broker.there.set()
    publisher = start(linger=0.5)
    until(lambda: publisher.state is State.CONNECTED)
    for number in range(50):
        publisher.offer(queries(number))
    publisher.close(5.0)
    assert broker.queries() == [f"{number}-0" for number in range(50)]
    assert not publisher.offer(queries(51))


def test_closing_waits_for_a_broker_that_is_about_to_answer(start: Callable[..., Publisher], broker: Broker) -> None:
    broker.there.set()
    broker.answers.clear()
    publisher = start()
    for number in range(50):
        publisher.offer(queries(number))
    threading.Timer(0.5, broker.answers.set).start()
    publisher.close(20.0)
    assert broker.queries() == [f"{number}-0" for number in range(50)]


def test_closing_waits_no_longer_than_told_for_a_broker_that_does_not_answer(
    start: Callable[..., Publisher], broker: Broker
) -> None:
    broker.answers.clear()
    publisher = start()
    publisher.offer(queries(1))
    publisher.close(0.5)
    assert not publisher.alive
    broker.there.set()
    broker.answers.set()
    start()
    until(lambda: broker.queries() == ["1-0"])


def test_closing_without_a_broker_leaves_everything_to_the_next_process(
    start: Callable[..., Publisher], broker: Broker
) -> None:
    before = EVENTS_FAILED._value.get()
    first = start()
    for number in range(50):
        first.offer(queries(number))
    first.close(5.0)
    assert not first.alive
    broker.there.set()
    second = start()
    second.offer(queries(50))
    until(lambda: len(broker.queries()) == 51)
    assert broker.queries() == [f"{number}-0" for number in range(51)]
    assert EVENTS_FAILED._value.get() == before


def test_what_kafka_refuses_for_good_is_counted_as_lost_and_holds_nothing_up(
    start: Callable[..., Publisher], broker: Broker
) -> None:
    before = EVENTS_FAILED._value.get()
    broker.there.set()
    broker.refuses = True
    publisher = start()
    publisher.offer(queries(1, rows=3))
    until(lambda: EVENTS_FAILED._value.get() == before + 3)
    broker.refuses = False
    publisher.offer(queries(2))
    until(lambda: broker.queries() == ["2-0"])


def test_an_offer_never_waits(start: Callable[..., Publisher], broker: Broker) -> None:
    publisher = start(queue_rows=100_000, linger=1.0)
    started = time.perf_counter()
    for number in range(1000):
        publisher.offer(queries(number))
    assert time.perf_counter() - started < 1.0
