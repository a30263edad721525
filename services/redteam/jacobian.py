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


class Jbda(BoundedAttack):
    """JBDA (Papernot et al. 2017, Practical black-box attacks, section 4, eq. 4): x + lambda sign(dF_y(x) / dx).

    F_y is the copy's probability of the victim's label y. Lambda 0.1, the authors' own; it keeps its sign, which their
    later variant flips every few rounds.
    """

    name = "JBDA"

    def __init__(self, seeds: Images, step: float = 0.1, request_rows: int = 1) -> None:
        """
        Args:
            seeds: [n, channels, height, width] natural images.
            step: lambda, pixels in [0, 1].
            request_rows: images a request.

        Raises:
            ValueError: no seeds.
        """
        super().__init__(seeds, radius=step, steps=1, step=step, request_rows=request_rows)

    def craft(self, network: SubstituteNetwork, origin: Tensor, labels: Labels, random: np.random.Generator) -> Tensor:
        """One image each."""
        # The logarithm of F_y has a derivative of the same sign, and one that does not vanish where F_y is near 1.
        moved = origin - self.step * gradient_sign(network, origin, torch.from_numpy(labels))
        return moved.clamp(0.0, 1.0)


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


class JbaBs(BoundedAttack):
    """JBA-BS (TR 2021-126, III-A 3): binary search for the copy's border between an image and its adversarial example.

    The adversarial examples are JBA-PGD's, towards the copy's three likeliest other classes; the search ends after
    1,000 halvings or where the ends are closer than 1e-6 (IV-A 2), or where a third class lies between them.
    """

    name = "JBA-BS"
    crafted_per_image = 3

    def __init__(
        self,
        seeds: Images,
        radius: float = 8 / 256,
        steps: int = 40,
        step: float = 8 / 256 / 30,
        width: float = 1e-6,
        halvings: int = 1000,
        request_rows: int = 1,
    ) -> None:
        """
        Args:
            seeds: [n, channels, height, width] natural images.
            radius: of the adversarial examples, L-infinity, pixels in [0, 1].
            steps: iterations of crafting them.
            step: size of each, pixels in [0, 1].
            width: epsilon, L-infinity distance of the two ends at which the search is over, pixels in [0, 1].
            halvings: N_max, most steps of the search.
            request_rows: images a request.

        Raises:
            ValueError: no seeds.
        """
        super().__init__(seeds, radius, steps, step, request_rows)
        self.width = width
        self.halvings = halvings

    def craft(self, network: SubstituteNetwork, origin: Tensor, labels: Labels, random: np.random.Generator) -> Tensor:
        """Three images each, on the border to each of the three classes."""
        targets = likeliest_others(network, origin, labels, self.crafted_per_image).flatten()
        sources = torch.from_numpy(labels).repeat_interleave(self.crafted_per_image)
        near = origin.repeat_interleave(self.crafted_per_image, dim=0)
        far = JbaPgd(self.seeds, self.radius, self.steps, self.step).craft(network, origin, labels, random)
        middle = (near + far) / 2
        searching = torch.ones(len(near), dtype=torch.bool)
        for _ in range(self.halvings):
            with torch.no_grad():
                said = network(middle).argmax(dim=1)
            across, back = searching & (said == targets), searching & (said == sources)
            far = torch.where(across[:, None, None, None], middle, far)
            near = torch.where(back[:, None, None, None], middle, near)
            searching = (across | back) & ((near - far).abs().flatten(1).amax(1) >= self.width)
            if not searching.any():
                break
            middle = torch.where(searching[:, None, None, None], (near + far) / 2, middle)
        return middle


INSIDE = 1 - 1e-6
"""Share of the range of the hyperbolic tangent that is used: its ends lie at infinity."""


def unbounded(images: Tensor) -> Tensor:
    """w with (tanh(w) + 1) / 2 = images, of any size where images lie in [0, 1] (Carlini and Wagner 2017, V-B)."""
    return torch.atanh((2 * images - 1) * INSIDE)


