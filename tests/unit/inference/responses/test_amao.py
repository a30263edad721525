"""AMAO: one wrong answer a group, on the query that it hurts most, and the same for similar queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.inference.responses.amao import Amao
from services.inference.responses.interface import AnswerMode, Queries, Told
from services.inference.responses.memory import PerturbedMemory, Promises

CLASSES = 10


def probabilities_of(gaps: list[float]) -> NDArray[np.float32]:
    """[n, classes]: class 3 is the likeliest, class 7 the least likely, and max - min is the gap."""
    rows = np.full((len(gaps), CLASSES), 0.5, dtype=np.float32)
    rows[:, 3] += np.array(gaps, dtype=np.float32) / 2
    rows[:, 7] -= np.array(gaps, dtype=np.float32) / 2
    return rows


def asked(gaps: list[float], start: int = 0, account: str = "thief", ids_start: int | None = None) -> Queries:
    """Queries none of which is like another: with a threshold of 0 bits."""
    numbers = np.arange(start, start + len(gaps), dtype=np.uint64)
    probabilities = probabilities_of(gaps)
    first = start if ids_start is None else ids_start
    return Queries(
        account=account,
        ids=[f"{account}-{number}" for number in range(first, first + len(gaps))],
        inputs=np.zeros((len(gaps), 1, 4, 4), dtype=np.uint8),
        features=np.zeros((len(gaps), 1), dtype=np.float32),
        logits=np.log(probabilities + 1e-9),
        probabilities=probabilities,
        perceptual=numbers,
        exact=numbers,
    )


def amao(
    group: int = 16,
    mode: AnswerMode = AnswerMode.PROBABILITIES,
    memory: PerturbedMemory | None = None,
    doubtful: Callable[[NDArray[np.float32]], NDArray[np.bool_]] | None = None,
) -> Amao:
    if memory is None:
        memory = PerturbedMemory(1000, 0)
    return Amao(mode, group, memory, Promises(1000, 1000), doubtful)


def tell(policy: Amao, queries: Queries) -> Told:
    return policy.answer(queries, policy.see(queries))


def algorithm_2(gaps: list[float]) -> int:
    """The paper's Algorithm 2, word by word, for one group: the index of x_j, from 0; of 3 and 4 queries r is 2."""
    m = len(gaps)
    r = 2 if m in (3, 4) else max(1, round(m / math.e))
    largest = 0.0
    for i in range(1, r):
        largest = max(largest, gaps[i - 1])
    for j in range(r, m + 1):
        if gaps[j - 1] > largest or j == m:
            return j - 1
    raise AssertionError


GAPS = st.floats(0.0, 1.0, width=32)


@settings(deadline=None)
@given(group=st.integers(1, 24), data=st.data())
def test_each_group_has_exactly_the_wrong_answer_that_algorithm_2_chooses(group: int, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 4))
    gaps = data.draw(st.lists(GAPS, min_size=group * groups, max_size=group * groups))
    exact = (probabilities_of(gaps).max(axis=1) - probabilities_of(gaps).min(axis=1)).tolist()
    told = tell(amao(group), asked(gaps))
    expected = [start + algorithm_2(exact[start : start + group]) for start in range(0, len(gaps), group)]
    assert np.flatnonzero(told.perturbed).tolist() == expected
    assert list(told.spoiled) == expected


