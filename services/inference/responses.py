"""What an account under PERTURB is told. Policies are pure: no I/O, no clock, no chance.

AMAO (seed 1), section 4.4: in every group of M queries one answer is wrong, on the query where that hurts a copy most,
as far as one can know while queries still come; and a query like one that was answered wrongly gets the same answer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.inference.settings import AnswerMode
from shared.detection import input_digests

HASH_BITS = 64
KEPT_PROMISES = 4096
"""Inputs of one account that were answered truly under PERTURB and will be again."""


def perceptual_hashes(inputs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """[n] pHash (AMAO, section 4.4.2) of [n, channels, height, width] images; colour counts for nothing.

    Raises:
        ValueError: the views are no images of 1 or 3 channels.
    """
    if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        raise ValueError(f"views of shape {inputs.shape[1:]} are no images of 1 or 3 channels, height and width")
    pictures = inputs[:, 0] if inputs.shape[1] == 1 else np.moveaxis(inputs, 1, -1)
    bits = np.array([imagehash.phash(Image.fromarray(picture)).hash.ravel() for picture in pictures])
    hashes: NDArray[np.uint64] = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return hashes


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """By which queries are known again; n rows each."""

    perceptual: NDArray[np.uint64]
    exact: NDArray[np.uint64]

    @classmethod
    def of(cls, inputs: NDArray[np.uint8]) -> Fingerprints:
        """Of [n, channels, height, width] views; any thread may do it.

        Raises:
            ValueError: the views are no images.
        """
        return cls(perceptual_hashes(inputs), input_digests(inputs))


@dataclass(frozen=True, slots=True)
class Told:
    """What a request is answered."""

    answers: NDArray[np.float32]
    """[n, classes]"""
    perturbed: NDArray[np.bool_]
    """[n], whether the answer is not the model's."""
    spoiled: tuple[int, ...]
    """Rows that were spoiled now and not remembered: each is to be published."""


