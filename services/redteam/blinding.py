"""Query blinding (TR 2021-126, section VII-A, after Chen, Carlini and Wagner 2019): a transformation hides each image.

The attacker sends t(x) and books its label to x. The low strengths are the defaults of the report, whose own code holds
the high ones as well.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from services.redteam.attack import Questions, Reply, Route
from services.redteam.jacobian import as_images
from services.redteam.substitute import Images, Probabilities, Substitute, as_tensor, initialise

Strength = Literal["low", "high"]


class Blinding(ABC):
    """A random transformation, drawn anew for each image."""

    @abstractmethod
    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """[n, channels, height, width] in [0, 1] to the same, not yet held to [0, 1]."""

    def blind(self, images: Images, random: np.random.Generator) -> Images:
        """What is sent instead: [n, channels, height, width] uint8, again in whole pixels."""
        return as_images(self.transform(as_tensor(images), random).clamp(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class _Amount(Blinding):
    """A transformation of one parameter.

    Attributes:
        amount: r of the report; its unit is the subclass's.
    """

    amount: float

    def _drawn(self, n: int, random: np.random.Generator) -> Tensor:
        """[n, 1, 1, 1], uniform in [-amount, amount]."""
        return torch.from_numpy(random.uniform(-self.amount, self.amount, (n, 1, 1, 1)).astype(np.float32))


class Uniform(_Amount):
    """Noise, uniform up to `amount`, pixels in [0, 1]."""

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Each pixel by an amount of its own."""
        noise = random.uniform(-self.amount, self.amount, tuple(images.shape))
        return images + torch.from_numpy(noise.astype(np.float32))


class Gaussian(_Amount):
    """Normal noise of standard deviation `amount`, pixels in [0, 1]."""

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Each pixel by an amount of its own."""
        noise = random.normal(0.0, self.amount, tuple(images.shape))
        return images + torch.from_numpy(noise.astype(np.float32))


class Brightness(_Amount):
    """Every pixel lighter or darker by one amount, up to `amount`, pixels in [0, 1]."""

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """All pixels of an image by the same amount."""
        return images + self._drawn(len(images), random)


class Contrast(_Amount):
    """The distance of every pixel to the image's mean grows or shrinks by a share of up to `amount`."""

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """About each image's mean."""
        mean = images.mean((1, 2, 3), keepdim=True)
        return mean + (1 + self._drawn(len(images), random)) * (images - mean)


