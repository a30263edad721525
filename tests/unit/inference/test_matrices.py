"""Products of matrices say what torch says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from services.inference.matrices import forward_of, matrices
from shared.networks import images

NETWORKS = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 3, 7)
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 9, 3, stride=2, padding=1, groups=3), nn.ReLU(),
        nn.Flatten(), nn.Unflatten(1, (9 * 6 * 5, 1)), nn.Conv1d(9 * 6 * 5, 15, 1, groups=3), nn.ReLU(),
        nn.Conv1d(15, 6, 1, groups=3), nn.Flatten(),
    ),
    "linear layers": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 10, 6), nn.ReLU(), nn.Linear(6, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_small_images_are_told_as_torch_tells_them(name: str, rows: int) -> None:
    torch.manual_seed(1)
    network = NETWORKS[name]()
    inputs = np.random.default_rng(2).integers(0, 256, (rows, 3, 12, 10), dtype=np.uint8)
    with torch.inference_mode():
        expected = network(images(inputs)).numpy()
    np.testing.assert_allclose(forward_of(network)(inputs), expected, atol=1e-5)
    np.testing.assert_allclose(matrices(network)(inputs.astype(np.float32) / 255.0), expected, atol=1e-5)


def test_what_is_large_or_has_other_layers_is_left_to_torch() -> None:
    large = np.random.default_rng(2).integers(0, 256, (2, 3, 60, 50), dtype=np.uint8)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten())
    with torch.inference_mode():
        for network in (other, other[:1].append(nn.Flatten())):
            np.testing.assert_array_equal(forward_of(network)(large), network(images(large)).numpy())
    for network in (other, nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2)), nn.Sequential(nn.Conv2d(3, 4, (3, 5)))):
        with pytest.raises(ValueError, match="no products of matrices"):
            matrices(network)
