"""What a response policy is.

Like a detector it has two halves: `see` is stateless, vectorised and may run networks, in any thread; `answer` takes an
account's queries in order and is quick, for nothing else is answered meanwhile.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

STATES_KEPT = 65_536
"""Accounts whose state one policy remembers; who has been silent longest is forgotten."""


class AnswerMode(enum.StrEnum):
    """What a client is told of a query."""

    PROBABILITIES = "probabilities"
    LABEL = "label"


@dataclass(frozen=True, slots=True)
class Queries:
    """n queries of one account under PERTURB, and what the model says of them."""

    account: str
    ids: Sequence[str]
    inputs: NDArray[np.uint8]
    """[n, channels, height, width]"""
    features: NDArray[np.float32]
    """[n, d], what the model's last layer sees."""
    logits: NDArray[np.float32]
    """[n, classes]"""
    probabilities: NDArray[np.float32]
    """[n, classes], softmax of the logits."""
    perceptual: NDArray[np.uint64]
    """[n] perceptual hashes."""
    exact: NDArray[np.uint64]
    """[n] digests of the inputs."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Told:
    """What n queries are answered."""

    answers: NDArray[np.float32]
    """[n, classes]"""
    perturbed: NDArray[np.bool_]
    """[n], whether the answer is not the model's."""
    spoiled: tuple[int, ...] = ()
    """Rows whose label was made wrong just now, and was not remembered: evidence, to be published each."""
    note: bytes = b""
    """What the policy must be told again after a restart, and other replicas now; empty where there is nothing."""


class ResponsePolicy(Protocol):
    """One way to answer accounts under PERTURB."""

    name: str
    light: bool
    """Whether `see` takes a few hundred microseconds at most for one small image."""

    def see(self, queries: Queries) -> Any:
        """What `answer` needs to know of the queries beyond the queries; any thread may ask."""

    def answer(self, queries: Queries, seen: Any) -> Told:
        """What to tell the account, query after query. `seen` is what `see` said of the same queries."""

    def recall(self, account: str, note: bytes) -> None:
        """Take in a note of an earlier life of this process, or of another replica.

        Raises:
            ValueError: it is no note of this policy.
        """


State = TypeVar("State")


class AccountStates(Generic[State]):
    """One state an account, bounded."""

    def __init__(self, begin: Callable[[], State], most: int = STATES_KEPT) -> None:
        """
        Args:
            begin: makes the state of an account that is not known.
            most: accounts that are remembered.
        """
        self._begin = begin
        self._most = most
        self._states: OrderedDict[str, State] = OrderedDict()

    def of(self, account: str) -> State:
        """The account's state, to be changed in place."""
        state = self._states.get(account)
        if state is None:
            state = self._states[account] = self._begin()
            if len(self._states) > self._most:
                self._states.popitem(last=False)
        else:
            self._states.move_to_end(account)
        return state


def truth(probabilities: NDArray[np.float32], mode: AnswerMode) -> NDArray[np.float32]:
    """[n, classes], a copy: the model's answer; in label mode one-hot."""
    if mode is AnswerMode.PROBABILITIES:
        return probabilities.copy()
    labels: NDArray[np.float32] = np.eye(probabilities.shape[1], dtype=np.float32)[probabilities.argmax(axis=1)]
    return labels


def flipped(probabilities: NDArray[np.float32], answer: NDArray[np.float32]) -> NDArray[np.float32]:
    """A [classes] answer with its largest and smallest value exchanged; a label becomes the least likely class.

    AMAO, section 4.4.1 and its footnote 2.
    """
    largest, smallest = int(probabilities.argmax()), int(probabilities.argmin())
    wrong = answer.copy()
    wrong[[largest, smallest]] = wrong[[smallest, largest]]
    return wrong
