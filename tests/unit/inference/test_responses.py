"""AMAO: one wrong answer a group, on the query that it hurts most, and the same for similar queries."""

from __future__ import annotations

import math
from itertools import pairwise

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from services.inference.responses import (
    AccountState,
    Amao,
    Fingerprints,
    PerturbedMemory,
    Told,
    perceptual_hashes,
)
from services.inference.settings import AnswerMode

CLASSES = 10


def probabilities_of(gaps: list[float]) -> NDArray[np.float32]:
    """[n, classes]: class 3 is the likeliest, class 7 the least likely, and max - min is the gap."""
    rows = np.full((len(gaps), CLASSES), 0.5, dtype=np.float32)
    rows[:, 3] += np.array(gaps, dtype=np.float32) / 2
    rows[:, 7] -= np.array(gaps, dtype=np.float32) / 2
    return rows


def strangers(count: int, start: int = 0) -> Fingerprints:
    """Fingerprints of queries none of which is like another: with a threshold of 0 bits."""
    numbers = np.arange(start, start + count, dtype=np.uint64)
    return Fingerprints(numbers, numbers)


def ids(count: int, start: int = 0) -> list[str]:
    return [str(number) for number in range(start, start + count)]


def amao(group: int = 16, mode: AnswerMode = AnswerMode.PROBABILITIES, similar_bits: int = 0) -> Amao:
    return Amao(mode, group, PerturbedMemory(1000, similar_bits))


def tell(policy: Amao, gaps: list[float], state: AccountState | None = None) -> Told:
    return policy.answer(state or AccountState(), ids(len(gaps)), strangers(len(gaps)), probabilities_of(gaps))


def algorithm_2(gaps: list[float]) -> int:
    """The paper's Algorithm 2, word by word, for one group: the index of x_j, from 0."""
    m = len(gaps)
    r = max(1, round(m / math.e))
    largest = 0.0
    for i in range(1, r):
        largest = max(largest, gaps[i - 1])
    for j in range(r, m + 1):
        if gaps[j - 1] > largest or j == m:
            return j - 1
    raise AssertionError


GAPS = st.floats(0.0, 1.0, width=32)


@given(group=st.integers(1, 24), data=st.data())
def test_each_group_has_exactly_the_wrong_answer_that_algorithm_2_chooses(group: int, data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 4))
    gaps = data.draw(st.lists(GAPS, min_size=group * groups, max_size=group * groups))
    exact = (probabilities_of(gaps).max(axis=1) - probabilities_of(gaps).min(axis=1)).tolist()
    told = tell(amao(group), gaps)
    expected = [start + algorithm_2(exact[start : start + group]) for start in range(0, len(gaps), group)]
    assert np.flatnonzero(told.perturbed).tolist() == expected
    assert list(told.spoiled) == expected


@given(gaps=st.lists(GAPS, min_size=40, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_it_does_not_matter_how_queries_are_cut_into_requests(gaps: list[float], cuts: list[int]) -> None:
    whole = tell(amao(), gaps)
    policy, state = amao(), AccountState()
    edges = [0, *sorted(cuts), 40]
    parts = [
        policy.answer(state, ids(b - a, a), strangers(b - a, a), probabilities_of(gaps[a:b]))
        for a, b in pairwise(edges)
        if b > a
    ]
    np.testing.assert_array_equal(np.concatenate([part.answers for part in parts]), whole.answers)


@given(gaps=st.lists(st.floats(0.125, 1.0, width=32), min_size=16, max_size=16))
def test_a_wrong_probability_answer_exchanges_largest_and_smallest_and_leaves_the_rest(gaps: list[float]) -> None:
    probabilities = probabilities_of(gaps)
    told = tell(amao(), gaps)
    (row,) = told.spoiled
    expected = probabilities[row].copy()
    expected[[3, 7]] = expected[[7, 3]]
    np.testing.assert_array_equal(told.answers[row], expected)
    untouched = np.delete(np.arange(16), row)
    np.testing.assert_array_equal(told.answers[untouched], probabilities[untouched])


def test_a_wrong_label_is_the_least_likely_class() -> None:
    told = tell(amao(mode=AnswerMode.LABEL), [0.5] * 16)
    (row,) = told.spoiled
    labels = told.answers.argmax(axis=1)
    assert labels[row] == 7
    assert np.delete(labels, row).tolist() == [3] * 15
    assert np.unique(told.answers).tolist() == [0.0, 1.0]


def test_the_same_query_gets_its_wrong_answer_again_from_any_account() -> None:
    policy = amao()
    told = tell(policy, [0.5] * 16)
    (row,) = told.spoiled
    again = policy.answer(AccountState(), ["again"], strangers(1, row), probabilities_of([0.9]))
    assert again.perturbed.tolist() == [True]
    assert again.spoiled == ()
    np.testing.assert_array_equal(again.answers[0], told.answers[row])


def test_a_query_that_was_told_the_truth_is_told_it_again_and_does_not_move_the_group_on() -> None:
    policy, state = amao(), AccountState()
    for number in range(50):
        told = policy.answer(state, [str(number)], strangers(1), probabilities_of([0.1 + number / 100]))
        assert not told.perturbed.any()
    assert state.position == 1


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


@pytest.mark.parametrize("channels", [1, 3])
def test_the_hash_is_phash_as_a_64_bit_number(channels: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, size=(5, channels, 28, 28), dtype=np.uint8)
    hashes = perceptual_hashes(pictures)
    for picture, value in zip(pictures, hashes, strict=True):
        image = Image.fromarray(picture[0] if channels == 1 else np.moveaxis(picture, 0, -1))
        assert f"{int(value):016x}" == str(imagehash.phash(image))


def test_views_that_are_no_images_have_no_hash() -> None:
    with pytest.raises(ValueError, match="no images"):
        perceptual_hashes(np.zeros((1, 5), dtype=np.uint8))
