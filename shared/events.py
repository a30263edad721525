"""What the services tell each other, as frozen dataclasses; `shared.codec` turns them into bytes and back.

A record of `queries` is a batch and stays columnar all the way: one array per column, row i of each belongs to
query i, so that scoring is vectorised without a copy.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


class Action(enum.IntEnum):
    """What inference does with an account's queries; the order is the order of severity."""

    ALLOW = 1
    OBSERVE = 2
    PERTURB = 3
    THROTTLE = 4
    BAN = 5

    @property
    def enforced(self) -> bool:
        """Whether the client's answers change; OBSERVE only watches more closely."""
        return self >= Action.PERTURB


@dataclass(frozen=True, slots=True)
class QueryBatch:
    """Queries of any accounts of one partition, answered by one version of one model. n is the number of rows."""

    batch_id: bytes
    """16 bytes; the same whenever the batch is sent again."""
    model_name: str
    model_version: str
    query_ids: Sequence[str]
    accounts: Sequence[str]
    request_ids: Sequence[str]
    accepted_at: NDArray[np.int64]
    """[n], microseconds since the Unix epoch."""
    inputs: NDArray[np.uint8]
    """[n, ...], the detectors' view of the input: just what the model saw."""
    logits: NDArray[np.float32]
    """[n, classes], before any perturbation."""
    answers: NDArray[np.float32]
    """[n, classes], what the client was told."""
    actions: NDArray[np.uint8]
    """[n], the `Action` in force when the query was answered."""
    perturbed: NDArray[np.bool_]
    """[n], whether the answer was spoiled."""

    def __len__(self) -> int:
        return len(self.query_ids)


@dataclass(frozen=True, slots=True)
class Signal:
    """What one detector says of one account after the account's rows in one batch."""

    account: str
    queries: int
    """Queries of the account so far, repeats included."""
    repeats: int
    """Of these, exact repeats of an earlier input; they are no evidence."""
    statistic: float
    """The paper's statistic; NaN before there is one."""
    threshold: float
    flagged: bool
    """Whether the paper's rule condemns the account."""
    details: Mapping[str, float]
    log_evidence: NDArray[np.float32]
    """[profiles], natural logarithm of the Shiryaev-Roberts sum R under each honest profile."""
    accepted_at: int
    """Microseconds since the Unix epoch, of the account's last query in the batch."""
    query_id: str
    """Of the same query."""


@dataclass(frozen=True, slots=True)
class SignalBatch:
    """One detector's signals for one record of `queries`."""

    detector: str
    model_name: str
    model_version: str
    batch_id: bytes
    source_partition: int
    source_offset: int
    signals: Sequence[Signal]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What inference is to do with an account from now on."""

    verdict_id: str
    account: str
    model_name: str
    action: Action
    rule: str
    reason: str
    log_evidence: float
    """Natural logarithm, the smallest over the profiles."""
    issued_at: int
    expires_at: int
    """Microseconds since the Unix epoch; 0 for a verdict that stays until another replaces it."""
    cause_query_id: str = ""
    cause_accepted_at: int = 0
    response: str = ""
    """For PERTURB: how answers are spoiled, as `shared.responses.response_text` writes it."""
    queries_per_second: float = 0.0
    """Rate that THROTTLE leaves to the account."""
    at_query: int = 0
    """How many of the account's queries the decision had seen."""


class OverrideKind(enum.IntEnum):
    """What a person wants done with an account."""

    PARDON = 1
    PIN = 2
    CLEAR = 3


@dataclass(frozen=True, slots=True)
class Override:
    """A person's word on an account; it outranks every rule."""

    override_id: str
    account: str
    model_name: str
    kind: OverrideKind
    action: Action
    """What PIN holds the account at; ALLOW for the other kinds."""
    author: str
    reason: str
    issued_at: int
    expires_at: int = 0


@dataclass(frozen=True, slots=True)
class PerturbedAnswer:
    """An answer that was spoiled on purpose: memory of all replicas, and evidence of theft."""

    query_id: str
    account: str
    model_name: str
    model_version: str
    answered_at: int
    response: str
    perceptual_hash: int
    """64 bits."""
    hash_kind: str
    """Which hash it is: hashes of different kinds say nothing about each other."""
    similar_bits: int
    """Hashes of this kind that differ in no more bits are of similar images."""
    input: NDArray[np.uint8] = field(repr=False)
    logits: NDArray[np.float32] = field(repr=False)
    answer: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ResponseNote:
    """What a response policy must remember of an account under PERTURB: of all replicas, and after a restart."""

    account: str
    model_name: str
    model_version: str
    response: str
    """As in the verdict."""
    noted_at: int
    """Microseconds since the Unix epoch."""
    note: bytes
    """The policy's own."""
