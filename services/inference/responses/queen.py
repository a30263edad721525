"""QUEEN (seed 2): answers to sensitive queries make a copy unlearn, gently bent ones teach it little.

Features of the served model's last layer but one are mapped to a plane in which every class is a disc. A query in its
class's disc is sensitive: it tells much of the class. An account that has covered enough of a disc gets answers there
whose gradient undoes what its copy has learnt.

Over the published code: what was covered is an account's, not all accounts' together; the answer is found in closed
form instead of by a search from a random start, which repeated queries could average away; and a query that was once
answered gently is answered gently again, or repeating it would tell when the class was covered.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.inference.model import softmax
from services.inference.responses.interface import AccountStates, AnswerMode, Queries, Told, truth
from services.inference.responses.memory import Promises
from shared.responses import QueenResponse

SHARES = np.linspace(0.0, 1.0, 21, dtype=np.float32)[:, None, None]
"""[21, 1, 1] of the way to the farthest class's features: the authors' 20 steps."""
_HEAD = struct.Struct("<BII")
_NOTE_VERSION = 1
MOST_POINTS = 4_096
"""Recorded points of one account; the discs hold fewer at any sensible radius."""


@dataclass(frozen=True, slots=True)
class Atlas:
    """What QUEEN knows of the classes; made in training.

    Attributes:
        centres: [classes, 2], mean point of each class.
        distances: [classes], mean distance of a class's points to its centre.
        features: [classes, d], mean features of each class.
    """

    centres: NDArray[np.float32]
    distances: NDArray[np.float32]
    features: NDArray[np.float32]

    @property
    def farthest(self) -> NDArray[np.int64]:
        """[classes], the class whose features are farthest from each one's."""
        gaps = np.linalg.norm(self.features[:, None] - self.features[None], axis=2)
        farthest: NDArray[np.int64] = gaps.argmax(axis=1)
        return farthest


@dataclass(frozen=True, slots=True)
class QueenNetworks:
    """What QUEEN asks of networks.

    Attributes:
        atlas: of the classes.
        logits: [classes, classes], the served model's of the atlas's features.
        points_of: from features [n, d] to points [n, 2].
        shadows_of: from views to the shadow models' mean probabilities [n, classes].
    """

    atlas: Atlas
    logits: NDArray[np.float32]
    points_of: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    shadows_of: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What `Queen.answer` needs of n queries.

    Attributes:
        points: [n, 2].
        bent: [n, classes], the answer that keeps the label.
        shadows: [n, classes], mean probabilities of the shadow models.
    """

    points: NDArray[np.float32]
    bent: NDArray[np.float32]
    shadows: NDArray[np.float32]


@dataclass(slots=True)
class Covered:
    """What one account has seen of every class.

    Attributes:
        sensitivity: [classes], cumulative query sensitivity.
        points: [m, 2] of the sensitive queries that counted, by class.
        count: of all these points.
    """

    sensitivity: NDArray[np.float64]
    points: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    count: int = 0


Counted = tuple[int, NDArray[np.float32]]
"""A sensitive query's class and its point [2]."""


