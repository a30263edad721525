"""Training of the networks that only spoil answers: MeCo's, QUEEN's, and the one that misleads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from services.inference.response_networks import MecoModel, SensitivityMap, ShadowModels
from services.inference.responses.queen import Atlas
from services.training.augment import transformed
from services.training.malicious import linf_pgd
from services.training.networks import shape_of, train
from services.training.recipes import Recipe
from shared.datasets import Dataset
from shared.networks import device

SHADOWS = 10
"""Of QUEEN; the authors' own number."""
CONTRAST_TEMPERATURE = 0.1
"""Of the supervised contrastive loss (Khosla et al. 2020)."""


# ---- MeCo ----


def worst_case(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float, bandwidth: float | None = None
) -> Tensor:
    """Images moved toward the worst case that the training distribution leaves open: MeCo, eq. 11, by particles.

    Each image follows the gradients of the loss at all images of the batch, weighted by a Gaussian kernel of their
    distance, and is pushed away from its neighbours by the kernel's own gradient.

    Args:
        model: from images to logits.
        x: [n, channels, height, width] in [0, 1].
        y: [n] labels.
        steps: Q.
        rate: alpha / n: how far a unit of gradient moves an image.
        bandwidth: sigma of the kernel; the median distance of two images of the batch where None.

    Returns:
        [n, channels, height, width] in [0, 1].
    """
    moved = x.detach()
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(moved), y, reduction="sum"), moved)
        moved = moved.detach()
        flat = moved.flatten(1)
        squared = torch.cdist(flat, flat).square()
        sigma_squared = squared.median().clamp(min=1e-12) if bandwidth is None else torch.tensor(bandwidth**2)
        kernel = torch.exp(-squared / (2 * sigma_squared))
        # U is minus the loss, so -k grad U climbs it; the gradient of k by x_j is k (x_i - x_j) / sigma^2.
        climb = kernel @ gradient.flatten(1)
        spread = (kernel.sum(1, keepdim=True) * flat - kernel @ flat) / sigma_squared
        moved = (moved + rate * (climb + spread).reshape_as(moved)).clamp(0.0, 1.0)
    return moved


def train_meco(
    model: nn.Module, data: Dataset, recipe: Recipe, seed: int, progress: Progress, checkpoints: Path,
    utility: float = 1.0, steps: int = 2, rate: float = 0.1,
) -> MecoModel:  # fmt: skip
    """MeCo, Algorithm 1: a model and its perturbation generator, by distributionally robust optimisation.

    Args:
        model: to start from: one with random weights, as in the paper, or a trained one.
        data: to learn from.
        recipe: optimiser, schedule and epochs.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
        utility: gamma, weight of the L1 distance between perturbed and unperturbed probabilities.
        steps: Q, see `worst_case`.
        rate: see `worst_case`.
    """
    torch.manual_seed(seed)
    network = MecoModel(model, shape_of(data)[0])

    def loss(x: Tensor, y: Tensor) -> Tensor:
        worst = worst_case(network.model, x, y, steps, rate)
        told, honest = network(worst, torch.randn_like(worst)), network.model(worst)
        distance = (told.softmax(1) - honest.softmax(1)).abs().sum(1).mean()
        value: Tensor = functional.cross_entropy(told, y) + utility * distance
        return value

    return train(network, "MeCo", data, loss, recipe, seed, progress, checkpoints / "meco.safetensors")


# ---- adaptive misinformation ----


def train_misleading(
    model: nn.Module, data: Dataset, recipe: Recipe, seed: int, progress: Progress, checkpoints: Path
) -> nn.Module:
    """A model that is wrong on purpose: reverse cross-entropy -log(1 - f_y(x)) (Kariyappa and Qureshi 2020, eq. 4).

    Args:
        model: of the served architecture, with random weights.
        data: to be wrong about.
        recipe: optimiser, schedule and epochs.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
    """

    def loss(x: Tensor, y: Tensor) -> Tensor:
        right = model(x).softmax(1).gather(1, y[:, None])
        wrong: Tensor = -torch.log1p(-right.clamp(max=1 - 1e-6)).mean()
        return wrong

    return train(model, "misleading model", data, loss, recipe, seed, progress, checkpoints / "misleading.safetensors")


# ---- QUEEN ----


