"""Malicious samples of the defender's own making, at every strength: what an attacker's copy would make him send.

Three uses: a hundred of them validate T and lambda (AMAO, section 5.3), many teach the victim to doubt what nobody
photographed, and the reference encoder to tell a crafted query from a photograph. No attack of services.redteam is
used: the detectors are judged by those, and must not know them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from services.training.foreign import drawings, shuffled
from shared.cameras import Images, photograph, varied_shots
from shared.datasets import Dataset
from shared.networks import device, images

COPIES = 12
"""Substitute models; each has an architecture, a training set and so gradients of its own."""
FEWEST_QUERIES, MOST_QUERIES = 50, 5_000
"""Labelled by the victim for each copy, drawn log-uniformly."""
COPY_STEPS = 300
WEAKEST, STRONGEST = 2 / 255, 0.35
"""Radius of a perturbation, drawn log-uniformly: L-infinity norm, or root mean square for the L2 ones."""
MOST_STEPS = 12
MOST_ROUNDS = 3
"""Jacobian augmentation crafts from what was crafted before."""
CRAFTED_AT_ONCE = 256
NEWTON_STEPS = 6
HALVINGS = 8
"""Of a line across a copy's border."""
REPHOTOGRAPHED = 0.4
"""Share that a camera of its own then changes, as an attacker does who blinds his queries (TR 2021-126, VII-A)."""
BLENDED, SYNTHETIC, DRAWN, SHUFFLED = 0.1, 0.1, 0.1, 0.1
"""Shares of blends of two images (binary search for a border), of images from a generator that saw none, and of foreign
ones, drawn and put together from patches; all others are perturbed along a copy's gradient."""

CopyBuilder = Callable[[tuple[int, ...], int], nn.Module]


def _flat(trunk: nn.Module, shape: tuple[int, ...]) -> int:
    with torch.no_grad():
        return int(trunk(torch.zeros(1, *shape)).flatten(1).shape[1])


