"""The TMSP and PRADA study measures what it says, and collapses where what it measures is taken away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.evaluation.amao import (
    F_MNIST,
    Constants,
    Score,
    best_constants,
    colluding,
    doubling_origins,
    flagged,
    judged,
    paper_of,
    threshold_of,
    verdict,
)
from services.evaluation.attackers import Seeded
from services.evaluation.streams import Attacker, Stream
from services.redteam.attack import Loot, Questions, Reply, Route
from services.redteam.jacobian import JbdaTr
from services.redteam.substitute import Substitute, shape_of
from services.tmsp.detector import TmspDetector
from services.training.papers import TEMPERATURES
from services.training.tracing import Recording
from shared.bundle import Bundle, write_bundle
from shared.softmax import tmsp
from tests.support import accounts
from tests.support.bundles import untrained_manifest
from tests.support.detectors import CASES, PROFILES, detector_files, silent

TEMPERATURES_TRIED = TEMPERATURES.tolist()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Random networks, silent evidence, the papers' rules as they are."""
    quiet = {name: silent(case.statistics) for name, case in CASES.items()}
    folder: Path = tmp_path_factory.mktemp("bundle")
    return write_bundle(folder, untrained_manifest() | {"profiles": PROFILES}, detector_files(quiet))


@pytest.fixture(scope="module")
def found(bundle: Bundle) -> TmspDetector:
    """TMSP with the constants that a hundred samples of each kind give."""
    honest, malicious = accounts.honest(1, 100).logits, accounts.noise(1, 100).logits
    return best_constants(honest, malicious, TEMPERATURES_TRIED).detector(bundle)


SHARES = st.lists(st.integers(10, 100).map(lambda percent: percent / 100), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(SHARES, SHARES)
def test_no_other_threshold_tells_two_sets_apart_better(honest: list[float], malicious: list[float]) -> None:
    threshold, rightly = threshold_of(np.array(honest), np.array(malicious))

    def share(at: float) -> float:
        return float((np.mean(np.array(malicious) <= at) + np.mean(np.array(honest) > at)) / 2)

    assert rightly == pytest.approx(share(threshold))
    assert rightly >= max(share(at) for at in (*honest, *malicious)) - 1e-9


def test_a_temperature_is_chosen_only_if_it_judges_no_worse_than_none(bundle: Bundle) -> None:
    honest, malicious = accounts.honest(1, 100).logits, accounts.noise(1, 100).logits
    scaled = best_constants(honest, malicious, [1.0, *TEMPERATURES_TRIED])
    plain = best_constants(honest, malicious, [1.0])
    scores = [judged(constants.detector(bundle), honest, malicious).accuracy for constants in (scaled, plain)]
    assert scores[0] >= scores[1]


def test_flags_are_those_of_equation_9(bundle: Bundle) -> None:
    logits = accounts.honest(2, 60).logits
    detector = Constants(2.0, 0.3).detector(bundle)
    assert (flagged(detector, logits) == (tmsp(logits, 2.0) <= 0.3)).all()


def test_a_score_is_that_of_the_confusion_matrix() -> None:
    flags = np.array([True] * 6 + [False] * 4)
    malicious = np.array([True] * 4 + [False] * 2 + [True] * 1 + [False] * 3)
    score = Score.of(flags, malicious)
    precision, recall = 4 / 6, 4 / 5
    assert score.accuracy == pytest.approx(70.0)
    assert score.f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_foreign_queries_are_told_from_honest_ones(found: TmspDetector) -> None:
    assert judged(found, accounts.honest(5, 400).logits, accounts.noise(5, 400).logits).accuracy > 80


def test_shuffled_labels_leave_the_detector_with_chance(found: TmspDetector) -> None:
    both = np.concatenate([accounts.honest(5, 1000).logits, accounts.noise(5, 1000).logits])
    shuffled = np.random.default_rng(0).permutation(both)
    # Three standard deviations of a share of 2,000.
    assert judged(found, shuffled[:1000], shuffled[1000:]).accuracy == pytest.approx(50.0, abs=3.4)


def test_swapped_streams_turn_the_accuracy_round(found: TmspDetector) -> None:
    honest, malicious = accounts.honest(5, 400).logits, accounts.noise(5, 400).logits
    right, swapped = judged(found, honest, malicious), judged(found, malicious, honest)
    assert swapped.accuracy == pytest.approx(100 - right.accuracy)
    assert swapped.f1 < right.f1 / 2


def test_prada_finds_crafted_distances_less_normal_and_foreign_ones_normal(bundle: Bundle) -> None:
    honest, crafted, foreign = (
        verdict(bundle, Recording(stream.inputs, stream.logits))
        for stream in (accounts.honest(3, 500), accounts.crafted(3, 500), accounts.noise(3, 500))
    )
    assert crafted.prada
    assert not honest.prada
    assert crafted.least_w < honest.least_w
    # Figure 7 (c): foreign images are unlike each other, so PRADA lets them pass.
    assert not foreign.prada


class _Listening(Route):
    """A victim who remembers what each question was made from, and answers with one class."""

    def __init__(self) -> None:
        self.origins: list[int] = []

    def send(self, questions: Questions, limit: int) -> Reply:
        self.origins += questions[:limit].origins.tolist()
        rows = np.arange(min(len(questions), limit))
        return Reply(rows, np.eye(10, dtype=np.float32)[rows % 10], len(rows))


class _Careless(JbdaTr):
    """Crafts as JBDA-TR does, from a copy that never learns."""

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        substitute.start(shape_of(self.seeds))


def test_origins_are_those_of_the_attack() -> None:
    listening = _Listening()
    attack = Seeded(_Careless, accounts.honest(1, 7).inputs)(np.random.default_rng(0))
    attack.run(listening, 40, np.random.default_rng(0))
    assert doubling_origins(7, 40).tolist() == listening.origins


def test_colluding_accounts_share_a_stream_and_keep_relatives_apart() -> None:
    stream = accounts.noise(4, 160)
    attacker = Attacker("JBDA-TR", "", 10, 160, 1, Seeded(JbdaTr, stream.inputs[:10]))
    recording = Recording(stream.inputs, stream.logits)
    parts = colluding(Stream(attacker, recording, np.ones(160, dtype=bool)), 8)
    number = {image.tobytes(): row for row, image in enumerate(stream.inputs)}
    rows = [[number[image.tobytes()] for image in part.inputs] for part in parts]
    assert sorted(row for mine in rows for row in mine) == list(range(160))
    origins = doubling_origins(10, 160)
    together = sum(int(origins[row]) in mine for mine in rows for row in mine)
    assert together == 0
    assert max(map(len, rows)) - min(map(len, rows)) <= 10


def test_the_papers_numbers_belong_to_a_data_set(bundle: Bundle) -> None:
    assert paper_of(bundle) is F_MNIST
