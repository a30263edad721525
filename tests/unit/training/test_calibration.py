"""Calibration keeps the promises that evidence makes with its numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.training import calibration, papers
from services.training.calibration import TAILS, account_threshold, tail_thresholds
from services.training.tracing import Trace, Traces
from shared.datasets import load_splits
from shared.detection import Statistic
from shared.evidence import BETS, EvidenceModel, EvidenceState, combine
from shared.population import draw_accounts


def p_values(thresholds: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What the evidence model reads from thresholds: the smallest tail whose threshold a score reaches."""
    return TAILS[(scores[:, None] >= thresholds[None, 1:]).sum(axis=1)]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(100, 3000))
def test_a_p_value_is_never_smaller_than_the_conformal_one(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    calibrated, fresh = random.normal(size=size), random.normal(size=200)
    exact = (1 + (calibrated[None] >= fresh[:, None]).sum(axis=1)) / (size + 1)
    assert (p_values(tail_thresholds(calibrated), fresh) >= exact - 1e-9).all()


def test_p_values_of_honest_scores_are_nearly_uniform() -> None:
    random = np.random.default_rng(1)
    found = p_values(tail_thresholds(random.normal(size=20_000)), random.normal(size=20_000))
    for level in (0.5, 0.1, 0.01, 0.001):
        # Rounded up to the next of 64 tails, a step of 16%.
        assert level / 1.3 - 0.002 <= (found <= level).mean() <= level * 1.1 + 0.002


def test_tied_scores_are_not_rare() -> None:
    thresholds = tail_thresholds(np.zeros(1000))
    assert (p_values(thresholds, np.zeros(5)) == 1.0).all()


def test_a_threshold_holds_the_share_that_it_was_asked_for() -> None:
    largest = np.array([1.0] * 97 + [20.0, 21.0, 22.0])
    threshold, alarmed = account_threshold(largest, smallest_threshold=13.8, share=0.02)
    assert (largest >= threshold).sum() == alarmed == 2
    assert account_threshold(np.ones(100), 13.8, 0.01) == (13.8, 0)


@pytest.mark.parametrize(
    ("found", "of", "lower", "upper"), [(0, 100, 0.0, 0.0295), (1, 100, 0.0005, 0.0466), (100, 100, 0.9705, 1.0)]
)
def test_the_confidence_limits_are_clopper_and_pearsons(found: int, of: int, lower: float, upper: float) -> None:
    assert calibration.confidence_interval(found, of) == (
        pytest.approx(lower, abs=2e-4),
        pytest.approx(upper, abs=2e-4),
    )


def test_a_share_of_queries_is_as_uncertain_as_its_accounts_are_few() -> None:
    of = np.full(40, 1000)
    alike = calibration.bootstrapped_interval(np.full(40, 10), of, seed=1)
    assert alike == (0.01, 0.01)
    lower, upper = calibration.bootstrapped_interval(np.where(np.arange(40) < 4, 100, 0), of, seed=1)
    # Four accounts hold all of it: the share is 1%, and could as well be twice that.
    assert lower < 0.006
    assert upper > 0.015


def test_the_needed_beta_is_the_smallest_at_which_the_rule_stays_silent() -> None:
    random = np.random.default_rng(2)
    values = random.normal(-1.2, 0.3, 400)
    beta = papers.needed_beta(values, benign_mean=-1.0, warm_up=50)
    means = np.cumsum(values) / np.arange(1, 401)

    def flagged(width: float) -> bool:
        warm = means[50:]
        return any(warm[t] + width * warm[: t + 1].std(ddof=1) < -1.0 for t in range(1, len(warm)))

    assert not flagged(beta * 1.001)
    assert flagged(beta * 0.999)


STATISTICS = {
    "first": (Statistic("brightness", suspicious_when_high=True), Statistic("closeness", suspicious_when_high=False)),
    "second": (Statistic("likelihood", suspicious_when_high=False),),
}


def heard(values: np.ndarray, rows: np.ndarray) -> Trace:
    """A trace of which every value is news."""
    return Trace(values.astype(np.float32), rows, np.ones(values.shape, dtype=np.bool_))


def traces(random: np.random.Generator, queries: int, shift: float = 0.0) -> Traces:
    """An account whose values are normal; some queries have no closeness, and every tenth row was a repeat."""
    rows = np.flatnonzero(np.arange(queries) % 10 != 9)
    table = random.normal(shift, 1.0, (len(rows), 3)).astype(np.float32)
    table[random.random(len(rows)) < 0.3, 1] = np.nan
    return {"first": heard(table[:, :2], rows), "second": heard(table[:, 2:], rows)}


def test_few_scores_borrow_the_smaller_historys_thresholds() -> None:
    random = np.random.default_rng(3)
    short = {"first": heard(random.normal(size=(200, 2)), np.arange(200))}
    thresholds = calibration.profile_thresholds("first", STATISTICS["first"], [short, short], np.array([0, 1]), 4)
    assert np.array_equal(thresholds[:, :, 2], thresholds[:, :, 1])
    EvidenceModel(("brightness", "closeness"), calibration.HISTORY_EDGES, TAILS, thresholds, np.ones((2, len(BETS))))


def test_many_accounts_side_by_side_get_the_evidence_that_the_services_would_give_each() -> None:
    random = np.random.default_rng(4)
    models = calibration.evidence_models(STATISTICS, [traces(random, 300) for _ in range(30)], seed=1)
    accounts = [traces(random, queries, shift) for queries, shift in ((150, 0.0), (90, 1.5), (1, 0.0))]
    paths = calibration.evidence_paths(STATISTICS, models, accounts)
    for account, path in zip(accounts, paths, strict=True):
        states = {name: EvidenceState.initial(model) for name, model in models.items()}
        for query, found in enumerate(path):
            for name, state in states.items():
                scores = account[name].scores(STATISTICS[name])[query : query + 1]
                state.absorb(models[name].bets(scores, np.array([query])))
            alone = combine([state.log_evidence() for state in states.values()], len(states))
            assert found == pytest.approx(alone, abs=1e-6)
    assert paths[1][-1] > paths[0][-1]


def test_evidence_rarely_grows_on_accounts_like_those_of_calibration() -> None:
    random = np.random.default_rng(5)
    models = calibration.evidence_models(STATISTICS, [traces(random, 300) for _ in range(60)], seed=1)
    honest = calibration.evidence_paths(STATISTICS, models, [traces(random, 1000) for _ in range(50)])
    assert max(path.max() for path in honest) < np.log(1e6)


def test_untrained_profiles_of_scores_that_say_nothing_make_nobody_suspect() -> None:
    random = np.random.default_rng(6)
    alike = traces(random, 200)
    same = [{name: heard(np.zeros_like(seen.values), seen.rows) for name, seen in alike.items()}] * 30
    models = calibration.evidence_models(STATISTICS, same, seed=1)
    # Even bets that always lose leave a sum of the latest stakes, f + f^2 + ...
    losing = np.array([1 - bet.size + bet.size * bet.payoff(TAILS)[0] for bet in BETS])
    most = float((losing / (1 - losing)).mean())
    assert max(path.max() for path in calibration.evidence_paths(STATISTICS, models, same)) < np.log(most)


def test_every_account_has_a_profile_under_which_no_bet_pays_it_more_than_the_discount() -> None:
    means = np.exp(np.random.default_rng(7).normal(0.0, 1.0, (40, 5, 3, 2)))
    found = calibration.smallest_discounts(means)
    assert (found >= 1).all()
    assert ((means <= found).all(axis=(2, 3)).any(axis=1)).all()
    # Choosing once, by payments that nothing has measured yet, costs more.
    once = np.maximum(means[np.arange(40), means.max(axis=(2, 3)).argmin(axis=1)].max(axis=0), 1.0)
    assert (found <= once).all()
    assert found.sum() < once.sum()


def test_a_cluster_too_few_for_all_profiles_repeats_the_first() -> None:
    random = np.random.default_rng(8)
    accounts = [traces(random, 900, shift) for shift in (0.0, 3.0)]
    thresholds = calibration.profile_thresholds("first", STATISTICS["first"], accounts, np.array([0, 1]), 4)
    assert not np.array_equal(thresholds[1], thresholds[0])
    assert np.array_equal(thresholds[2], thresholds[0])
    assert np.array_equal(thresholds[3], thresholds[0])


def test_training_calibration_holdout_and_demonstration_share_no_image() -> None:
    splits = load_splits()
    parts = [splits.train, splits.calibration, splits.holdout]
    rows = [set(map(bytes, part.images.reshape(len(part), -1))) for part in parts]
    # Fashion-MNIST itself holds a few images twice; the cut adds none.
    whole = np.concatenate([part.images for part in parts])
    twice = len(whole) - len(set(map(bytes, whole.reshape(len(whole), -1))))
    assert sum(len(row) for row in rows) - len(set.union(*rows)) <= twice
    assert sum(map(len, parts)) == 60_000


def test_accounts_are_a_function_of_the_seed() -> None:
    data = load_splits().holdout
    first, again, other = (draw_accounts(data, 8, 50, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.images, b.images) for a, b in zip(first, other, strict=True))
