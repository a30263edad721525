"""The networks of the similarity detector."""

from __future__ import annotations

from itertools import pairwise

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


class PerturbationClassifier(nn.Module):
    """Two images of one thing, [n, 2 channels, height, width] in [0, 1], to the log-odds [n] that the first was crafted
    from the second, or both from a third.

    Two photographs of one thing differ by light, hand and noise; a crafted image by a perturbation along a gradient,
    which the difference shows bare. (Metzen et al., On detecting adversarial perturbations, 2017, who have only the
    image, must guess it.)
    """

    WIDTH = 24
    LOUDER = 8.0
    """Weak perturbations are of few grey levels; what is louder is told by its shape."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self._channels = shape[0]
        widths = (3 * shape[0], self.WIDTH, 2 * self.WIDTH, 2 * self.WIDTH, 2 * self.WIDTH)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            convolution = nn.Conv2d(before, after, 3, stride=2 if number else 1, padding=1)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(2 * widths[-1] + 1, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, pairs: Tensor) -> Tensor:
        """Log-odds [n]."""
        image, earlier = pairs[:, : self._channels], pairs[:, self._channels :]
        difference = image - earlier
        size = difference.square().flatten(1).mean(1).sqrt().clamp_min(1e-6)[:, None]
        shape, volume = difference / (4 * size[..., None, None]), (difference * self.LOUDER).clamp(-1, 1)
        maps = self.trunk(torch.cat([image, shape, volume], dim=1))
        odds: Tensor = self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3)), size.log()], dim=1))
        return odds[:, 0]


def both(similarity: SimilarityEncoder, reference: ReferenceEncoder, images: Tensor) -> Tensor:
    """[n, 256 + 128 + 1], both networks' outputs side by side."""
    return torch.cat([similarity(images), reference(images)], dim=1)