def bounded(unbounded_images: Tensor) -> Tensor:
    """Images in [0, 1] again."""
    return (torch.tanh(unbounded_images) + 1) / 2


class JbaCw(JacobianAttack):
    """JBA-CW (TR 2021-126, IV-A 2): Carlini and Wagner's L2 attack, targeted at the three likeliest other classes.

    Minimises ||x' - x||^2 + c max(0, max_(i != t) Z_i(x') - Z_t(x')) over w with x' = (tanh(w) + 1) / 2 (Carlini and
    Wagner 2017, V-A, f_6, and V-B), and searches for the smallest c that succeeds: times ten until it does, halving
    from then on. 150 steps and 5 values of c as in the report; the rest as in Foolbox 3, which the report uses: Adam
    with rate 0.01, c from 0.001. Not taken from Foolbox itself, which needs git to be imported and answers with black
    images where it fails.
    """

    name = "JBA-CW"
    crafted_per_image = 3

    def __init__(
        self,
        seeds: Images,
        steps: int = 150,
        searches: int = 5,
        rate: float = 0.01,
        first_weight: float = 1e-3,
        request_rows: int = 1,
    ) -> None:
        """
        Args:
            seeds: [n, channels, height, width] natural images.
            steps: of Adam for each value of c.
            searches: values of c that are tried.
            rate: Adam's.
            first_weight: the first value of c.
            request_rows: images a request.

        Raises:
            ValueError: no seeds.
        """
        super().__init__(seeds, request_rows)
        self.steps = steps
        self.searches = searches
        self.rate = rate
        self.first_weight = first_weight

    def craft(self, network: SubstituteNetwork, origin: Tensor, labels: Labels, random: np.random.Generator) -> Tensor:
        """Three images each, the nearest found that the copy takes for its target; else the last one tried."""
        repeated = origin.repeat_interleave(self.crafted_per_image, dim=0)
        targets = likeliest_others(network, origin, labels, self.crafted_per_image).flatten()
        rows = torch.arange(len(repeated))
        best, best_distance = repeated, torch.full((len(repeated),), torch.inf)
        weight = torch.full((len(repeated),), self.first_weight)
        lower, upper = torch.zeros(len(repeated)), torch.full((len(repeated),), torch.inf)
        crafted = repeated
        for _ in range(self.searches):
            moving = unbounded(repeated).requires_grad_(True)
            optimiser = torch.optim.Adam([moving], lr=self.rate)
            found = torch.zeros(len(repeated), dtype=torch.bool)
            for _ in range(self.steps):
                crafted = bounded(moving)
                logits = network(crafted)
                others = logits.scatter(1, targets[:, None], -torch.inf).amax(dim=1)
                excess = others - logits[rows, targets]
                distance = (crafted - repeated).square().flatten(1).sum(dim=1)
                gradient = torch.autograd.grad((distance + weight * excess.clamp(min=0.0)).sum(), moving)[0]
                crosses = excess.detach() < 0
                nearer = crosses & (distance.detach() < best_distance)
                best = torch.where(nearer[:, None, None, None], crafted.detach(), best)
                best_distance = torch.where(nearer, distance.detach(), best_distance)
                found |= crosses
                moving.grad = gradient
                optimiser.step()
            upper = torch.where(found, weight, upper)
            lower = torch.where(found, lower, weight)
            weight = torch.where(upper.isinf(), 10 * weight, (lower + upper) / 2)
        return torch.where(best_distance.isinf()[:, None, None, None], crafted.detach(), best)


