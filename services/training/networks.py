"""Training of the networks of a bundle, on the CPU or a GPU, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from services.inference.network import ARCHITECTURES
from services.likelihood.vqvae import VectorQuantisedAutoencoder
from services.similarity.encoder import PerturbationClassifier, ReferenceEncoder, SimilarityEncoder
from services.training.augment import positives, transformed, varied_photographs
from services.training.checkpoint import load_checkpoint, save_checkpoint
from services.training.malicious import linf_pgd
from services.training.pairs import Pairs
from services.training.recipes import Recipe
from shared.cameras import Images
from shared.datasets import Dataset
from shared.networks import ImageShape, device, images

EXPOSURE = 0.5
"""Weight of the victim's doubt about crafted images beside the loss of honest ones."""
MARGIN_SQUARED = 10.0
"""m^2 of the contrastive loss (TR 2021-126, eq. 6: m = sqrt(10) suffices)."""

NetworkType = TypeVar("NetworkType", bound=nn.Module)
Loss = Callable[[Tensor, Tensor], Tensor]
"""From images [n, ...] and labels [n] to the loss."""
Augment = Callable[[Images, np.random.Generator], Images]
"""From images [n, ...] to others of the same shape."""


def shape_of(data: Dataset) -> ImageShape:
    """The shape of one image."""
    channels, height, width = data.images.shape[1:]
    return channels, height, width


def _batches(
    data: Dataset, size: int, random: np.random.Generator, augment: Augment | None
) -> Iterator[tuple[Tensor, Tensor]]:
    order = random.permutation(len(data))
    for start in range(0, len(data) - size + 1, size):
        rows = order[start : start + size]
        batch = data.images[rows]
        yield images(augment(batch, random) if augment else batch), torch.from_numpy(data.labels[rows]).to(device())


def train(
    network: NetworkType, name: str, data: Dataset, loss: Loss, recipe: Recipe, seed: int, progress: Progress,
    checkpoint: Path, augment: Augment | None = None,
) -> NetworkType:  # fmt: skip
    """Train a network from where `checkpoint` left off; it is written after each epoch.

    Every epoch draws from seeds of its own, so that an interrupted training ends with the same weights as another.
    """
    batch = min(recipe.batch, len(data))
    steps = len(data) // batch
    network.to(device()).to(memory_format=torch.channels_last).train()
    optimiser = recipe.optimiser(network.parameters())
    total = max(recipe.epochs * steps, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=recipe.rate, total_steps=total)
    done = load_checkpoint(checkpoint, network, optimiser, schedule)
    task = progress.add_task(name, total=total, completed=done * steps)
    for epoch in range(done, recipe.epochs):
        drawn = np.random.SeedSequence((seed, epoch))
        torch.manual_seed(int(drawn.generate_state(1)[0]))
        for x, y in _batches(data, batch, np.random.default_rng(drawn), augment):
            optimiser.zero_grad()
            with device():  # where augmentations draw
                value = loss(x, y)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            progress.update(task, advance=1, description=f"{name} (loss {value.item():.3f})")
        save_checkpoint(checkpoint, network, optimiser, schedule, epoch + 1)
    return network.eval()


def _some(pool: Images, count: int) -> Tensor:
    return images(pool[torch.randint(len(pool), (count,)).cpu().numpy()])


