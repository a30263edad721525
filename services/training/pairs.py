"""Pairs of images for the classifier of perturbations: two photographs, or an image and one that was crafted from it.

Both are found as the similarity detector finds them: an image and the nearest one that the account sent before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from services.similarity.detector import coarse, distances, farthest
from services.training.malicious import Recipe, craft, quantised, shortest, substitutes, towards_the_border
from shared.cameras import Images, photograph, varied_shots
from shared.datasets import Dataset, DatasetError
from shared.neighbours import NeighbourIndex
from shared.networks import images
from shared.population import HAND, draw_account

Pairs = NDArray[np.uint8]
"""[n, 2 channels, height, width]: an image, then the earlier one."""

ACCOUNT_QUERIES = 2_000
MOST_OF_AN_ACCOUNT = 600
"""Pairs; a film has as many as it has frames."""
EDITED = 0.15
"""Share of honest pairs that no account of the population shows: two cameras before one thing, or one covered part."""
PATIENCE = 50
"""Batches in a row without any pair, after which there will be none."""
CRAFTED_AT_ONCE = 256
WEAKEST, STRONGEST = 0.7 / 255, 0.15
"""Radii; what moved further is not close."""
MOST_ROUNDS = 4
ON_PHOTOGRAPHS = 0.4
"""Share of crafted batches that start from photographs by cameras of their own, not from studio ones."""
FROM_THE_SAME = 0.4
"""Share of rounds that craft from the same images as the one before, as an attack towards several classes does."""
SHORTEST, TO_THE_BORDER, FADED = 0.1, 0.25, 0.1
"""Shares of rounds whose perturbations are as short as can be, are taken back to the copy's border, or anywhere
(blends)."""
MASKED = 0.35
"""Share of rounds that leave much of an image alone: what is black or white, or all but the pixels that moved most."""
REPHOTOGRAPHED = 0.2
"""Share of rounds that a camera then changes, as an attacker does who blinds his queries."""


def earlier_ones(inputs: Images) -> NDArray[np.intp]:
    """[n], for each input the nearest of those before it; -1 for the first."""
    cells = coarse(inputs)
    index = NeighbourIndex(cells.shape[1])
    found = []
    for cell in cells:
        found.append(index.nearest(cell)[1])
        index.add(cell)
    return np.array(found, dtype=np.intp)


def _paired(image: Images, earlier: Images, close: float) -> Pairs:
    """Those that are close, and not the same."""
    distance = distances(image, earlier)
    near = (distance > 0) & (distance < farthest(close, image[0].size))
    pairs: Pairs = np.concatenate([image[near], earlier[near]], axis=1)
    return pairs


def _collected(parts: Iterator[Pairs], count: int, label: str, progress: Progress | None) -> Pairs:
    """The first `count` pairs of many parts.

    Raises:
        DatasetError: there are none.
    """
    task = progress.add_task(label, total=count) if progress else None
    found: list[Pairs] = []
    made = fruitless = 0
    while made < count:
        found.append(next(parts))
        made += len(found[-1])
        fruitless = 0 if len(found[-1]) else fruitless + 1
        if fruitless == PATIENCE:
            raise DatasetError(
                f"{label}: of the last {PATIENCE} batches no two images were close, though cameras and hands vary "
                "little: are the images noise, or cut in other places each time?"
            )
        if progress and task is not None:
            progress.update(task, completed=min(made, count))
    return np.concatenate(found)[:count]


def honest_pairs(data: Dataset, count: int, close: float, seed: int, progress: Progress | None = None) -> Pairs:
    """[count, ...] pairs of honest accounts of every kind.

    Args:
        data: images to draw accounts from.
        count: pairs.
        close: root mean square difference of pixels in [0, 1] under which two images are a pair.
        seed: everything that is drawn is a function of it.
        progress: shows a bar.

    Raises:
        DatasetError: no two images are ever so close.
    """
    return _collected(_honest(data, close, seed), count, "honest pairs", progress)


def _honest(data: Dataset, close: float, seed: int) -> Iterator[Pairs]:
    random = np.random.default_rng([seed, 1])
    account = 0
    while True:
        sent = draw_account(data, account, min(ACCOUNT_QUERIES, len(data)), seed).images
        pairs = _paired(sent[1:], sent[earlier_ones(sent)[1:]], close)
        pairs = pairs[np.sort(random.permutation(len(pairs))[:MOST_OF_AN_ACCOUNT])]
        edited = _paired(*_edited(data, round(EDITED * max(len(pairs), 1)) + 1, random), close)
        yield np.concatenate([pairs, edited])
        account += 1


def _edited(data: Dataset, n: int, random: np.random.Generator) -> tuple[Images, Images]:
    things = data.images[random.choice(len(data), n)]
    first, second = (photograph(things, varied_shots(n, random), random) for _ in range(2))
    covered = first.copy()
    height, width = things.shape[-2:]
    for image in covered:
        down, right = random.integers(0, height), random.integers(0, width)
        image[:, down : down + random.integers(1, height // 2), right : right + random.integers(1, width // 2)] = (
            random.integers(0, 256)
        )
    return np.where((random.random(n) < 0.5)[:, None, None, None], second, covered), first


def crafted_pairs(data: Dataset, count: int, close: float, seed: int, progress: Progress | None = None) -> Pairs:
    """[count, ...] pairs of a crafted image and its origin, or another one that was crafted from the same.

    Args:
        data: natural images to start from and to train the copies on.
        count: pairs.
        close: root mean square difference of pixels in [0, 1] under which two images are a pair.
        seed: everything that is drawn is a function of it.
        progress: shows a bar.

    Raises:
        DatasetError: no two images are ever so close.
    """
    random = np.random.default_rng(seed)
    copies = substitutes(data, random, seed, progress)
    return _collected(_crafted(data, copies, close, random), count, "crafted pairs", progress)


def _crafted(data: Dataset, copies: Sequence[nn.Module], close: float, random: np.random.Generator) -> Iterator[Pairs]:
    while True:
        n = min(CRAFTED_AT_ONCE, len(data))
        rows = random.choice(len(data), n, replace=False)
        origin, labels = data.images[rows], data.labels[rows]
        if random.random() < ON_PHOTOGRAPHS:
            origin = photograph(origin, varied_shots(n, random), random)
        copy = copies[int(random.integers(len(copies)))]
        sent, current = origin, origin
        for _ in range(int(random.integers(1, MOST_ROUNDS + 1))):
            crafted = _one_round(copy, current, labels, random)
            asked = _blinded(crafted, random) if random.random() < REPHOTOGRAPHED else crafted
            everything = np.concatenate([sent, asked])
            yield _paired(asked, everything[earlier_ones(everything)[len(sent) :]], close)
            sent = everything
            if random.random() >= FROM_THE_SAME:
                current = crafted


def _one_round(copy: nn.Module, current: Images, labels: NDArray[np.int64], random: np.random.Generator) -> Images:
    before, n = images(current), len(current)
    told = torch.from_numpy(labels).to(before.device)
    way = int(np.searchsorted(np.cumsum([SHORTEST, TO_THE_BORDER, FADED]), random.random(), side="right"))
    if way == 0:
        crafted = shortest(copy, before, told, random)
    else:
        crafted = craft(copy, before, told, Recipe.drawn(n, random, STRONGEST, WEAKEST), random)
    if random.random() < MASKED:
        crafted = before + (crafted - before) * _mask(before, crafted, random)
    if way == 1:
        crafted = towards_the_border(copy, before, crafted, random)
    elif way == 2:
        share = torch.from_numpy(random.uniform(0.2, 0.9, (n, 1, 1, 1)).astype(np.float32)).to(before.device)
        crafted = before + share * (crafted - before)
    return quantised(crafted)


def _mask(before: Tensor, crafted: Tensor, random: np.random.Generator) -> Tensor:
    """[n, channels, height, width] in [0, 1], how much of a change is kept.

    Attacks that search where pixels cannot leave [0, 1] (Carlini and Wagner 2017, V-B) hardly move black and white
    ones; those that count pixels (Papernot et al., The limitations of deep learning, 2016) move few.
    """
    if random.random() < 0.6:
        return 4 * before * (1 - before)
    size = (crafted - before).abs().flatten(1)
    kept = random.uniform(0.02, 0.3)
    least = size.quantile(1 - kept, dim=1)[:, None, None, None]
    return (size.view_as(before) >= least).float()


def _blinded(crafted: Images, random: np.random.Generator) -> Images:
    if random.random() < 0.5:
        return photograph(crafted, varied_shots(len(crafted), random), random)
    return replace(HAND, noise=float(random.uniform(0.0, 0.03))).photograph(crafted, random)
