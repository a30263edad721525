"""A thing that is shown again is news only where it is more suspicious than before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.novelty import ALIKE, GRID, LATEST, Novelty, thumbnails


def picture(seed: int) -> np.ndarray:
    """[1, 28, 28] with large bright and dark parts."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7), dtype=np.uint8)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)[None]


def small(image: np.ndarray) -> np.ndarray:
    return thumbnails(image[None])[0]


def scores(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def news(novelty: Novelty, thumbnail: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What is new of one query."""
    return novelty.news(thumbnail[None], values[None])[0]


def one_by_one(thumbnails_sent: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The definition: each query beside those that were sent just before it."""
    found = []
    for number, (mine, score) in enumerate(zip(thumbnails_sent.astype(float), values, strict=True)):
        before = slice(max(number - LATEST, 0), number)
        others, known = thumbnails_sent[before].astype(float), values[before]
        longer = np.maximum(np.square(others).sum(axis=1), np.square(mine).sum())
        alike = np.square(others - mine).sum(axis=1) < ALIKE**2 * longer
        heard = np.where(np.isnan(known), -np.inf, known)
        found.append(~(score <= heard[alike].max(axis=0, initial=-np.inf)) | ~alike.any())
    return np.array(found)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 30), (1, 2, 2), (3, 96, 64)])
def test_a_thumbnail_holds_the_mean_of_each_cell(shape: tuple[int, int, int]) -> None:
    inputs = np.random.default_rng(1).integers(0, 256, (4, *shape), dtype=np.uint8)
    found = thumbnails(inputs)
    assert found.shape == (4, min(GRID, shape[1]) * min(GRID, shape[2]))
    grey = inputs.mean(axis=1)
    edges = [np.unique(np.linspace(0, size, min(GRID, size), endpoint=False).astype(int)) for size in shape[1:]]
    ends = [*edges[0], shape[1]][1], [*edges[1], shape[2]][1]
    np.testing.assert_allclose(found[:, 0], grey[:, : ends[0], : ends[1]].mean(axis=(1, 2)), atol=0.51)


def test_inputs_that_are_no_images_have_thumbnails_too() -> None:
    assert thumbnails(np.arange(200, dtype=np.uint8).reshape(2, 100)).shape == (2, GRID * GRID)


def test_a_first_and_an_unlike_query_are_news() -> None:
    novelty = Novelty(2)
    assert news(novelty, small(picture(1)), scores(0.0, 5.0)).tolist() == [True, True]
    assert news(novelty, small(picture(2)), scores(-1.0, 4.0)).tolist() == [True, True]


def test_the_same_thing_again_is_news_only_in_what_is_more_suspicious_now() -> None:
    novelty, image = Novelty(2), picture(1)
    moved = np.clip(image.astype(int) + np.random.default_rng(2).integers(-9, 10, image.shape), 0, 255).astype(np.uint8)
    news(novelty, small(image), scores(0.0, 5.0))
    assert news(novelty, small(moved), scores(0.1, 5.0)).tolist() == [True, False]
    # The record counts from now on.
    assert news(novelty, small(image), scores(0.05, 5.1)).tolist() == [False, True]


def test_a_value_that_was_missing_is_news_when_it_comes() -> None:
    novelty, image = Novelty(1), picture(1)
    news(novelty, small(image), scores(float("nan")))
    assert news(novelty, small(image), scores(-3.0)).tolist() == [True]
    assert news(novelty, small(image), scores(-3.0)).tolist() == [False]


def test_what_was_long_ago_is_forgotten() -> None:
    novelty, image = Novelty(1), picture(1)
    news(novelty, small(image), scores(1.0))
    for seed in range(2, LATEST + 1):
        news(novelty, small(picture(seed)), scores(0.0))
    assert news(novelty, small(image), scores(0.5)).tolist() == [False]
    for seed in range(100, 100 + LATEST):
        news(novelty, small(picture(seed)), scores(0.0))
    assert news(novelty, small(image), scores(0.2)).tolist() == [True]


def test_brightness_in_the_dark_is_compared_with_the_brighter_of_the_two() -> None:
    novelty = Novelty(1)
    black = np.zeros((1, 28, 28), dtype=np.uint8)
    news(novelty, small(black), scores(0.0))
    assert news(novelty, small(picture(1)), scores(0.0)).tolist() == [True]


def test_a_stored_novelty_goes_on_as_if_nothing_had_happened() -> None:
    whole, cut = Novelty(2), Novelty(2)
    random = np.random.default_rng(3)
    for step in range(3 * LATEST):
        thumbnail, values = small(picture(int(random.integers(20)))), random.normal(size=2).astype(np.float32)
        if step % 7 == 0:
            cut = Novelty.restore({name: array.copy() for name, array in cut.arrays().items()})
        assert news(whole, thumbnail, values).tolist() == news(cut, thumbnail, values).tolist()
    assert sum(array.nbytes for array in whole.arrays().values()) < 4_000


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 150), cuts=st.lists(st.integers(1, 149), max_size=12),
    kinds=st.integers(1, 60),
)  # fmt: skip
def test_queries_taken_in_together_in_any_parts_are_judged_one_by_one(
    seed: int, queries: int, cuts: list[int], kinds: int
) -> None:
    random = np.random.default_rng(seed)
    pictures = thumbnails(np.stack([picture(kind) for kind in range(kinds)]))[random.integers(kinds, size=queries)]
    pictures = np.clip(pictures + random.integers(-3, 4, pictures.shape), 0, 255).astype(np.uint8)
    values = random.normal(size=(queries, 2)).round(1).astype(np.float32)
    values[random.random(values.shape) < 0.2] = np.nan
    novelty, parts = Novelty(2), sorted({cut for cut in cuts if cut < queries})
    found = [novelty.news(*part) for part in zip(np.split(pictures, parts), np.split(values, parts), strict=True)]
    np.testing.assert_array_equal(np.concatenate(found), one_by_one(pictures, values))
