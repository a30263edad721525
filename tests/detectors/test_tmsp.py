"""TMSP as AMAO's section 4.3 defines it, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.tmsp.detector import TmspDetector
from shared.bundle import TmspSection
from shared.detection import Rule
from shared.softmax import tmsp
from tests.support.detectors import silent


def detector(temperature: float, threshold: float, suspicion: float = 0.5) -> TmspDetector:
    section = TmspSection.model_validate({"temperature": temperature, "lambda": threshold, "suspicion": suspicion})
    return TmspDetector(section, 3, silent(["tmsp"]), "test")


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, dtype=np.float64)).astype(np.float32)


def rule_after(detect: TmspDetector, logits: np.ndarray) -> Rule:
    inputs = np.arange(len(logits), dtype=np.int64).view(np.uint8).reshape(len(logits), 8)
    return detect.step(detect.initial(), detect.features(inputs, logits))[1].rule


@pytest.mark.parametrize(
    ("logits", "temperature", "expected"),
    [
        # softmax(z / T), eq. 7: by hand.
        ([0.0, 0.0, 0.0], 1.0, 1 / 3),
        ([math.log(8), 0.0, 0.0], 1.0, 8 / 10),
        ([math.log(8), 0.0, 0.0], 3.0, 2 / 4),
        ([0.0, math.log(16), math.log(4)], 2.0, 4 / (1 + 4 + 2)),
        ([2.0, 1.0, 0.0], 0.5, 1 / (1 + math.exp(-2) + math.exp(-4))),
    ],
)
def test_tmsp_is_the_largest_probability_of_the_cooled_or_heated_softmax(
    logits: list[float], temperature: float, expected: float
) -> None:
    assert tmsp(np.array([logits], dtype=np.float32), temperature)[0] == pytest.approx(expected, rel=1e-6)


def test_huge_logits_overflow_nothing() -> None:
    values = tmsp(np.array([[1e4, -1e4, 0.0], [3e38, -3e38, 0.0]], dtype=np.float32), 0.01)
    np.testing.assert_array_equal(values, [1.0, 1.0])


def test_adding_the_same_to_every_logit_changes_nothing() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_allclose(tmsp(logits, 4.0), tmsp(logits + np.float32(16.0), 4.0), rtol=1e-5)


def test_a_query_is_flagged_at_lambda_itself_and_below_but_not_above() -> None:
    """Detect(x) = 1 iff TMSP(x, T) <= lambda, eq. 9."""
    at, above = np.array([[0.0, 0.0, 0.0]], dtype=np.float32), logits_of(0.34, 0.33, 0.33)[None]
    threshold = float(tmsp(at, 1.0)[0])
    assert rule_after(detector(1.0, threshold), at).details["flagged_queries"] == 1
    assert rule_after(detector(1.0, threshold), above).details["flagged_queries"] == 0


def test_suspicion_is_the_share_of_flagged_queries() -> None:
    """S = sum Detect / N, eq. 10."""
    logits = np.stack([logits_of(0.4, 0.3, 0.3)] * 3 + [logits_of(0.9, 0.05, 0.05)] * 5)
    rule = rule_after(detector(1.0, 0.5), logits)
    assert rule.statistic == pytest.approx(3 / 8)
    assert rule.details["flagged_queries"] == 3


def test_nobody_is_condemned_before_more_than_fifty_queries() -> None:
    unsure = np.tile(logits_of(0.4, 0.3, 0.3), (51, 1))
    assert rule_after(detector(1.0, 0.5), unsure[:50]).statistic == 1.0
    assert not rule_after(detector(1.0, 0.5), unsure[:50]).flagged
    assert rule_after(detector(1.0, 0.5), unsure).flagged


def test_suspicion_must_exceed_its_threshold() -> None:
    half = np.tile(np.stack([logits_of(0.4, 0.3, 0.3), logits_of(0.9, 0.05, 0.05)]), (30, 1))
    assert not rule_after(detector(1.0, 0.5, suspicion=0.5), half).flagged
    assert rule_after(detector(1.0, 0.5, suspicion=0.49), half).flagged
