"""The study of hashes pairs what an attack crafts with what it crafted it from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from services.evaluation.attackers import Jacobian, seeds_of
from services.evaluation.context import QUICK, Context
from services.evaluation.hashes import RADIUS, crafted_pairs, recall
from services.inference.image_hash import ImageHash
from services.inference.perceptual_hash import perceptual_hashes
from services.redteam.jacobian import JbdaTr
from shared.bundle import Bundle
from shared.datasets import load_digits, load_splits
from shared.settings import REPOSITORY_BUNDLE


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(
        bundle=Bundle.load(REPOSITORY_BUNDLE),
        splits=load_splits(),
        foreign=load_digits(),
        sizes=QUICK,
        cache=tmp_path,
        output=tmp_path,
        progress=Progress(disable=True),
    )


def test_every_crafted_query_stands_beside_its_origin_and_the_bundles_hash_knows_it_again(context: Context) -> None:
    natural = seeds_of(context.natural, 20, 1).images
    origins, crafted = crafted_pairs(context, Jacobian(JbdaTr, natural, RADIUS), 20 + 60, seed=1)
    assert len(origins) == len(crafted) == 60
    moved = np.abs(crafted.astype(int) - origins.astype(int)).reshape(60, -1).max(axis=1)
    assert (moved > 0).all()
    assert moved.max() <= RADIUS * 255 + 0.5

    learned = ImageHash.of_bundle(context.bundle)
    assert recall(learned.hashes, learned.similar_bits, (origins, crafted)) > 0.95
    assert recall(perceptual_hashes, 8, (origins, crafted)) < 0.95
    # Against the wrong origins nothing is known again.
    assert recall(learned.hashes, learned.similar_bits, (np.roll(origins, 1, axis=0), crafted)) < 0.1
