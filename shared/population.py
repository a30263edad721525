"""Honest accounts, as different from each other as real ones: what calibration learns from and the demo drives.

Every kind is a function from images to the account's requests. Kinds are drawn with parameters of their own, so that no
two accounts are alike: exchangeable are accounts, not queries. An account is made of three choices: its goods (which
classes, how often), its cameras (`shared.cameras`), and its habit (single photographs, several of each product, frames
of a film, retries).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shared.cameras import Camera, Images, Shots, joined, photograph, varied_camera
from shared.datasets import Dataset

HAND = Camera(gain=1.0, shift=1, tilt=3.0, distance=0.02)
"""What differs between two photographs that one person takes of one thing."""


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


# ---- goods ----


def _classes(data: Dataset) -> int:
    return int(data.labels.max()) + 1


def _pick(data: Dataset, things: int, random: np.random.Generator, weights: NDArray[np.float64]) -> Images:
    """Images of `things` things, classes drawn with `weights`.

    No image comes twice; where the classes hold no more, the things are photographed again by the same hand.
    """
    keys = random.exponential(size=len(data)) / np.maximum(weights[data.labels], 1e-12)
    order = np.argsort(keys)[: int((weights[data.labels] > 0).sum())]
    first = data.images[order[:things]]
    if things <= len(order):
        return first
    again = random.choice(order, things - len(order))
    return np.concatenate([first, HAND.photograph(data.images[again], random)])


def _everything(data: Dataset, random: np.random.Generator) -> NDArray[np.float64]:
    return np.ones(_classes(data))


def _skewed_weights(data: Dataset, random: np.random.Generator) -> NDArray[np.float64]:
    return random.dirichlet(np.full(_classes(data), 0.5))


def _few_weights(
    data: Dataset, random: np.random.Generator, classes: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    if classes is None:
        count = random.integers(1, min(_classes(data), 3) + 1)
        classes = tuple(random.choice(_classes(data), size=count, replace=False).tolist())
    weights = np.zeros(_classes(data))
    weights[list(classes)] = 1.0
    return weights


# ---- habits ----


def _singles(things: Images, random: np.random.Generator, camera: Camera) -> Images:
    return camera.photograph(things, random)


def _bursts(things: Images, random: np.random.Generator, camera: Camera) -> Images:
    """Several photographs of each thing: by hand, in other light, some noisier."""
    most = int(random.integers(3, 9))
    counts = random.integers(2, most + 1, len(things))
    repeated = np.repeat(things, counts, axis=0)[: len(things)]
    n = len(repeated)
    shots = HAND.shots(n, random).varied(
        gain=random.uniform(0.9, 1.1, n), gamma=random.uniform(0.92, 1.08, n), noise=random.uniform(0.0, 0.03, n)
    )
    return camera.photograph(photograph(repeated, shots, random), random)


def _frames(things: Images, random: np.random.Generator, camera: Camera) -> Images:
    """Films of 8 to 40 frames: the hand and the light wander a little from frame to frame."""
    parts: list[Shots] = []
    rows: list[int] = []
    while len(rows) < len(things):
        length = int(random.integers(8, 41))
        speed = random.uniform(0.1, 0.4)

        def walk(step: float, length: int = length) -> NDArray[np.float64]:
            return np.clip(np.cumsum(random.normal(0.0, step, length)), -8 * step, 8 * step)

        parts.append(
            Shots.plain(length).varied(
                down=walk(speed), right=walk(speed), degrees=walk(4 * speed), gain=1.0 + walk(0.01)
            )
        )
        rows += [len(parts) - 1] * length
    n = len(things)
    moving = joined(parts)[:n]
    still = replace(camera, shift=0, tilt=0.0, distance=0.0)
    return still.photograph(photograph(things[np.array(rows[:n])], moving, random), random)


def _augmented(things: Images, random: np.random.Generator, camera: Camera) -> Images:
    """Each thing once as it is and one to four times as an augmenting client changes it: mirrored, turned, cropped."""
    counts = random.integers(2, 6, len(things))
    source = np.repeat(np.arange(len(things)), counts)[: len(things)]
    original = np.r_[True, source[1:] != source[:-1]]
    n = len(source)

    def unless_original(values: NDArray[np.float64], neutral: float) -> NDArray[np.float64]:
        return np.where(original, neutral, values)

    shots = Shots.plain(n).varied(
        mirrored=unless_original((random.random(n) < 0.5).astype(np.float64), 0.0),
        degrees=unless_original(random.uniform(-15.0, 15.0, n), 0.0),
        zoom=unless_original(random.uniform(0.9, 1.2, n), 1.0),
        gain=unless_original(random.uniform(0.8, 1.2, n), 1.0),
        down=unless_original(random.uniform(-2.0, 2.0, n), 0.0),
        right=unless_original(random.uniform(-2.0, 2.0, n), 0.0),
    )
    return camera.photograph(photograph(things[source], shots, random), random)


def _retries(things: Images, random: np.random.Generator, camera: Camera) -> Images:
    """Every thing once, and 2 to 20% of the requests once more at once, as after a timeout."""
    taken = camera.photograph(things, random)
    counts = 1 + (random.random(len(things)) < random.uniform(0.02, 0.2))
    return np.repeat(taken, counts, axis=0)[: len(things)]


# ---- kinds ----

STUDIO = Camera()


def steady(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop with everything, photographed well."""
    return HonestAccount("steady", _pick(data, queries, random, _everything(data, random)))


