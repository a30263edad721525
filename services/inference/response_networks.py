"""Networks that only spoil answers: what MeCo adds to an input, what QUEEN maps and asks, what misleads.

A bundle keeps each in a file of its own, `response-<policy>`; a served model needs none of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.networks import ImageShape

GENERATOR_FILTERS = 16
"""Of MeCo's generator. The paper has 64 beside a ResNet-34, of fifty times this repository's model's weights."""
LARGEST_PERTURBATION = 0.5
"""Of a pixel in [0, 1]."""
SHADOW_FILTERS = (16, 32)
SHADOW_FEATURES = 64


class _Residual(nn.Module):
    """Two convolutions that add to what they see (He et al. 2016)."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU(), nn.Conv2d(filters, filters, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


class PerturbationGenerator(nn.Module):
    """MeCo's h_w(x, noise): a ResNet of two blocks from an image and noise to a perturbation (MeCo, section 4.1)."""

    def __init__(self, channels: int, filters: int = GENERATOR_FILTERS) -> None:
        """
        Args:
            channels: of an image.
            filters: of every hidden layer.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * channels, filters, 3, padding=1), nn.ReLU(),
            _Residual(filters), _Residual(filters),
            nn.Conv2d(filters, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Perturbations [n, channels, height, width], each pixel within `LARGEST_PERTURBATION`.

        Args:
            images: [n, channels, height, width] in [0, 1].
            noise: of the same shape, standard normal.
        """
        perturbation: Tensor = LARGEST_PERTURBATION * torch.tanh(self.layers(torch.cat([images, noise], dim=1)))
        return perturbation

    def perturbed(self, images: Tensor, noise: Tensor) -> Tensor:
        """The images with their perturbations, in [0, 1]."""
        perturbed: Tensor = (images + self(images, noise)).clamp(0.0, 1.0)
        return perturbed


class SensitivityMap(nn.Module):
    """QUEEN's mapping network: features [n, d] to points [n, 2], in which a class is a disc."""

    def __init__(self, features: int, hidden: int = 64) -> None:
        """
        Args:
            features: of the served model's last layer but one.
            hidden: units of the layer between.
        """
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, features: Tensor) -> Tensor:
        """Points [n, 2]."""
        points: Tensor = self.layers(features)
        return points


class ShadowModels(nn.Module):
    """QUEEN's shadow models, such as a thief would train, all in one pass: each is one group of every convolution."""

    def __init__(self, shape: ImageShape, classes: int, shadows: int) -> None:
        """
        Args:
            shape: of one image.
            classes: of the served model.
            shadows: how many models.
        """
        super().__init__()
        channels, height, width = shape
        pixels = -(-height // 4) * -(-width // 4)
        first, second = (shadows * filters for filters in SHADOW_FILTERS)
        self.shadows, self.classes = shadows, classes
        self.layers = nn.Sequential(
            nn.Conv2d(shadows * channels, first, 5, stride=2, padding=2, groups=shadows), nn.ReLU(),
            nn.Conv2d(first, second, 5, stride=2, padding=2, groups=shadows), nn.ReLU(),
            nn.Flatten(), nn.Unflatten(1, (second * pixels, 1)),
            nn.Conv1d(second * pixels, shadows * SHADOW_FEATURES, 1, groups=shadows), nn.ReLU(),
            nn.Conv1d(shadows * SHADOW_FEATURES, shadows * classes, 1, groups=shadows),
        )  # fmt: skip

    def each(self, images: Tensor) -> Tensor:
        """Logits [n, shadows, classes] of [n, shadows * channels, height, width], images of its own for each shadow."""
        logits: Tensor = self.layers(images)
        return logits.reshape(len(images), self.shadows, self.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Mean probabilities [n, classes] of all shadows on the same images [n, channels, height, width]."""
        return self.each(images.repeat(1, self.shadows, 1, 1)).softmax(dim=2).mean(dim=1)
