"""Responses that ask another network: MeCo perturbs the input, adaptive misinformation mixes in a misleading model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from services.inference.responses.interface import AnswerMode, Queries
from services.inference.responses.stateless import Probabilities, Stateless, keyed


class Meco(Stateless):
    """MeCo (seed 3), section 4.2: y = T(x + h(x, noise)), where T and h were trained together.

    Keyed, the noise follows from the account and the perceptual hash: the paper draws it anew for every query, and who
    repeats a query averages it away.
    """

    name = "meco"
    light = False

    def __init__(
        self,
        mode: AnswerMode,
        perturbed: Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.float32]],
        key: bytes | None,
    ) -> None:
        """
        Args:
            mode: what the model answers.
            perturbed: from views and standard normal noise of their shape to probabilities [n, classes].
            key: secret, the same for all replicas; None draws the noise anew each time.
        """
        super().__init__(mode)
        self._perturbed = perturbed
        self._key = key
        self._random = np.random.default_rng()

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        return self._perturbed(queries.inputs, self._noise(queries)).astype(np.float64)

    def _noise(self, queries: Queries) -> NDArray[np.float32]:
        shape = queries.inputs.shape
        if self._key is None:
            return self._random.standard_normal(shape, dtype=np.float32)
        key = hashlib.blake2b(queries.account.encode(), key=self._key[:64], digest_size=32).digest()
        drawn = [random.standard_normal(shape[1:], dtype=np.float32) for random in keyed(key, queries)]
        return np.array(drawn, dtype=np.float32).reshape(shape)


class AdaptiveMisinformation(Stateless):
    """Adaptive misinformation (Kariyappa and Qureshi 2020, eq. 5 and 6): (1 - a) f(x) + a misleading(x).

    a = 1 / (1 + exp(nu (max f(x) - tau))): what the model is sure of is answered as it is.
    """

    name = "adaptive-misinformation"
    light = False

    def __init__(
        self, mode: AnswerMode, misleading: Callable[[NDArray[np.uint8]], NDArray[np.float32]], tau: float, nu: float
    ) -> None:
        """
        Args:
            mode: what the model answers.
            misleading: from views to probabilities [n, classes] of a model that was trained to be wrong.
            tau: maximum softmax probability at which both count half.
            nu: steepness.
        """
        super().__init__(mode)
        self._misleading, self._tau, self._nu = misleading, tau, nu

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        honest = queries.probabilities.astype(np.float64)
        sure = self._nu * (honest.max(axis=1, keepdims=True) - self._tau)
        # 1 / (1 + exp(s)) without an overflow on either side.
        share = 0.5 * (1.0 - np.tanh(0.5 * sure))
        told: Probabilities = (1.0 - share) * honest + share * self._misleading(queries.inputs)
        return told
