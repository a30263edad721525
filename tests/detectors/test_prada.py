"""PRADA against a plain implementation of the paper and of the authors' growing set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from services.prada.detector import PradaDetector, shapiro_wilk
from shared.bundle import PradaSection
from shared.detection import Rule
from tests.support.accounts import crafted, honest
from tests.support.detectors import silent

CLASSES = 4
SIZE = 16


class Reference:
    """The growing set and the test, in lists and loops, without windows or bounds."""

    def __init__(self) -> None:
        self.sets: dict[int, list[NDArray[np.float64]]] = {}
        self.admitted: dict[int, list[float]] = {}
        self.thresholds: dict[int, float] = {}
        self.distances: list[tuple[int, float]] = []

    def query(self, image: NDArray[np.uint8], label: int) -> None:
        x = image.astype(np.float64) / 255.0
        if label not in self.sets:
            self.sets[label], self.admitted[label], self.thresholds[label] = [x], [0.0], 0.0
            return
        d = min(float(np.linalg.norm(x - y)) for y in self.sets[label])
        self.distances.append((label, d))
        if d > self.thresholds[label]:
            self.sets[label].append(x)
            self.admitted[label].append(d)
            admitted = np.array(self.admitted[label])
            self.thresholds[label] = max(self.thresholds[label], float(admitted.mean() - admitted.std()))

    def w(self, more_than: int) -> float:
        labels = [label for label, _ in self.distances]
        pooled = np.array([d for label, d in self.distances if labels.count(label) >= 10])
        kept = pooled[np.abs(pooled - pooled.mean()) < 3 * pooled.std()] if len(pooled) else pooled
        return float(stats.shapiro(kept).statistic) if len(kept) > more_than else math.nan


def detector(**section: float) -> PradaDetector:
    settings = {"delta": 0.9, "test_every": 1} | section
    return PradaDetector(PradaSection.model_validate(settings), (SIZE,), CLASSES, silent(["class_distance"]), "test")


def rules_of(detect: PradaDetector, images: NDArray[np.uint8]) -> list[Rule]:
    """What the rule says after each query of one class."""
    features = detect.features(images, np.eye(CLASSES, dtype=np.float32)[[0] * len(images)])
    state, rules = detect.initial(), []
    for row in range(len(images)):
        state, observation = detect.step(state, features, np.array([row]))
        rules.append(observation.rule)
    return rules


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), spread=st.integers(1, 60))
def test_the_growing_set_and_w_are_those_of_the_paper(seed: int, spread: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(CLASSES, size=150)
    images = np.clip(labels[:, None] * 50 + random.normal(0, spread, (150, SIZE)), 0, 255).astype(np.uint8)
    images = np.unique(images, axis=0)
    images, labels = images[random.permutation(len(images))], labels[: len(images)]
    detect = detector(warm_up=20)
    features = detect.features(images, np.eye(CLASSES, dtype=np.float32)[labels])
    state, plain = detect.initial(), Reference()
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        state, observation = detect.step(state, features, np.array([row]))
        plain.query(image, int(label))
        memory = state.memory
        assert len(memory.members) == sum(map(len, plain.sets.values()))
        np.testing.assert_allclose(memory.distances.array[:, 0], [d for _, d in plain.distances], atol=1e-5)
        for known, threshold in plain.thresholds.items():
            assert memory.admission[known, 3] == pytest.approx(threshold, abs=1e-5)
        if row % 7 == 0 and plain.distances:
            assert observation.rule.statistic == pytest.approx(plain.w(20), abs=1e-4, nan_ok=True)


def test_the_first_query_of_a_class_has_no_distance_and_joins_its_set() -> None:
    images = np.arange(3 * SIZE, dtype=np.uint8).reshape(3, SIZE)
    detect = detector()
    features = detect.features(images, np.eye(CLASSES, dtype=np.float32)[[0, 1, 0]])
    state = detect.initial()
    values, *_ = detect.replay(state, features, np.arange(3))
    assert np.isnan(values[:2]).all()
    # Each pixel differs by 32 of 255, over 16 pixels.
    assert values[2, 0] == pytest.approx(4 * 32 / 255, rel=1e-6)
    assert len(state.memory.members) == 3


def test_a_query_closer_than_the_sets_threshold_is_measured_and_not_admitted() -> None:
    """Admitted distances 0 (the first), 1, 1 in pixels: mean 2/3, deviation 0.471, threshold 0.195."""
    images = np.zeros((4, SIZE), dtype=np.uint8)
    images[1, 0] = images[2, 1] = 255
    images[3, :2] = (40, 0)
    detect = detector()
    features = detect.features(images, np.eye(CLASSES, dtype=np.float32)[[0, 0, 0, 0]])
    state = detect.initial()
    values, *_ = detect.replay(state, features, np.arange(4))
    np.testing.assert_allclose(values[1:, 0], [1.0, 1.0, 40 / 255], rtol=1e-6)
    assert state.memory.admission[0, 3] == pytest.approx(2 / 3 - math.sqrt(2) / 3)
    assert len(state.memory.members) == 3
    assert len(state.memory.distances) == 3


def test_w_is_of_what_lies_within_three_deviations() -> None:
    normal = np.random.default_rng(1).normal(1.0, 0.1, 200)
    outlying = np.concatenate([normal, [50.0]])
    assert shapiro_wilk(outlying, 100) == pytest.approx(stats.shapiro(normal).statistic, abs=1e-12)
    assert shapiro_wilk(normal, 100) > 0.98 > 0.9 > shapiro_wilk(np.random.default_rng(1).exponential(size=200), 100)


@pytest.mark.parametrize("count", [0, 1, 99, 100])
def test_there_is_no_w_of_a_hundred_distances_or_fewer(count: int) -> None:
    assert math.isnan(shapiro_wilk(np.linspace(1.0, 2.0, count), 100))
    assert not math.isnan(shapiro_wilk(np.linspace(1.0, 2.0, 101), 100))


def test_equal_distances_have_no_w_and_no_guilt() -> None:
    assert math.isnan(shapiro_wilk(np.full(500, 0.7), 100))


def test_w_is_renewed_every_tenth_distance_and_not_latched() -> None:
    random = np.random.default_rng(3)
    images = np.unique(random.integers(0, 256, (180, SIZE), dtype=np.uint8), axis=0)
    detect = detector(test_every=10, warm_up=20)
    rules = rules_of(detect, images)
    spoken = [rule.statistic for rule in rules]
    changes = [row for row in range(1, len(spoken)) if not math.isnan(spoken[row]) and spoken[row] != spoken[row - 1]]
    assert all(row % 10 == 0 for row in changes)  # the first query has no distance
    assert all(rule.flagged == (rule.statistic < detect.section.delta) for rule in rules)


def test_crafted_queries_fall_under_a_delta_that_honest_ones_stay_above() -> None:
    section = PradaSection.model_validate({"delta": 0.95, "warm_up": 100})
    detect = PradaDetector(section, (1, 28, 28), 10, silent(["class_distance"]), "test")
    flagged = []
    for account in (honest(70, 400), honest(71, 400), crafted(70, 400)):
        _, observation = detect.step(detect.initial(), detect.features(account.inputs, account.logits))
        flagged.append(observation.rule.flagged)
    assert flagged == [False, False, True]
