"""The served model: views in, logits out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from services.inference.network import ARCHITECTURES, split_head
from shared.bundle import MANIFEST, Bundle, BundleError
from shared.networks import bundle_network, image_shape, images

TENSORS = "victim"
"""File of the bundle that holds the network."""


def served_network(bundle: Bundle) -> nn.Module:
    """The bundle's classifier, from images in [0, 1] to logits, ready to infer.

    Raises:
        BundleError: the bundle has no network, one of another form, or names an architecture that is not there.
    """
    section = bundle.manifest.model
    build = ARCHITECTURES.get(section.architecture)
    if build is None:
        raise BundleError(
            f"{bundle.folder / MANIFEST}: field model.architecture: {section.architecture} is none of "
            f"{', '.join(ARCHITECTURES)}"
        )
    return bundle_network(bundle, TENSORS, build(image_shape(bundle), len(section.classes)))


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the served model makes of n views.

    Attributes:
        features: [n, d], what its last layer sees.
        logits: [n, classes].
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: slice) -> Outputs:
        return Outputs(self.features[rows], self.logits[rows])


class Model:
    """The bundle's classifier, asked about views."""

    def __init__(self, bundle: Bundle) -> None:
        """
        Raises:
            BundleError: see `served_network`.
        """
        section = bundle.manifest.model
        self._body, self._head = split_head(served_network(bundle))
        self._input_shape = section.input_shape
        self.logits(np.zeros((1, *section.input_shape), dtype=np.uint8))

    def outputs(self, inputs: NDArray[np.uint8]) -> Outputs:
        """Of [n, ...] uint8 views, in one forward pass."""
        with torch.inference_mode():
            features = self._body(images(inputs))
            return Outputs(features.float().cpu().numpy(), self._head(features).float().cpu().numpy())

    def logits(self, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[n, classes] of [n, ...] uint8 views."""
        return self.outputs(inputs).logits

    @property
    def head(self) -> nn.Linear:
        """From features to logits."""
        return self._head


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, classes] probabilities of [n, classes] logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
