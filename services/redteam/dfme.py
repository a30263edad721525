"""Data-free extraction: a generator invents the questions, and learns through the victim which ones teach most.

DFME and MAZE are one algorithm: batches that teach the copy, and one batch of points with neighbours, from whose
answers the gradient for the generator is estimated. They differ in the loss, in what is taught twice, and in how they
are optimised.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
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
"""What DFME's are multiplied by after each of `DECAYS`."""
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LEAST_PROBABILITY = 1e-6
"""Its logarithm stands for that of 0."""


class Generator(nn.Module):
    """Noise [n, latent] to images before their activation, [n, channels, height, width] (the authors' generator A)."""

    def __init__(self, shape: Shape, latent: int, width: int, normalised: bool = True) -> None:
        """
        Args:
            shape: of one image.
            latent: dimensions of the noise.
            width: channels of the last hidden layer; the first ones have twice as many.
            normalised: whether each channel of a batch comes out with mean 0 and variance 1, as the authors' do.
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
            nn.Conv2d(width, channels, 3, padding=1),
            nn.BatchNorm2d(channels, affine=False) if normalised else nn.Identity(),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        """Images before their activation."""
        images: Tensor = self.layers(self.project(noise).unflatten(1, self._first))
        return images


def activate(raw: Tensor) -> Tensor:
    """The generator's outputs as images in [0, 1]: a hyperbolic tangent, which the authors leave in [-1, 1]."""
    return (torch.tanh(raw) + 1) / 2


def logit_distance(logits: Tensor, answers: Tensor) -> Tensor:
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