@settings(deadline=None)
@given(gaps=st.lists(GAPS, min_size=40, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_it_does_not_matter_how_queries_are_cut_into_requests(gaps: list[float], cuts: list[int]) -> None:
    whole = tell(amao(), asked(gaps))
    policy = amao()
    parts = [tell(policy, asked(gaps[a:b], a)) for a, b in pairwise([0, *sorted(cuts), 40]) if b > a]
    np.testing.assert_array_equal(np.concatenate([part.answers for part in parts]), whole.answers)


@settings(deadline=None)
@given(gaps=st.lists(st.floats(0.125, 1.0, width=32), min_size=16, max_size=16))
def test_a_wrong_probability_answer_exchanges_largest_and_smallest_and_leaves_the_rest(gaps: list[float]) -> None:
    probabilities = probabilities_of(gaps)
    told = tell(amao(), asked(gaps))
    (row,) = told.spoiled
    expected = probabilities[row].copy()
    expected[[3, 7]] = expected[[7, 3]]
    np.testing.assert_array_equal(told.answers[row], expected)
    untouched = np.delete(np.arange(16), row)
    np.testing.assert_array_equal(told.answers[untouched], probabilities[untouched])


def test_a_wrong_label_is_the_least_likely_class() -> None:
    told = tell(amao(mode=AnswerMode.LABEL), asked([0.5] * 16))
    (row,) = told.spoiled
    labels = told.answers.argmax(axis=1)
    assert labels[row] == 7
    assert np.delete(labels, row).tolist() == [3] * 15
    assert np.unique(told.answers).tolist() == [0.0, 1.0]


def test_the_same_query_gets_its_wrong_answer_again_from_any_account() -> None:
    policy = amao()
    told = tell(policy, asked([0.5] * 16))
    (row,) = told.spoiled
    again = tell(policy, asked([0.9], row, account="accomplice"))
    assert again.perturbed.tolist() == [True]
    assert again.spoiled == ()
    assert again.note == b""
    np.testing.assert_array_equal(again.answers[0], told.answers[row])


def test_a_query_that_was_told_the_truth_is_told_it_again_and_does_not_move_the_group_on() -> None:
    policy = amao()
    for number in range(50):
        told = tell(policy, asked([0.1 + number / 100], 7, ids_start=number))
        assert not told.perturbed.any()
    # The query counted once: fifteen others end the group.
    assert np.flatnonzero(tell(policy, asked([0.5] * 15, 100)).perturbed).size == 1


# ---- what a restart and other replicas know ----


@settings(deadline=None)
@given(gaps=st.lists(GAPS, min_size=1, max_size=60), cut=st.integers(0, 60))
def test_a_restart_at_any_query_changes_no_answer(gaps: list[float], cut: int) -> None:
    whole = tell(amao(), asked(gaps))
    before, memory = amao(), PerturbedMemory(1000, 0)
    after = amao(memory=memory)
    cut = min(cut, len(gaps))
    told = []
    for number in range(cut):
        told.append(tell(before, asked(gaps[number : number + 1], number)))
        after.recall("thief", told[-1].note)
        for row in told[-1].spoiled:  # from the topic `perturbed`
            memory.record(f"thief-{number}", number, told[-1].answers[row])
    if cut < len(gaps):
        told.append(tell(after, asked(gaps[cut:], cut)))
    np.testing.assert_array_equal(np.concatenate([part.answers for part in told]), whole.answers)
    if cut:
        again = tell(after, asked(gaps[:cut], 0, ids_start=1000))
        np.testing.assert_array_equal(again.answers, whole.answers[:cut])


@settings(deadline=None)
@given(gaps=st.lists(GAPS, min_size=64, max_size=64), replicas=st.lists(st.integers(0, 2), min_size=64, max_size=64))
def test_who_is_answered_by_several_replicas_in_turns_gets_no_fewer_wrong_answers(
    gaps: list[float], replicas: list[int]
) -> None:
    policies = [amao(group=8) for _ in range(3)]
    wrong = [0, 0, 0]
    for number, replica in enumerate(replicas):
        told = tell(policies[replica], asked(gaps[number : number + 1], number))
        wrong[replica] += len(told.spoiled)
        for other in policies:
            if told.note:
                other.recall("thief", told.note)
    for replica in range(3):
        # A group that a replica took over from another may be spent already.
        assert wrong[replica] >= replicas.count(replica) // 8 - 1


def test_a_query_that_one_replica_told_the_truth_of_another_does_too() -> None:
    one, other = amao(group=1_000), amao(group=1)
    other.recall("thief", tell(one, asked([0.5])).note)
    assert not tell(other, asked([0.5])).perturbed.any()
    assert tell(other, asked([0.5], account="stranger")).perturbed.all()


@pytest.mark.parametrize("note", [b"", b"\x01", b"\x02" + bytes(9), bytes(10), b"\x01" + bytes(12)])
def test_what_is_no_note_of_amao_is_refused(note: bytes) -> None:
    with pytest.raises(ValueError, match="not amao's"):
        amao().recall("thief", note)


def test_every_doubtful_query_is_answered_wrongly_and_moves_no_group_on() -> None:
    gaps = [0.9, 0.1, 0.8, 0.1, 0.7, 0.1, 0.6, 0.5]
    whole = asked(gaps)
    unsure = probabilities_of(gaps).max(axis=1) < 0.6
    told = tell(amao(4, doubtful=lambda logits: np.exp(logits).max(axis=1) < 0.6), whole)
    assert told.perturbed[unsure].all()
    sure = asked([gap for gap, of in zip(gaps, unsure, strict=True) if not of], start=100)
    assert told.perturbed[~unsure].tolist() == tell(amao(4), sure).perturbed.tolist()
    assert told.spoiled == tuple(np.flatnonzero(told.perturbed).tolist())


def test_a_doubtful_query_that_was_answered_truly_before_is_so_again() -> None:
    promises, memory = Promises(10, 10), PerturbedMemory(10, 0)
    query = asked([0.1])
    gentle = Amao(AnswerMode.PROBABILITIES, 16, memory, promises)
    harsh = Amao(AnswerMode.PROBABILITIES, 16, memory, promises, lambda logits: np.ones(len(logits), dtype=np.bool_))
    assert not tell(gentle, query).perturbed.any()
    assert not tell(harsh, query).perturbed.any()
    assert tell(harsh, asked([0.1], start=1)).perturbed.all()


def test_a_doubtful_answer_becomes_a_sure_wrong_one() -> None:
    query = asked([0.02])
    told = tell(amao(16, doubtful=lambda logits: np.ones(len(logits), dtype=np.bool_)), query).answers[0]
    gentle = tell(amao(1), query).answers[0]
    assert told.argmax() == gentle.argmax() == 7
    assert told[7] >= 0.9
    assert told.sum() == pytest.approx(query.probabilities[0].sum() * 0.1 + 0.9, rel=1e-5)
    label = tell(amao(16, AnswerMode.LABEL, doubtful=lambda logits: np.ones(len(logits), dtype=np.bool_)), query)
    assert label.answers[0].tolist() == [float(number == 7) for number in range(CLASSES)]
