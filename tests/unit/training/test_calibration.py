"""Calibration keeps the promises that evidence makes with its numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.training import calibration
from services.training.calibration import TAILS, Trace, account_threshold, tail_thresholds
from shared.datasets import load_splits
from shared.evidence import EvidenceModel
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


@pytest.mark.parametrize(("alarmed", "accounts", "limit"), [(0, 100, 0.0295), (1, 100, 0.0466), (100, 100, 1.0)])
def test_the_confidence_limit_is_clopper_and_pearsons(alarmed: int, accounts: int, limit: float) -> None:
    assert calibration.upper_limit(alarmed, accounts) == pytest.approx(limit, abs=2e-4)


def test_the_needed_beta_is_the_smallest_at_which_the_rule_stays_silent() -> None:
    random = np.random.default_rng(2)
    values = random.normal(-1.2, 0.3, 400)
    beta = calibration.needed_beta(values, benign_mean=-1.0, warm_up=50)
    means = np.cumsum(values) / np.arange(1, 401)

    def flagged(width: float) -> bool:
        warm = means[50:]
        return any(warm[t] + width * warm[: t + 1].std(ddof=1) < -1.0 for t in range(1, len(warm)))

    assert not flagged(beta * 1.001)
    assert flagged(beta * 0.999)


def test_few_scores_borrow_the_smaller_historys_thresholds() -> None:
    class OneStatistic:
        name = "brightness"
        statistics = (calibration.Statistic("brightness", suspicious_when_high=True),)

    random = np.random.default_rng(3)
    short = {"brightness": Trace(random.normal(size=(200, 1)), np.arange(200))}
    thresholds = calibration.profile_thresholds(OneStatistic(), [short, short], np.array([0, 1]), 4)  # type: ignore[arg-type]
    assert np.array_equal(thresholds[:, :, 2], thresholds[:, :, 1])
    EvidenceModel(("brightness",), calibration.HISTORY_EDGES, TAILS, thresholds, np.ones(1))


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
