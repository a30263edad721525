"""What a worker sends and stores, whatever interrupts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import decode_queries, encode_queries
from shared.detection import StateError
from shared.engine import Engine, RecentBatches, StageBug, Take, Write, chunk_key, head_key, seal, unseal
from shared.events import QueryBatch
from shared.stage import DetectorStage, Record
from shared.topics import QUERIES
from tests.support.streams import (
    MODEL,
    PARTITIONS,
    BrightnessDetector,
    CursedStage,
    accounts_of,
    brightness_stage,
    by_identity,
    query_batch,
    query_stream,
    same_signal,
)


class Stored:
    """What Kafka's changelog holds of the states."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, str], bytes] = {}

    def read(self, partition: int, key: str) -> bytes | None:
        return self.values.get((partition, key))

    def write(self, writes: Iterable[Write]) -> None:
        for write in writes:
            if write.value is None:
                self.values.pop((write.partition, write.key), None)
            else:
                self.values[write.partition, write.key] = write.value

    def engine(
        self, stage: DetectorStage | None = None, recent: int = 100, accounts: int = 100
    ) -> Engine[Any, Any, Any, Any]:
        return Engine(stage or brightness_stage(), self.read, recent, accounts)


def record(batch: QueryBatch | bytes, offset: int, partition: int = 0) -> Record:
    value = batch if isinstance(batch, bytes) else encode_queries(batch)
    return Record(QUERIES, partition, offset, 1_700_000_000_000_000, value, key=b"key")


def records_of(batches: Iterable[tuple[int, QueryBatch]]) -> list[Record]:
    """As Kafka would number them."""
    ends = [0] * PARTITIONS
    found = []
    for partition, batch in batches:
        found.append(record(batch, ends[partition], partition))
        ends[partition] += 1
    return found


def uninterrupted(records: Sequence[Record]) -> dict[Any, Any]:
    return by_identity(output.value for output in Stored().engine().take(records).outputs)


def assert_same(found: dict[Any, Any], expected: dict[Any, Any]) -> None:
    assert found.keys() == expected.keys()
    assert all(same_signal(found[identity], expected[identity]) for identity in expected)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_crash_anywhere_changes_no_signal_and_loses_none(data: st.DataObject) -> None:
    records = records_of(query_stream(data.draw(st.integers(0, 5)), batches=24, rows=6, accounts=2))
    stored, sent, position = Stored(), [], 0
    engine = stored.engine()
    for _ in range(12):
        taken = records[position : position + data.draw(st.integers(1, 12), label="records taken")]
        take = engine.take(taken)
        end = data.draw(st.sampled_from(["done", "before sending", "while sending", "while storing"]))
        if end == "while sending":
            sent += take.outputs[: data.draw(st.integers(0, len(take.outputs)))]
        if end in ("while storing", "done"):
            sent += take.outputs
            stored.write(take.writes if end == "done" else some_of(take.writes, data))
        # The commit comes after the states: a crash between them replays what was stored.
        position += len(taken) if end == "done" and data.draw(st.booleans(), label="committed") else 0
        if end != "done":
            engine = stored.engine()
    sent += stored.engine().take(records[position:]).outputs
    assert_same(by_identity(output.value for output in sent), uninterrupted(records))


def some_of(writes: Sequence[Write], data: st.DataObject) -> list[Write]:
    """What a crash leaves: of each partition the first writes, for a partition keeps its order."""
    left = []
    for partition in range(PARTITIONS):
        of_partition = [write for write in writes if write.partition == partition]
        left += of_partition[: data.draw(st.integers(0, len(of_partition)))]
    return left


def test_signals_do_not_depend_on_how_records_are_cut_into_takes() -> None:
    records = records_of(query_stream(1, batches=60))
    stored = Stored()
    engine, values = stored.engine(), []
    for one in records:
        take = engine.take([one])
        stored.write(take.writes)
        values += [output.value for output in take.outputs]
    together = Stored().engine().take(records)
    assert values == [output.value for output in together.outputs]


def test_states_that_were_evicted_from_memory_are_read_again() -> None:
    records = records_of(query_stream(2, batches=60))
    stored = Stored()
    engine, values = stored.engine(accounts=1), []
    for one in records:
        take = engine.take([one])
        stored.write(take.writes)
        values += [output.value for output in take.outputs]
        assert engine.accounts == 1
    assert_same(by_identity(values), uninterrupted(records))


