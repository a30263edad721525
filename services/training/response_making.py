"""The networks that only spoil answers, for a model that is trained already: in a new bundle, or added to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from services.inference.image_hash import IMAGE_HASH, HashNetwork, image_hash_tensors
from services.inference.model import served_network, softmax
from services.inference.network import ARCHITECTURES, split_head
from services.inference.response_networks import (
    MECO,
    MISLEADING,
    QUEEN,
    MecoModel,
    SensitivityMap,
    ShadowModels,
    queen_tensors,
)
from services.training import responses
from services.training.hashing import similar_bits_of, train_hash
from services.training.networks import shape_of
from services.training.prediction import logits_of
from services.training.recipes import RECIPES
from services.training.workshop import Workshop
from shared.bundle import Bundle
from shared.datasets import Splits
from shared.networks import network_tensors

Tensors = Mapping[str, NDArray[Any]]

RESPONSES = (IMAGE_HASH, MISLEADING, MECO, QUEEN)
"""Files that there are, by their names without .safetensors."""


@dataclass(frozen=True, slots=True)
class ResponsePlan:
    """How much work goes into them. The defaults made those of the bundle in this repository.

    Attributes:
        files: which are made, of `RESPONSES`.
        hash_epochs: of the hash by which images are known again.
        misleading_epochs: of the model that misleads.
        meco_epochs: of MeCo, from the served model's weights on.
        shadow_epochs: of QUEEN's shadow models.
        map_epochs: of QUEEN's map.
    """

    files: tuple[str, ...] = RESPONSES
    hash_epochs: int = 8
    misleading_epochs: int = 2
    meco_epochs: int = 3
    shadow_epochs: int = 2
    map_epochs: int = 20


@dataclass(frozen=True, slots=True)
class Served:
    """The served model.

    Attributes:
        network: trained, ready to infer.
        architecture: a name of `services.inference.network`.
        key: tells its weights from those of others.
    """

    network: nn.Module
    architecture: str
    key: tuple[object, ...]

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Served:
        """The bundle's.

        Raises:
            BundleError: see `served_network`.
        """
        model = bundle.manifest.model
        return cls(served_network(bundle), model.architecture, (model.version,))


class ResponseMaker:
    """Makes the tensors of the files that a plan names."""

    def __init__(self, served: Served, splits: Splits, plan: ResponsePlan, workshop: Workshop) -> None:
        """
        Args:
            served: whose answers are spoiled.
            splits: its data.
            plan: how much work.
            workshop: keeps what was trained.
        """
        self._served, self._splits, self._plan, self._workshop = served, splits, plan, workshop
        self._shape, self._classes = shape_of(splits.train), len(splits.classes)

    def make(self) -> dict[str, Tensors]:
        """By file."""
        makers: Mapping[str, Callable[[], Tensors]] = {
            IMAGE_HASH: self._hash, MISLEADING: self._misleading, MECO: self._meco, QUEEN: self._queen,
        }  # fmt: skip
        return {file: makers[file]() for file in self._plan.files}

    @property
    def _seed(self) -> int:
        return self._workshop.seed

    def _untrained(self) -> nn.Module:
        return ARCHITECTURES[self._served.architecture](self._shape, self._classes)

    def _hash(self) -> Tensors:
        epochs, workshop = self._plan.hash_epochs, self._workshop

        def train(checkpoints: Path) -> nn.Module:
            return train_hash(self._splits.train, epochs, self._seed + 13, workshop.progress, checkpoints)

        network = workshop.trained("hash", (epochs,), HashNetwork(self._shape), train)
        bits = similar_bits_of(network, self._splits.calibration.images)
        workshop.progress.console.print(f"hash: images whose hashes differ in {bits} bits or fewer count as similar")
        return image_hash_tensors(network, bits)

    def _misleading(self) -> Tensors:
        epochs, recipe = self._plan.misleading_epochs, RECIPES[self._served.architecture]

        def train(checkpoints: Path) -> nn.Module:
            return responses.train_misleading(
                self._untrained(), self._splits.train, replace(recipe, epochs=epochs), self._seed + 8,
                self._workshop.progress, checkpoints,
            )  # fmt: skip

        key = (self._served.architecture, epochs)
        return network_tensors(self._workshop.trained("misleading", key, self._untrained(), train))

    def _meco(self) -> Tensors:
        epochs, recipe = self._plan.meco_epochs, RECIPES[self._served.architecture]

        def train(checkpoints: Path) -> nn.Module:
            start = self._untrained()
            start.load_state_dict(self._served.network.state_dict())
            gentle = replace(recipe, epochs=epochs, rate=recipe.rate / 2)
            return responses.train_meco(
                start, self._splits.train, gentle, self._seed + 9, self._workshop.progress, checkpoints
            )

        empty = MecoModel(self._untrained(), self._shape[0])
        return network_tensors(self._workshop.trained("meco", (*self._served.key, epochs), empty, train))

    def _queen(self) -> Tensors:
        plan, data, workshop = self._plan, self._splits.train, self._workshop

        def train_shadows(checkpoints: Path) -> nn.Module:
            told: NDArray[np.float32] = softmax(logits_of(self._served.network, data.images))
            return responses.train_shadows(
                data, told, plan.shadow_epochs, self._seed + 11, workshop.progress, checkpoints
            )

        body, _ = split_head(self._served.network)
        features = logits_of(body, data.images)

        def train_map(checkpoints: Path) -> nn.Module:
            return responses.train_sensitivity(
                features, data.labels, plan.map_epochs, self._seed + 12, workshop.progress, checkpoints
            )

        shadows = workshop.trained(
            "shadows", (*self._served.key, plan.shadow_epochs),
            ShadowModels(self._shape, self._classes, responses.SHADOWS), train_shadows,
        )  # fmt: skip
        plane = workshop.trained(
            "map", (*self._served.key, plan.map_epochs), SensitivityMap(features.shape[1]), train_map
        )
        return queen_tensors(plane, responses.atlas_of(plane, features, data.labels), shadows)