def train_shadows(
    data: Dataset, told: NDArray[np.float32], epochs: int, seed: int, progress: Progress, checkpoints: Path,
    shadows: int = SHADOWS,
) -> ShadowModels:  # fmt: skip
    """Models such as a thief would train on the served model's answers, each on batches of its own.

    Args:
        data: images to ask about.
        told: [n, classes], the served model's probabilities of them.
        epochs: passes over the data.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
        shadows: how many models.
    """
    torch.manual_seed(seed)
    network = ShadowModels(shape_of(data), told.shape[1], shadows)
    answers = torch.from_numpy(told)

    def loss(x: Tensor, rows: Tensor) -> Tensor:
        orders = [torch.randperm(len(x)) for _ in range(shadows)]
        own = torch.cat([transformed(x[order], shift=0.05) for order in orders], dim=1)
        wanted = torch.stack([answers.to(x.device)[rows[order]] for order in orders], dim=1)
        said = functional.log_softmax(network.each(own), dim=2)
        return -(wanted * said).sum(2).mean()

    numbered = Dataset(data.images, np.arange(len(data)))
    path = checkpoints / "shadows.safetensors"
    return train(network, "shadow models", numbered, loss, Recipe(epochs, rate=2e-3), seed, progress, path)


def train_sensitivity(
    features: NDArray[np.float32], labels: NDArray[np.int64], epochs: int, seed: int, progress: Progress,
    checkpoints: Path,
) -> SensitivityMap:  # fmt: skip
    """QUEEN's map from features to the plane, by supervised contrastive loss.

    Args:
        features: [n, d], the served model's, of honest images.
        labels: [n], their classes.
        epochs: passes over the features.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
    """
    torch.manual_seed(seed)
    network = SensitivityMap(features.shape[1])
    known = torch.from_numpy(features)
    truth = torch.from_numpy(labels)

    def loss(_: Tensor, rows: Tensor) -> Tensor:
        return supervised_contrast(network(known.to(rows.device)[rows]), truth.to(rows.device)[rows])

    # Rows stand for features: the training loop knows images and labels only.
    rows = Dataset(np.zeros((len(features), 1, 1, 1), dtype=np.uint8), np.arange(len(features)))
    recipe = Recipe(epochs, rate=5e-3, batch=512)
    return train(network, "map of the classes", rows, loss, recipe, seed, progress, checkpoints / "map.safetensors")


def atlas_of(network: SensitivityMap, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Atlas:
    """What a map says of the classes.

    Args:
        network: the map.
        features: [n, d].
        labels: [n]; every class is there.
    """
    with torch.inference_mode():
        points = network(torch.from_numpy(features).to(device())).cpu().numpy()
    classes = range(int(labels.max()) + 1)
    centres = np.array([points[labels == label].mean(axis=0) for label in classes])
    distances = np.array([np.linalg.norm(points[labels == k] - centres[k], axis=1).mean() for k in classes])
    means = np.array([features[labels == label].mean(axis=0) for label in classes])
    return Atlas(*(array.astype(np.float32) for array in (centres, distances, means)))


def supervised_contrast(points: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2), by negative squared distances: a plane has no room for
    ten directions.

    Args:
        points: [n, d].
        labels: [n].
    """
    likeness = -torch.cdist(points, points).square() / CONTRAST_TEMPERATURE
    likeness = likeness.masked_fill(torch.eye(len(points), dtype=torch.bool, device=points.device), -torch.inf)
    others = functional.log_softmax(likeness, dim=1)
    same = (labels[:, None] == labels[None]) & ~torch.eye(len(points), dtype=torch.bool, device=points.device)
    has_others = same.any(1)
    pulled = torch.where(same, others, torch.zeros_like(others)).sum(1)[has_others] / same.sum(1)[has_others]
    return -pulled.mean()


# ---- defensive training ----


def train_adversarially(
    model: nn.Module, data: Dataset, recipe: Recipe, seed: int, progress: Progress, checkpoints: Path,
    radius: float = 0.1, steps: int = 5,
) -> nn.Module:  # fmt: skip
    """AMAO, section 4.2: a model that learns from the worst image within a radius of each.

    Args:
        model: with random weights.
        data: to learn from.
        recipe: optimiser, schedule and epochs.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
        radius: of the perturbation, pixels in [0, 1].
        steps: of each search for it.
    """

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(linf_pgd(model, x, y, radius, 2.5 * radius / steps, steps)), y)

    path = checkpoints / "adversarial.safetensors"
    return train(model, "victim, adversarially", data, loss, recipe, seed, progress, path)
