"""The demo's honest accounts are what they say they are."""

from __future__ import annotations

import numpy as np
import pytest

from services.redteam.attack import Banned
from services.redteam.honest import HONEST_KINDS, drive
from services.redteam.substitute import Images, Probabilities
from shared.datasets import SHOES, Dataset, load_fashion_mnist
from shared.population import HonestAccount


@pytest.fixture(scope="module")
def clothes() -> Dataset:
    return load_fashion_mnist("test")


def account(kind: str, clothes: Dataset, queries: int = 200) -> HonestAccount:
    return HONEST_KINDS[kind](clothes, queries, np.random.default_rng(0))


def labels_of(images: Images, clothes: Dataset) -> list[int]:
    known = {image.tobytes(): int(label) for image, label in zip(clothes.images, clothes.labels, strict=True)}
    return [known[image.tobytes()] for image in images]


@pytest.mark.parametrize("kind", sorted(HONEST_KINDS))
def test_every_kind_sends_as_many_images_as_asked(kind: str, clothes: Dataset) -> None:
    images = account(kind, clothes).images
    assert images.shape == (200, 1, 28, 28)
    assert images.dtype == np.uint8


def test_the_shoe_shop_sells_nothing_else(clothes: Dataset) -> None:
    assert set(labels_of(account("shoes", clothes).images, clothes)) == set(SHOES)


def test_the_dark_shop_is_darker_and_noisier(clothes: Dataset) -> None:
    dark, steady = account("dark", clothes).images, account("steady", clothes).images
    assert 0.55 < dark.mean() / steady.mean() < 0.85
    # Studio photographs have a black corner; noise does not stay out of it.
    assert steady[:, 0, 0, 0].mean() < 1 < dark[:, 0, 0, 0].mean()


def test_the_retrying_shop_sends_some_images_again_at_once(clothes: Dataset) -> None:
    images = account("retrying", clothes, 110).images
    assert any((images[row] == images[row - 1]).all() for row in range(1, 110))
    assert len({image.tobytes() for image in images}) > 80


def test_the_shop_in_batches_sends_32_a_request(clothes: Dataset) -> None:
    assert [len(request) for request in account("batches", clothes, 100).requests()] == [32, 32, 32, 4]


def test_driving_an_account_sends_all_it_has_in_order_and_tells_how_far_it_is(clothes: Dataset) -> None:
    one = account("batches", clothes, 70)
    sent: list[Images] = []
    told: list[int] = []

    def ask(images: Images) -> Probabilities:
        sent.append(images)
        return np.zeros((len(images), 10), dtype=np.float32)

    assert drive(ask, one, told.append) == 70
    assert (np.concatenate(sent) == one.images).all()
    assert told == [32, 64, 70]


def test_a_banned_account_goes_no_further(clothes: Dataset) -> None:
    def ask(images: Images) -> Probabilities:
        raise Banned("permission denied")

    with pytest.raises(Banned):
        drive(ask, account("steady", clothes, 5))
