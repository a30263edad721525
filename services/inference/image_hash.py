"""By which images are known again: a bundle's learned hash, or imagehash's pHash where it has none.

pHash was made for photographs of some size: of small pictures it calls many alike that are not, and few alike that an
attacker crafted from each other (AMAO, table 12, has 83.83% on Fashion-MNIST). A learned hash has the same form, 64
bits that are compared by how many differ, and so takes its place wherever records speak of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from services.inference.matrices import forward_of
from services.inference.perceptual_hash import HASH_BITS, perceptual_hashes
from shared.bundle import Bundle, BundleError
from shared.networks import ImageShape, bundle_network, flattened, image_shape, network_tensors
from shared.responses import PHASH, SIMILAR_BITS

IMAGE_HASH = "response-image-hash"
"""File of a bundle."""
_NETWORK, _SIMILAR_BITS = "network/", "similar_bits"
FILTERS = (32, 64, 64)
BATCH = 64
"""Images of one pass."""

Hashes = NDArray[np.uint64]
"""[n]"""


class HashNetwork(nn.Module):
    """Images [n, channels, height, width] in [0, 1] to [n, 64]; of a hash, the signs count."""

    def __init__(self, shape: ImageShape) -> None:
        """
        Args:
            shape: of one image.
        """
        super().__init__()
        channels, height, width = shape
        first, second, third = FILTERS
        # Two convolutions halve each side, rounding up.
        flat, features = flattened(third, -(-height // 4), -(-width // 4))
        self.layers = nn.Sequential(
            nn.Conv2d(channels, first, 5, stride=2, padding=2), nn.BatchNorm2d(first), nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1), nn.BatchNorm2d(second), nn.ReLU(),
            nn.Conv2d(second, third, 3, padding=1), nn.BatchNorm2d(third), nn.ReLU(),
            # Without a scale of its own, so that every bit is set for half of all images.
            flat, nn.Linear(features, HASH_BITS), nn.BatchNorm1d(HASH_BITS, affine=False),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Bits before they are cut, [n, 64]."""
        bits: Tensor = self.layers(images)
        return bits


@dataclass(frozen=True, slots=True)
class ImageHash:
    """A hash, and when two of them are alike.

    Attributes:
        kind: tells it from others; hashes of different kinds say nothing about each other.
        hashes: of [n, channels, height, width] uint8 images.
        similar_bits: hashes that differ in no more bits are of similar images.
    """

    kind: str
    hashes: Callable[[NDArray[np.uint8]], Hashes]
    similar_bits: int

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> ImageHash:
        """The bundle's own, else pHash.

        Raises:
            BundleError: the bundle holds another network under that name, or its inputs are no images.
        """
        shape = image_shape(bundle)
        digest = bundle.manifest.files.get(f"{IMAGE_HASH}.safetensors")
        if digest is None:
            if shape[0] not in (1, 3):
                raise BundleError(f"{bundle.folder}: field model.input_shape is no image; perceptual hashes need one")
            return cls(PHASH, perceptual_hashes, SIMILAR_BITS)
        tensors = bundle.tensors(IMAGE_HASH)
        if _SIMILAR_BITS not in tensors or not 0 <= int(tensors[_SIMILAR_BITS].item()) <= HASH_BITS:
            raise BundleError(f"{bundle.folder / IMAGE_HASH}.safetensors: tensor {_SIMILAR_BITS} is none from 0 to 64")
        network = bundle_network(bundle, IMAGE_HASH, HashNetwork(shape), under=_NETWORK)
        return cls(f"learned-{digest[:12]}", _hashes_of(fused(network)), int(tensors[_SIMILAR_BITS].item()))


def image_hash_tensors(network: HashNetwork, similar_bits: int) -> dict[str, NDArray[Any]]:
    """As a bundle keeps them."""
    tensors: dict[str, NDArray[Any]] = {_NETWORK + name: array for name, array in network_tensors(network).items()}
    return tensors | {_SIMILAR_BITS: np.array(similar_bits, dtype=np.uint8)}


def learned_hashes(network: HashNetwork, inputs: NDArray[np.uint8]) -> Hashes:
    """Of [n, ...] images, by a network ready to infer."""
    return _hashes_of(fused(network))(inputs)


def fused(network: HashNetwork) -> nn.Sequential:
    """The network with its normalisations taken into the layers before them: a third less time for one image."""
    layers: list[nn.Module] = []
    for layer in network.layers:
        if isinstance(layer, nn.BatchNorm2d) and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        elif isinstance(layer, nn.BatchNorm1d) and isinstance(layers[-1], nn.Linear):
            layers[-1] = _scaled(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def _scaled(linear: nn.Linear, normalisation: nn.BatchNorm1d) -> nn.Linear:
    assert normalisation.running_mean is not None
    assert normalisation.running_var is not None
    scale = torch.rsqrt(normalisation.running_var + normalisation.eps)
    scaled = nn.Linear(linear.in_features, linear.out_features)
    scaled.weight = nn.Parameter(linear.weight * scale[:, None], requires_grad=False)
    scaled.bias = nn.Parameter((linear.bias - normalisation.running_mean) * scale, requires_grad=False)
    return scaled


def _hashes_of(network: nn.Sequential) -> Callable[[NDArray[np.uint8]], Hashes]:
    forward = forward_of(network)

    def hashes(inputs: NDArray[np.uint8]) -> Hashes:
        found = np.empty(len(inputs), dtype=np.uint64)
        for start in range(0, len(inputs), BATCH):
            positive = forward(inputs[start : start + BATCH]) > 0
            found[start : start + BATCH] = np.packbits(positive, axis=1).view(">u8")[:, 0]
        return found

    return hashes
