"""Responses that depend on the query alone: what the papers compare with, and what APIs have always done.

Each bends a vector of probabilities. A client who is told labels notices only those that move the label.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from services.inference.responses.interface import AnswerMode, Queries, Told, truth

Probabilities = NDArray[np.float64]
"""[n, classes], rows of sum 1."""

MARGIN = 1e-4
"""By which the label's probability stays ahead of the others' where a response keeps the label."""
MOST_ENUMERATED = 10
"""Classes up to which prediction poisoning tries every vertex of the hypercube, as the paper does."""
TINY = 1e-7
"""Keeps logarithms and quotients finite."""


class Stateless(ABC):
    """A response without memory: the same query gets the same answer, from every replica and for every account."""

    name: str
    light = True

    def __init__(self, mode: AnswerMode) -> None:
        """
        Args:
            mode: what the model answers.
        """
        self._mode = mode

    @abstractmethod
    def see(self, queries: Queries) -> Probabilities:
        """[n, classes] probabilities to be told instead of the model's."""

    def answer(self, queries: Queries, seen: Probabilities) -> Told:
        """See `ResponsePolicy.answer`."""
        honest = truth(queries.probabilities, self._mode)
        answers = truth(seen.astype(np.float32), self._mode)
        moved = honest.argmax(axis=1) != answers.argmax(axis=1)
        return Told(answers, (answers != honest).any(axis=1), tuple(np.flatnonzero(moved).tolist()))

    def recall(self, account: str, note: bytes) -> None:
        """See `ResponsePolicy.recall`; these write none.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name} writes no notes")


class TopK(Stateless):
    """The k largest probabilities as they are; what is left is spread evenly over the other classes."""

    name = "top-k"

    def __init__(self, mode: AnswerMode, k: int) -> None:
        """
        Args:
            mode: what the model answers.
            k: probabilities that are told.
        """
        super().__init__(mode)
        self._k = k

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        told = queries.probabilities.astype(np.float64)
        classes = told.shape[1]
        if self._k >= classes:
            return told
        others = np.argsort(-told, axis=1, kind="stable")[:, self._k :]
        rest = np.take_along_axis(told, others, axis=1).mean(axis=1, keepdims=True)
        np.put_along_axis(told, others, np.broadcast_to(rest, others.shape), axis=1)
        return told


class Rounding(Stateless):
    """Probabilities rounded to a number of decimals; the label stays ahead, the sum may differ from 1."""

    name = "rounding"

    def __init__(self, mode: AnswerMode, decimals: int) -> None:
        """
        Args:
            mode: what the model answers.
            decimals: of every probability.
        """
        super().__init__(mode)
        self._decimals = decimals

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        honest = queries.probabilities.astype(np.float64)
        return keep_label(np.round(honest, self._decimals), honest)


class ReverseSigmoid(Stateless):
    """Deceptive perturbation (Lee et al. 2019, eq. 4): y - beta (sigmoid(gamma logit(y)) - 1/2), normalised.

    Where a large beta would move the label, the label is kept: the defence is meant to be accuracy-preserving.
    """

    name = "reverse-sigmoid"

    def __init__(self, mode: AnswerMode, beta: float, gamma: float) -> None:
        """
        Args:
            mode: what the model answers.
            beta: size of the perturbation.
            gamma: slope of the sigmoid.
        """
        super().__init__(mode)
        self._beta, self._gamma = beta, gamma

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        honest = queries.probabilities.astype(np.float64)
        inside = np.clip(honest, TINY, 1 - TINY)
        # sigmoid(gamma * log(y / (1 - y))) without an overflow on the way.
        bent = 1.0 / (1.0 + np.exp(-self._gamma * (np.log(inside) - np.log1p(-inside))))
        told = np.maximum(honest - self._beta * (bent - 0.5), TINY)
        return keep_label(told / told.sum(axis=1, keepdims=True), honest)


class RandomPerturbation(Stateless):
    """Probabilities moved in a random direction by an L1 distance, label kept (Orekondy et al. 2020, `random-noise`).

    The direction follows from a key and the perceptual hash: who repeats a query averages nothing away.
    """

    name = "random-perturbation"

    def __init__(self, mode: AnswerMode, epsilon: float, key: bytes) -> None:
        """
        Args:
            mode: what the model answers.
            epsilon: L1 distance to the true probabilities, at most.
            key: secret; the same for all replicas.
        """
        super().__init__(mode)
        self._epsilon, self._key = epsilon, key

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        honest = queries.probabilities.astype(np.float64)
        targets = np.array([random.dirichlet(np.ones(honest.shape[1])) for random in keyed(self._key, queries)])
        return keep_label(toward(honest, targets.reshape(honest.shape), self._epsilon), honest)


class PredictionPoisoning(Stateless):
    """MAD-argmax (Orekondy et al. 2020, eq. 4 to 7): the answer whose gradient points farthest from the true one's.

    The paper differentiates a surrogate at every query. By its last layer alone, as the paper does, class k's gradient
    is (p - e_k) h, with p the surrogate's probabilities and h its features; of a surrogate that has learnt nothing, as
    the paper's, p is uniform. Then the gradient for an answer y points as (uniform - y) does, and no network runs.
    """

    name = "prediction-poisoning"
    light = False

    def __init__(self, mode: AnswerMode, epsilon: float, classes: int) -> None:
        """
        Args:
            mode: what the model answers.
            epsilon: L1 distance to the true probabilities, at most.
            classes: of the model.
        """
        super().__init__(mode)
        self._epsilon = epsilon
        self._targets = _vertices(classes)

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        honest = queries.probabilities.astype(np.float64)
        told = np.empty_like(honest)
        for row, one in enumerate(honest):
            candidates = keep_label(toward(one[None], self._targets, self._epsilon), one[None])
            told[row] = candidates[_cosines(candidates, one).argmin()]
        return told


class GradientRedirection(Stateless):
    """GRAD^2 (Mazeika et al. 2022, section 3.2): the answer whose gradient points most against the true one's.

    The inner product of both gradients is linear in the answer, so probability moves from the class of the largest
    coefficient to that of the smallest, half of the L1 distance, and on to the next where a class has no more. The
    surrogate is that of `PredictionPoisoning`: class k's coefficient is then (uniform - e_k) (uniform - y). The label
    may move.
    """

    name = "gradient-redirection"

    def __init__(self, mode: AnswerMode, epsilon: float) -> None:
        """
        Args:
            mode: what the model answers.
            epsilon: L1 distance to the true probabilities, at most.
        """
        super().__init__(mode)
        self._epsilon = epsilon

    def see(self, queries: Queries) -> Probabilities:
        """See `Stateless.see`."""
        told = queries.probabilities.astype(np.float64)
        # (u - e_k) (u - y) = y_k - 1 / classes: the coefficients are in the order of the probabilities themselves.
        order = np.argsort(-told, axis=1, kind="stable")
        left = np.full(len(told), self._epsilon / 2)
        receiver = order[:, -1]
        rows = np.arange(len(told))
        for giver in order[:, :-1].T:
            given = np.minimum(left, told[rows, giver])
            told[rows, giver] -= given
            told[rows, receiver] += given
            left -= given
        return told


def keyed(key: bytes, queries: Queries) -> Iterator[np.random.Generator]:
    """Chance for each query that depends on the key and the perceptual hash alone."""
    for value in queries.perceptual.tolist():
        digest = hashlib.blake2b(value.to_bytes(8, "big"), key=key[:64], digest_size=16).digest()
        yield np.random.default_rng(int.from_bytes(digest, "big"))


def toward(honest: Probabilities, targets: Probabilities, epsilon: float) -> Probabilities:
    """Probabilities moved toward targets until their L1 distance is `epsilon`, or the target is reached."""
    distance = np.abs(targets - honest).sum(axis=1, keepdims=True)
    share = np.minimum(1.0, epsilon / np.maximum(distance, TINY))
    moved: Probabilities = honest + share * (targets - honest)
    return moved


def keep_label(told: Probabilities, honest: Probabilities) -> Probabilities:
    """Probabilities taken back toward the honest ones just as far as the honest label needs to stay ahead."""
    label = honest.argmax(axis=1)[:, None]
    honest_lead = np.take_along_axis(honest, label, axis=1) - honest
    lead = np.take_along_axis(told, label, axis=1) - told
    wanted = np.minimum(MARGIN, honest_lead)
    # Of told + share (honest - told) the lead is lead + share (honest_lead - lead).
    short = wanted - lead
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(short > 0, short / (honest_lead - lead), 0.0)
    np.put_along_axis(shares, label, 0.0, axis=1)
    share = np.clip(np.nan_to_num(shares, nan=1.0, posinf=1.0), 0.0, 1.0).max(axis=1, keepdims=True)
    result: Probabilities = told + share * (honest - told)
    return result


def _vertices(classes: int) -> Probabilities:
    """[m, classes]: where the search for the farthest gradient looks, all non-empty sets of classes; of many classes
    the single ones."""
    if classes > MOST_ENUMERATED:
        return np.eye(classes)
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=classes))[1:])
    vertices: Probabilities = corners / corners.sum(axis=1, keepdims=True)
    return vertices


def _cosines(candidates: Probabilities, honest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the gradients of candidates with that of the [classes] honest answer; least where they differ most.

    ||a/|a| - b/|b|||^2 = 2 - 2 cos, so the paper's largest distance is the smallest cosine.
    """
    centre = 1.0 / len(honest)
    gradients, true = centre - candidates, centre - honest
    length = np.linalg.norm(gradients, axis=1) * np.linalg.norm(true)
    cosines: NDArray[np.float64] = (gradients @ true) / np.maximum(length, TINY)
    return cosines