def train_victim(
    data: Dataset, architecture: str, classes: int, recipe: Recipe, mirror: bool, seed: int, progress: Progress,
    checkpoints: Path, crafted: Images,
) -> nn.Module:  # fmt: skip
    """The served model: a classifier of varied photographs that doubts what nobody photographed.

    Crafted images are to get the same probability for every class (outlier exposure: Hendrycks et al., Deep anomaly
    detection with outlier exposure, 2019; Kariyappa and Qureshi, 2020, for extraction). TMSP and steepness gain by it,
    and what a thief asks teaches him less.

    Args:
        data: to learn from.
        architecture: a name of `services.inference.network`.
        classes: in the data.
        recipe: optimiser, schedule and augmentation.
        mirror: whether an image and its mirror image are of the same class.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
        crafted: [m, ...] malicious images, of which each batch meets half as many as honest ones.
    """
    torch.manual_seed(seed)
    network = ARCHITECTURES[architecture](shape_of(data), classes)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if mirror:
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
        if recipe.shift:
            x = transformed(x, shift=recipe.shift)
        logits = network(torch.cat([x, _some(crafted, len(x) // 2)]))
        doubt = -functional.log_softmax(logits[len(x) :], dim=1).mean()
        return functional.cross_entropy(logits[: len(x)], y) + EXPOSURE * doubt

    def varied(batch: Images, random: np.random.Generator) -> Images:
        return varied_photographs(batch, random, plain=0.5)

    path = checkpoints / "victim.safetensors"
    return train(network, f"victim, {architecture}", data, loss, recipe, seed, progress, path, varied)


def train_reference(
    data: Dataset, classes: int, epochs: int, seed: int, progress: Progress, checkpoints: Path, crafted: Images
) -> ReferenceEncoder:
    """The reference encoder: a classifier of varied photographs that also tells them from crafted images.

    Args:
        data: honest images.
        classes: of them.
        epochs: passes over them.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
        crafted: [m, ...] malicious images, of which each batch meets half as many as honest ones.
    """
    torch.manual_seed(seed)
    network = ReferenceEncoder(shape_of(data), classes)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        malicious = _some(crafted, len(x) // 2)
        logits, odds = network.classify(torch.cat([x, malicious]))
        truth = torch.cat([torch.zeros(len(x)), torch.ones(len(malicious))])
        suspicion = functional.binary_cross_entropy_with_logits(odds, truth)
        return functional.cross_entropy(logits[: len(x)], y) + suspicion

    path, recipe = checkpoints / "reference.safetensors", Recipe(epochs, rate=2e-3)
    return train(network, "reference encoder", data, loss, recipe, seed, progress, path, varied_photographs)


def train_similarity(
    data: Dataset, classes: int, epochs: int, contrastive_epochs: int, seed: int, progress: Progress,
    checkpoints: Path, victim: nn.Module | None = None,
) -> SimilarityEncoder:  # fmt: skip
    """TR 2021-126, section VI-A: a classifier first, then the contrastive loss of eq. 6.

    Squared distances are means over the 256 dimensions; negatives are other images of the batch.

    Args:
        data: to learn from.
        classes: in the data.
        epochs: of the first stage.
        contrastive_epochs: of the second.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
        victim: where given, an image's positive is an adversarial perturbation of it against this classifier, as in
            SEAT (Zhang, Chen, Wagner 2021); else a slight transformation.
    """
    torch.manual_seed(seed)
    network = SimilarityEncoder(shape_of(data), classes)

    def classify(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(network.classify(x), y)

    def contrast(x: Tensor, y: Tensor) -> Tensor:
        variants = positives(x) if victim is None else linf_pgd(victim, x, y)
        together = network(torch.cat([x, variants]))
        anchors, near = together[: len(x)], together[len(x) :]
        far = anchors.roll(1, dims=0)
        pull = functional.mse_loss(near, anchors)
        push = functional.relu(MARGIN_SQUARED - (far - anchors).square().mean(1)).mean()
        return pull + push

    for stage, loss, length in (("as a classifier", classify, epochs), ("contrastive", contrast, contrastive_epochs)):
        checkpoint = checkpoints / f"{stage.replace(' ', '-')}.safetensors"
        recipe = Recipe(length, rate=1e-3, batch=64)
        train(network, f"similarity encoder, {stage}", data, loss, recipe, seed, progress, checkpoint)
    return network


def train_perturbation(
    honest: Pairs, crafted: Pairs, epochs: int, seed: int, progress: Progress, checkpoints: Path
) -> PerturbationClassifier:
    """What tells a crafted perturbation from the difference of two photographs.

    Args:
        honest: [n, 2 channels, height, width], two photographs each.
        crafted: [m, ...], of which one was crafted from the other, or both from one.
        epochs: passes over all of them.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
    """
    torch.manual_seed(seed)
    stacked, height, width = honest.shape[1:]
    network = PerturbationClassifier((stacked // 2, height, width))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        pairs = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
        return functional.binary_cross_entropy_with_logits(network(pairs), y.float())

    truth = np.repeat(np.array([0, 1]), [len(honest), len(crafted)])
    path, recipe = checkpoints / "perturbation.safetensors", Recipe(epochs, rate=2e-3)
    data = Dataset(np.concatenate([honest, crafted]), truth)
    return train(network, "classifier of perturbations", data, loss, recipe, seed, progress, path)


def data_variance(data: Dataset) -> float:
    """Of the pixels in [0, 1]."""
    return float((data.images[:5000] / 255.0).var())


def train_likelihood(
    data: Dataset, epochs: int, seed: int, progress: Progress, checkpoints: Path
) -> VectorQuantisedAutoencoder:
    """The VQ-VAE on honest images: reconstruction over the data's variance, plus commitment."""
    torch.manual_seed(seed)
    network = VectorQuantisedAutoencoder(data.images.shape[1])
    variance = data_variance(data)

    def loss(x: Tensor, _: Tensor) -> Tensor:
        reconstruction, commitment = network(x)
        value: Tensor = functional.mse_loss(reconstruction, x) / variance + commitment
        return value

    recipe = Recipe(epochs, rate=1e-3, batch=64)
    return train(network, "VQ-VAE", data, loss, recipe, seed, progress, checkpoints / "likelihood.safetensors")
