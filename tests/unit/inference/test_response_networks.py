"""A bundle's networks answer for the responses that need them; one that has none, or others, is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.inference.image_hash import ImageHash
from services.inference.model import Model
from services.inference.network import ARCHITECTURES, split_head
from services.inference.perceptual_hash import perceptual_hashes
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
from services.inference.responses.interface import AnswerMode
from services.inference.responses.looking import look
from services.inference.responses.memory import PerturbedMemory, Promises
from services.inference.responses.queen import Atlas
from shared.bundle import BundleError, write_bundle
from shared.networks import images, load_network, network_tensors
from shared.responses import AdaptiveMisinformationResponse, MecoResponse, QueenResponse, Response, response_text
from tests.support.bundles import untrained_files, untrained_manifest

SHAPE, CLASSES = (1, 28, 28), 10
PICTURES = np.random.default_rng(1).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
Module = TypeVar("Module", bound=torch.nn.Module)
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
    image_hash = ImageHash("phash", perceptual_hashes, 8)
    told = policy.answer(*look(policy, image_hash, "a", list("abcde"), PICTURES, model.outputs(PICTURES)))
    np.testing.assert_allclose(told.answers.sum(axis=1), 1.0, atol=1e-4)
    assert told.perturbed.any()


def test_queens_networks_say_what_torch_says_of_them(tmp_path: Path, files: Files) -> None:
    found, model = networks(tmp_path, files)
    queen, outputs = found.queen(), model.outputs(PICTURES)
    assert outputs.features.shape == (5, 128)

    def kept(empty: Module, under: str) -> Module:
        tensors = {name.removeprefix(under): array for name, array in files[QUEEN].items() if name.startswith(under)}
        return load_network(empty, tensors)

    plane, shadows = kept(SensitivityMap(128), "map/"), kept(ShadowModels(SHAPE, CLASSES, 3), "shadows/")
    with torch.inference_mode():
        logits = model.head(torch.from_numpy(queen.atlas.features)).numpy()
        points = plane(torch.from_numpy(outputs.features)).numpy()
        told = shadows.each(images(PICTURES).repeat(1, 3, 1, 1)).softmax(2).mean(1).numpy()
    np.testing.assert_allclose(queen.logits, logits, atol=1e-4)
    np.testing.assert_allclose(queen.points_of(outputs.features), points, atol=1e-5)
    np.testing.assert_allclose(queen.shadows_of(PICTURES), told, atol=1e-5)


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
    with pytest.raises(BundleError, match=r"has no response-.*add-responses-to"):
        getattr(found, part)()


def test_networks_of_another_form_are_refused_with_the_file(tmp_path: Path, files: Files) -> None:
    queen = {name: array for name, array in files[QUEEN].items() if name != "centres"}
    with pytest.raises(BundleError, match=r"response-meco.safetensors: "):
        networks(tmp_path / "meco", files | {MECO: files[MISLEADING]})
    with pytest.raises(BundleError, match=r"response-queen.safetensors: has no 'centres'"):
        networks(tmp_path / "queen", files | {QUEEN: queen})
