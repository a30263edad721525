"""Small networks on small images as products of matrices: for one image of 28 x 28 torch takes four times as long.

What torch spends between its kernels is nothing beside a large network, and most of the time of one that answers in a
tenth of a millisecond. On the inference path of an account under PERTURB that counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.networks import images

Floats = NDArray[np.float32]


SMALL_IMAGE = 4_096
"""Values up to which an image is one."""


def forward_of(network: nn.Sequential) -> Callable[[NDArray[np.uint8]], Floats]:
    """A network of images, from uint8 views [n, channels, height, width] to [n, k]: the quicker way for their size.

    Args:
        network: of images in [0, 1], ready to infer.
    """
    small = _compiled(network)

    def forward(inputs: NDArray[np.uint8]) -> Floats:
        if small is not None and math.prod(inputs.shape[1:]) <= SMALL_IMAGE:
            return small(inputs.astype(np.float32) * np.float32(1.0 / 255.0))
        with torch.inference_mode():
            result: Floats = network(images(inputs)).float().cpu().numpy()
        return result

    return forward


def matrices(network: nn.Sequential | nn.Linear) -> Callable[[Floats], Floats]:
    """A network as products of matrices, from [n, channels, height, width] or [n, d] to [n, k].

    Results of networks that stand side by side, in groups, lie one after the other.

    Raises:
        ValueError: it has other layers than convolutions, rectifiers and linear ones.
    """
    compiled = _compiled(network if isinstance(network, nn.Sequential) else nn.Sequential(network))
    if compiled is None:
        raise ValueError(f"{network} has layers that are no products of matrices")
    return compiled


def _compiled(network: nn.Sequential) -> Callable[[Floats], Floats] | None:
    layers: list[_Convolution | _Linear] = []
    filters = 0
    for layer in network:
        match layer:
            case nn.Conv2d(dilation=(1, 1), padding_mode="zeros") if _square(layer):
                layers.append(_Convolution.of(layer))
                filters = layer.out_channels // layer.groups
            case nn.Linear():
                layers.append(_Linear.of(layer.weight[None], layer.bias, filters))
                filters = 0
            case nn.Conv1d(kernel_size=(1,)):
                weight = layer.weight.reshape(layer.groups, -1, layer.weight.shape[1])
                layers.append(_Linear.of(weight, layer.bias, filters))
                filters = 0
            case nn.ReLU() if layers:
                layers[-1].rectified = True
            case nn.Flatten() | nn.Unflatten():
                pass
            case _:
                return None

    def forward(x: Floats) -> Floats:
        x = (x if isinstance(layers[0], _Linear) else x.transpose(0, 2, 3, 1))[None]
        for layer in layers:
            x = layer(x)
        groups, n, units = x.shape
        return x.transpose(1, 0, 2).reshape(n, groups * units)

    return forward


@dataclass(slots=True)
class _Convolution:
    """
    Attributes:
        weight: [groups, kernel * kernel * channels, filters].
        bias: [groups, 1, filters].
        kernel: its side.
        stride: in both directions.
        padding: on every side.
        rectified: whether a rectifier follows.
    """

    weight: Floats
    bias: Floats
    kernel: int
    stride: int
    padding: int
    rectified: bool = False

    @classmethod
    def of(cls, layer: nn.Conv2d) -> _Convolution:
        groups, filters, (kernel, _) = layer.groups, layer.out_channels // layer.groups, layer.kernel_size
        weight = layer.weight.reshape(groups, filters, -1, kernel, kernel).permute(0, 3, 4, 2, 1)
        padding = layer.padding[0]
        assert layer.bias is not None
        assert isinstance(padding, int)
        weights = _array(weight.reshape(groups, -1, filters))
        return cls(weights, _array(layer.bias).reshape(groups, 1, filters), kernel, layer.stride[0], padding)

    def __call__(self, x: Floats) -> Floats:
        """From [groups, n, height, width, channels] to the same of fewer pixels."""
        groups, kernel, stride, around = len(self.weight), self.kernel, self.stride, self.padding
        if len(x) != groups:
            # One network's channels, dealt out to several.
            x = x[0].reshape(*x.shape[1:4], groups, x.shape[4] // groups).transpose(3, 0, 1, 2, 4)
        _, n, height, width, channels = x.shape
        padded = np.zeros((groups, n, height + 2 * around, width + 2 * around, channels), dtype=np.float32)
        padded[:, :, around : around + height, around : around + width] = x
        tall, wide = ((side + 2 * around - kernel) // stride + 1 for side in (height, width))
        group, image, row, pixel, value = padded.strides
        windows: Floats = np.ndarray(
            (groups, n, tall, wide, kernel, kernel, channels), np.float32, padded,
            strides=(group, image, stride * row, stride * pixel, row, pixel, value),
        )  # fmt: skip
        rows = windows.reshape(groups, n * tall * wide, self.weight.shape[1])
        result = _affine(rows, self.weight, self.bias, self.rectified)
        return result.reshape(groups, n, tall, wide, self.weight.shape[2])


@dataclass(slots=True)
class _Linear:
    """
    Attributes:
        weight: [groups, d, units].
        bias: [groups, 1, units].
        rectified: whether a rectifier follows.
    """

    weight: Floats
    bias: Floats
    rectified: bool = False

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, filters: int) -> _Linear:
        """
        Args:
            weight: [groups, units, d].
            bias: [groups * units].
            filters: of the convolution before, 0 where there is none. Torch flattens filter by filter; here each
                pixel's filters lie together.
        """
        assert bias is not None
        groups, units, d = weight.shape
        by_pixel = weight.reshape(groups, units, filters or d, -1).permute(0, 3, 2, 1)
        return cls(_array(by_pixel.reshape(groups, d, units)), _array(bias).reshape(groups, 1, units))

    def __call__(self, x: Floats) -> Floats:
        """From [groups, n, ...] to [groups, n, units]."""
        return _affine(x.reshape(len(x), x.shape[1], self.weight.shape[1]), self.weight, self.bias, self.rectified)


def _affine(x: Floats, weight: Floats, bias: Floats, rectified: bool) -> Floats:
    result: Floats = x @ weight
    result += bias
    if rectified:
        np.maximum(result, 0.0, out=result)
    return result


def _square(layer: nn.Conv2d) -> bool:
    return all(len(set(sides)) == 1 for sides in (layer.kernel_size, layer.stride, layer.padding))


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().contiguous().float().cpu().numpy()
    return array