class Queen:
    """Query unlearning, per account."""

    name = "queen"
    light = True

    def __init__(self, mode: AnswerMode, networks: QueenNetworks, promises: Promises, response: QueenResponse) -> None:
        """
        Args:
            mode: what the model answers.
            networks: what the bundle holds for it.
            promises: of all accounts; here, inputs that were answered gently.
            response: its parameters.
        """
        self._mode, self._networks, self._promises = mode, networks, promises
        self._response = response
        self._atlas = atlas = networks.atlas
        classes = len(atlas.centres)
        self._accounts = AccountStates(lambda: Covered(np.zeros(classes)))
        self._far_logits = networks.logits[atlas.farthest]
        """[classes, classes], those of the class that is farthest from each one."""

    def see(self, queries: Queries) -> Seen:
        """See `ResponsePolicy.see`."""
        return Seen(
            self._networks.points_of(queries.features),
            self._bend(queries.logits, queries.probabilities),
            self._networks.shadows_of(queries.inputs),
        )

    def answer(self, queries: Queries, seen: Seen) -> Told:
        """See `ResponsePolicy.answer`."""
        covered = self._accounts.of(queries.account)
        probabilities = seen.bent.copy()
        counted: list[Counted] = []
        promised: list[int] = []
        labels, digests = queries.probabilities.argmax(axis=1).tolist(), queries.exact.tolist()
        for row, (label, digest) in enumerate(zip(labels, digests, strict=True)):
            if not self._is_sensitive(seen.points[row], label) or self._promises.holds(queries.account, digest):
                continue
            if self._cover(covered, seen.points[row], label):
                counted.append((label, seen.points[row]))
            if covered.sensitivity[label] > self._response.threshold:
                probabilities[row] = unlearning(queries.probabilities[row], seen.shadows[row])
            else:
                self._promises.keep(queries.account, (digest,))
                promised.append(digest)
        honest, answers = truth(queries.probabilities, self._mode), truth(probabilities, self._mode)
        wrong = np.flatnonzero(honest.argmax(axis=1) != answers.argmax(axis=1))
        note = _note(counted, promised) if counted or promised else b""
        return Told(answers, (answers != honest).any(axis=1), tuple(wrong.tolist()), note)

    def recall(self, account: str, note: bytes) -> None:
        """See `ResponsePolicy.recall`."""
        covered = self._accounts.of(account)
        counted, promised = _read_note(note, len(self._atlas.centres))
        self._promises.keep(account, promised)
        for label, point in counted:
            # What this process has noted itself lies where a point is already, and adds nothing.
            if self._is_sensitive(point, label):
                self._cover(covered, point, label)

    def _is_sensitive(self, point: NDArray[np.float32], label: int) -> bool:
        return bool(self._distance(point, label) < self._response.beta * self._atlas.distances[label])

    def _distance(self, point: NDArray[np.float32], label: int) -> float:
        return float(np.linalg.norm(point - self._atlas.centres[label]))

    def _cover(self, covered: Covered, point: NDArray[np.float32], label: int) -> bool:
        """Take in a sensitive query; whether it covers anything that was not covered before."""
        ball, disc = (
            share * float(self._atlas.distances[label]) for share in (self._response.radius, self._response.beta)
        )
        known = covered.points.get(label)
        if known is not None and np.linalg.norm(known - point, axis=1).min() < ball:
            return False
        sensitivity = 0.5 * math.erfc(self._response.alpha * (self._distance(point, label) - disc) / disc)
        covered.sensitivity[label] += sensitivity**2 * (ball / disc) ** 2
        if covered.count < MOST_POINTS:
            covered.points[label] = point[None] if known is None else np.concatenate([known, point[None]])
            covered.count += 1
        return True

    def _bend(self, logits: NDArray[np.float32], honest: NDArray[np.float32]) -> NDArray[np.float32]:
        """[n, classes]: answers to features moved toward those of the farthest class for as long as the label stays.

        The layer after the features is linear, so what it says on the way is between what it says at both ends.
        """
        labels = honest.argmax(axis=1)
        way = logits + SHARES * (self._far_logits[labels] - logits)
        keeps = np.logical_and.accumulate(way.argmax(axis=2) == labels, axis=0)
        # Share 0 keeps the label, but of two classes that are equally likely to the last bit.
        last = way[np.maximum(keeps.sum(axis=0) - 1, 0), np.arange(len(logits))]
        return np.where(keeps[0][:, None], softmax(last), honest)


def unlearning(honest: NDArray[np.float32], shadow: NDArray[np.float32]) -> NDArray[np.float32]:
    """The [classes] probabilities whose gradient is most nearly the reverse of the honest answer's.

    A copy that says `shadow` learns by honest - shadow; the reverse leads to 2 shadow - honest. The vector of the
    simplex with the largest cosine to a target is the target's positive part, normalised.
    """
    target = np.maximum(2.0 * shadow - honest, 0.0)
    reverse: NDArray[np.float32] = (target / target.sum()).astype(np.float32)
    return reverse


def _note(counted: list[Counted], promised: list[int]) -> bytes:
    labels = np.array([label for label, _ in counted], dtype="<u2")
    points = np.array([point for _, point in counted], dtype="<f4")
    head = _HEAD.pack(_NOTE_VERSION, len(counted), len(promised))
    return head + labels.tobytes() + points.tobytes() + np.array(promised, dtype="<u8").tobytes()


def _read_note(note: bytes, classes: int) -> tuple[list[Counted], list[int]]:
    """The inverse of `_note`.

    Raises:
        ValueError: it is none.
    """
    if len(note) < _HEAD.size or note[0] != _NOTE_VERSION:
        raise ValueError(f"a note of {len(note)} bytes is not queen's")
    _, count, promises = _HEAD.unpack_from(note)
    if len(note) != _HEAD.size + 10 * count + 8 * promises:
        raise ValueError(f"a note of {len(note)} bytes holds no {count} points and {promises} promises")
    labels = np.frombuffer(note, dtype="<u2", count=count, offset=_HEAD.size)
    points = np.frombuffer(note, dtype="<f4", count=2 * count, offset=_HEAD.size + 2 * count).reshape(count, 2)
    if count and (labels.max() >= classes or not np.isfinite(points).all()):
        raise ValueError("a note of queen names a class or a point that there is not")
    promised: list[int] = np.frombuffer(note, dtype="<u8", offset=_HEAD.size + 10 * count).tolist()
    return list(zip(labels.tolist(), points, strict=True)), promised
