"""Verdicts in force, and the rate that THROTTLE leaves."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.verdicts import LONGEST_WAIT, TokenBucket, VerdictTable
from shared.events import Action, Verdict

NOW = 1_700_000_000_000_000


def verdict(action: Action = Action.BAN, issued_at: int = NOW, **changes: object) -> Verdict:
    made = Verdict("v", "alice", "fashion", action, "rule", "reason", 20.0, issued_at, 0)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@given(order=st.permutations([1, 2, 3, 4, 5]))
def test_the_verdict_that_was_issued_last_wins_in_any_order(order: list[int]) -> None:
    table = VerdictTable("fashion")
    for issued_at in order:
        table.apply("alice", verdict(issued_at=issued_at))
    held = table.in_force("alice", NOW)
    assert held is not None
    assert held.issued_at == 5


def test_a_verdict_ends_when_it_expires() -> None:
    table = VerdictTable("fashion")
    table.apply("alice", verdict(expires_at=NOW + 10))
    assert table.in_force("alice", NOW + 9) is not None
    assert table.in_force("alice", NOW + 10) is None


def test_a_tombstone_takes_a_verdict_back() -> None:
    table = VerdictTable("fashion")
    table.apply("alice", verdict())
    assert table.apply("alice", None)
    assert table.in_force("alice", NOW) is None
    assert not table.apply("alice", None)


def test_a_verdict_on_another_model_changes_nothing() -> None:
    table = VerdictTable("fashion")
    assert not table.apply("alice", verdict(model_name="faces"))
    assert table.in_force("alice", NOW) is None


def test_the_same_verdict_again_changes_nothing() -> None:
    table = VerdictTable("fashion")
    assert table.apply("alice", verdict())
    assert not table.apply("alice", verdict())


def test_held_counts_accounts_under_an_action_in_force() -> None:
    table = VerdictTable("fashion")
    table.apply("alice", verdict())
    table.apply("bob", verdict(Action.ALLOW, account="bob"))
    table.apply("carol", verdict(account="carol", expires_at=NOW - 1))
    assert table.held(NOW) == 1


@given(
    rate=st.floats(0.5, 50.0),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    gaps=st.lists(st.floats(0.0, 3.0), min_size=60, max_size=60),
)
def test_a_throttled_account_never_exceeds_its_rate_by_more_than_a_burst_and_a_batch(
    rate: float, sizes: list[int], gaps: list[float]
) -> None:
    bucket, now, passed = TokenBucket(rate, 0.0), 0.0, 0
    for size, gap in zip(sizes, gaps, strict=False):
        now += gap
        if bucket.take(size, now) == 0.0:
            passed += size
    assert passed <= rate * now + bucket.burst + max(sizes)


@given(rate=st.floats(0.1, 50.0), size=st.integers(1, 100))
def test_who_waits_as_told_is_let_through(rate: float, size: int) -> None:
    bucket = TokenBucket(rate, 0.0)
    while (wait := bucket.take(size, 0.0)) == 0.0:
        pass
    assert bucket.take(1, wait * 0.9) > 0.0
    assert bucket.take(1, wait + 1e-6) == 0.0


def test_a_rate_of_nothing_lets_nothing_through() -> None:
    assert TokenBucket(0.0, 0.0).take(1, 1e9) == LONGEST_WAIT


def test_a_new_throttle_verdict_brings_its_own_rate() -> None:
    table = VerdictTable("fashion")
    slow = verdict(Action.THROTTLE, queries_per_second=1.0)
    assert table.wait_of(slow, 5, 0.0) == 0.0
    assert table.wait_of(slow, 1, 0.0) == pytest.approx(5.0)
    assert table.wait_of(dataclasses.replace(slow, queries_per_second=2.0), 1, 0.0) == 0.0
