"""Variants of images, drawn anew for each: what an honest camera does, and the contrastive loss's positives."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shared.cameras import Images, photograph, varied_shots


def uniform(n: int, low: float, high: float) -> Tensor:
    """[n, 1, 1, 1], a number for each image."""
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


def varied_photographs(images: Images, random: np.random.Generator, plain: float = 0.3) -> Images:
    """Each of [n, ...] images by a camera of its own, a share of them left as they are."""
    varied = photograph(images, varied_shots(len(images), random), random)
    return np.where((random.random(len(images)) < plain)[:, None, None, None], images, varied)


def transformed(images: Tensor, degrees: float = 0.0, shift: float = 0.0, scale: float = 0.0) -> Tensor:
    """Each image rotated, shifted (share of its side) and scaled by an amount drawn uniformly up to the one given."""
    n = len(images)
    angle = torch.empty(n).uniform_(-degrees, degrees) * math.pi / 180
    size = 1 + torch.empty(n).uniform_(-scale, scale)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * size, -angle.sin() * size
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * size, angle.cos() * size
    theta[:, :, 2] = torch.empty(n, 2).uniform_(-2 * shift, 2 * shift)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def positives(images: Tensor) -> Tensor:
    """A slight variant of each image: noise for a quarter, else one of six transformations.

    Amounts after the code of TR 2021-126: rotation 15 degrees, shift 5%, scale 17%, crop 4%, brightness 9%, contrast
    55%, Gaussian noise 0.095 or uniform 0.064.
    """
    n = len(images)
    choices = [
        images + torch.randn_like(images) * 0.095,
        images + torch.empty_like(images).uniform_(-0.064, 0.064),
        transformed(images, degrees=15),
        transformed(images, shift=0.05),
        transformed(images, scale=0.17),
        transformed(images, shift=0.02, scale=0.04),
        images + uniform(n, -0.09, 0.09),
        (images - images.mean((1, 2, 3), keepdim=True)) * (1 + uniform(n, -0.55, 0.55))
        + images.mean((1, 2, 3), keepdim=True),
    ]
    chosen = torch.randint(len(choices), (n,))
    return torch.stack(choices)[chosen, torch.arange(n)].clamp(0, 1)
