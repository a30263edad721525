"""Similar pairs, steepness and reference distance against brute force over all that the account sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.similarity.detector import FEWEST_INPUTS, STATISTICS, SimilarityDetector, coarse
from services.similarity.rarity import Rarity
from shared.bundle import ModelSection, SimilaritySection
from shared.detection import Detector
from shared.neighbours import ReferenceIndex
from tests.support.accounts import Stream, crafted, honest

WINDOW = 128
"""`window` of the suite's bundle; rows are evicted 64 at a time, so 128 to 192 are kept."""


@pytest.fixture(scope="module")
def detector(detectors: dict[str, Detector[Any]]) -> SimilarityDetector:
    found = detectors["similarity"]
    assert isinstance(found, SimilarityDetector)
    return found


@pytest.fixture(scope="module")
def account() -> Stream:
    """Honest pictures and small steps from them, mixed: some pairs are similar, most are not."""
    one, other = honest(80, 60), crafted(80, 60)
    order = np.random.default_rng(1).permutation(120)
    return Stream(np.concatenate([one.inputs, other.inputs])[order], np.concatenate([one.logits, other.logits])[order])


def brute_force(rows: NDArray[np.generic], row: int) -> tuple[float, int]:
    """Distance to, and number of, the nearest of the rows before `row`."""
    if row == 0:
        return np.nan, -1
    distances = np.linalg.norm(rows[:row].astype(np.float64) - rows[row].astype(np.float64), axis=1)
    return float(distances.min()), int(distances.argmin())


def remade(detector: SimilarityDetector, section: SimilaritySection, model: ModelSection) -> SimilarityDetector:
    """The same networks with other bounds, or for inputs of another shape."""
    return SimilarityDetector(
        section,
        model,
        detector.similarity,
        detector.reference,
        detector.perturbation,
        np.zeros((20, 128), dtype=np.float32),
        detector.temperature,
        detector.unsure,
        detector.crafted,
        detector.evidence,
        "test",
    )


def test_pairs_are_counted_as_brute_force_counts_them(detector: SimilarityDetector, account: Stream) -> None:
    features = detector.features(account.inputs, account.logits)
    nearest = np.array([brute_force(features["vector"], row)[0] for row in range(len(account))])
    delta = float(np.nanquantile(nearest, 0.4))
    section = detector.section.model_copy(update={"delta": delta, "pairs": 30})
    strict = remade(detector, section, detector.model)
    state, similar = strict.initial(), 0
    for row in range(len(account)):
        state, observation = strict.step(state, features, np.array([row]))
        similar += bool(nearest[row] < delta)
        assert observation.rule.statistic == similar
        assert observation.rule.flagged == (similar >= 30)
    assert 30 < similar < 90


def test_the_statistics_are_those_of_brute_force(detector: SimilarityDetector, account: Stream) -> None:
    features = detector.features(account.inputs, account.logits)
    values, *_ = detector.replay(detector.initial(), features, np.arange(len(account)))
    pixels = account.inputs.reshape(len(account), -1) / 255.0
    centred = account.logits - account.logits.mean(axis=1, keepdims=True)
    cells = coarse(account.inputs)
    near = 0
    for row in range(len(account)):
        pair, _ = brute_force(features["vector"], row)
        _, neighbour = brute_force(cells, row)
        steepness = close = odds = np.nan
        if row:
            distance = np.linalg.norm(pixels[row] - pixels[neighbour])
            steepness = float(np.linalg.norm(centred[row] - centred[neighbour]) / distance)
            if distance < detector.section.close * 28:
                close, odds = steepness, log_odds(detector, account.inputs[row], account.inputs[neighbour])
                near += 1
        np.testing.assert_allclose(values[row, :4], [pair, steepness, close, odds], rtol=1e-4, equal_nan=True)
    assert 20 < near < 119
    for column, statistic in enumerate(STATISTICS[4:], start=4):
        np.testing.assert_array_equal(values[:, column], features[statistic.name])


def log_odds(detector: SimilarityDetector, image: NDArray[np.uint8], earlier: NDArray[np.uint8]) -> float:
    pair = torch.from_numpy(np.concatenate([image, earlier])[None].astype(np.float32) / np.float32(255))
    with torch.inference_mode():
        return float(detector.perturbation(pair))


def test_the_nearest_input_by_thumbnails_is_a_small_perturbations_origin(detector: SimilarityDetector) -> None:
    far, random = honest(83, 200), np.random.default_rng(5)
    for strength in (2, 8, 20):
        change = random.choice([-strength, strength], far.inputs.shape)
        moved = np.clip(far.inputs.astype(int) + change, 0, 255).astype(np.uint8)
        distances = np.linalg.norm(coarse(moved)[:, None] - coarse(far.inputs)[None], axis=2)
        assert (distances.argmin(axis=1) == np.arange(200)).mean() > 0.99


