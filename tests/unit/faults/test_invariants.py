"""What the fault test looks for, it finds; and it finds nothing where nothing is amiss."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.codec import decode_signals, encode_queries, encode_signals
from shared.events import QueryBatch
from shared.stage import Record
from shared.topics import QUERIES, SIGNALS
from tests.faults import invariants
from tests.faults.findings import Stage, Trials, study
from tests.faults.invariants import (
    ANSWERED,
    DENIED,
    Asked,
    Difference,
    Published,
    Replayed,
    answered_though_banned,
    different_signals,
    different_states,
    different_values,
    published,
    replayed,
)
from tests.faults.trial import Struck
from tests.support.streams import brightness_stage, query_batch, query_stream

PUBLISHED = Published([], [], [], 1)
ALIKE = Difference(missing=0, unexpected=0, same=9)


def records(count: int = 40) -> list[Record]:
    found = []
    offsets: dict[int, int] = {}
    for partition, batch in query_stream(3, count):
        offset = offsets[partition] = offsets.get(partition, -1) + 1
        found.append(Record(QUERIES, partition, offset, 0, encode_queries(batch)))
    return found


@pytest.fixture(scope="module")
def undisturbed() -> Replayed:
    return replayed(brightness_stage(), records())


def asked(number: int, at: float = 0.0, account: str = "alice", status: int = ANSWERED) -> Asked:
    return Asked(f"r1-{number}", account, at, at + 0.1, status)


# ---- every accepted query is there once ----


def batch(rows: int = 3) -> QueryBatch:
    return query_batch(["alice"] * rows, 1)


def test_a_batch_that_was_sent_again_is_one_batch() -> None:
    found = published([asked(0), asked(1), asked(2)], [batch(), batch()], [], 0.5)
    assert (found.lost, found.excused, found.repeated, found.rows) == ([], [], [], 3)


def test_an_answered_query_that_is_in_no_batch_is_lost_and_a_refused_one_is_not() -> None:
    found = published([asked(7), asked(8, status=14)], [batch()], [], 0.5)
    assert [one.request_id for one in found.lost] == ["r1-7"]


def test_only_what_was_answered_just_before_inference_was_killed_may_be_lost() -> None:
    lost = [asked(7, at=9.0), asked(8, at=9.7), asked(9, at=10.5)]  # answered at 9.1, 9.8, 10.6
    found = published(lost, [batch()], killed_at=[10.0], moment=0.5)
    assert [one.request_id for one in found.excused] == ["r1-8"]
    assert [one.request_id for one in found.lost] == ["r1-7", "r1-9"]


def test_a_query_in_two_different_batches_is_there_twice() -> None:
    again = replace(batch(), batch_id=b"x" * 16)
    assert set(published([], [batch(), again], [], 0.5).repeated) == set(batch().query_ids)


# ---- beside an undisturbed replay ----


def test_an_undisturbed_replay_differs_from_no_other_however_it_is_cut(
    undisturbed: Replayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariants, "TAKE", 3)
    other = replayed(brightness_stage(), records())
    assert different_states(brightness_stage(), other.stored, undisturbed.stored) == []
    found = different_signals(other.sent[SIGNALS.name], undisturbed.sent[SIGNALS.name])
    assert (found.missing, found.unexpected) == (0, 0)
    assert found.same > 100


def test_a_state_that_lacks_one_batch_is_different(undisturbed: Replayed) -> None:
    shorter = replayed(brightness_stage(), records()[:-1])
    different = different_states(brightness_stage(), shorter.stored, undisturbed.stored)
    assert 0 < len(different) <= 8


def test_a_state_that_one_side_lacks_is_different(undisturbed: Replayed) -> None:
    head = next(place for place in undisturbed.stored if place[1].startswith("head:account:"))
    without = {place: value for place, value in undisturbed.stored.items() if place != head}
    assert different_states(brightness_stage(), without, undisturbed.stored) == [head[1].removeprefix("head:")]


def test_a_chunk_that_differs_makes_a_state_different(undisturbed: Replayed) -> None:
    changed = {
        place: value[:-1] + bytes([value[-1] ^ 1]) if place[1].startswith("chunk:seen") else value
        for place, value in undisturbed.stored.items()
    }
    assert different_states(brightness_stage(), changed, undisturbed.stored)


def test_signals_that_were_said_twice_and_alike_count_once(undisturbed: Replayed) -> None:
    said = undisturbed.sent[SIGNALS.name]
    twice = different_signals([*said, *said], said)
    assert twice == different_signals(said, said)
    assert (twice.missing, twice.unexpected) == (0, 0)


def test_a_signal_that_was_never_said_and_one_that_was_said_otherwise_are_told(undisturbed: Replayed) -> None:
    first, *rest = undisturbed.sent[SIGNALS.name]
    said = decode_signals(first)
    lies = replace(said, signals=[replace(said.signals[0], statistic=0.25), *said.signals[1:]])
    assert different_signals(rest, [first, *rest]).missing == len(said.signals)
    found = different_signals([encode_signals(lies), *rest], [first, *rest])
    assert (found.missing, found.unexpected) == (1, 1)


def test_verdicts_are_compared_bit_for_bit() -> None:
    assert different_values([b"a", b"a", b"c"], [b"a", b"b"]) == Difference(missing=1, unexpected=1, same=1)


# ---- a ban holds ----


def test_an_answer_after_a_ban_was_enforced_is_told_and_one_before_is_not() -> None:
    queries = [
        asked(0, at=5.0, account="mallory"),
        asked(1, at=11.0, account="mallory", status=DENIED),
        asked(2, at=12.0, account="mallory"),
        asked(3, at=12.0),
    ]
    assert [one.request_id for one in answered_though_banned(queries, {"mallory": 10.0})] == ["r1-2"]


# ---- the page ----


def trials(**changes: object) -> Trials:
    sound = {
        "struck": [Struck("SIGKILL prada", 1.0, 2.0, 3.0)],
        "left_out": "",
        "accounts": (4, 1),
        "asked": [asked(0, at=100.0), asked(1, at=102.0, status=14)],
        "published": PUBLISHED,
        "stages": {"prada": Stage(3, [], {"signals": ALIKE})},
        "dead": 0,
        "pinned_answered": [],
        "banned": ["mallory"],
        "answered_late": [],
        "registered": (5, 5),
    }
    return Trials(**(sound | changes))  # type: ignore[arg-type]


def test_a_sound_trial_says_so_and_counts_what_was_refused_meanwhile() -> None:
    page = study(trials())
    assert "Every invariant held." in page.text
    assert page.data["violations"] == []
    assert list(page.tables[0].rows[0])[:5] == ["SIGKILL prada", 2.0, 3.0, 1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"published": replace(PUBLISHED, lost=[asked(7)])},
        {"published": replace(PUBLISHED, repeated=["q7"])},
        {"stages": {"prada": Stage(3, ["account:x"], {"signals": ALIKE})}},
        {"stages": {"prada": Stage(3, [], {"signals": replace(ALIKE, missing=1)})}},
        {"stages": {"prada": Stage(3, [], {"signals": replace(ALIKE, unexpected=1)})}},
        {"dead": 1},
        {"pinned_answered": [asked(7)]},
        {"answered_late": [asked(7)]},
        {"registered": (4, 5)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_violation_is_told(changes: dict[str, object]) -> None:
    page = study(trials(**changes))
    assert "VIOLATED" in page.text
    assert len(page.data["violations"]) == 1
