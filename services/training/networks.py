"""Training of the four networks of a bundle, on the CPU or a GPU, with progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from services.inference.network import Classifier
from services.likelihood.vqvae import VectorQuantisedAutoencoder
from services.similarity.encoder import ReferenceEncoder, SimilarityEncoder
from services.training.augment import positives, transformed, varied_photographs
from shared.datasets import Dataset
from shared.networks import ImageShape, device, images

MARGIN_SQUARED = 10.0
"""m^2 of the contrastive loss (TR 2021-126, eq. 6: m = sqrt(10) suffices)."""

NetworkType = TypeVar("NetworkType", bound=nn.Module)
Loss = Callable[[Tensor, Tensor], Tensor]
"""From images [n, ...] and labels [n] to the loss."""


def shape_of(data: Dataset) -> ImageShape:
    """The shape of one image."""
    channels, height, width = data.images.shape[1:]
    return channels, height, width


def _batches(data: Dataset, size: int, random: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    order = random.permutation(len(data))
    for start in range(0, len(data) - size + 1, size):
        rows = order[start : start + size]
        yield images(data.images[rows]), torch.from_numpy(data.labels[rows]).to(device())


def _train(
    network: NetworkType, name: str, data: Dataset, loss: Loss, epochs: int, rate: float, batch: int, seed: int,
    progress: Progress,
) -> NetworkType:  # fmt: skip
    random = np.random.default_rng(seed)
    steps = epochs * (len(data) // batch)
    network.to(device()).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=max(steps, 1))
    task = progress.add_task(name, total=steps)
    for _ in range(epochs):
        for x, y in _batches(data, batch, random):
            optimiser.zero_grad()
            value = loss(x, y)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            progress.update(task, advance=1, description=f"{name} (loss {value.item():.3f})")
    return network.eval()


def train_victim(data: Dataset, classes: int, epochs: int, seed: int, progress: Progress) -> Classifier:
    """The served model: cross-entropy, slight shifts and mirror images."""
    torch.manual_seed(seed)
    network = Classifier(shape_of(data), classes)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        mirrored = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(-1), x)
        return functional.cross_entropy(network(transformed(mirrored, shift=0.04)), y)

    return _train(network, "victim", data, loss, epochs, 2e-3, 128, seed, progress)


def train_reference(data: Dataset, classes: int, epochs: int, seed: int, progress: Progress) -> ReferenceEncoder:
    """The encoder of the honest reference: a classifier of varied photographs."""
    torch.manual_seed(seed)
    network = ReferenceEncoder(shape_of(data), classes)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(network.classify(varied_photographs(x)), y)

    return _train(network, "reference encoder", data, loss, epochs, 2e-3, 128, seed, progress)


def train_similarity(
    data: Dataset, classes: int, epochs: int, contrastive_epochs: int, seed: int, progress: Progress
) -> SimilarityEncoder:
    """TR 2021-126, section VI-A: a classifier first, then the contrastive loss of eq. 6.

    Squared distances are means over the 256 dimensions; negatives are other images of the batch.
    """
    torch.manual_seed(seed)
    network = SimilarityEncoder(shape_of(data), classes)

    def classify(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(network.classify(x), y)

    def contrast(x: Tensor, _: Tensor) -> Tensor:
        together = network(torch.cat([x, positives(x)]))
        anchors, near = together[: len(x)], together[len(x) :]
        far = anchors.roll(1, dims=0)
        pull = functional.mse_loss(near, anchors)
        push = functional.relu(MARGIN_SQUARED - (far - anchors).square().mean(1)).mean()
        return pull + push

    _train(network, "similarity encoder, as a classifier", data, classify, epochs, 1e-3, 64, seed, progress)
    return _train(
        network, "similarity encoder, contrastive", data, contrast, contrastive_epochs, 1e-3, 64, seed, progress
    )


def data_variance(data: Dataset) -> float:
    """Of the pixels in [0, 1]."""
    return float((data.images[:5000] / 255.0).var())


def train_likelihood(data: Dataset, epochs: int, seed: int, progress: Progress) -> VectorQuantisedAutoencoder:
    """The VQ-VAE on honest images: reconstruction over the data's variance, plus commitment."""
    torch.manual_seed(seed)
    network = VectorQuantisedAutoencoder(data.images.shape[1])
    variance = data_variance(data)

    def loss(x: Tensor, _: Tensor) -> Tensor:
        reconstruction, commitment = network(x)
        value: Tensor = functional.mse_loss(reconstruction, x) / variance + commitment
        return value

    return _train(network, "VQ-VAE", data, loss, epochs, 1e-3, 64, seed, progress)


def logits_of(network: nn.Module, inputs: np.ndarray, batch: int = 256) -> np.ndarray:
    """[n, classes] float32 of a classifier."""
    with torch.inference_mode():
        parts = [network(images(inputs[start : start + batch])).cpu() for start in range(0, len(inputs), batch)]
    return torch.cat(parts).numpy() if parts else np.empty((0, 0), dtype=np.float32)


def accuracy(network: nn.Module, data: Dataset) -> float:
    """Share of `data` that a classifier gets right."""
    found = float((logits_of(network, data.images).argmax(1) == data.labels).mean())
    return math.floor(found * 10_000) / 10_000