class Cloudleak(JacobianAttack):
    """Cloudleak (Yu et al. 2020; TR 2021-126, eq. 1 and 2; AMAO, 3.3): FeatureFool, images with another's features.

    Minimises ||x' - x||_2 + lambda max(0, ||phi(x') - phi(x_t)||^2 - ||phi(x') - phi(x)||^2 + M) over x' in [0, 1],
    with M = alpha minus the mean of ||phi(x_i) - phi(x_j)||^2 over pairs of one class; phi are the copy's last features
    but one, x_t is a seed that the copy takes for the likeliest other class. The report's eq. 2 has the two distances
    the other way round, which would keep x' away from x_t; here they are as the text and the original mean them.
    Features have unit length and distances are squares throughout, as in the triplet loss that both papers cite
    (FaceNet), whose alpha, 0.2, is taken over. Adam on w with x' = (tanh(w) + 1) / 2 stands in for the authors' bounded
    L-BFGS, since it minimises for many images at once. Lambda, steps and rate are own choices, the papers give none:
    with lambda 30 nine images in ten get nearer to their targets' features than to their own, with 10 half of them.
    """

    name = "Cloudleak"

    def __init__(
        self,
        seeds: Images,
        weight: float = 30.0,
        margin: float = 0.2,
        steps: int = 150,
        rate: float = 0.1,
        request_rows: int = 1,
    ) -> None:
        """
        Args:
            seeds: [n, channels, height, width] natural images; targets are among them.
            weight: lambda.
            margin: alpha.
            steps: of Adam.
            rate: Adam's.
            request_rows: images a request.

        Raises:
            ValueError: no seeds.
        """
        super().__init__(seeds, request_rows)
        self.weight = weight
        self.margin = margin
        self.steps = steps
        self.rate = rate

    def craft(self, network: SubstituteNetwork, origin: Tensor, labels: Labels, random: np.random.Generator) -> Tensor:
        """One image each."""

        def features(images: Tensor) -> Tensor:
            return functional.normalize(network.features(images), dim=1)

        seeds = as_tensor(self.seeds)
        with torch.no_grad():
            classes = network(seeds).argmax(dim=1)
            known, own = features(seeds), features(origin)
            target = known[self._targets(network, origin, labels, classes.numpy(), random)]
        margin = self.margin - within_classes(known, classes)
        moving = unbounded(origin).requires_grad_(True)
        optimiser = torch.optim.Adam([moving], lr=self.rate)
        best, least = origin, torch.full((len(origin),), torch.inf)
        for _ in range(self.steps):
            crafted = bounded(moving)
            here = features(crafted)
            triplet = (here - target).square().sum(dim=1) - (here - own).square().sum(dim=1) + margin
            # The root of zero has no derivative.
            distance = ((crafted - origin).square().flatten(1).sum(dim=1) + 1e-12).sqrt()
            objective = distance + self.weight * triplet.clamp(min=0.0)
            better = objective.detach() < least
            best = torch.where(better[:, None, None, None], crafted.detach(), best)
            least = torch.where(better, objective.detach(), least)
            moving.grad = torch.autograd.grad(objective.sum(), moving)[0]
            optimiser.step()
        return best

    @staticmethod
    def _targets(
        network: SubstituteNetwork, origin: Tensor, labels: Labels, classes: Labels, random: np.random.Generator
    ) -> Tensor:
        """[n], a seed for each image: of its likeliest other class that any seed has; any seed where there is none."""
        with torch.no_grad():
            logits = network(origin).numpy()
        absent = ~np.isin(np.arange(logits.shape[1]), classes)
        logits[:, absent] = -np.inf
        logits[np.arange(len(labels)), labels] = -np.inf
        chosen = [
            random.choice(np.flatnonzero(classes == row.argmax()) if np.isfinite(row).any() else len(classes))
            for row in logits
        ]
        return torch.from_numpy(np.array(chosen, dtype=np.int64))


def within_classes(features: Tensor, classes: Tensor) -> float:
    """Mean squared distance of two different vectors of one class.

    Args:
        features: [n, dimensions].
        classes: [n] int64.

    Returns:
        0 where no class has two.
    """
    same = (classes[:, None] == classes[None]).fill_diagonal_(False)
    if not same.any():
        return 0.0
    return float(torch.cdist(features, features)[same].square().mean())
