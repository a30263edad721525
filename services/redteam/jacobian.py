"""Jacobian-based augmentation: a few natural seeds, multiplied along the gradients of a copy that learns as it goes.

The frame is TR 2021-126, Algorithm 1 (AMAO, Algorithm 1): ask for the seeds' labels, train, craft new images from all
that is known, ask for theirs, start the copy anew and train it on everything. The attacks differ in how they craft
(Algorithm 2), always in whole pixels of 8 bits, since that is what travels and what the victim sees.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.redteam.attack import Attack, Loot, Questions
from services.redteam.substitute import Images, Substitute, SubstituteNetwork, as_tensor

Labels = NDArray[np.int64]
"""[n], classes."""

SEEDS = 150
EPOCHS = 20
"""Of training after each round (AMAO, section 5.1.2)."""
CRAFTED_AT_ONCE = 256


def gradient_sign(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Sign of the gradient of the cross-entropy J(x, targets) with respect to the images.

    Args:
        network: the copy.
        images: [n, channels, height, width] in [0, 1].
        targets: [n] int64.
    """
    moving = images.detach().requires_grad_(True)
    loss = functional.cross_entropy(network(moving), targets, reduction="sum")
    return torch.autograd.grad(loss, moving)[0].sign()


def inside(images: Tensor, origin: Tensor, radius: float) -> Tensor:
    """The images projected onto the L-infinity ball around their origins and onto [0, 1]."""
    return torch.minimum(torch.maximum(images, origin - radius), origin + radius).clamp(0.0, 1.0)


def as_images(pixels: Tensor) -> Images:
    """Whole 8-bit pixels of images in [0, 1]."""
    quantised: Images = (pixels.detach() * 255.0).round().to(torch.uint8).numpy()
    return quantised


