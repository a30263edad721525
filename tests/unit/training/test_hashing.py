"""The hash learns what it is for: variants of an image are alike, two images of one class are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.progress import Progress

from services.inference.image_hash import HashNetwork, learned_hashes
from services.inference.perceptual_hash import perceptual_hashes
from services.training import hashing, malicious
from services.training.hashing import contrast, cut, distances_between, most_bits, similar_bits_of, train_hash, variants
from services.training.malicious import quantised, substitutes
from shared.datasets import Dataset, load_splits
from shared.networks import images, load_network, network_tensors

quiet = Progress(disable=True)


@pytest.fixture(scope="module")
def clothes() -> tuple[Dataset, Dataset]:
    splits = load_splits()
    return splits.train[:6_000], splits.test[:1_500]


@pytest.fixture(scope="module")
def trained(clothes: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> HashNetwork:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(malicious, "COPY_STEPS", 40)
        patch.setattr(hashing, "BATCH", 128)
        network = train_hash(clothes[0], 2, 1, quiet, tmp_path_factory.mktemp("hash"))
    return load_network(HashNetwork((1, 28, 28)), network_tensors(network))


def test_it_knows_variants_better_than_phash_at_the_same_rate_of_unrelated_ones(
    clothes: tuple[Dataset, Dataset], trained: HashNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(malicious, "COPY_STEPS", 40)
    test = clothes[1][:500]
    torch.manual_seed(2)
    # Of copies that it has not learnt from.
    copies = substitutes(clothes[1], np.random.default_rng(7), 7)
    seen = quantised(variants(images(test.images), torch.from_numpy(test.labels), copies))

    def recall(hashes: np.ndarray, of_variants: np.ndarray) -> float:
        bits = most_bits(distances_between(hashes), 0.001)
        return float((np.bitwise_count(hashes ^ of_variants) <= bits).mean())

    learned = recall(learned_hashes(trained, test.images), learned_hashes(trained, seen))
    assert learned > recall(perceptual_hashes(test.images), perceptual_hashes(seen)) + 0.05


def test_the_distance_lets_no_more_unrelated_images_pass_than_was_asked(
    clothes: tuple[Dataset, Dataset], trained: HashNetwork
) -> None:
    test = clothes[1].images
    bits = similar_bits_of(trained, test, share=0.01)
    within = distances_between(learned_hashes(trained, test))
    assert within[: bits + 1].sum() <= 0.01 * within.sum() < within[: bits + 2].sum()


def test_every_pair_is_counted_once() -> None:
    counts = distances_between(np.array([0b0, 0b1, 0b11, 0b0], dtype=np.uint64))
    assert counts[:3].tolist() == [1, 3, 2]
    assert counts.sum() == 6


def test_codes_have_two_values_and_a_gradient() -> None:
    bits = torch.tensor([[0.3, -2.0, 0.1, -0.1]], requires_grad=True)
    codes = cut(bits)
    assert codes.detach().tolist() == [[0.5, -0.5, 0.5, -0.5]]
    codes.sum().backward()
    assert bits.grad is not None
    assert (bits.grad > 0).all()


def test_the_loss_asks_for_ones_own_variant_most_of_all_among_images_of_ones_class() -> None:
    codes, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    within, across = codes[[1, 0, 3, 2]], codes[[2, 3, 0, 1]]
    assert contrast(codes, codes, labels) < contrast(codes, across, labels) < contrast(codes, within, labels)
