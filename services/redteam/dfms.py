"""Data-free extraction by hard labels: a generator learns from the copy alone what to ask, so labels are enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.redteam.attack import Attack, Loot, Questions
from services.redteam.dfme import MOMENTUM, WEIGHT_DECAY, Generator, activate
from services.redteam.jacobian import as_images
from services.redteam.substitute import Images, Shape, Substitute, as_tensor, initialise

EPOCHS = 20
"""Of the copy's first training."""
BETAS = (0.5, 0.999)
"""Adam's, of the generator and the discriminator."""
SHAPES = 50
"""In each synthetic image, as in the authors' code."""
SMALLEST, LARGEST = 0.05, 0.1
"""Sides of a shape, as a share of the image's."""
FINER = 3
"""Drawn so many times as large and averaged, where the authors blur and reduce."""


def random_shapes(shape: Shape, n: int, random: np.random.Generator) -> Images:
    """[n, *shape] uint8: rectangles, ellipses and triangles of random colours on a ground of one.

    What the authors make their synthetic data set of.

    Args:
        shape: channels, height, width.
        n: how many images.
        random: of everything that is drawn.
    """
    channels, height, width = shape
    sides = np.array([FINER * height, FINER * width])
    canvas = np.empty((n, channels, *sides), dtype=np.float32)
    canvas[:] = random.integers(0, 256, (n, channels, 1, 1))
    sizes = np.maximum(np.rint(random.uniform(SMALLEST, LARGEST, (n, SHAPES, 2)) * sides), 1).astype(int)
    corners = (random.random((n, SHAPES, 2)) * (sides - sizes + 1)).astype(int)
    colours = random.integers(0, 256, (n, SHAPES, channels))
    kinds = random.integers(3, size=(n, SHAPES))
    for image in range(n):
        for (top, left), (tall, wide), colour, kind in zip(
            corners[image], sizes[image], colours[image], kinds[image], strict=True
        ):
            patch = canvas[image, :, top : top + tall, left : left + wide]
            np.copyto(patch, colour[:, None, None], where=_outline(int(kind), int(tall), int(wide)))
    small: Images = np.rint(canvas.reshape(n, channels, height, FINER, width, FINER).mean(axis=(3, 5))).astype(np.uint8)
    return small


def _outline(kind: int, tall: int, wide: int) -> NDArray[np.bool_]:
    """[tall, wide], which pixels a rectangle (0), an ellipse (1) or a triangle that points up (2) covers."""
    down = (np.arange(tall)[:, None] + 0.5) / tall
    aside = np.abs((np.arange(wide)[None] + 0.5) / wide - 0.5)
    if kind == 0:
        return np.ones((tall, wide), dtype=np.bool_)
    covered: NDArray[np.bool_] = (down - 0.5) ** 2 + aside**2 <= 0.25 if kind == 1 else aside <= down / 2
    return covered


class Discriminator(nn.Module):
    """Images [n, channels, height, width] in [0, 1] to the logit [n] of being a proxy image and not a generated one."""

    def __init__(self, shape: Shape, width: int) -> None:
        """
        Args:
            shape: of one image.
            width: channels of the first layer; the second has twice as many.
        """
        super().__init__()
        channels, height, side = shape
        # Two convolutions halve each side, rounding up.
        pixels = -(-height // 4) * -(-side // 4)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2, padding=2), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 5, stride=2, padding=2), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(2 * width * pixels, 1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n]."""
        logits: Tensor = self.layers(images).flatten()
        return logits


def class_diversity_loss(logits: Tensor) -> Tensor:
    """L_div, the negative entropy of a batch's mean prediction: least where the copy sees every class equally often.

    Args:
        logits: [n, classes], the copy's.

    Returns:
        A scalar, at least -log(classes).
    """
    entropy: Tensor = torch.special.entr(logits.softmax(dim=1).mean(dim=0)).sum()
    return -entropy


def adversarial_loss(logits: Tensor, proxy: bool) -> Tensor:
    """L_adv, how far a discriminator's logits [n] are from calling all images proxies, or all of them generated."""
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(proxy)))


@dataclass(frozen=True, slots=True)
class _Round:
    """What is needed to learn from a round's answers.

    Attributes:
        numbers: of its questions, [n].
        noise: [n, latent] that they were generated from.
    """

    numbers: NDArray[np.int64]
    noise: Tensor


