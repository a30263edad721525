"""Adversarial samples of the defender's own making: for T and lambda (AMAO, section 5.3) and for the encoder."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shared.datasets import Dataset
from shared.networks import images


def crafted(
    victim: nn.Module, data: Dataset, samples: int, seed: int, steps: int = 4, epsilon: float = 0.1
) -> NDArray[np.uint8]:
    """[samples, ...] images after targeted iterative FGSM with a random class at each step (AMAO eq. 4).

    The defender has the victim itself, so no substitute is trained; an attacker's samples are at most as good.

    Args:
        victim: classifier of images in [0, 1].
        data: natural images to start from.
        samples: how many.
        seed: of start and targets.
        steps: of FGSM.
        epsilon: largest change of a pixel, over all steps.
    """
    random = np.random.default_rng(seed)
    rows = random.choice(len(data), size=samples, replace=False)
    current = images(data.images[rows])
    classes = int(data.labels.max()) + 1
    for _ in range(steps):
        current = current.detach().requires_grad_(True)
        targets = torch.from_numpy(random.integers(classes, size=samples)).to(current.device)
        loss = functional.cross_entropy(victim(current), targets)
        (gradient,) = torch.autograd.grad(loss, current)
        current = (current - epsilon / steps * gradient.sign()).clamp(0, 1)
    result: NDArray[np.uint8] = (current.detach() * 255).round().to(torch.uint8).cpu().numpy()
    return result


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
