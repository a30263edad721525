"""Training goes on where it was interrupted, and ends with the weights that it would have ended with anyway."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.nn import functional

from services.inference.model import softmax
from services.inference.network import ARCHITECTURES
from services.training import malicious, networks
from services.training.bundling import BundleMaker, Plan
from services.training.malicious import linf_pgd
from services.training.networks import (
    train_likelihood,
    train_perturbation,
    train_reference,
    train_similarity,
    train_victim,
)
from services.training.prediction import accuracy, logits_of
from services.training.recipes import RECIPES
from shared.datasets import Dataset, Splits

SHAPE = (1, 16, 16)


def data(images: int = 64, seed: int = 0) -> Dataset:
    """Two classes: bright above, or bright below."""
    random = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    pixels = random.integers(0, 100, (images, *SHAPE))
    pixels[labels == 0, :, :8] += 150
    pixels[labels == 1, :, 8:] += 150
    return Dataset(pixels.astype(np.uint8), labels)


CRAFTED = np.random.default_rng(9).integers(0, 256, (64, *SHAPE), dtype=np.uint8)
"""Nobody's photographs."""


STILL = np.concatenate([CRAFTED, CRAFTED], axis=1)
MOVED = np.concatenate([CRAFTED, CRAFTED[::-1]], axis=1)
"""Pairs of equal images, and of unequal ones."""


class Interrupted(Progress):
    """Presses Ctrl-C at a certain step."""

    def __init__(self, at: int = 10**9) -> None:
        super().__init__(console=Console(file=io.StringIO(), width=200))
        self.left = at

    def update(self, *arguments: Any, **options: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        super().update(*arguments, **options)


def victim(architecture: str, **changes: Any) -> Callable[[Progress, Path], nn.Module]:
    recipe = dataclasses.replace(RECIPES[architecture], epochs=3, batch=16, **changes)
    return lambda progress, folder: train_victim(data(), architecture, 2, recipe, True, 1, progress, folder, CRAFTED)


def similarity(against: nn.Module | None = None) -> Callable[[Progress, Path], nn.Module]:
    return lambda progress, folder: train_similarity(data(128), 2, 2, 2, 1, progress, folder, against)


TRAININGS: dict[str, tuple[Callable[[Progress, Path], nn.Module], int]] = {
    "Adam": (victim("lenet5"), 9),
    "SGD": (victim("lenet5", momentum=0.9, rate=0.01), 6),
    "before the first checkpoint": (victim("lenet5"), 2),
    "reference": (
        lambda progress, folder: train_reference(data(256), 2, 2, 1, progress, folder, CRAFTED),
        3,
    ),
    "perturbation": (
        lambda progress, folder: train_perturbation(STILL, MOVED, 3, 1, progress, folder),
        2,
    ),
    "codebook": (lambda progress, folder: train_likelihood(data(128), 3, 1, progress, folder), 5),
    "second stage": (similarity(), 8),
}
"""What is trained, and the step at which it is interrupted."""


@pytest.mark.parametrize("training", TRAININGS)
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, training: str) -> None:
    train, at = TRAININGS[training]
    expected = train(Interrupted(), tmp_path / "whole").state_dict()
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(at), tmp_path / "cut")
    progress = Interrupted()
    found = train(progress, tmp_path / "cut").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # It went on, and did not begin again.
    assert training.startswith("before") or 10**9 - progress.left < sum(task.total or 0 for task in progress.tasks)
    assert {path.suffix for path in (tmp_path / "cut").iterdir()} == {".safetensors"}


def test_a_checkpoint_that_cannot_be_read_is_as_none(tmp_path: Path) -> None:
    train = victim("lenet5")
    expected = train(Interrupted(), tmp_path / "whole").state_dict()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "victim.safetensors").write_bytes(b"not a checkpoint")
    found = train(Interrupted(), tmp_path / "other").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_architecture_has_a_recipe_that_trains(tmp_path: Path) -> None:
    assert RECIPES.keys() == ARCHITECTURES.keys()
    # The two others: a ResNet like this one, and what every other test here trains.
    for name in ("convnet", "alexnet", "resnet18", "vgg16-bn"):
        short = dataclasses.replace(RECIPES[name], epochs=1, batch=8)
        network = train_victim(data(8), name, 2, short, False, 1, Interrupted(), tmp_path / name, CRAFTED)
        assert all(value.isfinite().all() for value in network.state_dict().values())
        assert not network.training