@dataclass(slots=True)
class AccountState:
    """What a response policy knows of one account under PERTURB."""

    position: int = 0
    """Queries of the current group that were seen."""
    largest_gap: float = 0.0
    """Gap*: the largest among the first r - 1 queries of the group."""
    spent: bool = False
    """Whether the group has had its wrong answer."""
    promises: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Digests of inputs that were answered truly."""


class ResponsePolicy(Protocol):
    """One way to answer accounts under PERTURB."""

    name: str

    def answer(
        self,
        state: AccountState,
        query_ids: Sequence[str],
        fingerprints: Fingerprints,
        probabilities: NDArray[np.float32],
    ) -> Told:
        """What to tell an account of n queries, in order.

        Args:
            state: the account's; it moves on.
            query_ids: of the n queries.
            fingerprints: of the n views.
            probabilities: [n, classes], what the model says.
        """


class PerturbedMemory:
    """Spoiled answers by the perceptual hash of their queries; the oldest are forgotten when it is full."""

    def __init__(self, capacity: int, similar_bits: int) -> None:
        """
        Args:
            capacity: answers kept.
            similar_bits: hashes that differ in no more bits are of similar queries.
        """
        self._similar_bits = similar_bits
        self._hashes = np.zeros(capacity, dtype=np.uint64)
        self._answers: list[NDArray[np.float32]] = []
        self._query_ids: list[str] = []
        self._known: set[str] = set()
        self._next = 0

    def __len__(self) -> int:
        return len(self._answers)

    def record(self, query_id: str, perceptual_hash: int, answer: NDArray[np.float32]) -> None:
        """Remember the [classes] answer to a query; once, however often the topic tells of it."""
        if query_id in self._known:
            return
        if len(self._answers) < len(self._hashes):
            self._answers.append(answer)
            self._query_ids.append(query_id)
        else:
            self._known.discard(self._query_ids[self._next])
            self._answers[self._next] = answer
            self._query_ids[self._next] = query_id
        self._hashes[self._next] = perceptual_hash
        self._known.add(query_id)
        self._next = (self._next + 1) % len(self._hashes)

    def recall(self, perceptual_hash: int) -> NDArray[np.float32] | None:
        """The recorded answer to the most similar query, None where none is similar."""
        if not self._answers:
            return None
        distances = np.bitwise_count(self._hashes[: len(self._answers)] ^ np.uint64(perceptual_hash))
        nearest = int(distances.argmin())
        return self._answers[nearest] if distances[nearest] <= self._similar_bits else None


class Amao:
    """Label flip by optimal stopping (AMAO, Algorithm 2), and the same answer for similar queries (section 4.4.2).

    A query is looked up first among the spoiled ones (of all accounts: colluding ones compare), then among those that
    this account was told the truth of while under PERTURB: either way it is told the same again, and the group
    does not move on. So an attacker who repeats a query learns nothing.
    """

    name = "amao"

    def __init__(self, mode: AnswerMode, group: int, memory: PerturbedMemory) -> None:
        """
        Args:
            mode: probabilities exchange the largest with the smallest; labels become the least likely class.
            group: M; one query of each group is answered wrongly.
            memory: of all accounts.
        """
        self.memory = memory
        self._mode = mode
        self._group = group
        self._first_candidate = max(1, round(group / math.e))
        """r of eq. 12: the queries before it are only watched."""

    def answer(
        self,
        state: AccountState,
        query_ids: Sequence[str],
        fingerprints: Fingerprints,
        probabilities: NDArray[np.float32],
    ) -> Told:
        """See `ResponsePolicy.answer`."""
        answers = truth(probabilities, self._mode)
        perturbed = np.zeros(len(answers), dtype=np.bool_)
        spoiled: list[int] = []
        gaps = probabilities.max(axis=1) - probabilities.min(axis=1)
        for row in range(len(answers)):
            perceptual, exact = int(fingerprints.perceptual[row]), int(fingerprints.exact[row])
            remembered = self.memory.recall(perceptual)
            if remembered is not None:
                answers[row] = remembered
                perturbed[row] = True
            elif exact not in state.promises:
                if self._select(state, float(gaps[row])):
                    answers[row] = _spoil(probabilities[row], answers[row])
                    self.memory.record(query_ids[row], perceptual, answers[row].copy())
                    perturbed[row] = True
                    spoiled.append(row)
                else:
                    _promise(state, exact)
        return Told(answers, perturbed, tuple(spoiled))

    def _select(self, state: AccountState, gap: float) -> bool:
        """One step of Algorithm 2: whether this query is the one of its group."""
        state.position += 1
        watching = state.position < self._first_candidate
        last = state.position == self._group
        chosen = not state.spent and (last or (not watching and gap > state.largest_gap))
        if watching:
            state.largest_gap = max(state.largest_gap, gap)
        state.spent = state.spent or chosen
        if last:
            state.position, state.largest_gap, state.spent = 0, 0.0, False
        return chosen


def _spoil(probabilities: NDArray[np.float32], answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """The [classes] answer with its largest and its smallest value exchanged; of a label, the least likely one."""
    largest, smallest = int(probabilities.argmax()), int(probabilities.argmin())
    wrong = answer.copy()
    wrong[[largest, smallest]] = wrong[[smallest, largest]]
    return wrong


def truth(probabilities: NDArray[np.float32], mode: AnswerMode) -> NDArray[np.float32]:
    """[n, classes], a copy: the model's answer; in label mode one-hot."""
    if mode is AnswerMode.PROBABILITIES:
        return probabilities.copy()
    labels: NDArray[np.float32] = np.eye(probabilities.shape[1], dtype=np.float32)[probabilities.argmax(axis=1)]
    return labels


def _promise(state: AccountState, digest: int) -> None:
    state.promises[digest] = None
    if len(state.promises) > KEPT_PROMISES:
        state.promises.popitem(last=False)
