"""Data-free extraction: a generator invents the questions, and learns through the victim which ones teach most."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.redteam.attack import NATURAL, Attack, Loot, Questions
from services.redteam.jacobian import as_images
from services.redteam.substitute import Images, Probabilities, Shape, Substitute, as_tensor, initialise

DECAYS = (0.1, 0.3, 0.5)
"""Shares of the budget after which both learning rates shrink."""
DECAY = 0.3
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LEAST_PROBABILITY = 1e-6
"""Its logarithm stands for that of 0."""


class Generator(nn.Module):
    """Noise [n, latent] to images before their activation, [n, channels, height, width] (the authors' generator A)."""

    def __init__(self, shape: Shape, latent: int, width: int) -> None:
        """
        Args:
            shape: of one image.
            latent: dimensions of the noise.
            width: channels of the last hidden layer; the first ones have twice as many.
        """
        super().__init__()
        channels, height, side = shape
        self._first = (2 * width, -(-height // 4), -(-side // 4))
        self.project = nn.Linear(latent, math.prod(self._first))
        self.layers = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Upsample(size=(height, side)),
            nn.Conv2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels, affine=False),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        """Images before their activation."""
        images: Tensor = self.layers(self.project(noise).unflatten(1, self._first))
        return images


def activate(raw: Tensor) -> Tensor:
    """The generator's outputs as images in [0, 1]: a hyperbolic tangent, which the authors leave in [-1, 1]."""
    return (torch.tanh(raw) + 1) / 2


def disagreement(logits: Tensor, answers: Tensor) -> Tensor:
    """How far a copy is from the victim's answers (DFME, eq. 4 and section 4.3).

    The L1 distance of the logits, the victim's recovered as the logarithms of its probabilities less their mean; the
    cross-entropy where it tells labels, which have no logits.

    Args:
        logits: [n, classes], the copy's.
        answers: [n, classes], the victim's probabilities, one-hot where it tells labels only.

    Returns:
        [n]
    """
    if bool((answers.amax(dim=1) == 1.0).all()):
        return functional.cross_entropy(logits, answers, reduction="none")
    recovered = answers.clamp(min=LEAST_PROBABILITY).log()
    return (logits - (recovered - recovered.mean(dim=1, keepdim=True))).abs().mean(dim=1)


def estimated_gradient(losses: Tensor, directions: Tensor, size: float) -> Tensor:
    """Forward differences (TR 2021-126, eq. 4; DFME, eq. 6, which adds the factor of the dimensions).

    Args:
        losses: [n, 1 + m], at the points themselves and a step of `size` along each direction.
        directions: [n, m, ...] of unit length, uniform on the sphere.
        size: epsilon.

    Returns:
        [n, ...]
    """
    slopes = (losses[:, 1:] - losses[:, :1]) / size
    dimensions = directions[0, 0].numel()
    return dimensions * (slopes.reshape(*slopes.shape, *[1] * (directions.ndim - 2)) * directions).mean(dim=1)


@dataclass(frozen=True, slots=True)
class _Round:
    """What is needed to learn from a round's answers.

    Attributes:
        lessons: numbers of the questions that teach the copy, [copy_steps, batch].
        probes: numbers of those that teach the generator, [batch, 1 + m].
        noise: [batch, latent] that the probes were generated from.
        directions: [batch, m, channels, height, width].
    """

    lessons: NDArray[np.int64]
    probes: NDArray[np.int64]
    noise: Tensor
    directions: Tensor


class Dfme(Attack):
    """DFME (Truong et al. 2021, Data-free model extraction; TR 2021-126, III-B, eq. 3 and 4).

    A round is `copy_steps` batches of generated images that teach the copy to agree with the victim, and one batch that
    teaches the generator to make them disagree: each of its images x is followed by x + epsilon u for a random u on the
    unit sphere, added before the activation, and the difference of the victim's answers estimates the gradient. All of
    a round is asked at once, which changes nothing: neither question depends on the other's answer. What travels are
    whole pixels of 8 bits, and the copy is compared on these.

    Defaults are those of the authors' code: batches of 256, 256-dimensional noise, five copy steps, one direction,
    epsilon 1e-3, SGD with 0.1 for the copy and Adam with 1e-4 for the generator, both times 0.3 after 10, 30 and 50% of
    the budget.
    """

    name = "DFME"

    def __init__(
        self,
        shape: Shape,
        batch: int = 256,
        copy_steps: int = 5,
        directions: int = 1,
        epsilon: float = 1e-3,
        latent: int = 256,
        width: int = 64,
        copy_rate: float = 0.1,
        generator_rate: float = 1e-4,
        request_rows: int = 1,
    ) -> None:
        """
        Args:
            shape: of the images that the victim takes.
            batch: images a batch; a round asks for batch * (copy_steps + 1 + directions).
            copy_steps: batches that the copy learns from in a round.
            directions: m, of each gradient estimate.
            epsilon: length of the step along each, before the activation.
            latent: dimensions of the generator's noise.
            width: of the generator's layers.
            copy_rate: learning rate of the copy.
            generator_rate: learning rate of the generator.
            request_rows: images a request.
        """
        super().__init__(request_rows)
        self.shape = shape
        self.batch = batch
        self.copy_steps = copy_steps
        self.directions = directions
        self.epsilon = epsilon
        self.latent = latent
        self.width = width
        self.copy_rate = copy_rate
        self.generator_rate = generator_rate

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """Batches for the copy, then points and their neighbours for the generator."""
        if not loot.put:
            self._start(loot.random)
        generated = [activate(self._generator(self._noise(loot.random))) for _ in range(self.copy_steps)]
        noise = self._noise(loot.random)
        drawn = loot.random.standard_normal((self.batch, self.directions, math.prod(self.shape)))
        drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
        directions = torch.from_numpy(drawn.astype(np.float32).reshape(self.batch, self.directions, *self.shape))
        with torch.no_grad():
            raw = self._generator(noise)[:, None]
        points = activate(torch.cat([raw, raw + self.epsilon * directions], dim=1)).flatten(0, 1)
        images: Images = np.concatenate([as_images(part) for part in (*generated, points)])

        numbers = loot.put + np.arange(len(images))
        lessons, probes = np.split(numbers, [self.copy_steps * self.batch])
        probes = probes.reshape(self.batch, 1 + self.directions)
        self._round = _Round(lessons.reshape(self.copy_steps, self.batch), probes, noise, directions)
        origins = np.full(len(images), NATURAL)
        origins[len(lessons) :].reshape(probes.shape)[:, 1:] = probes[:, :1]
        return loot.questioning(images, origins, numbers >= loot.put + len(lessons))

    def _start(self, random: np.random.Generator) -> None:
        self._generator = Generator(self.shape, self.latent, self.width)
        initialise(self._generator, torch.Generator().manual_seed(int(random.integers(2**62))))
        self._generator_optimiser = torch.optim.Adam(self._generator.parameters(), lr=self.generator_rate)
        self._copy_optimiser: torch.optim.SGD | None = None

    def _noise(self, random: np.random.Generator) -> Tensor:
        return torch.from_numpy(random.standard_normal((self.batch, self.latent)).astype(np.float32))

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """The copy learns to agree, then the generator to make it disagree."""
        if self._copy_optimiser is None:
            self._copy_optimiser = torch.optim.SGD(
                substitute.start(self.shape).parameters(),
                lr=self.copy_rate,
                momentum=MOMENTUM,
                weight_decay=WEIGHT_DECAY,
            )
        decay = DECAY ** sum(loot.report.queries > share * loot.budget for share in DECAYS)
        self._copy_optimiser.param_groups[0]["lr"] = decay * self.copy_rate
        self._generator_optimiser.param_groups[0]["lr"] = decay * self.generator_rate

        numbers, images, told = loot.numbers, loot.images, loot.told
        for lesson in self._round.lessons:
            rows = np.flatnonzero(np.isin(numbers, lesson))
            if len(rows):
                self._copy_optimiser.zero_grad()
                logits = substitute.network(as_tensor(images[rows]))
                disagreement(logits, torch.from_numpy(told[rows])).mean().backward()  # type: ignore[no-untyped-call]
                self._copy_optimiser.step()
        self._teach_generator(substitute, numbers, images, told)

    def _teach_generator(
        self, substitute: Substitute, numbers: NDArray[np.int64], images: Images, told: Probabilities
    ) -> None:
        """One step up the estimated gradient, by the points that were answered together with all their neighbours."""
        answered = np.isin(self._round.probes, numbers).all(axis=1)
        if not answered.any():
            return
        probes = self._round.probes[answered]
        rows = np.searchsorted(numbers, probes.flatten())
        with torch.no_grad():
            logits = substitute.network(as_tensor(images[rows]))
            losses = -disagreement(logits, torch.from_numpy(told[rows])).reshape(probes.shape)
        directions = self._round.directions[torch.from_numpy(answered)]
        gradient = estimated_gradient(losses, directions, self.epsilon) / len(probes)
        self._generator_optimiser.zero_grad()
        # Batch normalisation needs the whole batch, though some of it may have no answer.
        raw = self._generator(self._round.noise)[torch.from_numpy(answered)]
        raw.backward(gradient)
        self._generator_optimiser.step()