def test_each_record_gives_one_record_of_signals_in_its_own_partition() -> None:
    records = records_of(query_stream(3, batches=20))
    outputs = Stored().engine().take(records).outputs
    assert [output.partition for output in outputs] == [one.partition for one in records]


def test_chunks_are_stored_before_heads_and_deleted_after_them() -> None:
    stored = Stored()
    engine = stored.engine()
    orders = []
    for one in records_of(query_stream(4, batches=120, rows=8, accounts=1)):
        take = engine.take([one])
        stored.write(take.writes)
        orders.append([_kind(write) for write in take.writes if "account:" in write.key])
    assert any("deletion" in order for order in orders)
    rank = {"chunk": 0, "head": 1, "deletion": 2}
    assert all(order == sorted(order, key=rank.__getitem__) for order in orders)


def _kind(write: Write) -> str:
    if write.value is None:
        return "deletion"
    return write.key.partition(":")[0]


def test_storage_of_an_account_stays_bounded() -> None:
    stored = Stored()
    engine = stored.engine(recent=8)
    sizes = []
    for one in records_of((0, query_batch(accounts_of(0, 1) * 16, seed)) for seed in range(40)):
        stored.write(engine.take([one]).writes)
        sizes.append(sum(key.endswith(accounts_of(0, 1)[0]) and "seen" in key for _, key in stored.values))
    assert max(sizes) <= 8
    assert sum("batches:" in key for _, key in stored.values) <= 5


class TestABatchThatIsSentTwice:
    def test_counts_once_within_a_take(self) -> None:
        batch = query_batch(accounts_of(0, 3), 1)
        take = Stored().engine().take([record(batch, 0), record(batch, 1)])
        assert take.outcomes == {"processed": 1, "duplicate": 1}
        assert len(take.outputs) == 1

    def test_counts_once_over_a_restart(self) -> None:
        stored, batch = Stored(), query_batch(accounts_of(0, 3), 1)
        stored.write(stored.engine().take([record(batch, 0)]).writes)
        take = stored.engine().take([record(batch, 7)])
        assert (take.outcomes, take.outputs) == ({"duplicate": 1}, [])

    def test_is_no_duplicate_when_the_same_record_is_replayed_after_a_crash(self) -> None:
        stored, batch = Stored(), query_batch(accounts_of(0, 3), 1)
        take = stored.engine().take([record(batch, 5)])
        stored.write(write for write in take.writes if "batches:" in write.key)
        again = stored.engine().take([record(batch, 5)])
        assert [output.value for output in again.outputs] == [output.value for output in take.outputs]

    def test_is_forgotten_after_so_many_others(self) -> None:
        stored = Stored()
        engine = stored.engine(recent=4)
        first = query_batch(accounts_of(0, 1), 0)
        batches = [first, *(query_batch(accounts_of(0, 1), seed) for seed in range(1, 20)), first]
        outcomes = [engine.take([record(batch, offset)]).outcomes for offset, batch in enumerate(batches)]
        assert outcomes[-1] == {"processed": 1}

    def test_counts_twice_in_two_partitions(self) -> None:
        batches = [query_batch(accounts_of(partition, 1), 1) for partition in (0, 1)]
        same_id = dataclasses.replace(batches[1], batch_id=batches[0].batch_id)
        take = Stored().engine().take([record(batches[0], 0, 0), record(same_id, 0, 1)])
        assert take.outcomes == {"processed": 2}


