"""Bundles for tests that need a valid one, not a good one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from services.inference.network import Classifier
from shared.bundle import Bundle, write_bundle
from shared.datasets import FASHION_CLASSES
from shared.networks import ImageShape, network_tensors

Files = Mapping[str, Mapping[str, NDArray[Any]]]


def untrained_manifest(classes: Sequence[str] = FASHION_CLASSES, shape: ImageShape = (1, 28, 28)) -> dict[str, Any]:
    """Every field of a manifest, of a model that has learnt nothing; of Fashion-MNIST's form where not told."""
    return {
        "model": {
            "name": "fashion",
            "version": "1",
            "classes": classes,
            "input_shape": shape,
            "test_accuracy": 0.1,
        },
        "profiles": 2,
        "tmsp": {"temperature": 1.0, "lambda": 0.5, "suspicion": 0.5},
        "prada": {"delta": 0.9},
        "similarity": {"delta": 1.0},
        "likelihood": {"benign_mean": -100.0, "beta": 3.0, "data_variance": 0.1},
        "evidence": {
            "log_threshold": 13.8,
            "accounts": 1,
            "alarmed": 0,
            "alarm_rate_upper": 0.95,
            "queries_an_account": 1000,
        },
        "calibration": {
            "accounts": 1,
            "queries": 1000,
            "seed": 1,
            "holdout_accounts": 1,
            "holdout_queries": 1000,
            "holdout_seed": 2,
        },
        "data": {"train": "none"},
        "false_positive_rates": {},
        "seed": 0,
    }


def untrained_files(
    seed: int = 0, classes: Sequence[str] = FASHION_CLASSES, shape: ImageShape = (1, 28, 28)
) -> dict[str, Mapping[str, NDArray[Any]]]:
    """The served model's random tensors, by name of the bundle's file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"victim": network_tensors(Classifier(shape, len(classes)))}


def untrained_bundle(
    folder: Path,
    extra_files: Files | None = None,
    seed: int = 0,
    classes: Sequence[str] = FASHION_CLASSES,
    shape: ImageShape = (1, 28, 28),
) -> Bundle:
    """A complete, valid bundle with random weights.

    Args:
        folder: made where it is missing.
        extra_files: arrays by tensor name, by file name without .safetensors; beside the served model's.
        seed: the weights are a function of it.
        classes: that the model tells apart.
        shape: of the images that it takes.
    """
    files = {**untrained_files(seed, classes, shape), **(extra_files or {})}
    return write_bundle(folder, untrained_manifest(classes, shape), files)
