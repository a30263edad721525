"""Each baseline does what its paper says, within its bounds, and the same for the same query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from services.inference.responses.dawn import Dawn
from services.inference.responses.interface import AnswerMode, Queries, Told
from services.inference.responses.modelled import AdaptiveMisinformation, Meco
from services.inference.responses.stateless import (
    GradientRedirection,
    PredictionPoisoning,
    RandomPerturbation,
    ReverseSigmoid,
    Rounding,
    Stateless,
    TopK,
)

CLASSES = 5
SOFT, HARD = AnswerMode.PROBABILITIES, AnswerMode.LABEL


def by_noise(inputs: NDArray[np.uint8], noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """A network that answers by its noise alone."""
    sharp = np.exp(noise.reshape(len(noise), -1)[:, :CLASSES])
    probabilities: NDArray[np.float32] = sharp / sharp.sum(axis=1, keepdims=True)
    return probabilities


def always_last(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A model that was trained to be wrong."""
    return np.eye(CLASSES, dtype=np.float32)[np.full(len(inputs), CLASSES - 1)]


KEEP_THE_LABEL: dict[str, Callable[[AnswerMode], Stateless]] = {
    "top-k": lambda mode: TopK(mode, 2),
    "rounding": lambda mode: Rounding(mode, 1),
    "reverse-sigmoid": lambda mode: ReverseSigmoid(mode, 1.0, 0.1),
    "random-perturbation": lambda mode: RandomPerturbation(mode, 0.6, b"key"),
    "prediction-poisoning": lambda mode: PredictionPoisoning(mode, 0.6, CLASSES),
}
MOVE_THE_LABEL: dict[str, Callable[[AnswerMode], Stateless]] = {
    "dawn": lambda mode: Dawn(mode, 0.5, b"key"),
    "gradient-redirection": lambda mode: GradientRedirection(mode, 0.6),
    "meco": lambda mode: Meco(mode, by_noise, b"key"),
    "adaptive-misinformation": lambda mode: AdaptiveMisinformation(mode, always_last, 0.5, 1000.0),
}
ALL = KEEP_THE_LABEL | MOVE_THE_LABEL


def asked(probabilities: NDArray[np.float32], first_hash: int = 0) -> Queries:
    hashes = np.arange(first_hash, first_hash + len(probabilities), dtype=np.uint64)
    return Queries(
        account="thief",
        ids=[str(number) for number in range(len(probabilities))],
        inputs=np.zeros((len(probabilities), 1, 4, 4), dtype=np.uint8),
        features=np.zeros((len(probabilities), 1), dtype=np.float32),
        logits=np.log(np.maximum(probabilities, 1e-9)),
        probabilities=probabilities,
        perceptual=hashes,
        exact=hashes,
    )


def tell(policy: Stateless, queries: Queries) -> Told:
    return policy.answer(queries, policy.see(queries))


def drawn(seed: int, rows: int = 20, sharpness: float = 1.0) -> NDArray[np.float32]:
    """[rows, CLASSES] probabilities; the sharper, the surer."""
    return np.random.default_rng(seed).dirichlet(np.full(CLASSES, 1 / sharpness), rows).astype(np.float32)


relaxed = settings(deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
SHARPNESS = st.sampled_from([0.05, 1.0, 10.0, 200.0])


@pytest.mark.parametrize("name", ALL)
@relaxed
@given(seed=SEEDS, sharpness=SHARPNESS)
def test_probabilities_stay_probabilities_and_what_is_told_apart_from_the_truth_is_said(
    name: str, seed: int, sharpness: float
) -> None:
    queries = asked(drawn(seed, sharpness=sharpness))
    told = tell(ALL[name](SOFT), queries)
    assert (told.answers >= 0).all()
    assert name == "rounding" or np.allclose(told.answers.sum(axis=1), 1.0, atol=1e-5)
    moved = (told.answers != queries.probabilities).any(axis=1)
    np.testing.assert_array_equal(told.perturbed, moved)
    wrong = told.answers.argmax(axis=1) != queries.probabilities.argmax(axis=1)
    assert list(told.spoiled) == np.flatnonzero(wrong).tolist()


@pytest.mark.parametrize("name", KEEP_THE_LABEL)
@relaxed
@given(seed=SEEDS, sharpness=SHARPNESS)
def test_what_keeps_the_label_keeps_it_for_whoever_is_told_labels_alone(name: str, seed: int, sharpness: float) -> None:
    queries = asked(drawn(seed, sharpness=sharpness))
    assert tell(ALL[name](SOFT), queries).spoiled == ()
    told = tell(ALL[name](HARD), queries)
    assert not told.perturbed.any()
    np.testing.assert_array_equal(told.answers.argmax(axis=1), queries.probabilities.argmax(axis=1))


@pytest.mark.parametrize("name", ["random-perturbation", "prediction-poisoning", "gradient-redirection"])
@relaxed
@given(seed=SEEDS, sharpness=SHARPNESS)
def test_what_has_an_l1_budget_stays_within_it(name: str, seed: int, sharpness: float) -> None:
    queries = asked(drawn(seed, sharpness=sharpness))
    told = tell(ALL[name](SOFT), queries)
    assert np.abs(told.answers - queries.probabilities).sum(axis=1).max() <= 0.6 + 1e-5


@pytest.mark.parametrize("name", ALL)
def test_the_same_query_is_told_the_same_in_any_company_and_by_any_replica(name: str) -> None:
    probabilities = drawn(3)
    together = tell(ALL[name](SOFT), asked(probabilities))
    replica = ALL[name](SOFT)
    for row in range(len(probabilities)):
        alone = tell(replica, asked(probabilities[row : row + 1], row))
        np.testing.assert_array_equal(alone.answers[0], together.answers[row])


def test_top_k_tells_the_k_largest_and_spreads_the_rest() -> None:
    told = tell(TopK(SOFT, 2), asked(np.array([[0.5, 0.3, 0.12, 0.06, 0.02]], dtype=np.float32)))
    np.testing.assert_allclose(told.answers[0], [0.5, 0.3, 0.2 / 3, 0.2 / 3, 0.2 / 3], atol=1e-6)


def test_rounding_rounds() -> None:
    told = tell(Rounding(SOFT, 1), asked(np.array([[0.52, 0.33, 0.11, 0.02, 0.02]], dtype=np.float32)))
    np.testing.assert_allclose(told.answers[0], [0.5, 0.3, 0.1, 0.0, 0.0], atol=1e-6)


def test_the_reverse_sigmoid_is_the_papers_where_it_leaves_the_label() -> None:
    y = np.array([0.6, 0.2, 0.1, 0.06, 0.04])
    beta, gamma = 0.3, 0.2
    bent = y - beta * (1 / (1 + np.exp(-gamma * np.log(y / (1 - y)))) - 0.5)
    told = tell(ReverseSigmoid(SOFT, beta, gamma), asked(y[None].astype(np.float32)))
    np.testing.assert_allclose(told.answers[0], bent / bent.sum(), atol=1e-6)


def test_prediction_poisoning_turns_the_gradient_farther_than_chance_does() -> None:
    """And gradient redirection, which may move the label, farther still."""
    queries = asked(drawn(5, rows=200, sharpness=5.0))

    def cosine(policy: Stateless) -> float:
        centre = 1 / CLASSES
        true, false = centre - queries.probabilities, centre - tell(policy, queries).answers
        norms = np.linalg.norm(true, axis=1) * np.linalg.norm(false, axis=1)
        return float(np.mean((true * false).sum(axis=1) / norms))

    by_chance = cosine(RandomPerturbation(SOFT, 1.0, b"key"))
    poisoned = cosine(PredictionPoisoning(SOFT, 1.0, CLASSES))
    assert poisoned < by_chance - 0.1
    assert cosine(GradientRedirection(SOFT, 1.9)) < poisoned - 0.1


@relaxed
@given(seed=SEEDS)
def test_gradient_redirection_finds_the_least_inner_product_that_its_budget_allows(seed: int) -> None:
    """Against the linear programme solved by scipy."""
    y = drawn(seed, rows=1)[0].astype(np.float64)
    epsilon = 0.6
    coefficients = np.concatenate([y - 1 / CLASSES] * 2) * np.repeat([1.0, -1.0], CLASSES)
    limits = [(0.0, None)] * CLASSES + [(0.0, value) for value in y]
    best = linprog(
        coefficients,
        A_ub=[np.ones(2 * CLASSES)],
        b_ub=[epsilon],
        A_eq=[np.repeat([1.0, -1.0], CLASSES)],
        b_eq=[0.0],
        bounds=limits,
    )
    told = tell(GradientRedirection(SOFT, epsilon), asked(y[None].astype(np.float32))).answers[0].astype(np.float64)
    assert (told - y) @ (y - 1 / CLASSES) == pytest.approx(best.fun, abs=1e-5)


def test_dawn_answers_its_share_wrongly_and_another_key_another_share() -> None:
    probabilities = drawn(7, rows=4000, sharpness=10.0)
    one, other = (np.array(tell(Dawn(HARD, 0.05, key), asked(probabilities)).spoiled) for key in (b"one", b"other"))
    assert len(one) == pytest.approx(200, abs=60)
    assert len(np.intersect1d(one, other)) < 40


def test_dawns_wrong_classes_are_all_classes_but_the_true_one() -> None:
    probabilities = np.tile(np.array([[0.9, 0.04, 0.03, 0.02, 0.01]], dtype=np.float32), (2000, 1))
    told = tell(Dawn(SOFT, 1.0, b"key"), asked(probabilities))
    counts = np.bincount(told.answers.argmax(axis=1), minlength=CLASSES)
    assert counts[0] == 0
    assert counts[1:].min() > 400


def test_mecos_noise_is_an_accounts_own_and_without_a_key_every_querys_own() -> None:
    queries = asked(drawn(11))
    keyed, unkeyed = Meco(SOFT, by_noise, b"key"), Meco(SOFT, by_noise, None)
    mine, yours = tell(keyed, queries).answers, tell(keyed, replace(queries, account="other")).answers
    assert not np.isclose(mine, yours).all(axis=1).any()
    once, again = tell(unkeyed, queries).answers, tell(unkeyed, queries).answers
    assert not np.isclose(once, again).all(axis=1).any()


def test_adaptive_misinformation_misleads_who_asks_what_the_model_doubts() -> None:
    sure, doubtful = [0.9, 0.05, 0.03, 0.01, 0.01], [0.3, 0.3, 0.2, 0.1, 0.1]
    policy = AdaptiveMisinformation(SOFT, always_last, tau=0.5, nu=1000.0)
    told = tell(policy, asked(np.array([sure, doubtful], dtype=np.float32)))
    np.testing.assert_allclose(told.answers, [sure, [0.0, 0.0, 0.0, 0.0, 1.0]], atol=1e-6)
    assert told.spoiled == (1,)


def test_what_writes_no_notes_refuses_one() -> None:
    with pytest.raises(ValueError, match="writes no notes"):
        TopK(SOFT, 1).recall("thief", b"\x01")
