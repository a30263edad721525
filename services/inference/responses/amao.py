"""AMAO (seed 1), section 4.4: in every group of M queries one answer is wrong, on the query where that hurts a copy
most, as far as one can know while queries still come; and a query like one that was answered wrongly gets its answer.

Over the paper: the groups survive a restart (the policy's notes), an exact repeat of a true answer is true again, and
neither moves the group on, so that repeating a query, at once or later, at this replica or another, tells nothing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference.responses.interface import AccountStates, AnswerMode, Queries, Told, flipped, truth
from services.inference.responses.memory import PerturbedMemory, Promises

SURE = 0.9
"""Least probability of the label of a doubtful answer before it is exchanged; photographs are answered as surely."""
_GROUP = struct.Struct("<BIfB")
_NOTE_VERSION = 1


@dataclass(slots=True)
class Group:
    """Where an account stands in its group of M queries."""

    position: int = 0
    """Queries of the group that were seen."""
    largest_gap: float = 0.0
    """Gap*: the largest among the first r - 1 queries of the group."""
    spent: bool = False
    """Whether the group has had its wrong answer."""
    ours: bool = False
    """Whether this process has moved it on; until then the latest note says where it stands."""


class Amao:
    """Label flip by optimal stopping (AMAO, Algorithm 2), and the same answer for similar queries (section 4.4.2).

    A query is looked up first among the spoiled ones (of all accounts: colluding ones compare), then among those that
    this account was told the truth of while under PERTURB: either way it is told the same again, and the group
    does not move on. So an attacker who repeats a query learns nothing.

    Beyond the paper, doubtful queries (crafted ones, mostly) can all be answered wrongly, and then stand outside the
    groups: a thief who checks answers does it with images that he knows, and these are others.

    Each replica has groups of its own, or two replicas that are asked in turns would each wait for queries that the
    other sees. One that does not know an account goes on where any replica's latest note left it.
    """

    name = "amao"
    light = True

    def __init__(
        self,
        mode: AnswerMode,
        group: int,
        memory: PerturbedMemory,
        promises: Promises,
        doubtful: Callable[[NDArray[np.float32]], NDArray[np.bool_]] | None = None,
    ) -> None:
        """
        Args:
            mode: probabilities exchange the largest with the smallest; labels become the least likely class.
            group: M; one query of each group is answered wrongly.
            memory: of all accounts.
            promises: of all accounts.
            doubtful: from logits [n, classes] to which of the queries [n] are answered wrongly whatever their group;
                None for none of them.
        """
        self._memory = memory
        self._doubtful = doubtful
        self._promises = promises
        self._mode = mode
        self._group = group
        self._first_candidate = max(2 if group > 2 else 1, round(group / math.e))
        """r of eq. 12: the queries before it are only watched. Of three or four at least the first, which the limit of
        eq. 12 rounds away: it would always be the wrong one, and whoever knows that drops it."""
        self._groups = AccountStates(Group)

    def see(self, queries: Queries) -> None:
        """Nothing: the hashes are there already."""

    def answer(self, queries: Queries, seen: None) -> Told:
        """See `ResponsePolicy.answer`."""
        group = self._groups.of(queries.account)
        group.ours = True
        probabilities = queries.probabilities
        answers = truth(probabilities, self._mode)
        perturbed = np.zeros(len(answers), dtype=np.bool_)
        spoiled: list[int] = []
        promised: list[int] = []
        gaps = probabilities.max(axis=1) - probabilities.min(axis=1)
        doubtful = self._doubtful(queries.logits) if self._doubtful else np.zeros(len(answers), dtype=np.bool_)
        for row, (perceptual, exact) in enumerate(
            zip(queries.perceptual.tolist(), queries.exact.tolist(), strict=True)
        ):
            remembered = self._memory.recall(perceptual)
            if remembered is not None:
                answers[row] = remembered
                perturbed[row] = True
            elif not self._promises.holds(queries.account, exact):
                if doubtful[row] or self._select(group, float(gaps[row])):
                    given = surely(answers[row]) if doubtful[row] else answers[row]
                    answers[row] = flipped(probabilities[row], given)
                    self._memory.record(queries.ids[row], perceptual, answers[row].copy())
                    perturbed[row] = True
                    spoiled.append(row)
                else:
                    self._promises.keep(queries.account, (exact,))
                    promised.append(exact)
        note = _note(group, promised) if spoiled or promised else b""
        return Told(answers, perturbed, tuple(spoiled), note)

    def recall(self, account: str, note: bytes) -> None:
        """See `ResponsePolicy.recall`."""
        noted, promised = _read_note(note)
        self._promises.keep(account, promised)
        group = self._groups.of(account)
        if not group.ours:
            group.position, group.largest_gap, group.spent = noted.position, noted.largest_gap, noted.spent

    def _select(self, group: Group, gap: float) -> bool:
        """One step of Algorithm 2: whether this query is the one of its group."""
        group.position += 1
        watching = group.position < self._first_candidate
        last = group.position >= self._group
        chosen = not group.spent and (last or (not watching and gap > group.largest_gap))
        if watching:
            group.largest_gap = max(group.largest_gap, gap)
        group.spent = group.spent or chosen
        if last:
            group.position, group.largest_gap, group.spent = 0, 0.0, False
        return chosen


def surely(answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """A [classes] answer that is surer of the same label: exchanging the extremes of a doubtful one changes little."""
    sure = (1.0 - SURE) * answer
    sure[answer.argmax()] += SURE
    return sure


def _note(group: Group, promised: list[int]) -> bytes:
    head = _GROUP.pack(_NOTE_VERSION, group.position, group.largest_gap, group.spent)
    return head + np.array(promised, dtype="<u8").tobytes()


def _read_note(note: bytes) -> tuple[Group, list[int]]:
    """The inverse of `_note`.

    Raises:
        ValueError: it is none.
    """
    if len(note) < _GROUP.size or (len(note) - _GROUP.size) % 8 or note[0] != _NOTE_VERSION:
        raise ValueError(f"a note of {len(note)} bytes is not amao's")
    _, position, largest_gap, spent = _GROUP.unpack_from(note)
    promised: list[int] = np.frombuffer(note, dtype="<u8", offset=_GROUP.size).tolist()
    return Group(position, largest_gap, bool(spent)), promised
