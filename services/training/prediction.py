"""What a classifier says of many images."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shared.datasets import Dataset
from shared.networks import images


def logits_of(network: nn.Module, inputs: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
    """[n, classes] float32 of a classifier of images in [0, 1], n at least 1.

    Args:
        network: in evaluation mode.
        inputs: [n, ...] uint8.
        batch: rows of a forward pass.
    """
    with torch.inference_mode():
        parts = [network(images(inputs[start : start + batch])).cpu() for start in range(0, len(inputs), batch)]
    logits: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def accuracy(network: nn.Module, data: Dataset) -> float:
    """Share of `data` that a classifier gets right, rounded down to a hundredth of a percent."""
    found = float((logits_of(network, data.images).argmax(1) == data.labels).mean())
    return math.floor(found * 10_000) / 10_000
