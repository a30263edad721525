"""The networks of the similarity detector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.networks import ImageShape, flattened


class SimilarityEncoder(nn.Module):
    """Images [n, channels, height, width] in [0, 1] to feature vectors [n, 256]: close for variants of one image.

    The encoder of Chen, Carlini and Wagner (Stateful detection of black-box adversarial attacks, 2019), as TR 2021-126,
    section VI-A trains it: first a classifier (`classify`), then by contrastive loss.
    """

    DIMENSIONS = 256

    def __init__(self, shape: ImageShape, classes: int) -> None:
        """
        Args:
            shape: of an image, at least 16 pixels a side.
            classes: of the first stage of training.
        """
        super().__init__()
        channels, height, width = shape
        flat, features = flattened(64, ((height - 4) // 2 - 4) // 2, ((width - 4) // 2 - 4) // 2)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
            flat, nn.Linear(features, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, self.DIMENSIONS),
        )  # fmt: skip
        self.head = nn.Linear(self.DIMENSIONS, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Feature vectors [n, 256]."""
        vectors: Tensor = self.trunk(images)
        return vectors

    def classify(self, images: Tensor) -> Tensor:
        """Logits [n, classes], for the first stage of training."""
        logits: Tensor = self.head(self(images))
        return logits


class ReferenceEncoder(nn.Module):
    """Two looks at an image that need no history, by one network.

    Normalised penultimate features [n, 128] of a classifier that was trained on varied photographs: an honest query
    lies near honest ones in this space (Sun et al., Out-of-distribution detection with deep nearest neighbors, 2022),
    and cameras matter little, since training varied them. And how crafted an image looks: the log-odds that somebody
    moved its pixels along a gradient (Metzen et al., On detecting adversarial perturbations, 2017).
    """

    DIMENSIONS = 128

    def __init__(self, shape: ImageShape, classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        flat, size = flattened(64, height // 4, width // 4)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), flat,
        )  # fmt: skip
        self.features = nn.Sequential(nn.Dropout(0.3), nn.Linear(size, self.DIMENSIONS), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(self.DIMENSIONS, classes)
        self.crafted = nn.Sequential(nn.Dropout(0.3), nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[n, 128 + 1]: features of unit length, and the log-odds that the image is crafted."""
        hidden = self.trunk(images)
        return torch.cat([functional.normalize(self.features(hidden), dim=1), self.crafted(hidden)], dim=1)

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, classes] and log-odds [n] of being crafted, for training."""
        hidden = self.trunk(images)
        return self.head(self.features(hidden)), self.crafted(hidden)[:, 0]


def both(similarity: SimilarityEncoder, reference: ReferenceEncoder, images: Tensor) -> Tensor:
    """[n, 256 + 128 + 1], both networks' outputs side by side."""
    return torch.cat([similarity(images), reference(images)], dim=1)