class TestARecordThatCannotBeUsed:
    def test_goes_to_the_dead_topic_untouched_and_the_others_go_on(self) -> None:
        good, bad = record(query_batch(accounts_of(0, 2), 1), 1), record(b"\xff\xfe", 0)
        take = Stored().engine().take([bad, good])
        assert [(letter.record, letter.value, letter.reason) for letter in take.dead] == [
            (bad, b"\xff\xfe", "undecodable")
        ]
        assert take.outcomes == {"dead": 1, "processed": 1}

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"model_version": "2"}, "version"),
            ({"model_name": "other"}, "version"),
            ({"inputs": np.zeros((2, 1, 3, 3), dtype=np.uint8)}, "shape"),
            ({name: np.zeros((2, 4), dtype=np.float32) for name in ("logits", "answers")}, "shape"),
            ({"accounts": accounts_of(1, 2)}, "misplaced"),
        ],
        ids=["version", "model", "inputs", "logits", "partition"],
    )
    def test_is_named_with_its_reason(self, change: dict[str, Any], reason: str) -> None:
        batch = dataclasses.replace(query_batch(accounts_of(0, 2), 1), **change)
        take = Stored().engine().take([record(batch, 0)])
        assert [letter.reason for letter in take.dead] == [reason]
        assert not take.outputs
        assert not take.writes

    def test_is_one_row_where_only_that_row_is_misplaced(self) -> None:
        here, there = accounts_of(0, 2), accounts_of(1, 1)
        batch = query_batch([here[0], there[0], here[1]], 1)
        take = Stored().engine().take([record(batch, 0)])
        (letter,) = take.dead
        assert letter.value is not None
        row = decode_queries(letter.value)
        assert (row.accounts, row.query_ids) == ((there[0],), ("q1-1",))
        assert np.array_equal(row.inputs, batch.inputs[1:2])
        assert [said.account for said in by_identity(o.value for o in take.outputs).values()] == here

    def test_a_row_taken_out_is_no_duplicate_when_it_is_sent_to_its_own_partition(self) -> None:
        stored, there = Stored(), accounts_of(1, 1)
        engine = stored.engine()
        (letter,) = engine.take([record(query_batch([accounts_of(0, 1)[0], there[0]], 1), 0)]).dead
        assert letter.value is not None
        assert engine.take([record(letter.value, 0, partition=1)]).outcomes == {"processed": 1}


def test_a_bug_names_the_record_and_the_account() -> None:
    stage = CursedStage(BrightnessDetector(), MODEL, partitions=1)
    with pytest.raises(StageBug, match=r"step failed at queries/0@3, account 'toy/cursed'") as caught:
        Stored().engine(stage).take([record(query_batch(["fine", "cursed"], 1), 3)])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


class TestAStateOfOtherParameters:
    def take(self) -> tuple[Stored, Take]:
        stored = Stored()
        stored.write(stored.engine().take([record(query_batch(accounts_of(0, 1), 1), 0)]).writes)
        return stored, stored.engine(brightness_stage(fingerprint="two")).take(
            [record(query_batch(accounts_of(0, 1), seed), offset) for offset, seed in ((0, 1), (1, 2))]
        )

    def test_is_put_aside_and_said_so(self) -> None:
        _, take = self.take()
        assert take.anew == [f"toy/{accounts_of(0, 1)[0]}"]
        assert [said.queries for said in by_identity(o.value for o in take.outputs).values()] == [1]

    def test_still_tells_which_records_were_absorbed(self) -> None:
        _, take = self.take()
        assert take.outcomes == {"absorbed": 1, "processed": 1}


def test_a_state_whose_chunk_is_lost_is_a_bug_and_no_new_beginning() -> None:
    stored = Stored()
    stored.write(stored.engine().take([record(query_batch(accounts_of(0, 1), 1), 0)]).writes)
    del stored.values[0, chunk_key(f"account:toy/{accounts_of(0, 1)[0]}", "seen/0")]
    with pytest.raises(StageBug):
        stored.engine().take([record(query_batch(accounts_of(0, 1), 2), 1)])


@given(offsets=st.dictionaries(st.text(), st.integers()), head=st.binary())
def test_sealed_offsets_and_head_come_out_as_they_went_in(offsets: dict[str, int], head: bytes) -> None:
    assert unseal(seal(offsets, head)) == (offsets, head)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"[]\nhead", b"no json\nhead"])
def test_what_was_not_sealed_is_refused(data: bytes) -> None:
    with pytest.raises(StateError):
        unseal(data)


@given(account=st.text(), other=st.text(), chunk=st.sampled_from(["seen/0", "seen/1"]))
def test_no_two_things_are_stored_under_one_key(account: str, other: str, chunk: str) -> None:
    keys = {head_key(account), chunk_key(account, chunk)}
    assert len(keys) == 2
    assert (account == other) == bool(keys & {head_key(other), chunk_key(other, chunk)})


@given(count=st.integers(1, 60), capacity=st.integers(1, 20))
def test_recent_batches_are_remembered_over_storage(count: int, capacity: int) -> None:
    recent, chunks = RecentBatches(capacity), {}
    for number in range(count):
        assert recent.first_offset(number.to_bytes(16, "big"), number) == number
        encoded = recent.encode()
        chunks |= encoded.chunks
        for name in encoded.deleted:
            del chunks[name]
    restored = RecentBatches.restore(capacity, encoded.head, chunks.get)
    for number in range(max(0, count - capacity), count):
        assert restored.first_offset(number.to_bytes(16, "big"), 1000) == number
