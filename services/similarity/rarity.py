"""How rare a score is among honest ones, so that scores of different kinds can be added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAILS = np.geomspace(1.0, 1e-4, 64)
"""Tail probabilities at which honest scores are kept."""


class Rarity:
    """Minus the decimal logarithm of a score's tail probability among honest queries: 2 for one in a hundred.

    Sums of it over several statistics are Fisher's (Statistical methods for research workers, 1925): two scores that
    are each rare mean more together than one that is rarer.
    """

    def __init__(self, thresholds: NDArray[np.floating[Any]]) -> None:
        """
        Args:
            thresholds: [G], of each of `TAILS` the honest score that it is the share of honest scores at or above.

        Raises:
            ValueError: they are not as many as `TAILS`, or do not ascend.
        """
        if thresholds.shape != TAILS.shape or not (np.diff(thresholds) >= 0).all():
            raise ValueError(f"{len(TAILS)} ascending thresholds are needed, not {thresholds.shape}")
        self.thresholds = thresholds.astype(np.float64)

    @classmethod
    def of(cls, honest: NDArray[np.floating[Any]]) -> Rarity:
        """Of honest scores [n], larger is more suspicious."""
        return cls(np.quantile(honest, 1 - TAILS))

    def __call__(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """[n], in [0, 4]."""
        result: NDArray[np.float64] = np.interp(scores, self.thresholds, -np.log10(TAILS))
        return result


def tensors(unsure: Rarity, crafted: Rarity) -> Mapping[str, NDArray[np.float64]]:
    """As the bundle keeps both, in the file `rarity`."""
    return {"unsure": unsure.thresholds, "crafted": crafted.thresholds}
