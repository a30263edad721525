"""Nearest neighbours are exact, forget from the oldest end, and have the same bits when they are built anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.neighbours import NeighbourIndex, ReferenceIndex


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    moves=st.lists(st.tuples(st.integers(1, 40), st.floats(0.0, 1.0)), min_size=1, max_size=8),
)
def test_an_index_that_grew_and_forgot_is_the_one_built_from_what_it_keeps(
    seed: int, moves: list[tuple[int, float]]
) -> None:
    random = np.random.default_rng(seed)
    index, kept = NeighbourIndex(5), np.empty((0, 5), dtype=np.float32)
    for added, share in moves:
        vectors = random.normal(size=(added, 5)).astype(np.float32)
        for vector in vectors:
            index.add(vector)
        kept = np.concatenate([kept, vectors])
        dropped = int(share * len(kept))
        if dropped:
            index.drop_oldest(dropped)
            kept = kept[dropped:]
        rebuilt = NeighbourIndex(5)
        if len(kept):
            rebuilt.add(kept)
        query = random.normal(size=5).astype(np.float32)
        distance, number = index.nearest(query)
        assert len(index) == len(rebuilt) == len(kept)
        assert (distance, number) == rebuilt.nearest(query)
        if len(kept):
            every = np.linalg.norm(kept.astype(np.float64) - query, axis=1)
            assert distance == pytest.approx(every.min(), rel=1e-5)
            assert number == every.argmin()
        else:
            assert (distance, number) == (float("inf"), -1)


def test_a_vector_that_is_there_is_at_no_distance() -> None:
    vectors = np.random.default_rng(1).uniform(size=(100, 784)).astype(np.float32)
    index = NeighbourIndex(784)
    index.add(vectors)
    assert index.nearest(vectors[37]) == (0.0, 37)


@pytest.mark.parametrize("together", [2, 19, 20, 21, 64])
def test_the_distance_to_the_reference_does_not_depend_on_the_company(together: int) -> None:
    random = np.random.default_rng(2)
    index = ReferenceIndex(random.normal(size=(500, 128)).astype(np.float32))
    queries = random.normal(size=(together, 128)).astype(np.float32)
    alone = np.concatenate([index.distances(query[None], 10) for query in queries])
    assert index.distances(queries, 10).tobytes() == alone.tobytes()
