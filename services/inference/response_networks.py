"""Networks that only spoil answers: what MeCo adds to an input, what QUEEN maps and asks, what misleads.

A bundle keeps each in a file of its own, `response-<policy>`; a served model needs none of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from services.inference.matrices import forward_of, matrices
from services.inference.model import Model, softmax
from services.inference.network import ARCHITECTURES
from services.inference.responses.queen import Atlas, QueenNetworks
from shared.bundle import Bundle, BundleError
from shared.networks import ImageShape, bundle_network, device, image_shape, images, network_tensors
from shared.softmax import doubtful

MECO, QUEEN, MISLEADING = "response-meco", "response-queen", "response-misinformation"
"""Files of a bundle."""
_MAP, _SHADOWS = "map/", "shadows/"
"""Beginnings of the names of QUEEN's tensors."""
GENERATOR_FILTERS = 16
"""Of MeCo's generator. The paper has 64 beside a ResNet-34, of fifty times this repository's model's weights."""
LARGEST_PERTURBATION = 0.5
"""Of a pixel in [0, 1]."""
SHADOW_FILTERS = (8, 16)
SHADOW_FEATURES = 32


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


class MecoModel(nn.Module):
    """A model and MeCo's generator, trained together."""

    def __init__(self, model: nn.Module, channels: int) -> None:
        """
        Args:
            model: from images to logits.
            channels: of an image.
        """
        super().__init__()
        self.model = model
        self.generator = PerturbationGenerator(channels)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Logits [n, classes] of perturbed images."""
        logits: Tensor = self.model(self.generator.perturbed(images, noise))
        return logits


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

    def together(self) -> nn.Sequential:
        """From images [n, channels, height, width], the same for all shadows, to logits [n, shadows * classes]."""
        first, *others = self.layers
        assert isinstance(first, nn.Conv2d)
        # A group's weights see one image's channels, whichever copy of it they are given.
        shared = copy.deepcopy(first)
        shared.groups, shared.in_channels = 1, first.in_channels // self.shadows
        return nn.Sequential(shared, *others, nn.Flatten())


# ---- from a bundle ----

Views = NDArray[np.uint8]
Answers = NDArray[np.float32]
Networks = TypeVar("Networks")


def queen_tensors(network: SensitivityMap, atlas: Atlas, shadows: ShadowModels) -> dict[str, NDArray[Any]]:
    """As the bundle keeps them."""
    return {
        **{_MAP + name: array for name, array in network_tensors(network).items()},
        **{_SHADOWS + name: array for name, array in network_tensors(shadows).items()},
        "centres": atlas.centres,
        "distances": atlas.distances,
        "features": atlas.features,
    }


class ResponseNetworks:
    """The networks of a bundle that spoil answers. They are read now: a verdict finds them ready, or none."""

    def __init__(self, bundle: Bundle, model: Model) -> None:
        """
        Args:
            bundle: that may hold them.
            model: the served one.

        Raises:
            BundleError: the bundle holds one of another form.
        """
        self._bundle, self._model = bundle, model
        self._shape, self._classes = image_shape(bundle), len(bundle.manifest.model.classes)
        self._meco = self._read_meco() if bundle.holds(MECO) else None
        self._misleading = self._read_misleading() if bundle.holds(MISLEADING) else None
        self._queen = self._read_queen() if bundle.holds(QUEEN) else None

    def doubtful(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which of [n, classes] answers TMSP flags, with the bundle's T and lambda."""
        section = self._bundle.manifest.tmsp
        return doubtful(logits, section.temperature, section.lambda_)

    def meco(self) -> Callable[[Views, NDArray[np.float32]], Answers]:
        """From views and noise to probabilities.

        Raises:
            BundleError: the bundle has no such network.
        """
        return self._held(self._meco, MECO)

    def misleading(self) -> Callable[[Views], Answers]:
        """From views to probabilities that are wrong.

        Raises:
            BundleError: the bundle has no such network.
        """
        return self._held(self._misleading, MISLEADING)

    def queen(self) -> QueenNetworks:
        """QUEEN's.

        Raises:
            BundleError: the bundle has no such networks.
        """
        return self._held(self._queen, QUEEN)

    def _held(self, networks: Networks | None, file: str) -> Networks:
        if networks is None:
            raise BundleError(
                f"{self._bundle.folder}: has no {file}.safetensors; 'portcullis train --add-responses-to' makes it"
            )
        return networks

    def _read_meco(self) -> Callable[[Views, NDArray[np.float32]], Answers]:
        network = bundle_network(self._bundle, MECO, MecoModel(self._untrained(), self._shape[0]))

        def perturbed(inputs: Views, noise: NDArray[np.float32]) -> Answers:
            return _ask(lambda: network(images(inputs), torch.from_numpy(noise).to(device())).softmax(1))

        return perturbed

    def _read_misleading(self) -> Callable[[Views], Answers]:
        network = bundle_network(self._bundle, MISLEADING, self._untrained())
        return lambda inputs: _ask(lambda: network(images(inputs)).softmax(1))

    def _read_queen(self) -> QueenNetworks:
        tensors = self._bundle.tensors(QUEEN)
        try:
            atlas = Atlas(tensors["centres"], tensors["distances"], tensors["features"])
            shadow_models = len(tensors[f"{_SHADOWS}layers.0.weight"]) // SHADOW_FILTERS[0]
        except KeyError as error:
            raise BundleError(f"{self._bundle.folder / QUEEN}.safetensors: has no {error}") from error
        plane = bundle_network(self._bundle, QUEEN, SensitivityMap(atlas.features.shape[1]), _MAP)
        shadows = bundle_network(self._bundle, QUEEN, ShadowModels(self._shape, self._classes, shadow_models), _SHADOWS)
        shadow_logits = forward_of(shadows.together())

        def shadows_of(inputs: Views) -> Answers:
            every = softmax(shadow_logits(inputs).reshape(-1, self._classes))
            mean: Answers = every.reshape(len(inputs), -1, self._classes).mean(axis=1)
            return mean

        logits = matrices(self._model.head)(atlas.features)
        return QueenNetworks(atlas, logits, matrices(plane.layers), shadows_of)

    def _untrained(self) -> nn.Module:
        return ARCHITECTURES[self._bundle.manifest.model.architecture](self._shape, self._classes)


def _ask(question: Callable[[], Tensor]) -> Answers:
    with torch.inference_mode():
        answers: Answers = question().float().cpu().numpy()
    return answers
