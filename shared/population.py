"""Honest accounts, as different from each other as real ones: what calibration learns from and the demo drives.

Every kind is a function from images to the account's requests. Kinds are drawn with parameters of their own, so that no
two accounts are alike: exchangeable are accounts, not queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.datasets import Dataset

Images = NDArray[np.uint8]
"""[n, channels, height, width]"""


@dataclass(frozen=True, slots=True)
class Style:
    """How an account's camera differs from the studio's: `noise + gain * image ** gamma`, moved by whole pixels."""

    gain: float = 1.0
    gamma: float = 1.0
    noise: float = 0.0
    """Standard deviation, pixels in [0, 1]."""
    shift: int = 0
    """Largest shift in pixels, drawn for each photograph."""

    def apply(self, images: Images, random: np.random.Generator) -> Images:
        """The photographs that this camera would have taken."""
        pixels = self.gain * (images / 255.0) ** self.gamma
        if self.noise:
            pixels = pixels + random.normal(0.0, self.noise, images.shape)
        styled = np.rint(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)
        if self.shift:
            moves = random.integers(-self.shift, self.shift + 1, (len(images), 2))
            for row, (down, right) in enumerate(moves):
                styled[row] = shifted(styled[row], int(down), int(right))
        return styled


def shifted(image: Images, down: int, right: int) -> Images:
    """[channels, height, width] moved by whole pixels; what comes in is black."""
    result = np.zeros_like(image)
    height, width = image.shape[-2:]
    result[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        ..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return result


def varied_style(random: np.random.Generator) -> Style:
    """A camera somewhere between a good studio and a poor phone."""
    return Style(
        gain=random.uniform(0.55, 1.15),
        gamma=random.uniform(0.7, 1.5),
        noise=random.choice([0.0, random.uniform(0.0, 0.06)]),
        shift=int(random.integers(0, 3)),
    )


@dataclass(frozen=True, slots=True)
class HonestAccount:
    """What an honest account sends.

    Attributes:
        kind: which kind it is, for reports.
        images: [n, channels, height, width] uint8, in order.
        batch: rows a request.
    """

    kind: str
    images: Images
    batch: int = 1

    def requests(self) -> Iterator[Images]:
        """The account's requests, in order."""
        for start in range(0, len(self.images), self.batch):
            yield self.images[start : start + self.batch]


def _pick(data: Dataset, queries: int, random: np.random.Generator, weights: NDArray[np.float64]) -> Images:
    """`queries` different images, classes drawn with `weights`; fewer where the classes hold no more."""
    keys = random.exponential(size=len(data)) / np.maximum(weights[data.labels], 1e-12)
    allowed = int((weights[data.labels] > 0).sum())
    return data.images[np.argsort(keys)[: min(queries, allowed)]]


def _classes(data: Dataset) -> int:
    return int(data.labels.max()) + 1


def steady(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop with everything, photographed well."""
    return HonestAccount("steady", _pick(data, queries, random, np.ones(_classes(data))))


def skewed(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop with much of some things and little of others."""
    return HonestAccount("skewed", _pick(data, queries, random, random.dirichlet(np.full(_classes(data), 0.5))))


def few_classes(
    data: Dataset, queries: int, random: np.random.Generator, classes: tuple[int, ...] | None = None
) -> HonestAccount:
    """A shop that sells one to three kinds of things, such as shoes."""
    if classes is None:
        classes = tuple(
            random.choice(_classes(data), size=random.integers(1, min(_classes(data), 3) + 1), replace=False).tolist()
        )
    weights = np.zeros(_classes(data))
    weights[list(classes)] = 1.0
    return HonestAccount("few classes", _pick(data, queries, random, weights))


def styled(data: Dataset, queries: int, random: np.random.Generator, style: Style | None = None) -> HonestAccount:
    """A shop with a camera of its own: darker, noisier, less even."""
    style = style or varied_style(random)
    account = steady(data, queries, random)
    return HonestAccount("styled", style.apply(account.images, random))


def burst(data: Dataset, queries: int, random: np.random.Generator, style: Style | None = None) -> HonestAccount:
    """A shop that photographs each product several times, moved a little and in other light."""
    most = int(random.integers(3, 9))
    products = _pick(data, queries, random, np.ones(_classes(data)))
    photographs: list[Images] = []
    total = 0
    for product in products:
        shots = int(random.integers(2, most + 1))
        hand = Style(
            gain=random.uniform(0.9, 1.1), gamma=random.uniform(0.92, 1.08), noise=random.uniform(0.0, 0.03), shift=1
        )
        taken = hand.apply(np.repeat(product[None], shots, axis=0), random)
        photographs.append(style.apply(taken, random) if style else taken)
        total += shots
        if total >= queries:
            break
    return HonestAccount("burst", np.concatenate(photographs)[:queries])


def shared_key(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """Three shops behind one key, each with its own goods and camera, taking turns."""
    parts = []
    for _ in range(3):
        part = few_classes(data, queries // 3 + 1, random).images
        parts.append(varied_style(random).apply(part, random))
    images = np.concatenate(parts)
    return HonestAccount("shared key", images[random.permutation(len(images))][:queries])


def changing(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop that buys another camera half-way."""
    images = steady(data, queries, random).images
    half = len(images) // 2
    first, second = varied_style(random), varied_style(random)
    return HonestAccount(
        "changing", np.concatenate([first.apply(images[:half], random), second.apply(images[half:], random)])
    )


def styled_burst(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """Several photographs of each product, by a camera of its own."""
    return HonestAccount("styled burst", burst(data, queries, random, varied_style(random)).images)


def styled_skewed(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """Much of some things, by a camera of its own."""
    return HonestAccount("styled skewed", varied_style(random).apply(skewed(data, queries, random).images, random))


def retrying(data: Dataset, queries: int, random: np.random.Generator, every: int = 10) -> HonestAccount:
    """A client that sends every tenth image once more, as after a timeout."""
    images = steady(data, queries, random).images
    rows = [again for row in range(len(images)) for again in ([row, row] if row % every == every - 1 else [row])]
    return HonestAccount("retrying", images[rows][:queries])


Kind = Callable[[Dataset, int, np.random.Generator], HonestAccount]

CALIBRATED_KINDS: tuple[Kind, ...] = (
    steady, skewed, few_classes, styled, burst, styled_burst, styled_skewed, retrying,
)  # fmt: skip
"""Kinds that calibration knows."""

UNSEEN_KINDS: tuple[Kind, ...] = (shared_key, changing)
"""Kinds that only the last check sees: the real world's share in the population."""


def draw_accounts(
    data: Dataset, accounts: int, queries: int, seed: int, kinds: tuple[Kind, ...] = CALIBRATED_KINDS
) -> list[HonestAccount]:
    """`accounts` accounts, the kinds in turn, each with parameters and images of its own.

    Args:
        data: images to draw from; no image twice in one account, many times over different accounts.
        accounts: how many.
        queries: of each account; fewer where its classes hold no more images.
        seed: the draw is a function of it.
    """
    drawn = []
    for index, child in enumerate(np.random.SeedSequence(seed).spawn(accounts)):
        random = np.random.default_rng(child)
        drawn.append(kinds[index % len(kinds)](data, queries, random))
    return drawn