class DfmsHl(Attack):
    """DFMS-HL (Sanyal, Addepalli and Babu 2022, Towards data-free model stealing in a hard label setting, section 3).

    A generative adversarial network learns to make images like proxy images, which are of no kind that the victim
    knows: synthetic shapes, or photographs of other things. The first round asks for `initial` images, half proxies and
    half generated, and trains the copy on them. Each further round asks for a batch of generated images; the copy takes
    a step on their answers and `replays` on earlier ones; then the generator takes one that makes its images both pass
    for proxies and differ in class to the copy, L_adv + lambda_div L_div, and the discriminator one. The victim's
    gradient is never estimated, so labels are enough and no two questions are close. Where the victim tells
    probabilities, the cross-entropy with these takes the place of that with labels.

    Defaults are those of the authors' code: batches of 64, 100-dimensional noise, SGD with 0.01 along half a cosine for
    the copy, Adam with 2e-4 for the networks of the adversarial game, lambda_div 500. Simplified, as budgets here are
    thousands of queries instead of their eight million: `initial` was 50,000; they train the generator on the first
    copy, and a second copy on its images, before the rounds begin; they change the colours and the place of each
    generated image before they ask (AutoAugment), which is made for photographs in colour; and of averages of the
    copy's weights along the way they keep the best. The generator's layers are DFME's without the last normalisation,
    since proxies are not grey on average.
    """

    name = "DFMS-HL"

    def __init__(
        self,
        shape: Shape,
        proxies: Images | None = None,
        initial: int = 1000,
        batch: int = 64,
        replays: int = 2,
        game_steps: int = 500,
        latent: int = 100,
        width: int = 64,
        diversity: float = 500.0,
        copy_rate: float = 0.01,
        generator_rate: float = 2e-4,
        request_rows: int = 1,
    ) -> None:
        """
        Args:
            shape: of the images that the victim takes.
            proxies: [n, *shape] uint8; where not given, twice `initial` synthetic ones are drawn.
            initial: n_C, questions of the first round.
            batch: images a step of any network; a round after the first asks for as many.
            replays: batches of earlier questions that the copy learns from again in a round.
            game_steps: of the generator and the discriminator before the first question.
            latent: dimensions of the generator's noise.
            width: of the generator's and of the discriminator's layers.
            diversity: lambda_div.
            copy_rate: learning rate of the copy after the first round.
            generator_rate: learning rate of the generator and of the discriminator.
            request_rows: images a request.

        Raises:
            ValueError: proxies of another shape, none, or nothing to ask.
        """
        super().__init__(request_rows)
        if proxies is not None and (not len(proxies) or proxies.shape[1:] != shape):
            raise ValueError(f"DFMS-HL needs proxy images of shape {shape}, not an array of shape {proxies.shape}")
        if min(initial, batch) < 2:
            raise ValueError(f"DFMS-HL needs two images or more to ask about, not {initial} first and {batch} a round")
        self.shape = shape
        self.proxies = proxies
        self.initial = initial
        self.batch = batch
        self.replays = replays
        self.game_steps = game_steps
        self.latent = latent
        self.width = width
        self.diversity = diversity
        self.copy_rate = copy_rate
        self.generator_rate = generator_rate

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """Proxies and generated images first, then a batch of generated ones."""
        if not loot.put:
            self._start(loot.random)
            proxies = self._drawn_proxies(loot.random, self.initial // 2)
            generated = [self._generated(loot.random, size) for size in _sizes(self.initial - len(proxies), self.batch)]
            return loot.questioning(np.concatenate([proxies, *(as_images(images) for images, _ in generated)]))
        images, noise = self._generated(loot.random, self.batch)
        asked = loot.questioning(as_images(images))
        self._round = _Round(asked.numbers, noise)
        return asked

    def _start(self, random: np.random.Generator) -> None:
        self._proxies = random_shapes(self.shape, 2 * self.initial, random) if self.proxies is None else self.proxies
        weights = torch.Generator().manual_seed(int(random.integers(2**62)))
        self._generator = Generator(self.shape, self.latent, self.width, normalised=False)
        self._discriminator = Discriminator(self.shape, self.width)
        self._optimisers = []
        for network in (self._generator, self._discriminator):
            initialise(network, weights)
            self._optimisers.append(torch.optim.Adam(network.parameters(), lr=self.generator_rate, betas=BETAS))
        for _ in range(self.game_steps):
            images, _ = self._generated(random, self.batch)
            self._play(images, adversarial_loss(self._discriminator(images), proxy=True), random)
        self._copy_optimiser: torch.optim.SGD | None = None

    def _drawn_proxies(self, random: np.random.Generator, n: int) -> Images:
        """`n` different ones, or all where there are fewer."""
        return self._proxies[random.permutation(len(self._proxies))[:n]]

    def _generated(self, random: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """[n, *shape] in [0, 1], and the noise [n, latent] that they were generated from."""
        noise = torch.from_numpy(random.standard_normal((n, self.latent)).astype(np.float32))
        return activate(self._generator(noise)), noise

    def _play(self, images: Tensor, loss: Tensor, random: np.random.Generator) -> None:
        """The generator takes a step down the loss of its images, then the discriminator one down its own."""
        generator, discriminator = self._optimisers
        generator.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        generator.step()
        proxies = as_tensor(self._drawn_proxies(random, self.batch))
        discriminator.zero_grad()
        real = adversarial_loss(self._discriminator(proxies), proxy=True)
        fake = adversarial_loss(self._discriminator(images.detach()), proxy=False)
        (real + fake).backward()  # type: ignore[no-untyped-call]
        discriminator.step()

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """The copy learns to agree, then the generator to show it what it takes for all classes."""
        if self._copy_optimiser is None:
            substitute.train(loot.images, loot.told, EPOCHS)
            self._copy_optimiser = torch.optim.SGD(
                substitute.network.parameters(), lr=self.copy_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
            )
            return
        spent = loot.report.queries / loot.budget
        self._copy_optimiser.param_groups[0]["lr"] = self.copy_rate * (1 + math.cos(math.pi * spent)) / 2
        numbers, images, told = loot.numbers, loot.images, loot.told
        new = np.flatnonzero(np.isin(numbers, self._round.numbers))
        earlier = loot.random.permutation(len(numbers))[: self.replays * self.batch]
        for rows in (new, *np.split(earlier, range(self.batch, len(earlier), self.batch))):
            if len(rows):
                self._copy_optimiser.zero_grad()
                logits = substitute.network.train()(as_tensor(images[rows]))
                functional.cross_entropy(logits, torch.from_numpy(told[rows])).backward()  # type: ignore[no-untyped-call]
                self._copy_optimiser.step()
        made = activate(self._generator(self._round.noise))
        passing = adversarial_loss(self._discriminator(made), proxy=True)
        self._play(made, passing + self.diversity * class_diversity_loss(substitute.network.eval()(made)), loot.random)


def _sizes(n: int, batch: int) -> list[int]:
    """Sizes of the batches of `n`: batch normalisation needs two images or more, so a single last one joins another."""
    sizes = [batch] * (n // batch) + ([n % batch] if n % batch else [])
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes
