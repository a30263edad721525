"""A network half-way through its training, on disk: weights, the optimiser's state and the schedule's, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from shared.files import write_whole

Schedule = torch.optim.lr_scheduler.LRScheduler

_NETWORK, _OPTIMISER = "network", "optimiser"


def save_checkpoint(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, schedule: Schedule, epochs: int
) -> None:
    """Write everything that the next epoch starts from; a cut leaves the checkpoint before.

    Args:
        path: of the safetensors file; its folder is made where it is missing.
        network: its parameters and buffers are kept.
        optimiser: its state must be tensors, as Adam's and SGD's are.
        schedule: of the learning rate.
        epochs: done so far.
    """
    state = optimiser.state_dict()
    tensors = {f"{_NETWORK}/{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {
        f"{_OPTIMISER}/{parameter}/{name}": tensor
        for parameter, values in state["state"].items()
        for name, tensor in values.items()
        # SGD without momentum keeps None.
        if tensor is not None
    }
    document = {"epochs": epochs, "groups": state["param_groups"], "schedule": schedule.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(plain, metadata={"training": json.dumps(document)}))


def load_checkpoint(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, schedule: Schedule) -> int:
    """Take back what `save_checkpoint` kept.

    Args:
        path: of the safetensors file.
        network: of the same form; its weights are replaced.
        optimiser: of the same kind, for the same network.
        schedule: of the same kind and length.

    Returns:
        Epochs done; 0 where there is no checkpoint, or one that cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return 0
    prefix = f"{_NETWORK}/"
    network.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        kind, *rest = name.split("/")
        if kind == _OPTIMISER:
            number, field = int(rest[0]), rest[1]
            state.setdefault(number, {})[field] = _laid_out_like(parameters[number], tensor)
    optimiser.load_state_dict({"state": state, "param_groups": document["groups"]})
    schedule.load_state_dict(document["schedule"])
    return int(document["epochs"])


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    # Other strides take other kernels, whose last bit may differ.
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
