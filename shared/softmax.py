"""How sure a model is of its answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tmsp(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """TMSP(x, T), AMAO eq. 7 and 8: the largest softmax probability at temperature T.

    Args:
        logits: [n, classes].
        temperature: T, positive; above 1 it takes back a classifier's overconfidence.

    Returns:
        [n] in [1 / classes, 1].
    """
    scaled = logits.astype(np.float64) / temperature
    # The largest term of the shifted sum is exp(0) = 1, so the largest probability is 1 over the sum.
    result: NDArray[np.float64] = 1.0 / np.exp(scaled - scaled.max(axis=1, keepdims=True)).sum(axis=1)
    return result


def doubtful(logits: NDArray[np.float32], temperature: float, threshold: float) -> NDArray[np.bool_]:
    """Which of [n, classes] answers TMSP flags: those of which the model is no surer than lambda (AMAO, eq. 9)."""
    flagged: NDArray[np.bool_] = tmsp(logits, temperature) <= threshold
    return flagged
