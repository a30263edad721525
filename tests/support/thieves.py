"""Small networks that were trained on answers: thieves' copies, and innocent models of the same task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from services.inference.network import ARCHITECTURES
from shared.bundle import ModelSection
from shared.events import PerturbedAnswer
from shared.responses import PHASH, SIMILAR_BITS


def trained(
    images: NDArray[np.uint8], labels: NDArray[np.int64], seed: int, epochs: int, architecture: str = "lenet5"
) -> nn.Module:
    """A network that learnt these labels of [n, 1, 28, 28] images; a function of its arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ARCHITECTURES[architecture]((1, 28, 28), 10)
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        inputs, targets = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
        for _ in range(epochs):
            for rows in torch.randperm(len(inputs)).split(16):
                optimiser.zero_grad()
                nn.functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()
                optimiser.step()
    return network.eval()


def labels_of(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """What a network says."""
    with torch.inference_mode():
        said: NDArray[np.int64] = network(torch.from_numpy(images).float() / 255).argmax(dim=1).numpy()
    return said


def saved(network: nn.Module, path: Path) -> str:
    """A network as a file of safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return str(path)


def spoiled_answers(
    logits: NDArray[np.float32], images: NDArray[np.uint8], account: str, model: ModelSection
) -> list[PerturbedAnswer]:
    """A model's answers to images, each spoiled as AMAO does it: the largest and the smallest value exchanged."""
    random = np.random.default_rng(len(images))
    answers = []
    for row, (of, image) in enumerate(zip(logits, images, strict=True)):
        answer = np.exp(of - of.max())
        answer /= answer.sum()
        low, high = int(of.argmin()), int(of.argmax())
        answer[[low, high]] = answer[[high, low]]
        answers.append(
            PerturbedAnswer(
                query_id=f"{account}-{row}",
                account=account,
                model_name=model.name,
                model_version=model.version,
                answered_at=1_700_000_000_000_000 + row,
                response="amao",
                perceptual_hash=int.from_bytes(random.bytes(8), "big"),
                hash_kind=PHASH,
                similar_bits=SIMILAR_BITS,
                input=image,
                logits=of,
                answer=answer.astype(np.float32),
            )
        )
    return answers