def resampled(images: Tensor, angle: Tensor, size: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Images sampled bilinearly from a turned, scaled and moved grid; what lies outside is black.

    Args:
        images: [n, channels, height, width].
        angle: [n], radians.
        size: [n], side of the part that is shown, as a share of the image's.
        across: [n], from the image's centre to the part's, as a share of the image's width.
        down: [n], the same of its height.
    """
    height, width = images.shape[-2:]
    grid = torch.empty(len(images), 2, 3)
    # The grid's units are half sides; a rotation must not stretch what is not square.
    grid[:, 0, 0], grid[:, 0, 1], grid[:, 0, 2] = angle.cos() * size, -angle.sin() * size * height / width, 2 * across
    grid[:, 1, 0], grid[:, 1, 1], grid[:, 1, 2] = angle.sin() * size * width / height, angle.cos() * size, 2 * down
    points = functional.affine_grid(grid, list(images.shape), align_corners=False)
    return functional.grid_sample(images, points, align_corners=False)


class Rotate(_Amount):
    """By up to `amount` radians."""

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """About the centre."""
        zero = torch.zeros(len(images))
        return resampled(images, self._drawn(len(images), random).flatten(), zero + 1, zero, zero)


class Translate(_Amount):
    """By up to `amount` of each side."""

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """Along both sides."""
        zero = torch.zeros(len(images))
        across, down = (self._drawn(len(images), random).flatten() for _ in range(2))
        return resampled(images, zero, zero + 1, across, down)


class Scale(_Amount):
    """Larger or smaller by a share of up to `amount`."""

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """About the centre."""
        zero = torch.zeros(len(images))
        return resampled(images, zero, 1 / (1 + self._drawn(len(images), random).flatten()), zero, zero)


class Crop(_Amount):
    """A part of at least 1 - `amount` of the image's area, somewhere in it, enlarged to the whole."""

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """A part of the image's own proportions."""
        side = torch.from_numpy(random.uniform(1 - self.amount, 1.0, len(images)).astype(np.float32)).sqrt()
        places = torch.from_numpy(random.uniform(-0.5, 0.5, (2, len(images))).astype(np.float32))
        across, down = (1 - side) * places
        return resampled(images, torch.zeros(len(images)), side, across, down)


class BlindingNetwork(nn.Module):
    """An image and noise to what is added to the image: the layers of the report's code."""

    def __init__(self, channels: int, width: int) -> None:
        """
        Args:
            channels: of the images.
            width: channels of the widest layer, a multiple of 4; 64 in the report's code.
        """
        super().__init__()
        widths = (2 * channels, width // 4, width // 2, width, width, width, width, width // 2)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(after)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Blinded images in [0, 1], of the shape [n, channels, height, width] of both arguments."""
        added: Tensor = self.head(self.trunk(torch.cat([images, images + noise], dim=1)))
        return (images + added).clamp(0.0, 1.0)


class AutoEncoder(Blinding):
    """A network that moves noise to where it changes the answer least (TR 2021-126, VII-A, and its code).

    Trained to minimise H(F(t(x)), F(x)) - c min(||t_1(x) - t_2(x)||^2, d^2), F a classifier of the attacker's own and
    t_1, t_2 two draws of the noise: the answer stays, the images differ.
    """

    def __init__(self, network: BlindingNetwork, amount: float) -> None:
        """
        Args:
            network: trained; see `train_auto_encoder`.
            amount: standard deviation of the noise, pixels in [0, 1].
        """
        self._network = network
        self.amount = amount

    def transform(self, images: Tensor, random: np.random.Generator) -> Tensor:
        """By noise of its own for each pixel."""
        noise = random.normal(0.0, self.amount, tuple(images.shape))
        with torch.inference_mode():
            blinded: Tensor = self._network(images, torch.from_numpy(noise.astype(np.float32)))
        return blinded


def train_auto_encoder(
    images: Images,
    answers: Probabilities,
    random: np.random.Generator,
    amount: float = 0.095,
    epochs: int = 10,
    spread: float = 10.0,
    spread_weight: float = 1.0,
    rate: float = 1e-3,
    batch: int = 64,
    width: int = 64,
) -> AutoEncoder:
    """Train the ninth blinding on images of the attacker's own.

    Args:
        images: [n, channels, height, width].
        answers: [n, classes], their labels one-hot, or what a victim said.
        random: of weights, noise and order.
        amount: standard deviation of the noise, pixels in [0, 1].
        epochs: of the classifier and of the network; 10 in the report's code.
        spread: d, L2 distance of two draws beyond which nothing is gained, for images of 3 x 32 x 32 pixels as in the
            report's code (10); for others it is scaled to the same change of each pixel.
        spread_weight: c, 1 in the report's code.
        rate: Adam's.
        batch: images a step.
        width: of the network, see `BlindingNetwork`.
    """
    classifier = Substitute(answers.shape[1], random)
    classifier.train(images, answers, epochs)
    network = BlindingNetwork(images.shape[1], width)
    initialise(network, torch.Generator().manual_seed(int(random.integers(2**62))))
    # It begins by sending images as they are.
    nn.init.zeros_(network.head.weight)
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    most = spread**2 * math.prod(images.shape[1:]) / (3 * 32 * 32)
    inputs = as_tensor(images)
    for _ in range(epochs):
        for rows in torch.split(torch.from_numpy(random.permutation(len(images))), batch):
            x = inputs[rows]
            first, second = (
                network(x, torch.from_numpy(random.normal(0.0, amount, tuple(x.shape)).astype(np.float32)))
                for _ in range(2)
            )
            with torch.no_grad():
                told = classifier.network(x).softmax(dim=1)
            same = functional.cross_entropy(classifier.network(first), told)
            apart = (first - second).flatten(1).norm(dim=1).mean().square().clamp(max=most)
            optimiser.zero_grad()
            (same - spread_weight * apart).backward()
            optimiser.step()
    return AutoEncoder(network.eval(), amount)


_AMOUNTS: Mapping[str, tuple[Callable[[float], Blinding], float, float]] = MappingProxyType(
    {
        "crop": (Crop, 0.04, 0.5),
        "brightness": (Brightness, 0.09, 0.6),
        "scale": (Scale, 0.17, 0.7),
        # 0.018 is in radians in Chen et al.; the report's code has the high one in degrees, 90.
        "rotate": (Rotate, 0.018, math.pi / 2),
        "contrast": (Contrast, 0.1, 0.55),
        "uniform": (Uniform, 0.064, 0.2),
        "gaussian": (Gaussian, 0.095, 0.2),
        "translate": (Translate, 0.05, 0.6),
    }
)
AUTO_ENCODER = "auto-encoder"
NARROW = 16
"""Width of the auto-encoder here: the report's 64 takes a CPU sixteen times as long."""
BLINDINGS: tuple[str, ...] = (*_AMOUNTS, AUTO_ENCODER)
"""The nine of the report, in the order of its table X."""


def blinding(
    name: str, strength: Strength, images: Images, answers: Probabilities, random: np.random.Generator
) -> Blinding:
    """One of the nine.

    Args:
        name: one of `BLINDINGS`.
        strength: low is the report's default.
        images: [n, channels, height, width], the attacker's own; only the auto-encoder learns from them.
        answers: [n, classes], their labels one-hot.
        random: of the auto-encoder's training.

    Raises:
        KeyError: no such blinding.
    """
    if name == AUTO_ENCODER:
        _, low, high = _AMOUNTS["gaussian"]
        return train_auto_encoder(images, answers, random, low if strength == "low" else high, width=NARROW)
    build, low, high = _AMOUNTS[name]
    return build(low if strength == "low" else high)


class Blinded(Route):
    """Sends t(x) instead of x; what the attack compares exactly goes as it is."""

    def __init__(self, route: Route, transformation: Blinding, random: np.random.Generator) -> None:
        """
        Args:
            route: what the blinded questions take from here.
            transformation: t.
            random: of t.
        """
        self._route = route
        self._transformation = transformation
        self._random = random

    def send(self, questions: Questions, limit: int) -> Reply:
        """The answers to t(x), as if they were to x."""
        blinded = self._transformation.blind(questions.images, self._random)
        images = np.where(questions.exact[:, None, None, None], questions.images, blinded)
        return self._route.send(replace(questions, images=images), limit)