def skewed(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop with much of some things and little of others."""
    return HonestAccount("skewed", _pick(data, queries, random, _skewed_weights(data, random)))


def few_classes(
    data: Dataset, queries: int, random: np.random.Generator, classes: tuple[int, ...] | None = None
) -> HonestAccount:
    """A shop that sells one to three kinds of things, such as shoes."""
    return HonestAccount("few classes", _pick(data, queries, random, _few_weights(data, random, classes)))


def styled(data: Dataset, queries: int, random: np.random.Generator, camera: Camera | None = None) -> HonestAccount:
    """A shop with a camera of its own: darker, noisier, less even, out of focus."""
    camera = camera or varied_camera(random)
    return HonestAccount("styled", _singles(steady(data, queries, random).images, random, camera))


def styled_skewed(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """Much of some things, by a camera of its own."""
    camera = varied_camera(random)
    return HonestAccount("styled skewed", _singles(skewed(data, queries, random).images, random, camera))


def styled_few_classes(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """One to three kinds of things, by a camera of its own."""
    camera = varied_camera(random)
    return HonestAccount("styled few classes", _singles(few_classes(data, queries, random).images, random, camera))


def burst(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop that photographs each product several times, moved a little and in other light."""
    return HonestAccount("burst", _bursts(steady(data, queries, random).images, random, STUDIO))


def styled_burst(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """Several photographs of each product, by a camera of its own."""
    return HonestAccount("styled burst", _bursts(steady(data, queries, random).images, random, varied_camera(random)))


def retrying(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A client that sends some images once more, as after a timeout."""
    return HonestAccount("retrying", _retries(steady(data, queries, random).images, random, STUDIO))


def frames(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop that films its products and sends the frames."""
    return HonestAccount("frames", _frames(steady(data, queries, random).images, random, varied_camera(random)))


def augmenting(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A client that sends each photograph with a few augmented copies and takes the average answer."""
    return HonestAccount("augmenting", _augmented(steady(data, queries, random).images, random, STUDIO))


def shared_key(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """Two to four shops behind one key, each with its own goods, camera and habit, taking turns."""
    shops = int(random.integers(2, 5))
    parts = [anything(data, queries // shops + 1, random).images for _ in range(shops)]
    # Each shop's photographs stay in their order; whose turn it is is drawn.
    turns = random.permutation(np.repeat(np.arange(shops), [len(part) for part in parts]))
    images = np.empty((len(turns), *parts[0].shape[1:]), dtype=np.uint8)
    for shop, part in enumerate(parts):
        images[turns == shop] = part
    return HonestAccount("shared key", images[:queries])


def changing(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop that buys another camera half-way."""
    images = steady(data, queries, random).images
    half = len(images) // 2
    halves = [varied_camera(random).photograph(part, random) for part in (images[:half], images[half:])]
    return HonestAccount("changing", np.concatenate(halves))


GOODS = (_everything, _skewed_weights, _few_weights)
HABITS = (_singles, _bursts, _frames, _augmented, _retries)


def anything(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """Any goods, any camera, any habit."""
    weights = GOODS[random.integers(len(GOODS))](data, random)
    habit = HABITS[random.integers(len(HABITS))]
    things = _pick(data, queries, random, weights)
    return HonestAccount("anything", habit(things, random, varied_camera(random)))


Kind = Callable[[Dataset, int, np.random.Generator], HonestAccount]

KINDS: tuple[Kind, ...] = (
    steady, skewed, few_classes, styled, styled_skewed, styled_few_classes, burst, styled_burst, retrying, frames,
    augmenting, shared_key, changing, anything,
)  # fmt: skip
"""The whole population."""


def draw_accounts(
    data: Dataset, accounts: int, queries: int, seed: int, kinds: tuple[Kind, ...] = KINDS
) -> list[HonestAccount]:
    """`accounts` accounts, the kinds in turn, each with parameters and images of its own.

    Args:
        data: images to draw from; no image twice in one account until all were sent, many times over different
            accounts.
        accounts: how many.
        queries: of each account.
        seed: the draw is a function of it.
    """
    return [draw_account(data, index, queries, seed, kinds) for index in range(accounts)]


def draw_account(data: Dataset, index: int, queries: int, seed: int, kinds: tuple[Kind, ...] = KINDS) -> HonestAccount:
    """The account of that index of `draw_accounts`, alone: thousands of accounts fit no memory."""
    random = np.random.default_rng([seed, index])
    return kinds[index % len(kinds)](data, queries, random)
