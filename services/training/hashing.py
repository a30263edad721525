"""Training of the hash by which inference knows images again, and of the distance within which it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from services.inference.image_hash import HashNetwork, learned_hashes
from services.inference.perceptual_hash import HASH_BITS
from services.training.augment import transformed, uniform
from services.training.malicious import Recipe as Crafting
from services.training.malicious import craft, substitutes
from services.training.networks import shape_of, train
from services.training.recipes import Recipe
from shared.cameras import Images
from shared.datasets import Dataset

TEMPERATURE = 0.07
"""Of the contrastive loss (SimCLR: Chen et al. 2020; MoCo: He et al. 2020 has this value)."""
BATCH = 384
WEAKEST, STRONGEST = 2 / 255, 0.3
"""Radii of crafted variants."""
UNRELATED = 0.001
"""Share of pairs of unrelated images that a hash may take for similar."""
UNRELATED_IMAGES = 4_000
"""Every two of them are a pair."""


TRANSFORMATIONS: Sequence[Callable[[Tensor], Tensor]] = (
    lambda x: transformed(x, degrees=20),
    lambda x: transformed(x, shift=0.12),
    lambda x: transformed(x, shift=0.12),
    lambda x: transformed(x, scale=0.2),
    lambda x: transformed(x, degrees=10, shift=0.06, scale=0.1),
    lambda x: x + uniform(len(x), -0.3, 0.3),
    lambda x: (x - 0.5) * uniform(len(x), 0.5, 1.5) + 0.5,
    lambda x: x * uniform(len(x), 0.5, 1.4),
    lambda x: x + torch.randn_like(x) * uniform(len(x), 0.0, 0.15),
    lambda x: x + torch.randn_like(x).sign() * uniform(len(x), 0.0, 0.12),
    lambda x: functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
)
"""Each for an equal share of the variants."""
CRAFTED_PARTS = 4
"""Shares that are crafted; of them `MOVED` are also moved a little, as an attacker does who blinds his queries."""
MOVED = 0.25


def variants(x: Tensor, y: Tensor, copies: Sequence[nn.Module]) -> Tensor:
    """Of each image one that a thief would send beside it: transformed, lit or blurred otherwise, noisy, or crafted.

    Args:
        x: [n, channels, height, width] in [0, 1].
        y: [n] labels.
        copies: to craft with.
    """
    random = np.random.default_rng(int(torch.randint(2**31, ()).item()))
    copy = copies[int(random.integers(len(copies)))]
    parts = torch.randperm(len(x)).chunk(len(TRANSFORMATIONS) + CRAFTED_PARTS)
    varied = torch.empty_like(x)
    for rows, transformation in zip(parts, TRANSFORMATIONS, strict=False):
        varied[rows] = transformation(x[rows])
    if rest := parts[len(TRANSFORMATIONS) :]:
        rows = torch.cat(rest)
        drawn = Crafting.drawn(len(rows), random, STRONGEST, WEAKEST)
        crafted = craft(copy, x[rows], y[rows], drawn, random)
        varied[rows] = torch.where(torch.rand(len(rows), 1, 1, 1) < MOVED, transformed(crafted, 5, 0.04), crafted)
    return varied.clamp(0, 1)


def contrast(codes: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """InfoNCE of [n, d] codes of images and of their variants; half its weight is on images of the same class alone,
    since those of other classes are told apart without effort.

    Args:
        codes: of unit length.
        others: the same, of their variants.
        labels: [n].
    """
    likeness = codes @ others.T / TEMPERATURE
    same = likeness.masked_fill(labels[:, None] != labels[None], -torch.inf)
    own = torch.arange(len(codes))
    losses = [functional.cross_entropy(side, own) for table in (likeness, same) for side in (table, table.T)]
    return torch.stack(losses).mean()


def cut(bits: Tensor) -> Tensor:
    """[n, d] codes of unit length and two values; the gradient is that of the hyperbolic tangent before the cut."""
    soft = torch.tanh(bits)
    codes: Tensor = (soft + (bits.sign() - soft).detach()) / bits.shape[1] ** 0.5
    return codes


def train_hash(data: Dataset, epochs: int, seed: int, progress: Progress, checkpoints: Path) -> HashNetwork:
    """A hash under which an image and its variants are alike, and two images of one class are not.

    Args:
        data: to learn from.
        epochs: passes over it.
        seed: the weights are a function of it, on one machine.
        progress: shows how far it is.
        checkpoints: folder in which an interrupted training is found again.
    """
    copies = substitutes(data, np.random.default_rng(seed), seed, progress)
    torch.manual_seed(seed)
    network = HashNetwork(shape_of(data))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        # Together, since a normalisation that met photographs and crafted images apart would fit neither.
        bits = network(torch.cat([x, variants(x, y, copies), variants(x, y, copies)]))
        plain, first, second = cut(bits).chunk(3)
        return (contrast(plain, first, y) + contrast(first, second, y)) / 2

    recipe = Recipe(epochs, rate=3e-3, batch=BATCH)
    return train(network, "hash of images", data, loss, recipe, seed, progress, checkpoints / "hash.safetensors")


def similar_bits_of(network: HashNetwork, images: Images, share: float = UNRELATED) -> int:
    """Most bits by which similar images may differ, so that at most a share of unrelated pairs differ in as few.

    Args:
        network: ready to infer.
        images: [n, ...], unrelated, none of which it learnt from.
        share: of all pairs.
    """
    return most_bits(distances_between(learned_hashes(network, images[:UNRELATED_IMAGES])), share)


def most_bits(pairs: NDArray[np.int64], share: float = UNRELATED) -> int:
    """Most bits by which at most a share of pairs differ, or fewer; 0 where even equal hashes are too many.

    Args:
        pairs: [65], see `distances_between`.
        share: of all pairs.
    """
    return max(int(np.searchsorted(pairs.cumsum(), share * pairs.sum(), side="right")) - 1, 0)


def distances_between(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[65], how many pairs of [n] hashes differ in so many bits."""
    counts = np.zeros(HASH_BITS + 1, dtype=np.int64)
    for number, one in enumerate(hashes[:-1]):
        counts += np.bincount(np.bitwise_count(hashes[number + 1 :] ^ one), minlength=HASH_BITS + 1)
    return counts
