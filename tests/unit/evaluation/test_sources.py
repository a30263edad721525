"""What networks learn from, what thresholds come from and what both are judged by share no image."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from services.evaluation.attackers import Jacobian, attackers
from services.evaluation.blinded import blinded_attackers
from services.evaluation.context import QUICK, Context
from services.redteam.blinding import BLINDINGS
from shared.bundle import Bundle
from shared.datasets import Dataset, load_digits, load_splits
from shared.settings import REPOSITORY_BUNDLE


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("evaluation")
    return Context(
        Bundle.load(REPOSITORY_BUNDLE), load_splits(), load_digits(), QUICK, folder, folder, Progress(disable=True)
    )


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_training_calibration_holdout_and_evaluation_share_no_image(context: Context) -> None:
    splits = context.splits
    parts = [rows(part.images) for part in (splits.train, splits.calibration, splits.holdout, splits.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_calibration_draws_from_its_own_images_and_the_last_word_from_others(context: Context) -> None:
    accounts, held = context.populations()
    assert {id(plan.data) for plan in accounts} == {id(context.splits.calibration)}
    assert {id(plan.data) for plan in held} == {id(context.splits.holdout)}


def test_attackers_start_from_test_images_that_no_copy_is_measured_on(context: Context) -> None:
    everyone = attackers(context.natural, context.foreign, [1, 2], [0.1], [30.0], [50], 60)
    seeds = [image for a in everyone if isinstance(a.build, Jacobian) for image in a.build.seeds]
    assert rows(np.array(seeds)) <= rows(context.splits.test.images) - rows(context.clean.images)
    assert len(context.natural) + len(context.clean) == len(context.splits.test)


def test_a_seed_draws_the_same_attackers_and_another_seed_others(context: Context) -> None:
    def seeds(seed: int) -> np.ndarray:
        (first, *_) = attackers(context.natural, context.foreign, [seed], [0.1], [30.0], [50], 60)
        assert isinstance(first.build, Jacobian)
        return first.build.seeds

    np.testing.assert_array_equal(seeds(1), seeds(1))
    assert rows(seeds(1)) != rows(seeds(2))
    assert isinstance(context.natural, Dataset)


def test_every_attacker_has_a_name_of_its_own(context: Context, tmp_path: Path) -> None:
    everyone = attackers(context.natural, context.foreign, [1, 2], [0.1, 0.2], [10.0, 30.0], [50, 150], 60)
    everyone += blinded_attackers(context)
    assert len({attacker.key for attacker in everyone}) == len(everyone)


def test_every_attack_and_every_blinding_is_sent(context: Context) -> None:
    plain = attackers(context.natural, context.foreign, [1], [0.1], [30.0], [50, 150, 500], 60)
    assert {one.attack for one in plain} == {
        "JBDA", "JBDA-TR", "JBA-PGD", "JB-top3", "JBA-BS", "JBA-CW", "Cloudleak", "DFME", "KnockoffNets",
    }  # fmt: skip
    blinded = blinded_attackers(context)
    assert {(one.scheme, one.strength) for one in blinded} == set(itertools.product(BLINDINGS, ("low", "high")))
