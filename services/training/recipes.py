"""How each architecture of `services.inference.network` is trained: its paper's optimiser, in fewer epochs.

The one-cycle schedule (Smith and Topin, Super-convergence, 2018) takes the place of the papers' steps and hundreds of
epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Recipe:
    """Optimiser, schedule and augmentation."""

    epochs: int
    rate: float
    """Largest learning rate of the one-cycle schedule."""
    batch: int = 128
    momentum: float | None = None
    """Nesterov's, of stochastic gradient descent; None stands for Adam."""
    weight_decay: float = 0.0
    shift: float = 0.0
    """Largest shift of a training image in each direction, as a share of its side; what comes in is black."""

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Fresh, without state."""
        if self.momentum is None:
            return torch.optim.Adam(parameters, lr=self.rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.rate, momentum=self.momentum, nesterov=True, weight_decay=self.weight_decay
        )


RECIPES: Mapping[str, Recipe] = {
    "convnet": Recipe(epochs=7, rate=2e-3),
    "lenet5": Recipe(epochs=12, rate=2e-3),
    "alexnet": Recipe(epochs=20, rate=0.02, momentum=0.9, weight_decay=5e-4, shift=0.125),
    "resnet18": Recipe(epochs=30, rate=0.1, momentum=0.9, weight_decay=5e-4, shift=0.125),
    "resnet34": Recipe(epochs=30, rate=0.1, momentum=0.9, weight_decay=5e-4, shift=0.125),
    "vgg16-bn": Recipe(epochs=30, rate=0.05, momentum=0.9, weight_decay=5e-4, shift=0.125),
}
"""By architecture; all learn from varied photographs besides. A shift of 0.125 is CIFAR-10's usual random crop after
padding by 4 of 32 pixels."""