def test_of_large_inputs_fewer_are_kept(detector: SimilarityDetector) -> None:
    def kept(shape: tuple[int, int, int]) -> int:
        model = detector.model.model_copy(update={"input_shape": shape})
        return remade(detector, section, model).layouts()["inputs"].capacity

    section = SimilaritySection(delta=1.0)
    whole, limit = section.window, section.window_bytes
    assert kept((1, 28, 28)) == whole
    assert FEWEST_INPUTS < kept((3, 64, 64)) == limit // (3 * 64 * 64) < whole
    assert kept((3, 1024, 1024)) == FEWEST_INPUTS


def test_crafted_queries_are_steeper_than_honest_ones(detector: SimilarityDetector) -> None:
    medians = []
    for account in (honest(81, 120), crafted(81, 120)):
        features = detector.features(account.inputs, account.logits)
        medians.append(np.nanmedian(detector.replay(detector.initial(), features, np.arange(120))[0][:, 1]))
    assert medians[1] > 1.5 * medians[0]


def test_a_query_that_looks_crafted_and_is_hard_to_recognise_is_rarer_than_one_that_is_either() -> None:
    random = np.random.default_rng(3)
    unsure, crafted = (Rarity.of(random.normal(size=10_000)) for _ in range(2))
    common, rare = 0.0, 2.326
    for rarity in (unsure, crafted):
        assert rarity(np.array([rare]))[0] == pytest.approx(2.0, abs=0.1)
        assert rarity(np.array([-9.0, 9.0])).tolist() == [0.0, pytest.approx(4.0)]
    sums = [float((unsure(np.array([u])) + crafted(np.array([c])))[0]) for u, c in ((rare, common), (rare, rare))]
    assert sums[1] == pytest.approx(4.0, abs=0.2)
    assert sums[0] == pytest.approx(2.3, abs=0.2)


def test_a_score_between_two_honest_ones_is_rarer_than_the_lower_and_commoner_than_the_higher() -> None:
    honest_scores = np.random.default_rng(4).normal(size=5_000)
    rarity = Rarity.of(honest_scores)
    assert (np.diff(rarity(np.sort(honest_scores))) >= 0).all()
    found = -np.log10(np.array([(honest_scores >= score).mean() for score in honest_scores]))
    inside = found < 2  # 50 scores and more above
    np.testing.assert_allclose(rarity(honest_scores)[inside], found[inside], atol=0.1)


@pytest.mark.parametrize("thresholds", [np.zeros(5), np.arange(64.0)[::-1], np.full(64, np.nan)])
def test_thresholds_that_are_no_sorted_scores_make_no_rarity(thresholds: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="64 ascending thresholds"):
        Rarity(thresholds)


def test_the_reference_distance_is_that_to_the_kth_nearest(detector: SimilarityDetector) -> None:
    random = np.random.default_rng(2)
    honest_features, queries = random.normal(size=(50, 8)), random.normal(size=(5, 8))
    found = ReferenceIndex(honest_features.astype(np.float32)).distances(queries.astype(np.float32), 10)
    every = np.linalg.norm(queries[:, None] - honest_features[None], axis=2)
    np.testing.assert_allclose(found, np.sort(every, axis=1)[:, 9], rtol=1e-4)


def test_steepness_looks_back_no_further_than_its_window(detector: SimilarityDetector) -> None:
    """Beside a picture that is long gone, a query's nearest is one of the latest."""
    far = honest(82, 300)
    again = far.inputs[:1].copy()
    again[0, 0, 0, 0] ^= 1
    account = Stream(np.concatenate([far.inputs, again]), np.concatenate([far.logits, far.logits[:1]]))
    features = detector.features(account.inputs, account.logits)
    state = detector.initial()
    values, *_ = detector.replay(state, features, np.arange(301))
    pixels = account.inputs.reshape(301, -1) / 255.0
    kept = len(state.memory.inputs) - 1
    assert WINDOW <= kept <= WINDOW + 64
    cells = coarse(account.inputs)
    neighbour = 300 - kept + int(np.linalg.norm(cells[300 - kept : 300] - cells[300], axis=1).argmin())
    distance = np.linalg.norm(pixels[300] - pixels[neighbour])
    centred = account.logits - account.logits.mean(axis=1, keepdims=True)
    expected = np.linalg.norm(centred[300] - centred[neighbour]) / distance
    assert values[300, 1] == pytest.approx(float(expected), rel=1e-4)
