"""The defender's own malicious samples stay in their balls, move along gradients, and are a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from services.training import malicious
from services.training.malicious import STRONGEST, Recipe, craft, crafted_images, shortest, towards_the_border
from shared.datasets import Dataset


@pytest.fixture(autouse=True)
def hasty_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy of each layout, hardly trained: how good they are matters nothing here."""
    monkeypatch.setattr(malicious, "COPIES", len(malicious.COPY_BUILDERS))
    monkeypatch.setattr(malicious, "COPY_STEPS", 20)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """300 noisy images of three classes that differ in where they are bright."""
    random = np.random.default_rng(1)
    labels = np.arange(300) % 3
    images = random.integers(60, 120, (300, 1, 12, 12))
    for label in range(3):
        images[labels == label, :, 4 * label : 4 * label + 4] += 90
    return Dataset(images.astype(np.uint8), labels.astype(np.int64))


@pytest.fixture(scope="module")
def network(data: Dataset) -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    x, y = torch.from_numpy(data.images / np.float32(255)), torch.from_numpy(data.labels)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval().requires_grad_(False)


def test_every_image_stays_in_its_ball_and_in_the_range_of_pixels(data: Dataset, network: nn.Module) -> None:
    origin, labels = torch.from_numpy(data.images / np.float32(255)), torch.from_numpy(data.labels)
    random = np.random.default_rng(2)
    recipe = Recipe.drawn(300, random)
    change = craft(network, origin, labels, recipe, random) - origin
    largest, mean = change.abs().amax((1, 2, 3)), change.square().mean((1, 2, 3)).sqrt()
    euclidean, radius = recipe.euclidean[:, 0, 0, 0], recipe.radius[:, 0, 0, 0]
    assert (largest[~euclidean] <= radius[~euclidean] + 1e-6).all()
    assert (mean[euclidean] <= radius[euclidean] + 1e-6).all()
    assert float((origin + change).min()) >= 0
    assert float((origin + change).max()) <= 1
    assert 0 < euclidean.sum() < 300
    assert float(radius.max()) <= STRONGEST


def test_crafting_changes_the_label_far_oftener_than_noise_of_the_same_size(data: Dataset, network: nn.Module) -> None:
    origin, labels = torch.from_numpy(data.images / np.float32(255)), torch.from_numpy(data.labels)
    random = np.random.default_rng(3)
    recipe = Recipe.drawn(300, random)
    crafted = craft(network, origin, labels, recipe, random)
    size = (crafted - origin).abs().amax((1, 2, 3), keepdim=True)
    noise = (origin + size * torch.from_numpy(random.choice([-1.0, 1.0], origin.shape)).float()).clamp(0, 1)
    crossed = [float((network(x).argmax(1) != labels).float().mean()) for x in (crafted, noise)]
    assert crossed[0] > 2 * crossed[1] + 0.05


def test_the_shortest_change_just_crosses_the_border(data: Dataset, network: nn.Module) -> None:
    origin, labels = torch.from_numpy(data.images / np.float32(255)), torch.from_numpy(data.labels)
    change = shortest(network, origin, labels, np.random.default_rng(4)) - origin
    assert float((network(origin + change).argmax(1) != labels).float().mean()) > 0.95
    # Of a linear network the distance to a border is the difference of two logits over the length of its gradient.
    layer = network[1]  # type: ignore[index]
    weights = layer.weight.detach()
    logits, rows = network(origin), torch.arange(len(labels))
    gaps = logits[rows, labels][:, None] - logits
    steepness = (weights[labels][:, None] - weights[None]).norm(dim=2).clamp_min(1e-9)
    farthest = (gaps / steepness).amax(1)
    assert (change.flatten(1).norm(dim=1) <= 1.35 * farthest + 0.02).all()


def test_a_change_is_taken_back_to_the_border_and_no_further(data: Dataset, network: nn.Module) -> None:
    origin, labels = torch.from_numpy(data.images / np.float32(255)), torch.from_numpy(data.labels)
    random = np.random.default_rng(5)
    crafted = craft(network, origin, labels, Recipe.drawn(300, random), random)
    moved = towards_the_border(network, origin, crafted, random)
    crosses = (network(crafted).argmax(1) != network(origin).argmax(1)).numpy()
    assert 20 < crosses.sum() < 300
    assert (network(moved).argmax(1) != network(origin).argmax(1)).numpy()[crosses].all()
    shares = ((moved - origin).flatten(1).norm(dim=1) / (crafted - origin).flatten(1).norm(dim=1)).numpy()
    np.testing.assert_allclose(shares[~crosses], 1.0, atol=1e-5)
    assert np.median(shares[crosses]) < 0.95
    just_inside = origin + torch.from_numpy(shares / 1.6)[:, None, None, None].float() * (crafted - origin)
    assert (network(just_inside).argmax(1) == network(origin).argmax(1)).numpy()[crosses].mean() > 0.9


def test_samples_are_a_function_of_the_seed_and_as_many_as_asked_for(data: Dataset) -> None:
    first, again, other = (crafted_images(data, 60, seed) for seed in (1, 1, 2))
    assert first.shape == (60, 1, 12, 12)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_few_samples_are_of_many_kinds(data: Dataset) -> None:
    samples = crafted_images(data, 40, 3).astype(float)
    nearest = [np.abs(data.images - sample).mean(axis=(1, 2, 3)).min() for sample in samples]
    # Hardly changed ones, and ones that no image is near.
    assert min(nearest) < 8
    assert max(nearest) > 20
