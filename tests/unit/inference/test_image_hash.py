"""A bundle's learned hash takes pHash's place: the same form, and what an attacker sends beside an image is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.inference.image_hash import IMAGE_HASH, HashNetwork, ImageHash, fused, image_hash_tensors, learned_hashes
from services.inference.perceptual_hash import perceptual_hashes
from shared.bundle import Bundle, BundleError, with_files
from shared.datasets import load_splits
from shared.networks import images, load_network, network_tensors
from tests.support.bundles import untrained_bundle

SHAPE = (1, 28, 28)


@pytest.fixture
def network() -> HashNetwork:
    """With statistics of its own, as after a training."""
    torch.manual_seed(1)
    network = HashNetwork(SHAPE).train()
    for _ in range(20):
        network(torch.rand(64, *SHAPE))
    return load_network(HashNetwork(SHAPE), network_tensors(network.eval()))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return load_splits().test.images[:200]


def with_hash(folder: Path, network: HashNetwork, similar_bits: int) -> Bundle:
    files = {IMAGE_HASH: image_hash_tensors(network, similar_bits)}
    return with_files(untrained_bundle(folder / "plain"), folder / "hashed", files)


def test_a_bundle_without_a_hash_of_its_own_has_phash(tmp_path: Path, pictures: np.ndarray) -> None:
    found = ImageHash.of_bundle(untrained_bundle(tmp_path))
    assert (found.kind, found.similar_bits) == ("phash", 8)
    assert (found.hashes(pictures) == perceptual_hashes(pictures)).all()


def test_a_bundles_hash_is_its_networks_signs(tmp_path: Path, network: HashNetwork, pictures: np.ndarray) -> None:
    bundle = with_hash(tmp_path, network, 11)
    found = ImageHash.of_bundle(bundle)
    assert found.similar_bits == 11
    assert found.kind == f"learned-{bundle.manifest.files[IMAGE_HASH + '.safetensors'][:12]}"
    with torch.inference_mode():
        signs = (network(images(pictures)) > 0).numpy()
    expected = [int("".join("1" if bit else "0" for bit in row), 2) for row in signs]
    # Where normalisation is part of the layer before it, a bit next to zero may fall to the other side.
    differing = np.bitwise_count(found.hashes(pictures) ^ np.array(expected, dtype=np.uint64))
    assert differing.sum() <= 2
    assert (found.hashes(pictures) == learned_hashes(network, pictures)).all()
    assert len(found.hashes(pictures[:0])) == 0
    one_by_one = np.concatenate([found.hashes(pictures[n : n + 1]) for n in range(len(pictures))])
    assert np.bitwise_count(one_by_one ^ found.hashes(pictures)).sum() <= 2


def test_normalisations_are_taken_into_the_layers_before_them(network: HashNetwork, pictures: np.ndarray) -> None:
    x = images(pictures)
    with torch.inference_mode():
        torch.testing.assert_close(fused(network)(x), network(x), atol=1e-4, rtol=1e-4)
    assert not any("BatchNorm" in type(layer).__name__ for layer in fused(network).children())


@pytest.mark.parametrize("similar_bits", [None, 65])
def test_a_hash_without_a_sensible_distance_is_refused_by_its_file(
    tmp_path: Path, network: HashNetwork, similar_bits: int | None
) -> None:
    tensors = image_hash_tensors(network, similar_bits or 0)
    if similar_bits is None:
        del tensors["similar_bits"]
    bundle = with_files(untrained_bundle(tmp_path / "plain"), tmp_path / "hashed", {IMAGE_HASH: tensors})
    with pytest.raises(BundleError, match="response-image-hash"):
        ImageHash.of_bundle(bundle)


def test_a_hash_of_large_images_in_colour_is_its_networks_signs_too(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = HashNetwork((3, 48, 40)).eval()
    views = np.random.default_rng(0).integers(0, 256, (3, 3, 48, 40), dtype=np.uint8)
    with torch.inference_mode():
        signs = (network(images(views)) > 0).numpy()
    expected = np.packbits(signs, axis=1).view(">u8")[:, 0]
    assert np.bitwise_count(learned_hashes(network, views) ^ expected).sum() <= 2
