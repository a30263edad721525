"""What was told before is told again, within bounds."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.inference.responses.interface import AccountStates
from services.inference.responses.memory import PerturbedMemory, Promises

CLASSES = 10


def test_similar_means_no_more_bits_than_the_threshold() -> None:
    memory = PerturbedMemory(10, similar_bits=3)
    answer = np.ones(CLASSES, dtype=np.float32)
    memory.record("a", 0b1111, answer)
    assert memory.recall(0b1000) is answer
    assert memory.recall(0b0000) is None
    assert memory.recall(2**63 | 0b1111) is answer


def test_of_several_similar_queries_the_most_similar_ones_answer_counts() -> None:
    memory = PerturbedMemory(10, similar_bits=4)
    near, far = np.zeros(CLASSES, dtype=np.float32), np.ones(CLASSES, dtype=np.float32)
    memory.record("far", 0b111, far)
    memory.record("near", 0b1, near)
    assert memory.recall(0b0) is near


def test_a_full_memory_forgets_the_oldest_and_an_answer_told_twice_counts_once() -> None:
    memory = PerturbedMemory(2, similar_bits=0)
    for name, value in (("a", 1), ("a", 1), ("b", 2), ("c", 3)):
        memory.record(name, value, np.full(CLASSES, value, dtype=np.float32))
    assert len(memory) == 2
    assert memory.recall(1) is None
    assert memory.recall(2) is not None
    assert memory.recall(3) is not None


@given(kept=st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 30), max_size=4)), max_size=40))
def test_promises_are_bounded_by_account_and_in_all_and_the_latest_of_an_account_hold(
    kept: list[tuple[str, list[int]]],
) -> None:
    promises = Promises(capacity=12, capacity_an_account=8)
    ever: dict[str, OrderedDict[int, None]] = {name: OrderedDict() for name in "abc"}
    for account, digests in kept:
        promises.keep(account, digests)
        ever[account].update(dict.fromkeys(digests))
        held = {name: [digest for digest in range(31) if promises.holds(name, digest)] for name in "abc"}
        assert len(promises) == sum(map(len, held.values())) <= 12
        assert all(len(own) <= 8 for own in held.values())
        assert all(set(held[name]) <= set(ever[name]) for name in "abc")
        # Who spoke last loses nothing to the others.
        assert set(digests) <= set(held[account])


def test_an_account_that_floods_its_promises_costs_the_others_none_while_there_is_room() -> None:
    promises = Promises(capacity=100, capacity_an_account=50)
    promises.keep("quiet", range(50))
    promises.keep("flood", range(10_000))
    assert all(promises.holds("quiet", digest) for digest in range(50))
    assert len(promises) == 100


def test_states_are_bounded_and_who_has_been_silent_longest_begins_anew() -> None:
    states: AccountStates[list[int]] = AccountStates(list, most=2)
    states.of("a").append(1)
    states.of("b").append(2)
    states.of("a").append(3)
    states.of("c").append(4)
    assert states.of("a") == [1, 3]
    assert states.of("b") == []
