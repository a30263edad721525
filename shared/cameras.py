"""How photographs of one thing differ: one camera model for honest accounts, for training and for calibration."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

Images = NDArray[np.uint8]
"""[n, channels, height, width]"""
Column = NDArray[np.float64]

BLUR_RADIUS = 3
"""Pixels; a blur of standard deviation 1.2 has 99% of its weight within."""


@dataclass(frozen=True, slots=True)
class Shots:
    """The circumstances of n photographs; every field is [n], and its default leaves the image as it is."""

    gain: Column
    """Exposure: factor on the pixels."""
    gamma: Column
    """Power of the pixels in [0, 1]."""
    contrast: Column
    """Factor on the difference from the photograph's mean."""
    noise: Column
    """Standard deviation of Gaussian noise, pixels in [0, 1]."""
    blur: Column
    """Standard deviation of a Gaussian blur, pixels."""
    degrees: Column
    """Rotation."""
    zoom: Column
    """Above 1 the thing appears larger."""
    down: Column
    """Shift, pixels."""
    right: Column
    """Shift, pixels."""
    mirrored: Column
    """1 where left and right are exchanged."""
    quality: Column
    """Of JPEG compression, 1 to 95; 0 for none."""

    @classmethod
    def plain(cls, n: int) -> Shots:
        """n photographs that change nothing."""
        neutral = {"gain": 1.0, "gamma": 1.0, "contrast": 1.0, "zoom": 1.0}
        return cls(**{field.name: np.full(n, neutral.get(field.name, 0.0)) for field in fields(cls)})

    def __len__(self) -> int:
        return len(self.gain)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Shots:
        return Shots(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def varied(self, **columns: Column) -> Shots:
        """The same shots with other values in some columns."""
        return replace(self, **columns)


def photograph(images: Images, shots: Shots, random: np.random.Generator) -> Images:
    """What the cameras make of the things: moved, exposed, blurred, noisy, in whole 8-bit pixels.

    Args:
        images: [n, channels, height, width] uint8.
        shots: n of them.
        random: of the noise.
    """
    taken = photograph_pixels(torch.from_numpy(images.astype(np.float32) / np.float32(255.0)), shots, random)
    result: Images = (taken * 255.0).round().to(torch.uint8).numpy()
    for row in np.flatnonzero(shots.quality > 0):
        result[row] = _compressed(result[row], int(shots.quality[row]))
    return result


def _compressed(image: Images, quality: int) -> Images:
    """[channels, height, width] after JPEG."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    with Image.open(file) as opened:
        pixels = np.asarray(opened)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def photograph_pixels(pixels: Tensor, shots: Shots, random: np.random.Generator) -> Tensor:
    """`photograph` before quantisation and compression: [n, channels, height, width] in [0, 1] to the same."""
    taken = _exposed(_blurred(_moved(pixels, shots), shots.blur), shots)
    if (noisy := shots.noise > 0).any():
        rows = np.flatnonzero(noisy)
        noise = random.standard_normal((len(rows), *pixels.shape[1:]), dtype=np.float32)
        taken = taken.index_add(0, torch.from_numpy(rows), torch.from_numpy(noise) * _column(shots.noise[rows]))
    return taken.clamp(0.0, 1.0)


def _column(values: Column) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]


def _moved(pixels: Tensor, shots: Shots) -> Tensor:
    """Rotated, zoomed, shifted and mirrored; the edge goes on beyond itself."""
    still = (shots.degrees == 0) & (shots.zoom == 1) & (shots.down == 0) & (shots.right == 0) & (shots.mirrored == 0)
    if still.all():
        return pixels
    rows = torch.from_numpy(np.flatnonzero(~still))
    moving = shots[np.flatnonzero(~still)]
    height, width = pixels.shape[-2:]
    angle, size = np.radians(moving.degrees), 1.0 / moving.zoom
    flip = 1.0 - 2.0 * moving.mirrored
    theta = np.zeros((len(moving), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = np.cos(angle) * size * flip, -np.sin(angle) * size * flip
    theta[:, 1, 0], theta[:, 1, 1] = np.sin(angle) * size, np.cos(angle) * size
    theta[:, 0, 2], theta[:, 1, 2] = -2.0 * moving.right / width, -2.0 * moving.down / height
    source = pixels[rows]
    grid = functional.affine_grid(torch.from_numpy(theta), list(source.shape), align_corners=False)
    moved = functional.grid_sample(source, grid, padding_mode="border", align_corners=False)
    return pixels.index_copy(0, rows, moved)


def _blurred(pixels: Tensor, deviations: Column) -> Tensor:
    if not (deviations > 0).any():
        return pixels
    rows = np.flatnonzero(deviations > 0)
    offsets = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / deviations[rows, None]) ** 2)
    weights /= weights.sum(1, keepdims=True)
    chosen = torch.from_numpy(rows)
    source = pixels[chosen]
    channels, groups = source.shape[1], source.shape[0] * source.shape[1]
    kernel = torch.from_numpy(weights.astype(np.float32)).repeat_interleave(channels, dim=0)
    padded = functional.pad(source, [BLUR_RADIUS] * 4, mode="replicate").reshape(1, groups, *_grown(source))
    across = functional.conv2d(padded, kernel[:, None, None, :], groups=groups)
    both = functional.conv2d(across, kernel[:, None, :, None], groups=groups)
    return pixels.index_copy(0, chosen, both.reshape(source.shape))


def _grown(source: Tensor) -> tuple[int, int]:
    return source.shape[2] + 2 * BLUR_RADIUS, source.shape[3] + 2 * BLUR_RADIUS


def _exposed(pixels: Tensor, shots: Shots) -> Tensor:
    if (shots.gamma == 1).all() and (shots.contrast == 1).all() and (shots.gain == 1).all():
        return pixels
    powered = pixels.clamp(0.0, 1.0) ** _column(shots.gamma)
    mean = powered.mean((1, 2, 3), keepdim=True)
    return _column(shots.gain) * (mean + _column(shots.contrast) * (powered - mean))


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera and the hand that holds it: what is the same in all its photographs, and how far the hand strays."""

    gain: float = 1.0
    gamma: float = 1.0
    contrast: float = 1.0
    noise: float = 0.0
    blur: float = 0.0
    shift: int = 0
    """Largest shift, whole pixels, drawn for each photograph."""
    tilt: float = 0.0
    """Largest rotation, degrees, drawn for each photograph."""
    distance: float = 0.0
    """Largest change of the zoom, drawn for each photograph."""
    quality: int = 0
    """Of JPEG compression; 0 for none."""

    def shots(self, n: int, random: np.random.Generator) -> Shots:
        """n photographs by this camera."""
        return shots_of([self] * n, random)

    def photograph(self, images: Images, random: np.random.Generator) -> Images:
        """The photographs that this camera would have taken."""
        return photograph(images, self.shots(len(images), random), random)


def shots_of(cameras: Sequence[Camera], random: np.random.Generator) -> Shots:
    """One photograph by each camera."""

    def column(name: str) -> Column:
        return np.array([getattr(camera, name) for camera in cameras], dtype=np.float64)

    n, shift = len(cameras), column("shift").astype(np.int64)
    return Shots.plain(n).varied(
        gain=column("gain"),
        gamma=column("gamma"),
        contrast=column("contrast"),
        noise=column("noise"),
        blur=column("blur"),
        quality=column("quality"),
        degrees=random.uniform(-1.0, 1.0, n) * column("tilt"),
        zoom=1.0 + random.uniform(-1.0, 1.0, n) * column("distance"),
        down=random.integers(-shift, shift + 1).astype(np.float64),
        right=random.integers(-shift, shift + 1).astype(np.float64),
    )


def varied_camera(random: np.random.Generator) -> Camera:
    """A camera somewhere between a good studio and a poor phone; each of its faults is there half the time."""

    def sometimes(low: float, high: float, otherwise: float) -> float:
        value = random.uniform(low, high)
        return float(value if random.random() < 0.5 else otherwise)

    return Camera(
        gain=sometimes(0.5, 1.2, 1.0),
        gamma=sometimes(0.65, 1.6, 1.0),
        contrast=sometimes(0.6, 1.3, 1.0),
        noise=sometimes(0.0, 0.06, 0.0),
        blur=sometimes(0.3, 0.9, 0.0),
        shift=int(random.integers(0, 3)),
        tilt=sometimes(0.0, 12.0, 0.0),
        distance=sometimes(0.0, 0.1, 0.0),
        quality=int(sometimes(40, 96, 0)),
    )


def varied_shots(n: int, random: np.random.Generator) -> Shots:
    """n photographs by n cameras of `varied_camera`."""
    return shots_of([varied_camera(random) for _ in range(n)], random)


def joined(parts: Sequence[Shots]) -> Shots:
    """The shots of all parts, in order."""
    return Shots(**{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Shots)})