def divergence(logits: Tensor, answers: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of a copy from the victim's answers: MAZE's loss, as in the authors' code.

    Args:
        logits: [n, classes], the copy's.
        answers: [n, classes], the victim's probabilities, one-hot where it tells labels only.

    Returns:
        [n]
    """
    return functional.kl_div(logits.log_softmax(dim=1), answers, reduction="none").sum(dim=1)


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
        lessons: numbers of the questions that teach the copy alone, [batches, batch].
        probes: numbers of those that teach the generator, [batch, 1 + m].
        noise: [batch, latent] that the probes were generated from.
        directions: [batch, m, channels, height, width].
    """

    lessons: NDArray[np.int64]
    probes: NDArray[np.int64]
    noise: Tensor
    directions: Tensor


@dataclass(frozen=True, slots=True)
class _Answered:
    """The loot in one piece, as it is put together once a round.

    Attributes:
        numbers: [n], ascending.
        images: [n, channels, height, width].
        told: [n, classes].
    """

    numbers: NDArray[np.int64]
    images: Images
    told: Probabilities


class ZerothOrderAttack(Attack):
    """The algorithm of DFME and MAZE; a subclass says which loss, and how it is optimised.

    A round is batches of generated images that teach the copy to agree with the victim, and one batch that teaches the
    generator to make them disagree: each of its images x is followed by x + epsilon u for random u on the unit sphere,
    added before the activation, and the differences of the losses estimate the gradient. All of a round is asked at
    once, which changes nothing: no question depends on another's answer. What travels are whole pixels of 8 bits, and
    the copy is compared on these; a step so short that it moves no pixel teaches the generator nothing.
    """

    def __init__(
        self,
        shape: Shape,
        batch: int,
        copy_steps: int,
        directions: int,
        epsilon: float,
        latent: int,
        width: int,
        copy_rate: float,
        generator_rate: float,
        replays: int,
        points_teach: bool,
        request_rows: int,
    ) -> None:
        """
        Args:
            shape: of the images that the victim takes.
            batch: images a batch.
            copy_steps: batches that the copy learns from in a round, replays aside.
            directions: m, of each gradient estimate.
            epsilon: length of the step along each, before the activation.
            latent: dimensions of the generator's noise.
            width: of the generator's layers.
            copy_rate: learning rate of the copy.
            generator_rate: learning rate of the generator.
            replays: batches of what taught the copy before that teach it again, in each round.
            points_teach: whether the points of the gradient estimate are one of the `copy_steps` batches, after the
                generator has learnt from them.
            request_rows: images a request.

        Raises:
            ValueError: nothing would teach the copy or the generator.
        """
        super().__init__(request_rows)
        if min(batch, copy_steps, directions) < 1 or epsilon <= 0:
            raise ValueError(f"{self.name} needs a batch, a copy step, a direction and a length of its step")
        self.shape = shape
        self.batch = batch
        self.copy_steps = copy_steps
        self.directions = directions
        self.epsilon = epsilon
        self.latent = latent
        self.width = width
        self.copy_rate = copy_rate
        self.generator_rate = generator_rate
        self.replays = replays
        self.points_teach = points_teach

    @abstractmethod
    def disagreement(self, logits: Tensor, answers: Tensor) -> Tensor:
        """[n], how far the copy's logits [n, classes] are from the victim's answers [n, classes]."""

    @abstractmethod
    def optimise_generator(self, generator: Generator) -> torch.optim.Optimizer:
        """What steps the generator."""

    @abstractmethod
    def decay(self, queries: int, budget: int) -> float:
        """What both learning rates are multiplied by when so many queries of the budget are spent."""

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """Batches for the copy, then points and their neighbours for the generator."""
        if not loot.put:
            self._start(loot.random)
        alone = self.copy_steps - self.points_teach
        generated = [activate(self._generator(self._noise(loot.random))) for _ in range(alone)]
        noise = self._noise(loot.random)
        drawn = loot.random.standard_normal((self.batch, self.directions, math.prod(self.shape)))
        drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
        directions = torch.from_numpy(drawn.astype(np.float32).reshape(self.batch, self.directions, *self.shape))
        with torch.no_grad():
            raw = self._generator(noise)[:, None]
        points = activate(torch.cat([raw, raw + self.epsilon * directions], dim=1)).flatten(0, 1)
        images: Images = np.concatenate([as_images(part) for part in (*generated, points)])

        numbers = loot.put + np.arange(len(images))
        lessons, probes = np.split(numbers, [alone * self.batch])
        probes = probes.reshape(self.batch, 1 + self.directions)
        self._round = _Round(lessons.reshape(alone, self.batch), probes, noise, directions)
        origins = np.full(len(images), NATURAL)
        origins[len(lessons) :].reshape(probes.shape)[:, 1:] = probes[:, :1]
        return loot.questioning(images, origins, numbers >= loot.put + len(lessons))

    def _start(self, random: np.random.Generator) -> None:
        self._generator = Generator(self.shape, self.latent, self.width)
        initialise(self._generator, torch.Generator().manual_seed(int(random.integers(2**62))))
        self._generator_optimiser = self.optimise_generator(self._generator)
        self._copy_optimiser: torch.optim.SGD | None = None
        self._taught: list[NDArray[np.int64]] = []

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
        decay = self.decay(loot.report.queries, loot.budget)
        self._copy_optimiser.param_groups[0]["lr"] = decay * self.copy_rate
        self._generator_optimiser.param_groups[0]["lr"] = decay * self.generator_rate

        answered = _Answered(loot.numbers, loot.images, loot.told)
        for lesson in (*self._round.lessons, *self._replayed(loot.random)):
            self._teach_copy(substitute, self._copy_optimiser, answered, lesson)
        self._teach_generator(substitute, answered)
        if self.points_teach:
            self._teach_copy(substitute, self._copy_optimiser, answered, self._round.probes[:, 0])

    def _replayed(self, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Numbers of questions that taught, this round's among them, in at most `replays` batches."""
        if not self.replays:
            return
        self._taught += [*self._round.lessons, *([self._round.probes[:, 0]] if self.points_teach else [])]
        taught = np.concatenate(self._taught)
        drawn = random.permutation(taught)[: self.replays * self.batch]
        yield from np.split(drawn, range(self.batch, len(drawn), self.batch))

    def _teach_copy(
        self,
        substitute: Substitute,
        optimiser: torch.optim.Optimizer,
        answered: _Answered,
        lesson: NDArray[np.int64],
    ) -> None:
        """One step, by those questions of a lesson that were answered."""
        rows = np.flatnonzero(np.isin(answered.numbers, lesson))
        if len(rows):
            optimiser.zero_grad()
            logits = substitute.network.train()(as_tensor(answered.images[rows]))
            loss = self.disagreement(logits, torch.from_numpy(answered.told[rows])).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    def _teach_generator(self, substitute: Substitute, answered: _Answered) -> None:
        """One step up the estimated gradient, by the points that were answered together with all their neighbours."""
        complete = np.isin(self._round.probes, answered.numbers).all(axis=1)
        if not complete.any():
            return
        probes = self._round.probes[complete]
        rows = np.searchsorted(answered.numbers, probes.flatten())
        with torch.no_grad():
            logits = substitute.network.eval()(as_tensor(answered.images[rows]))
            losses = -self.disagreement(logits, torch.from_numpy(answered.told[rows])).reshape(probes.shape)
        directions = self._round.directions[torch.from_numpy(complete)]
        gradient = estimated_gradient(losses, directions, self.epsilon) / len(probes)
        self._generator_optimiser.zero_grad()
        # Batch normalisation needs the whole batch, though some of it may have no answer.
        raw = self._generator(self._round.noise)[torch.from_numpy(complete)]
        raw.backward(gradient)
        self._generator_optimiser.step()


class Dfme(ZerothOrderAttack):
    """DFME (Truong et al. 2021, Data-free model extraction; TR 2021-126, III-B, eq. 3 and 4).

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

        Raises:
            ValueError: nothing would teach the copy or the generator.
        """
        super().__init__(
            shape, batch, copy_steps, directions, epsilon, latent, width, copy_rate, generator_rate,
            replays=0, points_teach=False, request_rows=request_rows,
        )  # fmt: skip

    def disagreement(self, logits: Tensor, answers: Tensor) -> Tensor:
        """The distance of the logits."""
        return logit_distance(logits, answers)

    def optimise_generator(self, generator: Generator) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(generator.parameters(), lr=self.generator_rate)

    def decay(self, queries: int, budget: int) -> float:
        """In steps."""
        return DECAY ** sum(queries > share * budget for share in DECAYS)


class Maze(ZerothOrderAttack):
    """MAZE (Kariyappa et al. 2021, Data-free model stealing using zeroth-order gradient estimation, Algorithm 1).

    Defaults are those of the authors' code: batches of 128, 100-dimensional noise, N_C = 5 copy steps of which the
    points of the gradient estimate are one, N_R = 10 replays, N_G = 1 generator step along m = 10 directions of
    mu = 1e-3, SGD with 0.1 for the copy and 1e-4 for the generator, both along half a cosine over the budget: 1,920
    queries a round. The order is theirs, begun with the copy, where they let the generator learn first from a copy that
    knows nothing. What is replayed is all that taught the copy, where their code keeps a batch of each round. The
    generator's layers are DFME's.

    Their mu moves hardly a pixel of 8 bits: after 4,000 queries for images of 14 by 14 pixels a copy agrees with its
    victim on 35% (mean of eight draws), and on 37% where the generator stays as it is. With mu 1 and a rate of 1e-2 for
    the generator it is 52%.
    """

    name = "MAZE"

    def __init__(
        self,
        shape: Shape,
        batch: int = 128,
        copy_steps: int = 5,
        directions: int = 10,
        epsilon: float = 1e-3,
        replays: int = 10,
        latent: int = 100,
        width: int = 64,
        copy_rate: float = 0.1,
        generator_rate: float = 1e-4,
        request_rows: int = 1,
    ) -> None:
        """
        Args:
            shape: of the images that the victim takes.
            batch: images a batch; a round asks for batch * (copy_steps + directions).
            copy_steps: N_C, batches that the copy learns from in a round.
            directions: m, of each gradient estimate.
            epsilon: mu, length of the step along each, before the activation.
            replays: N_R, batches of earlier questions that the copy learns from again in a round.
            latent: dimensions of the generator's noise.
            width: of the generator's layers.
            copy_rate: learning rate of the copy.
            generator_rate: learning rate of the generator.
            request_rows: images a request.

        Raises:
            ValueError: nothing would teach the copy or the generator.
        """
        super().__init__(
            shape, batch, copy_steps, directions, epsilon, latent, width, copy_rate, generator_rate,
            replays=replays, points_teach=True, request_rows=request_rows,
        )  # fmt: skip

    def disagreement(self, logits: Tensor, answers: Tensor) -> Tensor:
        """The divergence of the probabilities."""
        return divergence(logits, answers)

    def optimise_generator(self, generator: Generator) -> torch.optim.Optimizer:
        """Stochastic gradient descent."""
        return torch.optim.SGD(
            generator.parameters(), lr=self.generator_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def decay(self, queries: int, budget: int) -> float:
        """Half a cosine."""
        return (1 + math.cos(math.pi * queries / budget)) / 2
