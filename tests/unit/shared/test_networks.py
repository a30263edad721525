"""Networks give a row the same bits in any company, and refuse tensors that are not their own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from torch import nn

from shared.networks import FIXED_BATCH, device, images, in_fixed_batches, load_network, network_tensors


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 36, 64), nn.ReLU(), nn.Linear(64, 1), nn.Linear(1, 16),
    )  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> nn.Module:
    torch.set_num_threads(1)
    fresh = network()
    return load_network(fresh, network_tensors(fresh))


@pytest.mark.parametrize("rows", [1, FIXED_BATCH - 1, FIXED_BATCH, FIXED_BATCH + 1, 3 * FIXED_BATCH + 5])
def test_a_rows_result_has_the_same_bits_in_any_company(loaded: nn.Module, rows: int) -> None:
    inputs = np.random.default_rng(2).integers(0, 256, (rows, 1, 8, 8), dtype=np.uint8)
    together = in_fixed_batches(loaded, inputs)
    assert together.shape == (rows, 16)
    assert together.dtype == np.float32
    for row in range(rows):
        assert in_fixed_batches(loaded, inputs[row : row + 1]).tobytes() == together[row].tobytes()
    np.testing.assert_array_equal(in_fixed_batches(loaded, inputs[::-1]), together[::-1])


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
def test_so_it_has_on_processors_of_other_kinds(instructions: str) -> None:
    """As far as this machine has the instructions: a library that is told so cuts matrices as it would there."""
    again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "same_bits_in_any_company"]
    environment = os.environ | {
        "MKL_ENABLE_INSTRUCTIONS": instructions,
        "ONEDNN_MAX_CPU_ISA": {"AVX2": "AVX2", "AVX512": "AVX512_CORE"}[instructions],
    }
    done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_a_network_comes_back_from_its_tensors_ready_to_infer(loaded: nn.Module) -> None:
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, tensor in network_tensors(network()).items():
        np.testing.assert_array_equal(network_tensors(loaded)[name], tensor)


def test_tensors_survive_being_written_whatever_their_layout() -> None:
    laid_out_apart = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    tensors = network_tensors(laid_out_apart)
    np.testing.assert_array_equal(load(save(tensors))["weight"], laid_out_apart.weight.detach().numpy())


@pytest.mark.parametrize("damage", ["missing", "left over", "other shape"])
def test_tensors_of_another_network_are_refused(damage: str) -> None:
    tensors = network_tensors(network())
    if damage == "missing":
        del tensors["0.weight"]
    elif damage == "left over":
        tensors["9.weight"] = np.zeros(3, dtype=np.float32)
    else:
        tensors["0.bias"] = np.zeros(9, dtype=np.float32)
    with pytest.raises(ValueError, match=r"Sequential: "):
        load_network(network(), tensors)


def test_views_become_floats_between_nought_and_one() -> None:
    tensor = images(np.array([[[[0, 51, 255]]]], dtype=np.uint8))
    assert tensor.device.type == device().type
    np.testing.assert_allclose(tensor.cpu().numpy().ravel(), [0.0, 0.2, 1.0], rtol=1e-6)
