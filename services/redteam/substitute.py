"""The attacker's copy: a small convolutional network that learns from the answers it gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Images = NDArray[np.uint8]
"""[n, 1, 28, 28]"""
Probabilities = NDArray[np.float32]
"""[n, classes]"""

LEARNING_RATE = 1e-3
TRAINING_BATCH = 64
LEAST_STEPS = 150
"""Of one training: a few dozen seeds in a few epochs teach nothing yet."""
PREDICTION_BATCH = 256


class SubstituteNetwork(nn.Module):
    """Images [n, 1, 28, 28] in [0, 1] to logits [n, classes]; the attacker does not know the victim's network."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes]."""
        logits: Tensor = self.layers(images)
        return logits


@dataclass(frozen=True, slots=True)
class Similarity:
    """How good a copy is on images that nobody crafted (AMAO, section 3.1)."""

    agreement: float
    """Share on which the copy says what the victim says: fidelity."""
    accuracy: float
    """Share on which the copy is right."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Clean images to measure a copy on; the attacker itself never sees them."""

    images: Images
    victim_labels: NDArray[np.int64]
    """[n], what the undefended victim says."""
    true_labels: NDArray[np.int64]
    """[n]"""

    def measure(self, substitute: Substitute) -> Similarity:
        """Agreement and accuracy of a copy."""
        said = substitute.labels(self.images)
        return Similarity(float(np.mean(said == self.victim_labels)), float(np.mean(said == self.true_labels)))


def as_tensor(images: Images) -> Tensor:
    """Images as the network takes them: float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).float() / 255.0


class Substitute:
    """A network with its training, on the CPU: an attacker of this size needs no more."""

    def __init__(self, classes: int, random: np.random.Generator) -> None:
        self.classes = classes
        self._torch_random = torch.Generator().manual_seed(int(random.integers(2**62)))
        self.network = self._fresh()

    def _fresh(self) -> SubstituteNetwork:
        network = SubstituteNetwork(self.classes)
        # Not from torch's global generator: several attackers may share the process.
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=self._torch_random)
            else:
                nn.init.zeros_(parameter)
        return network

    def train(self, images: Images, answers: Probabilities, epochs: int) -> None:
        """Start anew and learn the answers (soft cross-entropy, Adam).

        Args:
            images: [n, 1, 28, 28].
            answers: [n, classes], one-hot where the victim tells labels only.
            epochs: passes over the images; more where they make fewer than `LEAST_STEPS` steps.
        """
        self.network = self._fresh().train()
        inputs, targets = as_tensor(images), torch.from_numpy(np.asarray(answers, dtype=np.float32))
        optimiser = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)
        for _ in range(max(epochs, -(-LEAST_STEPS // -(-len(inputs) // TRAINING_BATCH)))):
            order = torch.randperm(len(inputs), generator=self._torch_random)
            for rows in torch.split(order, TRAINING_BATCH):
                optimiser.zero_grad()
                functional.cross_entropy(self.network(inputs[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        self.network.eval()

    def logits(self, images: Images) -> NDArray[np.float32]:
        """[n, classes]"""
        with torch.inference_mode():
            parts = [self.network(part) for part in torch.split(as_tensor(images), PREDICTION_BATCH)]
        logits: NDArray[np.float32] = torch.cat(parts).numpy()
        return logits

    def labels(self, images: Images) -> NDArray[np.int64]:
        """[n], the most likely classes."""
        labels: NDArray[np.int64] = self.logits(images).argmax(axis=1)
        return labels
