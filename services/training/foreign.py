"""Images of what no model was made for, made up: what an attacker sends who has any pictures but the right ones.

Nobody knows which pictures those will be, so none of a real data set is used: strokes and shapes as a child draws them,
and the victim's own images cut into patches that are put together wrongly, so that texture stays and things are lost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shared.cameras import Images

FINER = 4
"""Drawn so many times as large and reduced, which smooths the edges."""
MOST_SHAPES = 5
CUTS = (2, 3, 4, 7)
"""Patches a side."""


def drawings(shape: tuple[int, ...], n: int, random: np.random.Generator) -> Images:
    """[n, *shape] strokes, polygons, ellipses and lines, bright on dark or the other way, in any colours.

    Args:
        shape: channels, height and width of an image.
        n: how many.
        random: of everything that is drawn.
    """
    channels, height, width = shape
    masks = np.stack([_drawing(height, width, random) for _ in range(n)])
    ground = random.uniform(0.0, 0.3, (n, channels, 1, 1)) * (random.random((n, 1, 1, 1)) < 0.5)
    ink = random.uniform(0.5, 1.0, (n, channels, 1, 1))
    blend = ground + (ink - ground) * masks[:, None]
    inverted = random.random((n, 1, 1, 1)) < 0.2
    images: Images = np.rint(255 * np.where(inverted, 1.0 - blend, blend)).astype(np.uint8)
    return images


def _drawing(height: int, width: int, random: np.random.Generator) -> NDArray[np.float64]:
    """[height, width] in [0, 1], how much ink lies where."""
    canvas = Image.new("L", (FINER * width, FINER * height))
    draw = ImageDraw.Draw(canvas)
    side = min(canvas.size)
    for _ in range(int(random.integers(1, MOST_SHAPES + 1))):
        ink = int(random.integers(120, 256))
        thickness = max(int(side * random.uniform(0.02, 0.15)), 1)
        points = [tuple(point) for point in (random.uniform(0.05, 0.95, (8, 2)) * canvas.size).tolist()]
        what = random.integers(4)
        if what == 0:
            draw.line(_smooth(points[: int(random.integers(3, 7))]), fill=ink, width=thickness, joint="curve")
        elif what == 1:
            draw.line(points[: int(random.integers(2, 6))], fill=ink, width=thickness)
        elif what == 2:
            draw.polygon(points[: int(random.integers(3, 7))], fill=ink if random.random() < 0.5 else None, outline=ink)
        else:
            (left, top), (right, bottom) = np.sort(np.array(points[:2]), axis=0).tolist()
            box = (left, top, right + 1, bottom + 1)
            draw.ellipse(box, fill=ink if random.random() < 0.3 else None, outline=ink, width=thickness)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float64) / 255.0


def _smooth(points: list[tuple[float, ...]]) -> list[tuple[float, float]]:
    """A curve near the points, from the first to the last: corners cut twice (Chaikin, 1974)."""
    curve = np.array(points)
    for _ in range(2):
        first, second = curve[:-1], curve[1:]
        cut = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], axis=1).reshape(-1, 2)
        curve = np.concatenate([curve[:1], cut, curve[-1:]])
    return [(x, y) for x, y in curve.tolist()]


def shuffled(images: Images, random: np.random.Generator) -> Images:
    """[n, channels, height, width], each image's patches in another order; some patches turned, all at one fineness."""
    height, width = images.shape[2:]
    cuts = int(random.choice(CUTS))
    rows, columns = height // cuts, width // cuts
    result = images.copy()
    # What is left over at the lower and right edge stays where it is.
    places = [(r * rows, c * columns) for r in range(cuts) for c in range(cuts)]
    for image, changed in zip(images, result, strict=True):
        for (top, left), source in zip(places, random.permutation(len(places)).tolist(), strict=True):
            y, x = places[source]
            patch = image[:, y : y + rows, x : x + columns]
            if rows == columns:
                patch = np.rot90(patch, int(random.integers(4)), axes=(1, 2))
            changed[:, top : top + rows, left : left + columns] = patch
    return result
