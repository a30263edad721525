"""Foreign images are of the model's shape, differ from each other, and keep what they say they keep."""

from __future__ import annotations

import numpy as np
import pytest

from services.training.foreign import CUTS, drawings, shuffled

SHAPES = [(1, 28, 28), (3, 32, 48)]


@pytest.mark.parametrize("shape", SHAPES)
def test_drawings_are_of_the_models_shape_and_all_different(shape: tuple[int, ...]) -> None:
    images = drawings(shape, 40, np.random.default_rng(1))
    assert images.shape == (40, *shape)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 40
    # Something is drawn on each, and on some dark ink lies on bright ground.
    assert (images.reshape(40, -1).std(axis=1) > 2).all()
    medians = np.median(images.reshape(40, -1), axis=1)
    assert (medians < 80).any()
    assert (medians > 150).any()


def test_channels_have_inks_of_their_own() -> None:
    images = drawings((3, 32, 32), 20, np.random.default_rng(2))
    assert all((image[0] != image[1]).any() for image in images)


@pytest.mark.parametrize("shape", SHAPES)
def test_shuffled_patches_keep_every_pixel_and_lose_the_picture(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (30, *shape), dtype=np.uint8)
    for _ in range(2 * len(CUTS)):
        changed = shuffled(images, random)
        assert changed.shape == images.shape
        np.testing.assert_array_equal(np.sort(changed.reshape(30, -1)), np.sort(images.reshape(30, -1)))
        assert ((changed != images).reshape(30, -1).mean(axis=1) > 0.5).mean() > 0.5


def test_both_are_functions_of_the_seed() -> None:
    images = np.random.default_rng(4).integers(0, 256, (5, 1, 28, 28), dtype=np.uint8)
    for make in (lambda random: drawings((1, 28, 28), 5, random), lambda random: shuffled(images, random)):
        first, again, other = (make(np.random.default_rng(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
