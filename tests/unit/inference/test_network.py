"""Every architecture serves images of any size, and the bundle says which one it holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from services.inference.model import Model
from services.inference.network import ARCHITECTURES
from shared.bundle import Bundle, BundleError, write_bundle
from shared.networks import network_tensors
from shared.settings import REPOSITORY_BUNDLE
from tests.support.bundles import untrained_bundle, untrained_manifest

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 80)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_of_any_shape_become_logits(architecture: str, shape: tuple[int, int, int]) -> None:
    network = ARCHITECTURES[architecture](shape, 7).eval()
    with torch.inference_mode():
        logits = network(torch.rand(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


def test_the_smallest_images_leave_every_architecture_something() -> None:
    for build in ARCHITECTURES.values():
        with torch.inference_mode():
            assert build((1, 16, 16), 2).eval()(torch.rand(1, 1, 16, 16)).shape == (1, 2)


def test_a_large_image_is_averaged_before_the_fully_connected_layers() -> None:
    for name in ("convnet", "lenet5", "alexnet"):
        weights = [sum(p.numel() for p in ARCHITECTURES[name]((3, s, s), 10).parameters()) for s in (64, 224)]
        assert weights[1] <= weights[0] * 1.01


def test_a_resnet_has_its_own_stem_for_large_images() -> None:
    network = ARCHITECTURES["resnet18"]((3, 65, 65), 10)
    assert network.conv1.stride == (2, 2)  # type: ignore[union-attr]


def write(folder: Path, architecture: str, holds: str) -> Bundle:
    manifest = untrained_manifest()
    manifest["model"] |= {"architecture": architecture, "input_shape": (3, 20, 20)}
    network = ARCHITECTURES[holds]((3, 20, 20), 10)
    return write_bundle(folder, manifest, {"victim": network_tensors(network)})


def test_the_model_is_of_the_architecture_that_the_bundle_names(tmp_path: Path) -> None:
    model = Model(write(tmp_path, "lenet5", holds="lenet5"))
    assert model.logits(np.zeros((2, 3, 20, 20), dtype=np.uint8)).shape == (2, 10)
    with pytest.raises(BundleError, match=r"victim\.safetensors"):
        Model(write(tmp_path, "alexnet", holds="lenet5"))


def test_an_architecture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"field model\.architecture: lenet6 is none of convnet, lenet5"):
        Model(write(tmp_path, "lenet6", holds="lenet5"))


def test_a_model_of_anything_but_images_is_refused(tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path)
    document = json.loads((bundle.folder / "bundle.json").read_text())
    document["model"]["input_shape"] = [784]
    (bundle.folder / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"field model\.input_shape: \[784\] is no image's"):
        Model(Bundle.load(bundle.folder))


def test_a_bundle_that_names_no_architecture_holds_the_first() -> None:
    bundle = Bundle.load(REPOSITORY_BUNDLE)
    assert bundle.manifest.model.architecture == "convnet"
    Model(bundle)
