"""The attacker's copy: a small convolutional network that learns from the answers it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.inference.network import ARCHITECTURES, split_head

Images = NDArray[np.uint8]
"""[n, channels, height, width]"""
Shape: TypeAlias = tuple[int, int, int]
"""Channels, height, width."""
Probabilities = NDArray[np.float32]
"""[n, classes]"""

LEARNING_RATE = 1e-3
TRAINING_BATCH = 64
LEAST_STEPS = 150
"""Of one training: a few dozen seeds in a few epochs teach nothing yet."""
PREDICTION_BATCH = 256


class SubstituteNetwork(nn.Module):
    """Images [n, channels, height, width] in [0, 1] to logits [n, classes]: a trunk, and a linear layer."""

    def __init__(self, trunk: nn.Module, head: nn.Linear) -> None:
        """
        Args:
            trunk: from images to features [n, d].
            head: from features to logits.
        """
        super().__init__()
        self.trunk = trunk
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """Outputs of the last layer but one, [n, d]."""
        features: Tensor = self.trunk(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits


Architecture: TypeAlias = Callable[[Shape, int], SubstituteNetwork]
"""From an image's shape and the number of classes to a network, whose weights nothing hangs on."""


def small_network(shape: Shape, classes: int) -> SubstituteNetwork:
    """What an attacker trains who does not know the victim's network.

    Args:
        shape: of one image.
        classes: how many it tells apart.
    """
    channels, height, width = shape
    # Two convolutions halve each side, rounding up.
    pixels, features = -(-height // 4) * -(-width // 4), 64
    trunk = nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * pixels, features), nn.ReLU(),
    )  # fmt: skip
    return SubstituteNetwork(trunk, nn.Linear(features, classes))


@dataclass(frozen=True, slots=True)
class VictimsOwn:
    """The architecture of an attacker who knows the victim's (AMAO, section 5.1.2).

    Attributes:
        name: of `services.inference.network.ARCHITECTURES`.
    """

    name: str

    def __call__(self, shape: Shape, classes: int) -> SubstituteNetwork:
        """The network, cut before its last linear layer."""
        return SubstituteNetwork(*split_head(ARCHITECTURES[self.name](shape, classes)))


def initialise(network: nn.Module, random: torch.Generator) -> None:
    """Draw weights anew (He et al. 2015), not from torch's global generator: several attackers may share a process."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=random)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


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


def shape_of(images: Images) -> Shape:
    """Of one of them."""
    channels, height, width = images.shape[1:]
    return channels, height, width


def as_tensor(images: Images) -> Tensor:
    """Images as the network takes them: float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).float() / 255.0


class Substitute:
    """A network with its training, on the CPU: an attacker of this size needs no more."""

    def __init__(self, classes: int, random: np.random.Generator, architecture: Architecture = small_network) -> None:
        """
        Args:
            classes: how many it tells apart.
            random: of its weights and of the order of training.
            architecture: of its network.
        """
        self.classes = classes
        self._architecture = architecture
        self._seed = int(random.integers(2**62))
        self._torch_random = torch.Generator().manual_seed(self._seed)
        self._network: SubstituteNetwork | None = None

    @property
    def network(self) -> SubstituteNetwork:
        """The copy as it is now.

        Raises:
            ValueError: nothing told it yet what shape an image has.
        """
        if self._network is None:
            raise ValueError("a copy that was never started has no network")
        return self._network

    @property
    def started(self) -> bool:
        """Whether there is a network."""
        return self._network is not None

    def start(self, shape: Shape) -> SubstituteNetwork:
        """Begin anew with a network for images of this shape that knows nothing."""
        self._network = self._architecture(shape, self.classes)
        initialise(self._network, self._torch_random)
        return self._network

    def train(self, images: Images, answers: Probabilities, epochs: int) -> None:
        """Start anew and learn the answers (soft cross-entropy, Adam).

        Args:
            images: [n, channels, height, width].
            answers: [n, classes], one-hot where the victim tells labels only.
            epochs: passes over the images; more where they make fewer than `LEAST_STEPS` steps.
        """
        # Convolutions take two thirds of the time where the channels of a pixel lie side by side.
        network = self.start(shape_of(images)).train().to(memory_format=torch.channels_last)
        inputs, targets = as_tensor(images), torch.from_numpy(np.asarray(answers, dtype=np.float32))
        optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        with torch.random.fork_rng(devices=()):
            # Dropout draws from torch's global generator and takes no other.
            torch.manual_seed(self._seed + len(inputs))
            for _ in range(max(epochs, -(-LEAST_STEPS // -(-len(inputs) // TRAINING_BATCH)))):
                order = torch.randperm(len(inputs), generator=self._torch_random)
                for rows in torch.split(order, TRAINING_BATCH):
                    optimiser.zero_grad()
                    batch = inputs[rows].contiguous(memory_format=torch.channels_last)
                    functional.cross_entropy(network(batch), targets[rows]).backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
        network.eval().to(memory_format=torch.contiguous_format)

    def logits(self, images: Images) -> NDArray[np.float32]:
        """[n, classes]"""
        network = self.network.eval()
        with torch.inference_mode():
            parts = [network(part) for part in torch.split(as_tensor(images), PREDICTION_BATCH)]
        logits: NDArray[np.float32] = torch.cat(parts).numpy()
        return logits

    def labels(self, images: Images) -> NDArray[np.int64]:
        """[n], the most likely classes."""
        labels: NDArray[np.int64] = self.logits(images).argmax(axis=1)
        return labels


def said(substitute: Substitute, images: Images) -> Probabilities:
    """[n, classes], a copy's probabilities."""
    probabilities: Probabilities = torch.from_numpy(substitute.logits(images)).softmax(dim=1).numpy()
    return probabilities