class JacobianAttack(Attack):
    """The frame; a subclass crafts."""

    crafted_per_image: ClassVar[int] = 1

    def __init__(self, seeds: Images, request_rows: int = 1) -> None:
        """
        Args:
            seeds: [n, channels, height, width] natural images.
            request_rows: images a request.

        Raises:
            ValueError: no seeds.
        """
        super().__init__(request_rows)
        if not len(seeds):
            raise ValueError("a Jacobian attack needs seeds")
        self.seeds = seeds

    @abstractmethod
    def craft(self, network: SubstituteNetwork, origin: Tensor, labels: Labels, random: np.random.Generator) -> Tensor:
        """New images from known ones.

        Args:
            network: the copy.
            origin: [n, channels, height, width] in [0, 1].
            labels: [n], what the victim said of them.
            random: for whatever is drawn.

        Returns:
            [n * crafted_per_image, channels, height, width] in [0, 1]; those of one origin follow each other.
        """

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """The seeds first; then as many crafted images as the budget leaves, from all images known."""
        if substitute is None:
            return loot.questioning(self.seeds)
        known = min(len(loot.images), -(-loot.wanted // self.crafted_per_image))
        origins, labels = loot.images[:known], loot.told[:known].argmax(axis=1)
        parts = [
            self.craft(substitute.network, as_tensor(origins[rows]), labels[rows], loot.random)
            for rows in np.split(np.arange(known), range(CRAFTED_AT_ONCE, known, CRAFTED_AT_ONCE))
        ]
        return loot.questioning(as_images(torch.cat(parts)), np.repeat(loot.numbers[:known], self.crafted_per_image))

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Start anew and train on everything."""
        substitute.train(loot.images, loot.told, EPOCHS)


def descend(
    network: nn.Module, origin: Tensor, start: Tensor, targets: Tensor, radius: float, steps: int, step: float
) -> Tensor:
    """Targeted projected gradient descent: to `targets`, inside the ball (TR 2021-126, Algorithm 2; AMAO eq. 2)."""
    moved = start
    for _ in range(steps):
        moved = inside(moved - step * gradient_sign(network, moved, targets), origin, radius)
    return moved


def likeliest_others(network: nn.Module, origin: Tensor, labels: Labels, count: int) -> Tensor:
    """[n, count], the copy's most confident classes other than the victim's label, best first (TR 2021-126, IV-A)."""
    with torch.no_grad():
        logits = network(origin)
    logits[torch.arange(len(origin)), torch.from_numpy(labels)] = -torch.inf
    others: Tensor = logits.topk(count, dim=1).indices
    return others


class BoundedAttack(JacobianAttack):
    """Crafts in steps along the gradient's sign, inside an L-infinity ball around the origin."""

    def __init__(self, seeds: Images, radius: float, steps: int, step: float, request_rows: int = 1) -> None:
        """
        Args:
            seeds: [n, channels, height, width] natural images.
            radius: L-infinity norm of the perturbation, pixels in [0, 1].
            steps: iterations of crafting.
            step: size of each, pixels in [0, 1].
            request_rows: images a request.

        Raises:
            ValueError: no seeds.
        """
        super().__init__(seeds, request_rows)
        self.radius = radius
        self.steps = steps
        self.step = step


class JbdaTr(BoundedAttack):
    """JBDA-TR (Juuti et al. 2019): iterative FGSM towards a random class that is drawn anew at each step (AMAO eq. 4).

    Radius 0.1, 8 steps of 1.85 radius / steps each, after the ModelGuard attack suite.
    """

    name = "JBDA-TR"

    def __init__(
        self, seeds: Images, radius: float = 0.1, steps: int = 8, step: float = 1.85 * 0.1 / 8, request_rows: int = 1
    ) -> None:
        super().__init__(seeds, radius, steps, step, request_rows)

    def craft(self, network: SubstituteNetwork, origin: Tensor, labels: Labels, random: np.random.Generator) -> Tensor:
        """One image each."""
        with torch.no_grad():
            classes = network(origin[:1]).shape[1]
        moved = origin
        for _ in range(self.steps):
            # Any class but the victim's, equally likely.
            targets = torch.from_numpy((labels + random.integers(1, classes, len(labels))) % classes)
            moved = inside(moved - self.step * gradient_sign(network, moved, targets), origin, self.radius)
        return moved


class JbaPgd(BoundedAttack):
    """JBA-PGD (TR 2021-126, IV-A): targeted L-infinity PGD from a random start, radius 8/256, towards three classes.

    40 steps of radius / 30 each: the defaults of Foolbox 3, which the report uses.
    """

    name = "JBA-PGD"
    crafted_per_image = 3

    def __init__(
        self, seeds: Images, radius: float = 8 / 256, steps: int = 40, step: float = 8 / 256 / 30, request_rows: int = 1
    ) -> None:
        super().__init__(seeds, radius, steps, step, request_rows)

    def craft(self, network: SubstituteNetwork, origin: Tensor, labels: Labels, random: np.random.Generator) -> Tensor:
        """Three images each, towards the copy's three likeliest other classes."""
        repeated = origin.repeat_interleave(self.crafted_per_image, dim=0)
        noise = random.uniform(-self.radius, self.radius, repeated.shape).astype(np.float32)
        start = inside(repeated + torch.from_numpy(noise), repeated, self.radius)
        targets = likeliest_others(network, origin, labels, self.crafted_per_image).flatten()
        return descend(network, repeated, start, targets, self.radius, self.steps, self.step)


class JbTop3(BoundedAttack):
    """JB-top3 (Orekondy et al.; TR 2021-126, IV-A): targeted iterative FGSM towards the three likeliest other classes.

    Radius 0.1, 8 steps of 0.01 each: the defaults of the attack's authors.
    """

    name = "JB-top3"
    crafted_per_image = 3

    def __init__(
        self, seeds: Images, radius: float = 0.1, steps: int = 8, step: float = 0.01, request_rows: int = 1
    ) -> None:
        super().__init__(seeds, radius, steps, step, request_rows)

    def craft(self, network: SubstituteNetwork, origin: Tensor, labels: Labels, random: np.random.Generator) -> Tensor:
        """Three images each."""
        repeated = origin.repeat_interleave(self.crafted_per_image, dim=0)
        targets = likeliest_others(network, origin, labels, self.crafted_per_image).flatten()
        return descend(network, repeated, repeated, targets, self.radius, self.steps, self.step)
