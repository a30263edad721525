"""Evidence is honest: bets are fair, sums alarm no oftener than promised, and cutting a stream changes no bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.evidence import (
    BETS,
    LARGEST_R,
    LEASH,
    Bet,
    EvidenceModel,
    EvidenceState,
    advance,
    combine,
    e_value,
    log_by_profile,
)

TAILS = np.concatenate([[1.0], np.geomspace(0.5, 1e-4, 40)])


def exact_model(profiles: int = 1, statistics: int = 1, edges: tuple[int, ...] = ()) -> EvidenceModel:
    """A model of profiles whose scores are uniform on (0, 1): the threshold of tail t is 1 - t."""
    thresholds = np.broadcast_to(1.0 - TAILS, (profiles, statistics, len(edges) + 1, len(TAILS)))
    return EvidenceModel(
        statistics=tuple(f"s{i}" for i in range(statistics)),
        history_edges=np.array(edges, dtype=np.int64),
        tails=TAILS,
        thresholds=thresholds.astype(np.float32),
        discount=np.ones((statistics, len(BETS))),
    )


def start(*sums: float) -> EvidenceState:
    """A state whose profiles have these sums, alike in one statistic and every bet."""
    return EvidenceState(np.array(sums)[:, None, None] * np.ones((1, 1, len(BETS))))


def staked(e_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., P, S, B], by what each gambler's wealth is multiplied if all bets pay [..., P, S]."""
    sizes = np.array([bet.size for bet in BETS])
    return 1 - sizes + sizes * e_values[..., None]


# ---- bets ----


def test_a_bet_wins_nothing_on_average_where_p_is_uniform() -> None:
    # u = -ln p turns the integral of e(p) over (0, 1) into one with a smooth, 1/u^2-heavy tail.
    edges = np.geomspace(1e-7, 700.0, 2_000_001)
    middle = np.sqrt(edges[1:] * edges[:-1])
    integral = (e_value(np.exp(-middle)) * np.exp(-middle) * np.diff(edges)).sum()
    tail = 1 / 700.0  # e(p) p = 1/u^2 (1 - (1 + u) exp(-u))
    assert integral + tail == pytest.approx(1.0, abs=1e-4)


@given(st.lists(st.floats(1e-300, 1.0), min_size=2, max_size=50))
def test_a_smaller_p_never_pays_less(p: list[float]) -> None:
    ascending = np.sort(np.array(p))
    values = e_value(ascending)
    assert np.isfinite(values).all()
    assert (values >= 0.5 * (1 - 1e-7)).all()
    assert (np.diff(values) <= 1e-7 * values[:-1]).all()


def test_the_bet_is_the_mixture_of_power_calibrators() -> None:
    powers = (np.arange(200_000) + 0.5) / 200_000
    for p in (1e-4, 0.01, 0.3, 0.9, 0.9999, 1.0):
        assert e_value(np.array(p)) == pytest.approx(float(np.mean(powers * p ** (powers - 1))), rel=1e-3)


@given(tail=st.floats(1e-4, 1.0))
def test_a_bet_on_small_p_values_is_fair_and_pays_nothing_else(tail: float) -> None:
    payoff = Bet(1.0, tail).payoff(TAILS)
    # The probability of a p-value that was rounded up to a tail is its distance to the next.
    likelihood = TAILS - np.append(TAILS[1:], 0.0)
    assert float(payoff @ likelihood) == pytest.approx(1.0)
    assert (payoff[tail < TAILS] == 0).all()


def test_a_bet_on_p_values_that_no_tail_is_small_enough_for_never_pays() -> None:
    assert (Bet(0.1, 1e-9).payoff(TAILS) == 0).all()


@pytest.mark.parametrize("number", range(len(BETS)))
def test_ranks_among_finite_thresholds_only_lose_on_every_bet(number: int) -> None:
    scores = np.random.default_rng(1).uniform(size=(200_000, 1))
    factors = exact_model().bets(scores, np.zeros(len(scores), dtype=np.int64))[..., number]
    standard_error = factors.std() / math.sqrt(factors.size)
    assert 1 - 0.2 * BETS[number].size - 3 * standard_error < factors.mean() < 1.0 + 3 * standard_error


# ---- the model ----


def test_a_score_is_ranked_under_each_profile_at_its_own_history_size() -> None:
    thresholds = np.full((2, 1, 2, 3), np.inf, dtype=np.float32)
    thresholds[:, :, :, 0] = -np.inf
    thresholds[0, 0, 0] = [-np.inf, 1.0, 2.0]
    thresholds[0, 0, 1] = [-np.inf, 10.0, 20.0]
    thresholds[1, 0, 0] = [-np.inf, 5.0, np.inf]
    tails, discount = np.array([1.0, 0.1, 0.01]), 1.0 + np.arange(len(BETS))
    model = EvidenceModel(("s",), np.array([100]), tails, thresholds, discount[None])
    scores, history = np.array([[2.0], [2.0], [15.0], [5.0]]), np.array([99, 100, 100, 0])
    ranks = model.ranks(scores, history)
    np.testing.assert_array_equal(ranks[:, 0, 0], [2, 0, 1, 2])
    np.testing.assert_array_equal(ranks[:, 1, 0], [0, 0, 0, 1])
    for number, bet in enumerate(BETS):
        paid = 1 - bet.size + bet.size * bet.payoff(tails)[ranks] / discount[number]
        np.testing.assert_allclose(model.bets(scores, history)[..., number], paid)


def test_a_query_without_a_score_says_nothing() -> None:
    model = exact_model(profiles=2, statistics=2)
    values = model.bets(np.array([[np.nan, 0.5]]), np.zeros(1, dtype=np.int64))
    assert np.isnan(values[0, :, 0]).all()
    assert np.isfinite(values[0, :, 1]).all()
    state = EvidenceState.initial(model)
    state.absorb(values)
    assert (state.sums[:, 0] == 0.0).all()
    assert (state.sums[:, 1] > 0.0).all()


def test_a_model_comes_back_from_its_tensors() -> None:
    model = exact_model(profiles=3, statistics=2, edges=(10, 100))
    again = EvidenceModel.from_tensors(("s0", "s1"), model.tensors())
    for name, tensor in model.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], tensor)
    assert again.profiles == 3


@pytest.mark.parametrize("missing", ["history_edges", "tails", "thresholds", "discount"])
def test_a_missing_tensor_is_named(missing: str) -> None:
    tensors = exact_model().tensors()
    del tensors[missing]
    with pytest.raises(KeyError, match=missing):
        EvidenceModel.from_tensors(("s0",), tensors)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"history_edges": np.array([5])}, "do not fit"),
        ({"history_edges": np.array([5, 5, 9])}, "history edges"),
        ({"tails": TAILS[:-1]}, "do not fit"),
        ({"tails": np.concatenate([[0.9], TAILS[1:]])}, "tails"),
        ({"tails": TAILS[::-1]}, "tails"),
        ({"tails": np.concatenate([TAILS[:-1], [0.0]])}, "tails"),
        ({"discount": np.full((1, len(BETS)), 0.9)}, "discount"),
        ({"discount": np.full((1, len(BETS)), np.nan)}, "discount"),
        ({"discount": np.ones((2, len(BETS)))}, "discount"),
        ({"discount": np.ones(1)}, "discount"),
        ({"thresholds": np.zeros((0, 1, 1, 41))}, "profile"),
        ({"thresholds": np.zeros((1, 1, 41))}, "thresholds"),
        ({"thresholds": np.full((1, 1, 1, 41), np.nan)}, "thresholds"),
        ({"thresholds": -(1 - TAILS).reshape(1, 1, 1, 41)}, "thresholds"),
    ],
)
def test_tensors_that_make_no_model_are_refused(changed: dict[str, NDArray[np.generic]], said: str) -> None:
    tensors = exact_model().tensors()
    if "history_edges" in changed and len(changed["history_edges"]) == 3:
        tensors = exact_model(edges=(1, 2, 3)).tensors()
    with pytest.raises(ValueError, match=said):
        EvidenceModel.from_tensors(("s0",), tensors | changed)


# ---- the e-detectors ----


@pytest.mark.parametrize("promised", [50, 400])
def test_honest_streams_alarm_no_oftener_than_once_in_one_over_alpha_queries(promised: int) -> None:
    random = np.random.default_rng(promised)
    model = exact_model(profiles=2, statistics=2)
    # The second profile's scores are smaller, so only the first holds for these streams.
    model.thresholds[1] *= 0.5
    alarms, queries = 0, 40_000
    scores = random.uniform(size=(queries, 2))
    scores[:, 1] = np.where(random.uniform(size=queries) < 0.5, scores[:, 0], scores[:, 1])
    values = model.bets(scores, np.zeros(queries, dtype=np.int64))
    state, begun, runs = EvidenceState.initial(model), 0, []
    for row in range(queries):
        state.absorb(values[row : row + 1])
        if state.log_evidence().min() >= math.log(promised):
            alarms += 1
            runs.append(row + 1 - begun)
            state, begun = EvidenceState.initial(model), row + 1
    mean = float(np.mean(runs)) if runs else math.inf
    error = float(np.std(runs)) / math.sqrt(len(runs)) if runs else 0.0
    assert mean + 3 * error >= promised


