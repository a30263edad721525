"""A camera does to an image what its fields say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from shared.cameras import Camera, Images, Shots, joined, photograph, varied_camera, varied_shots


@pytest.fixture
def images() -> Images:
    """30 smooth images in colour with a dark margin."""
    random = np.random.default_rng(3)
    coarse = random.integers(30, 226, (30, 3, 4, 4), dtype=np.uint8)
    result = np.zeros((30, 3, 24, 24), dtype=np.uint8)
    result[:, :, 4:20, 4:20] = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return result


def take(images: Images, **columns: float) -> Images:
    shots = Shots.plain(len(images)).varied(**{name: np.full(len(images), value) for name, value in columns.items()})
    return photograph(images, shots, np.random.default_rng(1))


def test_plain_shots_change_nothing(images: Images) -> None:
    np.testing.assert_array_equal(take(images), images)


def test_exposure_is_gain_times_a_power(images: Images) -> None:
    expected = np.rint(0.5 * (images / 255.0) ** 2 * 255)
    assert np.abs(take(images, gain=0.5, gamma=2.0) - expected).max() <= 1


def test_contrast_stretches_about_the_photographs_mean(images: Images) -> None:
    taken = take(images, contrast=0.5).astype(float)
    np.testing.assert_allclose(taken.mean(axis=(1, 2, 3)), images.mean(axis=(1, 2, 3)), atol=1)
    np.testing.assert_allclose(taken.std(axis=(1, 2, 3)), 0.5 * images.std(axis=(1, 2, 3)), atol=1)


def test_noise_has_the_deviation_that_it_is_given() -> None:
    grey = np.full((50, 1, 20, 20), 128, dtype=np.uint8)
    assert take(grey, noise=0.1).std() / 255 == pytest.approx(0.1, rel=0.05)


def test_a_whole_shift_moves_every_pixel_and_the_edge_goes_on(images: Images) -> None:
    taken = take(images, down=1.0, right=-2.0)
    np.testing.assert_array_equal(taken[:, :, 1:, :-2], images[:, :, :-1, 2:])
    grey = np.full((1, 1, 8, 8), 90, dtype=np.uint8)
    np.testing.assert_array_equal(take(grey, down=3.0), grey)


def test_a_mirror_image_exchanges_left_and_right(images: Images) -> None:
    np.testing.assert_array_equal(take(images, mirrored=1.0), images[..., ::-1])


def test_a_half_turn_turns_the_image_over(images: Images) -> None:
    np.testing.assert_array_equal(take(images, degrees=180.0), images[..., ::-1, ::-1])


def test_what_is_nearer_looks_larger(images: Images) -> None:
    inside = (images > 0).mean()
    assert (take(images, zoom=1.2) > 0).mean() > inside > (take(images, zoom=0.8) > 0).mean()


def test_blur_keeps_the_mean_and_takes_away_detail(images: Images) -> None:
    taken = take(images, blur=1.0).astype(float)
    assert taken.mean() == pytest.approx(images.mean(), rel=0.01)
    assert np.abs(np.diff(taken, axis=3)).max() < np.abs(np.diff(images.astype(float), axis=3)).max()


def test_compression_loses_more_the_lower_the_quality(images: Images) -> None:
    def loss(quality: float) -> float:
        return float(np.abs(take(images, quality=quality).astype(float) - images).mean())

    assert 0 < loss(90) < loss(20)
    grey = images[:, :1]
    assert take(grey, quality=50).shape == grey.shape


def test_each_photograph_has_circumstances_of_its_own(images: Images) -> None:
    gain = np.linspace(0.2, 1.0, 30)
    taken = photograph(images, Shots.plain(30).varied(gain=gain), np.random.default_rng(1))
    np.testing.assert_allclose(taken.mean(axis=(1, 2, 3)) / images.mean(axis=(1, 2, 3)), gain, atol=0.01)


def test_the_hand_moves_between_photographs_and_the_camera_stays() -> None:
    shots = Camera(gain=0.7, shift=2, tilt=5.0, distance=0.1).shots(200, np.random.default_rng(1))
    assert set(shots.gain) == {0.7}
    assert set(shots.down) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert 4 < np.abs(shots.degrees).max() <= 5
    assert 0.09 < np.abs(shots.zoom - 1).max() <= 0.1


def test_varied_cameras_are_a_function_of_the_seed_and_differ() -> None:
    cameras = [varied_camera(np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert cameras[0] == cameras[1] != cameras[2]
    shots = varied_shots(100, np.random.default_rng(1))
    assert len(set(shots.gain)) > 30
    assert len(joined([shots, shots[:5]])) == 105