def test_a_network_learns(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES["lenet5"], epochs=6, batch=16)
    network = train_victim(data(256), "lenet5", 2, recipe, True, 1, Interrupted(), tmp_path, CRAFTED)
    assert accuracy(network, data(100, seed=1)) > 0.95


class Recorder(nn.Module):
    """Keeps what it is shown."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(shape[0], classes)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return self.layer(images.mean((2, 3)))


def test_a_victim_doubts_what_nobody_photographed(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES["lenet5"], epochs=6, batch=16)
    network = train_victim(data(256), "lenet5", 2, recipe, True, 1, Interrupted(), tmp_path, CRAFTED)
    noise = np.random.default_rng(10).integers(0, 256, (50, *SHAPE), dtype=np.uint8)

    def sureness(inputs: np.ndarray) -> float:
        return float(np.median(softmax(logits_of(network, inputs)).max(axis=1)))

    assert sureness(noise) < 0.7 < 0.9 < sureness(data(50, seed=1).images)


@pytest.mark.parametrize("mirror", [True, False])
def test_only_data_that_may_be_mirrored_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: bool) -> None:
    monkeypatch.setattr(networks, "ARCHITECTURES", {"recorder": Recorder})
    left = Dataset(np.zeros((64, *SHAPE), dtype=np.uint8), np.arange(64) % 2)
    left.images[..., :8] = 255
    network = train_victim(left, "recorder", 2, RECIPES["vgg16-bn"], mirror, 1, Interrupted(), tmp_path, CRAFTED)
    seen = torch.cat(network.seen)  # type: ignore[arg-type]
    # Among them is noise, as bright on one side as on the other.
    mirrored = seen[..., 8:].mean((1, 2, 3)) > seen[..., :8].mean((1, 2, 3)) + 0.2
    assert bool(mirrored.any()) == mirror


def test_adversarial_positives_stay_near_and_mislead(tmp_path: Path) -> None:
    network = victim("lenet5")(Interrupted(), tmp_path).requires_grad_(False)
    originals = torch.from_numpy(data().images) / 255.0
    labels = torch.from_numpy(data().labels)
    found = linf_pgd(network, originals, labels)
    assert (found - originals).abs().max() <= 8 / 255 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert functional.cross_entropy(network(found), labels) > functional.cross_entropy(network(originals), labels)


def test_the_encoder_learns_from_either_kind_of_positives(tmp_path: Path) -> None:
    network = victim("lenet5")(Interrupted(), tmp_path / "victim").requires_grad_(False)
    transformed = similarity()(Interrupted(), tmp_path / "a").state_dict()
    adversarial = similarity(network)(Interrupted(), tmp_path / "b").state_dict()
    assert not torch.equal(transformed["trunk.0.weight"], adversarial["trunk.0.weight"])


# ---- what is found again ----

PLAN = Plan(
    architecture="lenet5", victim_epochs=1, reference_epochs=1, similarity_epochs=1, contrastive_epochs=1,
    likelihood_epochs=1, honest_reference=64, crafted=40, pairs=40, perturbation_epochs=1,
)  # fmt: skip


def splits(seed: int = 0) -> Splits:
    parts = [data(64, seed=4 * seed + part) for part in range(4)]
    return Splits(*parts, classes=("above", "below"), name="halves", mirror=True)


def trained(work: Path, plan: Plan = PLAN, seed: int = 0) -> tuple[dict[str, Any], set[str]]:
    """The tensors, and the names of the networks that were found."""
    progress = Interrupted()
    tensors = BundleMaker(splits(seed), plan, work, progress).train()
    said = progress.console.file.getvalue()  # type: ignore[attr-defined]
    return tensors, {line.split(":")[0] for line in said.splitlines() if "found in" in line}


def test_what_was_trained_is_found_by_the_same_plan_on_the_same_data_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(malicious, "COPY_STEPS", 2)
    first, found = trained(tmp_path)
    assert not found
    again, found = trained(tmp_path)
    of_the_victim = {"victim", "misleading", "meco", "shadows", "map"}
    everything = {"reference", "perturbation", "likelihood", "similarity", "hash"} | of_the_victim
    assert found == everything
    assert all(np.array_equal(first[f][name], again[f][name]) for f in first for name in first[f])
    assert trained(tmp_path, dataclasses.replace(PLAN, architecture="convnet"))[1] == everything - of_the_victim
    assert trained(tmp_path, dataclasses.replace(PLAN, positives="adversarial"))[1] == everything - {"similarity"}
    assert not trained(tmp_path, seed=1)[1]
    assert not list(tmp_path.rglob("*.checkpoints"))