def test_a_stream_that_is_unlike_every_profile_alarms_soon() -> None:
    model = exact_model(profiles=3)
    state = EvidenceState.initial(model)
    scores = np.random.default_rng(2).uniform(0.97, 1.0, size=(40, 1))
    state.absorb(model.bets(scores, np.zeros(40, dtype=np.int64)))
    assert state.log_evidence().min() > math.log(1e6)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 60), cuts=st.lists(st.integers(0, 60), max_size=8).map(sorted)
)
def test_cutting_a_stream_anywhere_changes_no_bit(seed: int, rows: int, cuts: list[int]) -> None:
    random = np.random.default_rng(seed)
    values = staked(np.exp(random.normal(0.0, 3.0, (rows, 3, 2))))
    values[random.uniform(size=(rows, 3, 2)) < 0.2] = np.nan
    whole = EvidenceState(np.zeros((3, 2, len(BETS))))
    parts = EvidenceState(np.zeros((3, 2, len(BETS))))
    whole.absorb(values)
    for part in np.split(values, cuts):
        parts.absorb(part)
    assert whole.sums.tobytes() == parts.sums.tobytes()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0.1, 6.0), silent=st.sampled_from([0.0, 0.3]))
def test_an_account_absorbs_bit_for_bit_as_many_accounts_advance(seed: int, spread: float, silent: float) -> None:
    random = np.random.default_rng(seed)
    values = staked(np.exp(random.normal(0.0, spread, (40, 5, 3))))
    values[random.uniform(size=(40, 5, 3)) < silent] = np.nan
    state, sums = EvidenceState(np.zeros((5, 3, len(BETS)))), np.zeros((2, 5, 3, len(BETS)))
    state.absorb(values)
    for row in values:
        sums = advance(sums, np.stack([row, row]))
    assert state.sums.tobytes() == sums[0].tobytes() == sums[1].tobytes()
    assert state.log_evidence().tobytes() == log_by_profile(sums)[1].tobytes()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_sum_is_ever_negative_unbounded_or_off_its_leash(seed: int) -> None:
    random = np.random.default_rng(seed)
    state = EvidenceState(np.zeros((4, 2, len(BETS))))
    for _ in range(30):
        state.absorb(staked(np.exp(random.normal(0.0, 6.0, (1, 4, 2)))))
        by_profile = state.sums.mean(axis=(1, 2))
        assert (state.sums >= 0).all()
        assert (state.sums <= LARGEST_R).all()
        assert by_profile.max() <= LEASH * max(by_profile.min(), 1.0) * (1 + 1e-12)


def test_the_leash_hangs_no_lower_than_its_length_above_nothing() -> None:
    state = start(0.0, 29.0)
    state.absorb(staked(np.array([[[0.0], [1.0]]])))
    assert state.sums.mean(axis=(1, 2))[1] == pytest.approx(LEASH)


def test_an_account_at_the_cap_regains_its_innocence() -> None:
    state = start(LARGEST_R, LARGEST_R)
    needed = 0
    while state.log_evidence().max() > math.log(1e6):
        state.absorb(np.zeros((1, 2, 1, len(BETS))) + np.array([1 - bet.size for bet in BETS]))
        needed += 1
    assert 300 < needed < 800


def test_evidence_is_the_logarithm_of_the_average_and_never_below_nothing() -> None:
    sums = np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]], [[0.0, 0.1, 0.2], [0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(EvidenceState(sums).log_evidence(), [math.log(4.0), 0.0], rtol=1e-6)


# ---- over detectors ----


def test_the_accounts_evidence_is_the_smallest_average_over_the_profiles() -> None:
    vectors = [np.log(np.array([8.0, 100.0], dtype=np.float32)), np.log(np.array([2.0, 50.0], dtype=np.float32))]
    assert combine(vectors, 2) == pytest.approx(math.log(5.0))
    assert combine(vectors, 4) == pytest.approx(math.log(2.5))


def test_detectors_that_have_not_spoken_count_for_the_account() -> None:
    assert combine([], 4) == 0.0
    assert combine([np.zeros(3, dtype=np.float32)], 4) == 0.0


@pytest.mark.parametrize(
    ("vectors", "detectors", "said"),
    [([np.zeros(2), np.zeros(2)], 1, "2 detectors spoke where there are 1"), ([np.zeros(2), np.zeros(3)], 2, "shape")],
)
def test_vectors_that_cannot_be_added_are_refused(
    vectors: list[NDArray[np.float32]], detectors: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        combine(vectors, detectors)
