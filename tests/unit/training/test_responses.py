"""The networks that spoil answers learn what they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress
from torch import nn
from torch.nn import functional

from services.inference.network import ARCHITECTURES
from services.training.malicious import linf_pgd
from services.training.networks import train
from services.training.prediction import accuracy, logits_of
from services.training.recipes import Recipe
from services.training.responses import (
    atlas_of,
    supervised_contrast,
    train_adversarially,
    train_meco,
    train_misleading,
    train_sensitivity,
    train_shadows,
    worst_case,
)
from shared.datasets import Dataset, load_splits
from shared.networks import images

SHAPE, CLASSES = (1, 28, 28), 10
SHORT = Recipe(epochs=2, rate=2e-3, batch=64)
quiet = Progress(disable=True)


@pytest.fixture(scope="module")
def clothes() -> tuple[Dataset, Dataset]:
    splits = load_splits()
    return splits.train[:4_000], splits.test[:1_000]


def untrained() -> nn.Module:
    torch.manual_seed(1)
    return ARCHITECTURES["lenet5"](SHAPE, CLASSES)


@pytest.fixture(scope="module")
def model(clothes: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    network = untrained()
    loss = lambda x, y: functional.cross_entropy(network(x), y)  # noqa: E731
    return train(network, "model", clothes[0], loss, SHORT, 1, quiet, tmp_path_factory.mktemp("model") / "model")


def sample(data: Dataset, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return images(data.images[:count]), torch.from_numpy(data.labels[:count])


def test_the_worst_case_is_worse_than_the_data_and_still_images(
    clothes: tuple[Dataset, Dataset], model: nn.Module
) -> None:
    x, y = sample(clothes[1], 64)
    worst = worst_case(model, x, y, steps=8, rate=0.1)
    assert functional.cross_entropy(model(worst), y) > functional.cross_entropy(model(x), y) + 0.1
    assert 0.0 <= float(worst.min()) <= float(worst.max()) <= 1.0
    assert not worst.requires_grad


def test_of_one_image_the_worst_case_climbs_the_loss_as_gradient_ascent_does(
    clothes: tuple[Dataset, Dataset], model: nn.Module
) -> None:
    x, y = sample(clothes[1], 1)
    start = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(start), y), start)
    torch.testing.assert_close(worst_case(model, x, y, 1, 0.1, bandwidth=1.0), (x + 0.1 * gradient).clamp(0, 1))


def test_particles_without_a_loss_move_apart() -> None:
    def indifferent(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] * 0.0

    x = 0.5 + 0.01 * torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    moved = worst_case(indifferent, x, torch.zeros(8, dtype=torch.long), steps=3, rate=0.001, bandwidth=0.05)  # type: ignore[arg-type]
    assert (
        torch.cdist(moved.flatten(1), moved.flatten(1)).mean() > 1.05 * torch.cdist(x.flatten(1), x.flatten(1)).mean()
    )


def test_meco_keeps_its_accuracy_under_its_own_perturbation_and_perturbs_strangers_more(
    clothes: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    trained = train_meco(untrained(), clothes[0], SHORT, 1, quiet, tmp_path)
    x, y = sample(clothes[1], 500)
    stranger = torch.rand(500, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        told, honest = trained(x, noise), trained.model(x)
        moved = (told.softmax(1) - honest.softmax(1)).abs().sum(1).mean()
        moved_strangers = (trained(stranger, noise).softmax(1) - trained.model(stranger).softmax(1)).abs().sum(1).mean()
    right, honestly_right = ((logits.argmax(1) == y).float().mean() for logits in (told, honest))
    assert right > 0.6
    assert abs(right - honestly_right) < 0.05
    assert moved_strangers > moved


def test_the_misleading_model_is_wrong_nearly_always(clothes: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    misleading = train_misleading(untrained(), clothes[0], SHORT, 1, quiet, tmp_path)
    assert accuracy(misleading, clothes[1]) < 0.05


def test_shadows_copy_the_model_and_are_not_all_the_same(
    clothes: tuple[Dataset, Dataset], model: nn.Module, tmp_path: Path
) -> None:
    logits = logits_of(model, clothes[0].images)
    told = torch.from_numpy(logits).softmax(1).numpy()
    shadows = train_shadows(clothes[0], told, 3, 1, quiet, tmp_path, shadows=4)
    x, _ = sample(clothes[1], 500)
    with torch.inference_mode():
        together = shadows.together()(x).reshape(500, 4, -1)
        each = shadows.each(x.repeat(1, 4, 1, 1))
    agreement = (together.softmax(2).mean(1).argmax(1) == model(x).argmax(1)).float().mean()
    assert agreement > 0.65
    torch.testing.assert_close(each, together)
    assert float(each.std(dim=1).mean()) > 0.05


def test_the_map_lays_every_class_out_around_a_centre_of_its_own(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 5, 2_000)
    features = (np.eye(16)[labels] * 4 + random.normal(0, 0.5, (2_000, 16))).astype(np.float32)
    network = train_sensitivity(features, labels, 30, 1, quiet, tmp_path)
    atlas = atlas_of(network, features, labels)
    with torch.inference_mode():
        points = network(torch.from_numpy(features)).numpy()
    nearest = np.linalg.norm(points[:, None] - atlas.centres[None], axis=2).argmin(axis=1)
    assert (nearest == labels).mean() > 0.95
    gaps = np.linalg.norm(atlas.centres[:, None] - atlas.centres[None], axis=2)[~np.eye(5, dtype=bool)]
    assert gaps.min() > 2 * atlas.distances.max()


def test_contrast_is_least_where_classes_lie_apart() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    apart = supervised_contrast(torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0]]), labels)
    mixed = supervised_contrast(torch.tensor([[0.0, 0.0], [5.1, 0.0], [5.0, 0.0], [0.1, 0.0]]), labels)
    assert apart < 0.01 < mixed


def test_who_learns_from_the_worst_withstands_more_of_it(
    clothes: tuple[Dataset, Dataset], model: nn.Module, tmp_path: Path
) -> None:
    hardened = train_adversarially(untrained(), clothes[0], SHORT, 1, quiet, tmp_path)
    x, y = sample(clothes[1], 300)
    torch.manual_seed(4)
    withstood = [
        float((network(linf_pgd(network, x, y, 0.1, 0.025, 7)).argmax(1) == y).float().mean())
        for network in (hardened, model)
    ]
    assert withstood[0] > withstood[1] + 0.15
