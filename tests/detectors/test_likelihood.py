"""The running mean and its credibility interval against brute force (TR 2021-126, section VI-B)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from services.likelihood.detector import LikelihoodDetector
from services.likelihood.vqvae import VectorQuantisedAutoencoder
from shared.bundle import LikelihoodSection, ModelSection
from shared.detection import Rule
from tests.support.accounts import honest
from tests.support.bundles import untrained_manifest
from tests.support.detectors import silent

MODEL = ModelSection.model_validate(untrained_manifest()["model"])


def detector(benign_mean: float = -1.0, beta: float = 2.0, warm_up: int = 50) -> LikelihoodDetector:
    section = LikelihoodSection(benign_mean=benign_mean, beta=beta, data_variance=0.5, warm_up=warm_up)
    network = VectorQuantisedAutoencoder(1).eval().requires_grad_(False)
    return LikelihoodDetector(section, MODEL, network, silent(["log_likelihood"]), "test")


def rules_of(detect: LikelihoodDetector, values: NDArray[np.float64]) -> list[Rule]:
    """What the rule says after each query of these log-likelihoods."""
    unlike = np.arange(len(values), dtype=np.uint8)[:, None]
    features = {"log_likelihood": values, "digest": np.arange(len(values), dtype=np.uint64), "thumbnail": unlike}
    state, rules = detect.initial(), []
    for row in range(len(values)):
        state, observation = detect.step(state, features, np.array([row]))
        rules.append(observation.rule)
    return rules


@settings(deadline=None, max_examples=15)
@given(values=npst.arrays(np.float64, st.integers(1, 90), elements=st.floats(-20, 5)), warm_up=st.integers(1, 30))
def test_the_interval_is_the_running_mean_and_the_spread_of_the_running_means(
    values: NDArray[np.float64], warm_up: int
) -> None:
    means = [float(values[: n + 1].mean()) for n in range(len(values))]
    for n, rule in enumerate(rules_of(detector(beta=2.0, warm_up=warm_up), values)):
        warm = means[warm_up : n + 1]
        deviation = float(np.std(warm, ddof=1)) if len(warm) > 1 else 0.0
        assert rule.details["mean"] == pytest.approx(means[n], abs=1e-9)
        assert rule.details["upper"] == pytest.approx(means[n] + 2 * deviation, abs=1e-6)
        assert rule.details["lower"] == pytest.approx(means[n] - 2 * deviation, abs=1e-6)
        if len(warm) > 1:
            assert rule.statistic == rule.details["upper"]
            assert rule.flagged == (rule.statistic < -1.0)
        else:
            assert math.isnan(rule.statistic)
            assert not rule.flagged


def test_nobody_is_condemned_during_the_warm_up() -> None:
    rules = rules_of(detector(warm_up=50), np.full(60, -9.0))
    assert [rule.flagged for rule in rules] == [False] * 51 + [True] * 9


def test_a_mean_above_the_honest_one_is_never_condemned() -> None:
    assert not any(rule.flagged for rule in rules_of(detector(benign_mean=-1.0), np.full(80, -0.2)))


def test_an_interval_that_still_reaches_the_honest_mean_does_not_condemn() -> None:
    values = np.concatenate([np.full(60, 0.0), np.full(60, -3.0)])
    assert not any(rule.flagged for rule in rules_of(detector(benign_mean=-1.4, beta=8.0), values))
    assert any(rule.flagged for rule in rules_of(detector(benign_mean=-1.4, beta=0.01), values))


def test_the_log_likelihood_is_minus_the_mean_squared_error_over_the_datas_variance() -> None:
    detect, account = detector(), honest(90, 5)
    pixels = account.inputs / 255.0
    scored = detect.score(account.inputs, account.logits)["log_likelihood"]
    with torch.inference_mode():
        reconstruction = detect.network(torch.from_numpy(pixels).float())[0].numpy()
    expected = -((reconstruction - pixels) ** 2).mean(axis=(1, 2, 3)) / 0.5
    np.testing.assert_allclose(scored, expected, rtol=1e-3)
