"""Pairs to tell perturbations by: close, a function of the seed, and told apart by their differences alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from services.training import malicious
from services.training.networks import train_perturbation
from services.training.pairs import Pairs, crafted_pairs, earlier_ones, honest_pairs
from shared.datasets import Dataset, DatasetError
from shared.networks import images

CLOSE = 0.15


@pytest.fixture(autouse=True)
def hasty_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy of each layout, hardly trained."""
    monkeypatch.setattr(malicious, "COPIES", len(malicious.COPY_BUILDERS))
    monkeypatch.setattr(malicious, "COPY_STEPS", 40)


def clothes(seed: int, count: int = 400) -> Dataset:
    """Smooth images of three classes, each bright elsewhere."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    coarse = random.uniform(20, 160, (count, 1, 5, 5))
    for label in range(3):
        coarse[labels == label, :, 1 + label] += 70
    return Dataset(coarse.repeat(4, axis=2).repeat(4, axis=3).astype(np.uint8), labels.astype(np.int64))


def lengths(pairs: Pairs) -> np.ndarray:
    """Root mean square of each pair's difference, pixels in [0, 1]."""
    halves = pairs.astype(float) / 255
    return np.asarray(np.sqrt(np.square(halves[:, :1] - halves[:, 1:]).mean(axis=(1, 2, 3))))


@pytest.mark.parametrize("make", [honest_pairs, crafted_pairs])
def test_pairs_are_close_and_different_and_a_function_of_the_seed(make: object) -> None:
    assert callable(make)
    first, again, other = (make(clothes(1), 150, CLOSE, seed) for seed in (1, 1, 2))
    assert first.shape == (150, 2, 20, 20)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert lengths(first).min() > 0
    assert lengths(first).max() < CLOSE


def test_crafted_pairs_are_of_every_strength() -> None:
    pairs = crafted_pairs(clothes(1), 400, CLOSE, 3).astype(int)
    largest = np.abs(pairs[:, :1] - pairs[:, 1:]).max(axis=(1, 2, 3))
    assert np.quantile(largest, 0.05) <= 4
    assert np.quantile(largest, 0.95) >= 25


def test_data_of_which_no_two_images_are_ever_close_is_refused() -> None:
    with pytest.raises(DatasetError, match="no two images were close"):
        honest_pairs(clothes(1, 50), 10, 1e-9, 1)


def test_an_image_is_paired_with_the_nearest_before_it() -> None:
    sent = clothes(4, 60).images
    near = np.clip(sent.astype(int) + 2, 0, 255).astype(np.uint8)
    assert earlier_ones(np.concatenate([sent, near]))[60:].tolist() == list(range(60))
    assert earlier_ones(sent)[0] == -1
    assert (earlier_ones(sent)[1:] < np.arange(1, 60)).all()


def test_the_classifier_tells_pairs_that_it_never_saw(tmp_path: Path) -> None:
    def pairs(seed: int, count: int) -> tuple[Pairs, Pairs]:
        return honest_pairs(clothes(seed), count, CLOSE, seed), crafted_pairs(clothes(seed), count, CLOSE, seed)

    quiet = Progress(console=Console(file=io.StringIO()))
    network = train_perturbation(*pairs(1, 1_000), epochs=4, seed=1, progress=quiet, checkpoints=tmp_path)
    fresh = pairs(2, 300)
    with torch.inference_mode():
        honest, crafted = (network(images(part)).numpy() for part in fresh)
    better = (crafted[:, None] > honest[None]).mean()
    assert better > 0.9  # 0.5 by chance
