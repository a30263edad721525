"""The disk spool: in order, whole, through crashes and torn ends."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from services.inference.spool import Record, Spool, SpoolError, SpoolFullError

LARGE = 10**9


def record(number: int, size: int = 10) -> Record:
    return Record("queries", number % 4, b"key", number.to_bytes(8, "big") * size, rows=number)


def drain(spool: Spool, most_bytes: int = 100) -> list[Record]:
    drained: list[Record] = []
    while records := spool.peek(most_bytes):
        drained += records
        spool.advance(len(records))
    return drained


@given(topic=st.text(max_size=50), partition=st.integers(0, 2**32 - 1), key=st.binary(max_size=99), value=st.binary())
def test_a_record_survives_its_bytes(topic: str, partition: int, key: bytes, value: bytes) -> None:
    original = Record(topic, partition, key, value, rows=7)
    assert Record.from_bytes(original.to_bytes()) == original


def test_records_come_out_in_order_over_segments_and_processes(tmp_path: Path) -> None:
    expected = [record(number) for number in range(50)]
    spool = Spool(tmp_path, LARGE, segment_bytes=500)
    for number in range(0, 50, 5):
        spool.append(expected[number : number + 5])
    spool.close()
    assert len(list(tmp_path.glob("*.segment"))) > 3
    again = Spool(tmp_path, LARGE, segment_bytes=500)
    assert drain(again) == expected
    assert again.empty
    assert list(tmp_path.glob("*.segment")) == []


def test_what_was_read_but_not_advanced_over_is_read_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    spool.append([record(number) for number in range(10)])
    spool.peek(LARGE)
    spool.advance(4)
    spool.peek(LARGE)
    spool.close()
    assert [r.rows for r in drain(Spool(tmp_path, LARGE))] == [4, 5, 6, 7, 8, 9]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_torn_end_costs_the_torn_record_alone(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("torn")
    spool = Spool(folder, LARGE)
    spool.append([record(number) for number in range(5)])
    spool.close()
    (segment,) = folder.glob("*.segment")
    size = segment.stat().st_size
    kept = data.draw(st.integers(0, size))
    with segment.open("r+b") as file:
        file.truncate(kept)
    again = Spool(folder, LARGE)
    again.append([record(99)])
    whole = kept // (size // 5)
    assert [r.rows for r in drain(again)] == [*range(whole), 99]
    again.close()


def test_a_damaged_record_is_set_aside_with_its_segment_and_later_segments_are_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE, segment_bytes=1)
    for number in range(3):
        spool.append([record(number)])
    first, *_ = sorted(tmp_path.glob("*.segment"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 0xFF
    first.write_bytes(data)
    assert [r.rows for r in drain(spool)] == [1, 2]
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_a_full_spool_takes_nothing_of_what_does_not_fit(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=300)
    spool.append([record(1)])
    with pytest.raises(SpoolFullError, match="taken"):
        spool.append([record(2), record(3), record(4)])
    assert [r.rows for r in drain(spool)] == [1]
    spool.append([record(5)])
    assert [r.rows for r in drain(spool)] == [5]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Like a disk with little room: the system takes what fits of a write, and refuses the next."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_a_part_of_a_record_takes_none_of_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    spool.append([record(1)])
    size = spool.bytes
    with files_of_at_most(size + 20), pytest.raises(OSError, match="File too large"):
        spool.append([record(2), record(3)])
    assert spool.bytes == size
    spool.append([record(4)])
    assert [r.rows for r in drain(spool)] == [1, 4]
    assert not list(tmp_path.glob("*.damaged"))


def test_a_disk_that_keeps_no_position_does_not_stop_the_spool_from_being_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    spool.append([record(number) for number in range(5)])
    (tmp_path / "position.new").mkdir()  # nothing can be written there
    spool.peek(LARGE)
    spool.advance(2)
    assert [r.rows for r in spool.peek(LARGE)] == [2, 3, 4]
    spool.close()
    assert [r.rows for r in drain(Spool(tmp_path, LARGE))] == [0, 1, 2, 3, 4], "sent again, and dropped there"


def test_a_folder_serves_one_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    with pytest.raises(SpoolError, match="another process"):
        Spool(tmp_path, LARGE)
    spool.close()
    Spool(tmp_path, LARGE).close()


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpoolError, match=r"file/spool"):
        Spool(tmp_path / "file" / "spool", LARGE)


def test_the_spool_is_a_queue_whatever_happens_in_which_order(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Machine(RuleBasedStateMachine):
        """A spool beside a list that does the same."""

        def __init__(self) -> None:
            super().__init__()
            self.folder = tmp_path_factory.mktemp("machine")
            self.spool = Spool(self.folder, LARGE, segment_bytes=400)
            self.model: list[Record] = []
            self.made = 0

        @rule(count=st.integers(1, 6))
        def append(self, count: int) -> None:
            records = [record(self.made + i) for i in range(count)]
            self.made += count
            self.spool.append(records)
            self.model += records

        @rule(most_bytes=st.integers(1, 1000), share=st.floats(0, 1))
        def read(self, most_bytes: int, share: float) -> None:
            records = self.spool.peek(most_bytes)
            assert records == self.model[: len(records)]
            assert bool(records) == bool(self.model)
            taken = round(len(records) * share)
            self.spool.advance(taken)
            del self.model[:taken]

        @rule()
        def restart(self) -> None:
            self.spool.close()
            self.spool = Spool(self.folder, LARGE, segment_bytes=400)

        @invariant()
        def empty_together(self) -> None:
            assert self.spool.empty == (not self.model)

        def teardown(self) -> None:
            self.spool.close()

    run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))