def _convolutional(kernel: int, stride: int, pool: int, activation: type[nn.Module]) -> CopyBuilder:
    def build(shape: tuple[int, ...], classes: int) -> nn.Module:
        trunk = nn.Sequential(
            nn.Conv2d(shape[0], 16, kernel, stride, kernel // 2), activation(), nn.MaxPool2d(pool),
            nn.Conv2d(16, 32, kernel, stride, kernel // 2), activation(), nn.MaxPool2d(pool), nn.Flatten(),
        )  # fmt: skip
        return nn.Sequential(trunk, nn.Linear(_flat(trunk, shape), 64), activation(), nn.Linear(64, classes))

    return build


def _perceptron(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 128), nn.ReLU(), nn.Linear(128, classes))


COPY_BUILDERS: tuple[CopyBuilder, ...] = (
    _convolutional(5, 2, 1, nn.ReLU),
    _convolutional(3, 1, 2, nn.ReLU),
    _convolutional(5, 1, 2, nn.Tanh),
    _perceptron,
)


def _copy(build: CopyBuilder, data: Dataset, queries: int, random: np.random.Generator) -> nn.Module:
    """A substitute model that learnt the labels of `queries` images; the victim's are hardly different."""
    rows = random.choice(len(data), min(queries, len(data)), replace=False)
    classes = int(data.labels.max()) + 1
    inputs, labels = images(data.images[rows]), torch.from_numpy(data.labels[rows]).to(device())
    network = build(data.images.shape[1:], classes).to(device()).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(COPY_STEPS):
        batch = torch.from_numpy(random.integers(0, len(rows), 64)).to(device())
        optimiser.zero_grad()
        functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How n images are crafted, each in its own way; every field is [n], broadcast over pixels where it has four axes.

    Attributes:
        radius: [n, 1, 1, 1].
        step: [n, 1, 1, 1].
        euclidean: [n, 1, 1, 1] bool; steps along the gradient in an L2 ball, not along its sign in an L-infinity one.
        noisy_start: [n, 1, 1, 1] bool.
        targeted: [n] bool; away from the label where not.
        redrawn: [n] bool; another random target at each step (JBDA-TR).
        steps: of all of them.
    """

    radius: Tensor
    step: Tensor
    euclidean: Tensor
    noisy_start: Tensor
    targeted: Tensor
    redrawn: Tensor
    steps: int

    @classmethod
    def drawn(
        cls, n: int, random: np.random.Generator, strongest: float = STRONGEST, weakest: float = WEAKEST
    ) -> Recipe:
        """Any way of crafting, at any strength."""

        def columns(values: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(values).to(device())[:, None, None, None]

        steps = int(random.integers(1, MOST_STEPS + 1))
        radius = np.exp(random.uniform(np.log(weakest), np.log(strongest), n)).astype(np.float32)
        overshoot = random.uniform(1.0, 2.0, n).astype(np.float32)
        return cls(
            radius=columns(radius),
            step=columns(radius * overshoot / np.float32(steps)),
            euclidean=columns(random.random(n) < 0.3),
            noisy_start=columns(random.random(n) < 0.3),
            targeted=torch.from_numpy(random.random(n) < 0.75).to(device()),
            redrawn=torch.from_numpy(random.random(n) < 0.4).to(device()),
            steps=steps,
        )


def craft(network: nn.Module, origin: Tensor, labels: Tensor, recipe: Recipe, random: np.random.Generator) -> Tensor:
    """Projected gradient steps on a network, from [n, ...] images in [0, 1] to images in the recipe's balls.

    Args:
        network: whose gradient is followed.
        origin: where the n images start.
        labels: [n], the victim's.
        recipe: of each.
        random: of starts and targets.
    """
    n = len(origin)
    likely, classes = _likely_others(network, origin, labels, random)
    noise = torch.from_numpy(random.uniform(-1, 1, origin.shape).astype(np.float32)).to(origin.device)
    current = torch.where(recipe.noisy_start, (origin + recipe.radius * noise).clamp(0, 1), origin)
    sign = torch.where(recipe.targeted, 1.0, -1.0)
    for _ in range(recipe.steps):
        drawn = (labels + torch.from_numpy(random.integers(1, classes, n)).to(origin.device)) % classes
        targets = torch.where(recipe.targeted, torch.where(recipe.redrawn, drawn, likely), labels)
        current = current.detach().requires_grad_(True)
        losses = functional.cross_entropy(network(current), targets, reduction="none")
        (gradient,) = torch.autograd.grad((losses * sign).sum(), current)
        direction = torch.where(recipe.euclidean, gradient / _rms(gradient), gradient.sign())
        change = current.detach() - recipe.step * direction - origin
        within = torch.minimum(torch.maximum(change, -recipe.radius), recipe.radius)
        shorter = change * (recipe.radius / _rms(change)).clamp(max=1.0)
        current = (origin + torch.where(recipe.euclidean, shorter, within)).clamp(0, 1)
    return current.detach()


def _likely_others(
    network: nn.Module, origin: Tensor, labels: Tensor, random: np.random.Generator
) -> tuple[Tensor, int]:
    """[n], for each image one of the three classes that are likeliest beside its label; and how many classes are."""
    with torch.no_grad():
        logits = network(origin)
    n, classes = logits.shape
    logits[torch.arange(n), labels] = -torch.inf
    rank = torch.from_numpy(random.integers(0, min(3, classes - 1), n)).to(origin.device)
    return logits.topk(min(3, classes - 1), dim=1).indices[torch.arange(n), rank], classes


def shortest(copy: nn.Module, origin: Tensor, labels: Tensor, random: np.random.Generator) -> Tensor:
    """The nearest images that a copy takes for another class, or a little further; in [0, 1].

    Newton steps to the border that is nearest by the copy's gradients (DeepFool: Moosavi-Dezfooli et al. 2016,
    algorithm 2), here towards one of the three likeliest other classes.

    Args:
        copy: whose border.
        origin: [n, ...] images in [0, 1].
        labels: [n], the victim's.
        random: of targets, and of how far beyond.
    """
    rows, change = torch.arange(len(origin)), torch.zeros_like(origin)
    target, _ = _likely_others(copy, origin, labels, random)
    for _ in range(NEWTON_STEPS):
        current = (origin + change).detach().requires_grad_(True)
        answers = copy(current)
        short = answers[rows, labels] - answers[rows, target]
        (gradient,) = torch.autograd.grad(short.sum(), current)
        missing = short.detach().clamp_min(0.0) + 1e-3
        length = gradient.square().flatten(1).sum(1).clamp_min(1e-12)
        change = change - (missing / length)[:, None, None, None] * gradient
    further = torch.from_numpy(random.uniform(1.0, 1.3, (len(origin), 1, 1, 1)).astype(np.float32)).to(origin.device)
    return (origin + further * change).clamp(0, 1).detach()


def towards_the_border(copy: nn.Module, origin: Tensor, crafted: Tensor, random: np.random.Generator) -> Tensor:
    """Perturbations taken back to where the copy's answer changes, or a little beyond; others are left as they are.

    Args:
        copy: whose border.
        origin: [n, ...] images in [0, 1].
        crafted: from them.
        random: of how far beyond.
    """
    with torch.no_grad():
        said = copy(origin).argmax(1)

        def changes(share: Tensor) -> Tensor:
            differs: Tensor = copy(origin + share * (crafted - origin)).argmax(1) != said
            return differs[:, None, None, None]

        near, far = torch.zeros_like(origin[:, :1, :1, :1]), torch.ones_like(origin[:, :1, :1, :1])
        crosses = changes(far)
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            beyond = changes(middle)
            near, far = torch.where(beyond, near, middle), torch.where(beyond, middle, far)
        further = torch.from_numpy(random.uniform(1.0, 1.5, near.shape).astype(np.float32)).to(origin.device)
        share = torch.where(crosses, (far * further).clamp(max=1.0), 1.0)
        moved: Tensor = origin + share * (crafted - origin)
        return moved


def _rms(images_or_changes: Tensor) -> Tensor:
    """[n, 1, 1, 1] root mean square; never zero."""
    return images_or_changes.square().flatten(1).mean(1).sqrt().clamp_min(1e-12)[:, None, None, None]


def quantised(pixels: Tensor) -> Images:
    """Images [n, ...] in [0, 1] as they are sent."""
    result: Images = (pixels * 255.0).round().to(torch.uint8).cpu().numpy()
    return result


def _blended(data: Dataset, n: int, random: np.random.Generator) -> Images:
    """Between two images, as a binary search for a border sends them."""
    first, second = (data.images[random.choice(len(data), n)].astype(np.float32) for _ in range(2))
    share = random.uniform(0.2, 0.8, (n, 1, 1, 1)).astype(np.float32)
    blend: Images = np.rint(share * first + (1 - share) * second).astype(np.uint8)
    return blend


def _synthetic(shape: tuple[int, ...], n: int, random: np.random.Generator) -> Images:
    """From an untrained generator: noise, upsampled and mixed by random convolutions."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    coarse = 2 ** int(random.integers(0, 4))
    hidden = torch.randn(n, 16, -(-height // coarse), -(-width // coarse), generator=generator)
    grown = functional.interpolate(hidden, size=(height, width), mode="bilinear", align_corners=False)
    kernel = torch.randn(channels, 16, 3, 3, generator=generator) / 12.0
    mixed = functional.conv2d(grown, kernel * float(random.uniform(0.5, 4.0)), padding=1)
    return quantised(torch.sigmoid(mixed + float(random.uniform(-2.0, 1.0))))


def substitutes(
    data: Dataset, random: np.random.Generator, seed: int, progress: Progress | None = None
) -> list[nn.Module]:
    """`COPIES` substitute models of different layouts, each from labels of its own.

    Args:
        data: to learn from.
        random: of what each learns from.
        seed: of their weights.
        progress: shows a bar.
    """
    task = progress.add_task("copies to craft with", total=COPIES) if progress else None
    copies = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number in range(COPIES):
            queries = int(np.exp(random.uniform(np.log(FEWEST_QUERIES), np.log(MOST_QUERIES))))
            copies.append(_copy(COPY_BUILDERS[number % len(COPY_BUILDERS)], data, queries, random))
            if progress and task is not None:
                progress.advance(task)
    return copies


def crafted_images(data: Dataset, samples: int, seed: int, progress: Progress | None = None) -> Images:
    """[samples, ...] malicious images of every kind and strength.

    Args:
        data: natural images to start from and to train the copies on.
        samples: how many.
        seed: everything that is drawn is a function of it.
        progress: shows a bar.
    """
    random = np.random.default_rng(seed)
    copies = substitutes(data, random, seed, progress)
    task = progress.add_task("malicious samples", total=samples) if progress else None
    parts: list[Images] = []
    made = 0
    while made < samples:
        # Few samples, too, are of many kinds.
        n = min(CRAFTED_AT_ONCE, samples - made, max(samples // 20, 1))
        part = _crafted(data, copies, n, random)
        if random.random() < REPHOTOGRAPHED:
            part = photograph(part, varied_shots(n, random), random)
        parts.append(part)
        made += n
        if progress and task is not None:
            progress.advance(task, n)
    return np.concatenate(parts)


def _crafted(data: Dataset, copies: Sequence[nn.Module], n: int, random: np.random.Generator) -> Images:
    """n images of one kind, drawn by the kinds' shares."""
    shape, kind = data.images.shape[1:], random.random()
    if kind < BLENDED:
        return _blended(data, n, random)
    if kind < BLENDED + SYNTHETIC:
        return _synthetic(shape, n, random)
    if kind < BLENDED + SYNTHETIC + DRAWN:
        return drawings(shape, n, random)
    if kind < BLENDED + SYNTHETIC + DRAWN + SHUFFLED:
        return shuffled(data.images[random.choice(len(data), n, replace=n > len(data))], random)
    return _perturbed(copies[int(random.integers(len(copies)))], data, n, random)


def _perturbed(copy: nn.Module, data: Dataset, n: int, random: np.random.Generator) -> Images:
    rows = random.choice(len(data), n, replace=n > len(data))
    current, labels = data.images[rows], torch.from_numpy(data.labels[rows]).to(device())
    for _ in range(int(random.integers(1, MOST_ROUNDS + 1))):
        current = quantised(craft(copy, images(current), labels, Recipe.drawn(n, random), random))
    return current


def linf_pgd(
    victim: nn.Module,
    originals: Tensor,
    labels: Tensor,
    epsilon: float = 8 / 255,
    step: float = 2 / 255,
    steps: int = 7,
) -> Tensor:
    """[n, ...] images in [0, 1] that projected gradient descent leads away from their labels, from a random start.

    Radius as in SEAT (Zhang, Chen, Wagner 2021), step and number of steps as Madry et al. (2018) train with.

    Args:
        victim: classifier of images in [0, 1], in evaluation mode.
        originals: [n, channels, height, width] in [0, 1].
        labels: [n] int64, the right ones.
        epsilon: largest change of a pixel, over all steps.
        step: change of a pixel at each step.
        steps: how many.
    """
    current = (originals + torch.empty_like(originals).uniform_(-epsilon, epsilon)).clamp(0, 1)
    for _ in range(steps):
        current = current.detach().requires_grad_(True)
        loss = functional.cross_entropy(victim(current), labels)
        (gradient,) = torch.autograd.grad(loss, current)
        change = (current + step * gradient.sign() - originals).clamp(-epsilon, epsilon)
        current = (originals + change).clamp(0, 1)
    return current.detach()
