"""Honest accounts differ from each other, are a function of the seed, and repeat no image unless that is their kind."""

from __future__ import annotations

import numpy as np
import pytest

from shared.cameras import Camera
from shared.datasets import Dataset
from shared.population import (
    KINDS,
    Kind,
    augmenting,
    burst,
    changing,
    draw_account,
    draw_accounts,
    few_classes,
    frames,
    retrying,
    shared_key,
    skewed,
    steady,
    styled,
)

REPEATING = {"retrying", "burst", "styled_burst", "frames", "augmenting", "anything", "shared_key"}
"""A client that retries; photographs of one product, of which two may come out alike."""


@pytest.fixture(scope="module")
def data() -> Dataset:
    """2,000 different smooth images of ten classes."""
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (2000, 1, 2, 2), dtype=np.uint8).repeat(4, axis=2).repeat(4, axis=3)
    labels = np.arange(2000) % 10
    return Dataset(images, labels.astype(np.int64))


def make(kind: Kind, data: Dataset, seed: int = 1, queries: int = 200) -> np.ndarray:
    return kind(data, queries, np.random.default_rng(seed)).images


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_same_seed_makes_the_same_account_and_another_seed_another(kind: Kind, data: Dataset) -> None:
    assert make(kind, data).tobytes() == make(kind, data).tobytes()
    assert make(kind, data, seed=2).tobytes() != make(kind, data).tobytes()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_account_sends_as_many_images_as_asked_for(kind: Kind, data: Dataset) -> None:
    images = make(kind, data, queries=90)
    assert images.shape == (90, 1, 8, 8)
    assert images.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_image_comes_twice_unless_the_kind_says_so(kind: Kind, data: Dataset) -> None:
    images = make(kind, data)
    different = len({image.tobytes() for image in images})
    assert different == len(images) or kind.__name__ in REPEATING


def test_a_retrying_client_sends_some_images_once_more_at_once(data: Dataset) -> None:
    images = retrying(data, 500, np.random.default_rng(1)).images
    again = [row for row in range(1, 500) if (images[row] == images[row - 1]).all()]
    assert 5 <= len(again) <= 150
    assert len({image.tobytes() for image in images}) == 500 - len(again)


def test_a_burst_is_made_of_photographs_of_few_products(data: Dataset) -> None:
    images = burst(data, 200, np.random.default_rng(1)).images.astype(float)
    following = np.abs(np.diff(images, axis=0)).mean(axis=(1, 2, 3))
    strangers = np.abs(images[1:] - images[np.random.default_rng(2).permutation(199)]).mean(axis=(1, 2, 3))
    assert np.median(following) < 0.8 * np.median(strangers)


def test_a_shop_of_few_classes_sends_only_these(data: Dataset) -> None:
    images = few_classes(data, 300, np.random.default_rng(1), classes=(5, 7)).images
    labels = {data.images[row].tobytes(): data.labels[row] for row in range(len(data))}
    assert {int(labels[image.tobytes()]) for image in images} == {5, 7}


def test_a_shop_that_has_shown_all_its_things_photographs_them_again(data: Dataset) -> None:
    images = few_classes(data, 500, np.random.default_rng(1), classes=(5,)).images
    first, again = images[:200].astype(float), images[200:].astype(float)
    assert len({image.tobytes() for image in images[:200]}) == 200
    nearest = [np.abs(first - one).mean(axis=(1, 2, 3)).min() for one in again[:50]]
    strangers = [np.sort(np.abs(first - one).mean(axis=(1, 2, 3)))[1] for one in first[:50]]
    assert np.median(nearest) < np.median(strangers)


def test_a_skewed_shop_sends_some_classes_far_oftener_than_others(data: Dataset) -> None:
    labels = {data.images[row].tobytes(): data.labels[row] for row in range(len(data))}
    sent = [int(labels[image.tobytes()]) for image in skewed(data, 200, np.random.default_rng(1)).images]
    counts = np.bincount(sent, minlength=10)
    assert counts.max() > 4 * np.median(counts)


def test_a_camera_of_its_own_changes_every_photograph(data: Dataset) -> None:
    plain = steady(data, 50, np.random.default_rng(1)).images
    dark = styled(data, 50, np.random.default_rng(1), Camera(gain=0.5)).images
    assert (dark.mean(axis=(1, 2, 3)) < plain.mean(axis=(1, 2, 3))).all()


def test_frames_of_a_film_hardly_differ_from_one_to_the_next(data: Dataset) -> None:
    images = frames(data, 200, np.random.default_rng(2)).images.astype(float)
    following = np.abs(np.diff(images, axis=0)).mean(axis=(1, 2, 3))
    strangers = np.abs(images[1:] - images[np.random.default_rng(2).permutation(199)]).mean(axis=(1, 2, 3))
    assert np.median(following) < 0.4 * np.median(strangers)


def test_an_augmenting_client_sends_each_photograph_as_it_is_before_its_copies(data: Dataset) -> None:
    originals = {image.tobytes() for image in data.images}
    sent = [image.tobytes() in originals for image in augmenting(data, 200, np.random.default_rng(1)).images]
    assert sent[0]
    assert 40 <= sum(sent) <= 110


def test_a_changed_camera_changes_every_photograph_from_half_way(data: Dataset) -> None:
    random = np.random.default_rng(11)
    images = changing(data, 400, random).images
    brightness = images.mean(axis=(1, 2, 3))
    assert abs(np.median(brightness[:200]) - np.median(brightness[200:])) > 3


def test_shops_behind_one_key_take_turns(data: Dataset) -> None:
    whole = shared_key(data, 400, np.random.default_rng(3)).images
    assert len(whole) == 400
    early, late = whole[:200].mean(axis=(1, 2, 3)), whole[200:].mean(axis=(1, 2, 3))
    assert abs(np.median(early) - np.median(late)) < 0.5 * whole.mean(axis=(1, 2, 3)).std()


def test_accounts_of_one_draw_differ_and_take_their_kinds_in_turn(data: Dataset) -> None:
    accounts = draw_accounts(data, 2 * len(KINDS), 60, seed=5)
    again = draw_accounts(data, 2 * len(KINDS), 60, seed=5)
    assert [a.images.tobytes() for a in accounts] == [a.images.tobytes() for a in again]
    kinds = [account.kind for account in accounts]
    assert kinds[: len(KINDS)] == kinds[len(KINDS) :]
    assert len({account.images.tobytes() for account in accounts}) == len(accounts)


def test_an_account_drawn_alone_is_the_one_of_the_whole_draw(data: Dataset) -> None:
    accounts = draw_accounts(data, 20, 60, seed=5)
    np.testing.assert_array_equal(draw_account(data, 17, 60, seed=5).images, accounts[17].images)


def test_requests_are_the_accounts_images_in_order(data: Dataset) -> None:
    account = steady(data, 70, np.random.default_rng(1))
    batched = type(account)(account.kind, account.images, batch=32)
    assert [len(request) for request in batched.requests()] == [32, 32, 6]
    np.testing.assert_array_equal(np.concatenate(list(batched.requests())), account.images)
