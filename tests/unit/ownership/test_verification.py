"""The probability that an innocent model says so many told labels: never too small, and small for thieves."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ownership.verification import (
    Finding,
    Labels,
    Marks,
    MarkSelector,
    Verification,
    marks_of,
    verify,
)
from shared.events import PerturbedAnswer
from tests.support.perturbed import spoiled

CLASSES = 10


def marks(told: Labels, account: str = "mallory") -> Marks:
    """Marks whose true label is the next class, and which the model thinks impossible."""
    return Marks(account, told, (told + 1) % CLASSES, np.zeros(len(told)))


def labels(random: np.random.Generator, count: int) -> Labels:
    return random.integers(0, CLASSES, count)


def one(told: Labels, said: Labels, innocents: list[Labels] | None = None, level: float = 0.001) -> Finding:
    """The finding on a single account."""
    return verify([marks(told)], [said], [[of] for of in innocents or []], CLASSES, level=level).findings[0]


def test_who_says_the_told_labels_is_accused_and_who_says_the_true_ones_is_not() -> None:
    told = labels(np.random.default_rng(0), 60)
    honest = (told + 1) % CLASSES
    thief = np.where(np.arange(60) % 10 < 8, told, honest)
    guilty, innocent = one(told, thief, [honest, honest]), one(told, honest, [honest, honest])
    assert guilty.claim
    assert (guilty.matches, guilty.agreements, guilty.paper_rule) == (48, 12, True)
    assert guilty.base_rate == 0.0
    assert guilty.base_rate_limit == pytest.approx(1 - 0.05 ** (1 / 120))
    assert guilty.p < 1e-20
    assert 0.5 < guilty.tolerated_base_rate < guilty.ratio
    assert not innocent.claim
    assert (innocent.p, innocent.paper_rule) == (1.0, False)


@given(
    told=st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=80),
    constant=st.integers(-1, CLASSES - 1),
    innocents=st.integers(0, 3),
)
def test_a_suspect_that_always_says_one_class_is_never_accused(told: list[int], constant: int, innocents: int) -> None:
    of = np.array(told)
    found = one(of, np.full(len(of), constant), [(of + 1) % CLASSES] * innocents)
    assert not found.claim
    assert found.p_order > 0.99


@given(seed=st.integers(0, 2**32 - 1), matched=st.floats(0, 1), copies=st.integers(1, 3))
def test_nobody_is_accused_of_what_an_innocent_model_says_too(seed: int, matched: float, copies: int) -> None:
    random = np.random.default_rng(seed)
    told = labels(random, 50)
    said = np.where(random.random(50) < matched, told, labels(random, 50))
    assert not one(told, said, [said] + [(told + 1) % CLASSES] * copies).claim


@settings(max_examples=60, deadline=None)
@given(told=st.lists(st.integers(0, 2), min_size=1, max_size=6), data=st.data())
def test_the_probability_by_order_is_no_less_than_counting_every_permutation_says(
    told: list[int], data: st.DataObject
) -> None:
    said = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=len(told), max_size=len(told))))
    matches = int((np.array(told) == said).sum())
    dealt = [int((np.array(deal) == said).sum()) for deal in itertools.permutations(told)]
    exact = sum(count >= matches for count in dealt) / len(dealt)
    assert one(np.array(told), said).p_order >= exact - 1e-9


@pytest.mark.parametrize("references", [0, 1, 3])
@pytest.mark.parametrize("skewed", [False, True])
def test_models_that_say_anything_are_accused_no_more_often_than_the_level(references: int, skewed: bool) -> None:
    random = np.random.default_rng(references)
    weights = np.arange(1.0, CLASSES + 1) if skewed else np.ones(CLASSES)
    chance = weights / weights.sum()

    def anything() -> Labels:
        return random.choice(CLASSES, 40, p=chance)

    trials = 400
    found = [one(anything(), anything(), [anything() for _ in range(references)], level=0.05) for _ in range(trials)]
    # 400 fair trials at 5% stay under 32 with probability 99%.
    assert sum(of.p <= 0.05 for of in found) <= 32


@given(seed=st.integers(0, 2**32 - 1), accounts=st.integers(1, 8))
def test_corrections_only_ever_raise_and_holms_never_more_than_bonferronis(seed: int, accounts: int) -> None:
    random = np.random.default_rng(seed)
    every = [marks(labels(random, int(random.integers(0, 30))), f"a{number}") for number in range(accounts)]
    said = [np.where(random.random(len(of)) < 0.5, of.told, labels(random, len(of))) for of in every]
    verification = verify(every, said, [], CLASSES)
    for found in verification.findings:
        assert 0 < found.p <= found.p_holm <= found.p_bonferroni <= 1
        assert found.p == max(found.p_base, found.p_order)
    smallest = min(verification.findings, key=lambda found: found.p)
    assert smallest.p_holm == smallest.p_bonferroni
    assert verification.claim == any(found.claim for found in verification.findings)


@given(seed=st.integers(0, 2**32 - 1), more=st.integers(0, 20))
def test_the_more_innocent_models_say_the_told_labels_the_less_it_proves(seed: int, more: int) -> None:
    random = np.random.default_rng(seed)
    told = labels(random, 40)
    said = np.where(random.random(40) < 0.6, told, (told + 1) % CLASSES)

    def innocent(hits: int) -> Labels:
        return np.where(np.arange(40) < hits, told, (told + 1) % CLASSES)

    assert one(told, said, [innocent(more)]).p_base <= one(told, said, [innocent(more + 1)]).p_base


def test_without_innocent_models_the_base_rate_is_what_the_suspect_says_of_other_accounts() -> None:
    told = np.arange(50) % CLASSES
    others = np.full(50, 3)
    verification = verify([marks(told), marks(others, "oscar")], [told, others], [], CLASSES)
    mallory, oscar = verification.findings
    assert verification.base == "suspect elsewhere"
    assert mallory.base_rate == pytest.approx(0.1)  # it says 3 to all of oscar's, and a tenth of these is told 3
    assert oscar.base_rate == pytest.approx(0.1)
    assert mallory.claim
    assert not oscar.claim, "all of oscar's marks were told 3, so order proves nothing"


def test_a_told_label_that_the_model_itself_finds_likely_proves_little_without_innocent_models() -> None:
    told = np.arange(40) % CLASSES
    likely = dataclasses.replace(marks(told), believed=np.full(40, 0.45))
    said = np.where(np.arange(40) % 2 == 0, told, (told + 1) % CLASSES)
    (found,) = verify([likely], [said], [], CLASSES).findings
    assert found.base_rate == pytest.approx(0.45)
    assert not found.claim


def test_an_account_without_a_mark_is_said_to_have_none_and_costs_the_others_nothing() -> None:
    told = np.arange(40) % CLASSES
    none = np.zeros(0, dtype=np.int64)
    alone = verify([marks(told)], [told], [], CLASSES)
    beside = verify([marks(told), marks(none, "nobody")], [told, none], [], CLASSES)
    assert beside.findings[0] == alone.findings[0]
    assert (beside.findings[1].marks, beside.findings[1].p, beside.findings[1].ratio) == (0, 1.0, 0.0)
    assert isinstance(beside, Verification)


def test_labels_of_other_marks_are_a_bug_that_is_named() -> None:
    with pytest.raises(ValueError, match=r"labels of \[2\] marks, there are \[3\]"):
        verify([marks(np.array([1, 2, 3]))], [np.array([1, 2])], [], CLASSES)


def selected(answers: list[PerturbedAnswer]) -> list[str]:
    selector = MarkSelector()
    return [answer.query_id for answer in answers if selector.admits(answer)]


@given(order=st.permutations(range(8)), repeats=st.lists(st.integers(0, 7), max_size=8))
def test_an_input_that_comes_again_is_one_mark(order: list[int], repeats: list[int]) -> None:
    answers = [spoiled(number) for number in order]
    again = [spoiled(number, query_id=f"again-{place}") for place, number in enumerate(repeats)]
    assert selected(answers + again) == [answer.query_id for answer in answers]


def test_near_copies_are_one_mark_and_other_pictures_are_others() -> None:
    picture = spoiled(0)
    near = dataclasses.replace(spoiled(1), query_id="near", perceptual_hash=picture.perceptual_hash ^ 0b1111_1111)
    far = dataclasses.replace(spoiled(2), query_id="far", perceptual_hash=picture.perceptual_hash ^ 0b1_1111_1111)
    assert selected([picture, near, far]) == [picture.query_id, "far"]
    assert len(selected([spoiled(number) for number in range(200)])) == 200


def test_hashes_of_another_kind_tell_of_no_near_copy_and_each_kind_has_its_own_distance() -> None:
    picture = spoiled(0)
    hashes = {
        "other": picture.perceptual_hash,
        "within": picture.perceptual_hash ^ 1,
        "beyond": picture.perceptual_hash ^ 3,
    }
    answers = [
        dataclasses.replace(
            spoiled(number), query_id=name, perceptual_hash=value, hash_kind="learned-1", similar_bits=1
        )
        for number, (name, value) in enumerate(hashes.items(), 1)
    ]
    assert selected([picture, *answers]) == [picture.query_id, "other", "beyond"]


def test_an_answer_that_kept_its_label_is_no_mark() -> None:
    picture = spoiled(0)
    assert selected([dataclasses.replace(picture, answer=picture.logits)]) == []


def test_marks_know_what_was_told_what_was_true_and_what_the_model_believed() -> None:
    answers = [spoiled(number) for number in range(5)]
    made = marks_of("mallory", answers)
    assert made.told.tolist() == [int(answer.logits.argmin()) for answer in answers]
    assert made.true.tolist() == [int(answer.logits.argmax()) for answer in answers]
    truth = [np.exp(answer.logits) / np.exp(answer.logits).sum() for answer in answers]
    np.testing.assert_allclose(made.believed, [of.min() for of in truth], rtol=1e-5)
