"""Torch, as the services run it: deterministic, on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.bundle import MANIFEST, Bundle, BundleError

FIXED_BATCH = 24
"""Rows of every forward pass of a detector. The last bit of a result depends on the batch's size (libraries pick their
kernels by it), and on the row's place where kernels cut a matrix into blocks of rows and the last block is smaller. It
is a multiple of the blocks in use (4, 6, 8, 12: of 8 rows, AVX2 treats the last two otherwise), so that a replay that
is cut at other places gives equal bits."""

LARGEST_GRID = 8
"""Cells a side of the last feature map that a fully connected layer sees; larger ones are averaged down to it, or that
layer would hold more weights than all others together."""

ImageShape = tuple[int, int, int]
"""Channels, height and width."""

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def device() -> torch.device:
    """Where networks run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def image_shape(bundle: Bundle) -> ImageShape:
    """The shape of the model's inputs, which are images.

    Raises:
        BundleError: they are something else.
    """
    shape = bundle.manifest.model.input_shape
    if len(shape) != 3:
        raise BundleError(
            f"{bundle.folder / MANIFEST}: field model.input_shape: {list(shape)} is no image's: channels, height, width"
        )
    channels, height, width = shape
    return channels, height, width


def flattened(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """A layer without weights that makes vectors of feature maps, and the vectors' length.

    Args:
        channels: of the feature maps.
        height: of the feature maps; over `LARGEST_GRID`, they are averaged down to it.
        width: the same.
    """
    if max(height, width) <= LARGEST_GRID:
        return nn.Flatten(), channels * height * width
    height, width = min(height, LARGEST_GRID), min(width, LARGEST_GRID)
    return nn.Sequential(nn.AdaptiveAvgPool2d((height, width)), nn.Flatten()), channels * height * width


def load_network(network: ModuleType, tensors: Mapping[str, NDArray[Any]]) -> ModuleType:
    """Fill a network with a bundle's tensors, ready to infer.

    Raises:
        ValueError: tensors are missing, left over or of other shapes.
    """
    try:
        network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"{type(network).__name__}: {error}") from error
    return network.eval().requires_grad_(False).to(device()).to(memory_format=torch.channels_last)


def bundle_network(bundle: Bundle, file: str, empty: ModuleType, under: str = "") -> ModuleType:
    """The network that the bundle keeps as `file` (without .safetensors), ready to infer.

    Args:
        bundle: that holds it.
        file: in which it is.
        empty: of the same form.
        under: what the names of its tensors begin with, where the file holds others beside them.

    Raises:
        BundleError: the file is missing or holds another network.
    """
    try:
        tensors = bundle.tensors(file)
        return load_network(
            empty, {name.removeprefix(under): array for name, array in tensors.items() if name.startswith(under)}
        )
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(f"{bundle.folder / file}.safetensors: {error}") from error


def network_tensors(network: nn.Module) -> dict[str, NDArray[Any]]:
    """A network's parameters and buffers, as a bundle keeps them."""
    # In rows: safetensors writes an array's memory as it lies, whatever its strides are.
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in network.state_dict().items()}


def images(inputs: NDArray[np.uint8]) -> Tensor:
    """[n, channels, height, width] uint8 views as float32 in [0, 1], channels last: twice as fast on a CPU."""
    views = torch.from_numpy(np.array(inputs, copy=True)).to(device())
    return views.float().contiguous(memory_format=torch.channels_last) / 255.0


def in_fixed_batches(function: Callable[[Tensor], Tensor], inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`function` of n views, `FIXED_BATCH` at a time, the last batch padded: a row's result has the same bits always.

    Args:
        function: from [FIXED_BATCH, ...] float32 in [0, 1] to [FIXED_BATCH, ...].
        inputs: [n, ...] uint8.

    Returns:
        [n, ...] float32.
    """
    rows = len(inputs)
    padded = np.zeros((-(-rows // FIXED_BATCH) * FIXED_BATCH, *inputs.shape[1:]), dtype=np.uint8)
    padded[:rows] = inputs
    with torch.inference_mode():
        results = [function(images(padded[i : i + FIXED_BATCH])) for i in range(0, len(padded), FIXED_BATCH)]
        return torch.cat(results)[:rows].float().cpu().numpy()
