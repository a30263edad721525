"""Exact nearest neighbours by FAISS, with the same bits however the queries are cut; on the GPU where there is one."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

# From this many queries a search FAISS switches to matrix products, whose last bit depends on the number of queries.
# One kernel for every pair makes a replay that is cut at other places give equal distances.
faiss.cvar.distance_compute_blas_threshold = np.iinfo(np.int32).max
# One query at a time has nothing to share among threads, and workers are scaled by process.
faiss.omp_set_num_threads(1)


class NeighbourIndex:
    """Vectors of one account, searched by L2 distance; the oldest can be dropped."""

    def __init__(self, dimensions: int) -> None:
        self._index = faiss.IndexFlatL2(dimensions)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """[n, dimensions] or [dimensions]; numbered on from the ones that are there."""
        self._index.add(np.ascontiguousarray(np.atleast_2d(vectors), dtype=np.float32))

    def nearest(self, vector: NDArray[np.float32]) -> tuple[float, int]:
        """L2 distance and number (0 is the oldest that is kept) of the nearest; (inf, -1) where there is none."""
        if not len(self):
            return float("inf"), -1
        squared, number = self._index.search(np.ascontiguousarray(vector[None], dtype=np.float32), 1)
        return float(np.sqrt(max(float(squared[0, 0]), 0.0))), int(number[0, 0])

    def drop_oldest(self, count: int) -> None:
        """Forget the `count` oldest; the others move up."""
        self._index.remove_ids(faiss.IDSelectorRange(0, count))


class ReferenceIndex:
    """A fixed set of vectors that every query is compared with: a GPU's own ground."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        index = faiss.IndexFlatL2(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        # faiss-cpu has no get_num_gpus; faiss-gpu counts 0 where the machine has none.
        gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
        self._index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index) if gpus else index

    def distances(self, vectors: NDArray[np.float32], neighbour: int) -> NDArray[np.float32]:
        """[n], L2 distance of each of [n, dimensions] to its `neighbour`-th nearest of the set."""
        squared, _ = self._index.search(np.ascontiguousarray(vectors, dtype=np.float32), neighbour)
        distances: NDArray[np.float32] = np.sqrt(np.maximum(squared[:, -1], 0.0))
        return distances
