"""A bundle's networks answer for the responses that need them; one that has none, or others, is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.inference.model import Model, softmax
from services.inference.network import ARCHITECTURES, split_head
from services.inference.response_networks import (
    MECO,
    MISLEADING,
    QUEEN,
    MecoModel,
    ResponseNetworks,
    SensitivityMap,
    ShadowModels,
    queen_tensors,
)
from services.inference.responses.catalogue import Catalogue
from services.inference.responses.interface import AnswerMode, Queries
from services.inference.responses.memory import PerturbedMemory, Promises
from services.inference.responses.queen import Atlas
from shared.bundle import BundleError, write_bundle
from shared.detection import input_digests
from shared.networks import images, network_tensors
from shared.responses import AdaptiveMisinformationResponse, MecoResponse, QueenResponse, Response, response_text
from tests.support.bundles import untrained_files, untrained_manifest

SHAPE, CLASSES = (1, 28, 28), 10
PICTURES = np.random.default_rng(1).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
Files = dict[str, Mapping[str, NDArray[Any]]]


def victim() -> torch.nn.Module:
    return ARCHITECTURES["convnet"](SHAPE, CLASSES)


@pytest.fixture(scope="module")
def files() -> Files:
    torch.manual_seed(3)
    random = np.random.default_rng(3)
    atlas = Atlas(*(random.normal(size=size).astype(np.float32) for size in ((CLASSES, 2), (CLASSES,), (CLASSES, 128))))
    return untrained_files() | {
        MECO: network_tensors(MecoModel(victim(), 1)),
        MISLEADING: network_tensors(victim()),
        QUEEN: queen_tensors(SensitivityMap(128), atlas, ShadowModels(SHAPE, CLASSES, 3)),
    }


def networks(folder: Path, files: Files) -> tuple[ResponseNetworks, Model]:
    bundle = write_bundle(folder, untrained_manifest(), files)
    model = Model(bundle)
    return ResponseNetworks(bundle, model), model


@pytest.mark.parametrize(
    "response", [MecoResponse(), AdaptiveMisinformationResponse(tau=1.0), QueenResponse()], ids=lambda r: r.policy
)
def test_responses_that_ask_networks_answer(tmp_path: Path, files: Files, response: Response) -> None:
    found, model = networks(tmp_path, files)
    catalogue = Catalogue(AnswerMode.PROBABILITIES, CLASSES, b"key", PerturbedMemory(10, 0), Promises(10, 10), found)
    policy = catalogue.of(response_text(response)).policy
    assert policy.name == response.policy
    logits = model.logits(PICTURES)
    hashes = np.arange(5, dtype=np.uint64)
    queries = Queries("a", list("abcde"), PICTURES, logits, softmax(logits), hashes, input_digests(PICTURES))
    told = policy.answer(queries, policy.see(queries))
    np.testing.assert_allclose(told.answers.sum(axis=1), 1.0, atol=1e-4)
    assert told.perturbed.any()


def test_queens_networks_are_the_models_own_features_and_head(tmp_path: Path, files: Files) -> None:
    found, model = networks(tmp_path, files)
    queen = found.queen()
    features = queen.features_of(PICTURES)
    assert features.shape == (5, 128)
    np.testing.assert_allclose(queen.probabilities_of(features), softmax(model.logits(PICTURES)), atol=1e-5)
    assert queen.points_of(features).shape == (5, 2)
    np.testing.assert_allclose(queen.shadows_of(PICTURES).sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_splits_into_features_and_head(name: str) -> None:
    network = ARCHITECTURES[name]((3, 32, 32), CLASSES).eval()
    body, head = split_head(network)
    x = images(np.random.default_rng(2).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    with torch.inference_mode():
        torch.testing.assert_close(head(body(x)), network(x))


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear layer"):
        split_head(torch.nn.Sequential(torch.nn.Flatten()))


@pytest.mark.parametrize("part", ["meco", "misleading", "queen"])
def test_a_bundle_without_the_networks_says_which_file_it_lacks(tmp_path: Path, part: str) -> None:
    found, _ = networks(tmp_path, untrained_files())
    with pytest.raises(BundleError, match=r"field files has no response-"):
        getattr(found, part)()


def test_networks_of_another_form_are_refused_with_the_file(tmp_path: Path, files: Files) -> None:
    queen = {name: array for name, array in files[QUEEN].items() if name != "centres"}
    found, _ = networks(tmp_path, files | {MECO: files[MISLEADING], QUEEN: queen})
    with pytest.raises(BundleError, match=r"response-meco.safetensors: "):
        found.meco()
    with pytest.raises(BundleError, match=r"response-queen.safetensors: has no 'centres'"):
        found.queen()
