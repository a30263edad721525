"""The served model: views in, logits out."""

from __future__ import annotations

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


class Model:
    """The bundle's classifier, asked about views."""

    def __init__(self, bundle: Bundle) -> None:
        """
        Raises:
            BundleError: see `served_network`.
        """
        section = bundle.manifest.model
        self._network = served_network(bundle)
        self._input_shape = section.input_shape
        self.logits(np.zeros((1, *section.input_shape), dtype=np.uint8))

    def logits(self, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[n, classes] logits of [n, ...] uint8 views, in one forward pass."""
        with torch.inference_mode():
            logits: NDArray[np.float32] = self._network(images(inputs)).float().cpu().numpy()
        return logits

    def split(self) -> tuple[nn.Module, nn.Linear]:
        """Features [n, d] of images, and the layer from them to logits."""
        return split_head(self._network)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, classes] probabilities of [n, classes] logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
