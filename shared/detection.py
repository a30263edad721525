"""What a detector is.

A detector is a pure state machine with a vectorised front: `score` looks at queries of any accounts at once and knows
no account; `step` takes one account's rows in order. No I/O, no clock, no unseeded randomness, no logging. Parameters
are frozen in the constructor and come from the bundle.

A new detector names its `statistics`, and defines `score`, `initial_memory`, `observe` and `rule`; repeats, evidence,
state encoding, and everything about streams are done for it. The contract suite in tests/detectors runs over it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.bundle import Bundle, BundleError
from shared.evidence import EvidenceModel, EvidenceState
from shared.novelty import Novelty, thumbnails
from shared.rows import Rows, RowsChanges, RowsLayout

Features: TypeAlias = dict[str, NDArray[Any]]
"""Columns of equal length n, one row a query; what `score` hands to `step`."""

STATE_VERSION = 3
REPEAT_MEMORY = RowsLayout(shape=(), dtype=np.uint64, capacity=16_384, chunk_rows=512)
"""Digests of an account's inputs: an exact repeat within this many queries (a client's retry) is no evidence."""


class StateError(ValueError):
    """An encoded state cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """One number a query that honest and crafted queries differ in.

    Attributes:
        name: as signals show it.
        suspicious_when_high: or when low.
        heard: whether evidence listens to it; a paper's rule may need what evidence does not.
    """

    name: str
    suspicious_when_high: bool
    heard: bool = True

    @property
    def sign(self) -> float:
        """What makes a larger value a more suspicious one; NaN where evidence does not listen."""
        if not self.heard:
            return float("nan")
        return 1.0 if self.suspicious_when_high else -1.0


def orient(statistics: Sequence[Statistic], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, S] values as evidence reads them: larger is more suspicious, NaN where it does not listen."""
    signs: NDArray[np.float64] = np.array([statistic.sign for statistic in statistics])
    return values * signs


@dataclass(frozen=True, slots=True)
class Rule:
    """The paper's rule on an account at this moment."""

    statistic: float
    """NaN before there is one."""
    threshold: float
    flagged: bool
    details: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Observation:
    """What a detector says of an account after some of its rows."""

    queries: int
    repeats: int
    rule: Rule
    log_evidence: NDArray[np.float32]
    """[profiles]"""


@dataclass(frozen=True, slots=True)
class EncodedState:
    """A state in bytes: a small head that is written whole, and chunks of the rows that grow.

    Write `chunks` first, then `head`, then delete `deleted`; see `Rows.take_changes`.
    """

    head: bytes
    chunks: dict[str, bytes]
    deleted: tuple[str, ...]


class Memory(ABC):
    """What one detector remembers of one account: small arrays, and rows that grow.

    Indexes and other runtime objects are rebuilt by `restore` and never stored.
    """

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The small arrays, whole; their sizes have a fixed bound."""

    @abstractmethod
    def rows(self) -> dict[str, Rows]:
        """The growing rows by name."""

    @abstractmethod
    def restore(self, arrays: Mapping[str, NDArray[Any]], rows: Mapping[str, Rows]) -> None:
        """Become what `arrays` and `rows` said, into a memory that `initial_memory` has just made."""


MemoryType = TypeVar("MemoryType", bound=Memory)


@dataclass(slots=True)
class State(Generic[MemoryType]):
    """One account in the eyes of one detector."""

    queries: int
    repeats: int
    digests: Rows
    known: set[int]
    """The digests of `digests`, for look-up."""
    novelty: Novelty
    evidence: EvidenceState
    memory: MemoryType


def input_digests(inputs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """[n], 64-bit BLAKE2b digests of the rows of `inputs`, which tell an exact repeat."""
    rows = np.ascontiguousarray(inputs).reshape(len(inputs), -1)
    return np.array(
        [int.from_bytes(hashlib.blake2b(row.data, digest_size=8).digest(), "little") for row in rows], dtype=np.uint64
    )


def pixels(inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """uint8 views as float32 in [0, 1], in which distances between inputs are measured."""
    return inputs.astype(np.float32) / np.float32(255.0)


def check_inputs(inputs: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    """
    Raises:
        ValueError: inputs are not [n, *shape].
    """
    if inputs.shape[1:] != shape:
        raise ValueError(f"inputs of shape {inputs.shape} are not [n, {', '.join(map(str, shape))}]")


def check_logits(logits: NDArray[np.float32], rows: int, classes: int) -> None:
    """
    Raises:
        ValueError: logits are not finite [rows, classes].
    """
    if logits.shape != (rows, classes) or not np.isfinite(logits).all():
        raise ValueError(f"logits of shape {logits.shape} are not finite [{rows}, {classes}]")


class Detector(ABC, Generic[MemoryType]):
    """A pure state machine over one account's queries, with a vectorised front."""

    name: ClassVar[str]
    statistics: ClassVar[tuple[Statistic, ...]]

    def __init__(self, evidence: EvidenceModel, fingerprint: str) -> None:
        """
        Args:
            evidence: calibrated for this detector's statistics.
            fingerprint: identity of all parameters (the bundle's); a state of another fingerprint is not read.

        Raises:
            ValueError: `evidence` was calibrated for other statistics.
        """
        names = tuple(statistic.name for statistic in self.statistics)
        if evidence.statistics != names:
            raise ValueError(f"evidence is calibrated for {evidence.statistics}, {self.name} has {names}")
        self.evidence = evidence
        self.fingerprint = fingerprint
        self._signs = np.array([statistic.sign for statistic in self.statistics])

    @classmethod
    def calibrated_evidence(cls, bundle: Bundle) -> EvidenceModel:
        """The bundle's evidence for this detector's statistics.

        Raises:
            BundleError: the file is missing or does not fit them.
        """
        file = f"evidence-{cls.name}"
        try:
            return EvidenceModel.from_tensors([s.name for s in cls.statistics], bundle.tensors(file))
        except BundleError:
            raise
        except (KeyError, ValueError) as error:
            raise BundleError(f"{bundle.folder / file}.safetensors: {error}") from error

    @abstractmethod
    def score(self, inputs: NDArray[np.uint8], logits: NDArray[np.float32]) -> Features:
        """Features of n queries of any accounts; a row's features do not depend, bit for bit, on its neighbours.

        Args:
            inputs: [n, ...] uint8, the detectors' view.
            logits: [n, classes] float32, unperturbed.

        Raises:
            ValueError: the shapes are not those of the bundle.
        """

    @abstractmethod
    def initial_memory(self) -> MemoryType:
        """The memory of an account that has sent nothing."""

    @abstractmethod
    def layouts(self) -> Mapping[str, RowsLayout]:
        """The layout of each of the memory's rows: the bound of the state's size."""

    @abstractmethod
    def observe(self, memory: MemoryType, features: Features, row: int) -> tuple[float, ...]:
        """Take one query into the memory; return its value of each statistic, NaN where it has none."""

    def observe_all(self, memory: MemoryType, features: Features, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """[m, S], `observe` of m queries in order; for a detector that can take them in together to do so."""
        return np.array([self.observe(memory, features, row) for row in rows.tolist()], dtype=np.float64)

    @abstractmethod
    def rule(self, memory: MemoryType) -> Rule:
        """The paper's rule on the account as the memory has it."""

    # ---- the same for every detector ----

    def features(self, inputs: NDArray[np.uint8], logits: NDArray[np.float32]) -> Features:
        """`score`, with the digest and the thumbnail of each input beside it.

        Raises:
            ValueError: the shapes are not those of the bundle.
        """
        features = self.score(inputs, logits)
        features["digest"], features["thumbnail"] = input_digests(inputs), thumbnails(inputs)
        return features

    def initial(self) -> State[MemoryType]:
        """The state of an account that has sent nothing."""
        return State(
            queries=0,
            repeats=0,
            digests=Rows(REPEAT_MEMORY),
            known=set(),
            novelty=Novelty(len(self.statistics)),
            evidence=EvidenceState.initial(self.evidence),
            memory=self.initial_memory(),
        )

    def step(
        self, state: State[MemoryType], features: Features, rows: NDArray[np.intp] | None = None
    ) -> tuple[State[MemoryType], Observation]:
        """Take in one account's queries, in order.

        The state is handed over: the caller goes on with the one that is returned. Features are left untouched.

        Args:
            state: of the account.
            features: of `features`, of any accounts.
            rows: which of them are the account's, in order; all where None.
        """
        rows = np.arange(len(features["digest"])) if rows is None else rows
        values, history, news = self.replay(state, features, rows)
        if len(values):
            scores = np.where(news, values * self._signs, np.nan)
            state.evidence.absorb(self.evidence.bets(scores, history))
        observation = Observation(
            queries=state.queries,
            repeats=state.repeats,
            rule=self.rule(state.memory),
            log_evidence=state.evidence.log_evidence(),
        )
        return state, observation

    def replay(
        self, state: State[MemoryType], features: Features, rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """The part of `step` before evidence, which calibration needs alone: memory and counters move, evidence stays.

        Returns:
            Values [m, S], history sizes [m], and whether each value is news [m, S], of the m rows that are not repeats.
        """
        first = state.queries - state.repeats
        fresh = self._fresh(state, features["digest"], rows)
        history = first + np.arange(len(fresh))
        if not len(fresh):
            nothing = (0, len(self.statistics))
            return np.empty(nothing), history, np.empty(nothing, dtype=np.bool_)
        values = self.observe_all(state.memory, features, fresh)
        scores = (values * self._signs).astype(np.float32)
        return values, history, state.novelty.news(features["thumbnail"][fresh], scores)

    @staticmethod
    def _fresh(state: State[MemoryType], digests: NDArray[np.uint64], rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Count the rows, and return and remember those that repeat none that is remembered."""
        fresh: list[int] = []
        waiting: list[int] = []
        known, room = state.known, state.digests.room
        for row, digest in zip(rows.tolist(), digests[rows].tolist(), strict=True):
            if digest in known:
                continue
            if len(waiting) == room:
                # The next one evicts: only from then on are the evicted unknown.
                state.digests.extend(np.array(waiting, dtype=np.uint64))
                known.difference_update(state.digests.extend(np.array([digest], dtype=np.uint64)).tolist())
                waiting, room = [], state.digests.room
            else:
                waiting.append(digest)
            known.add(digest)
            fresh.append(row)
        if waiting:
            state.digests.extend(np.array(waiting, dtype=np.uint64))
        state.queries += len(rows)
        state.repeats += len(rows) - len(fresh)
        return np.array(fresh, dtype=np.intp)

    def _all_layouts(self) -> dict[str, RowsLayout]:
        return {"digests": REPEAT_MEMORY, **self.layouts()}

    def largest_state_bytes(self) -> int:
        """Bound of the rows of one account's state, in bytes; the head is small beside it."""
        return sum(layout.largest_bytes for layout in self._all_layouts().values())

    def encode(self, state: State[MemoryType]) -> EncodedState:
        """The state in bytes: only what has changed since the last call, or since `decode`."""
        arrays: dict[str, NDArray[Any]] = {
            "version": np.array([STATE_VERSION], dtype=np.int64),
            "fingerprint": np.frombuffer(self.fingerprint.encode(), dtype=np.uint8),
            "counts": np.array([state.queries, state.repeats], dtype=np.int64),
            "evidence": state.evidence.sums,
        }
        arrays |= {f"novelty.{name}": array for name, array in state.novelty.arrays().items()}
        arrays |= {f"memory.{name}": array for name, array in state.memory.arrays().items()}
        changes: dict[str, RowsChanges] = {"digests": state.digests.take_changes()}
        changes |= {name: rows.take_changes() for name, rows in state.memory.rows().items()}
        arrays |= {f"rows.{name}": change.counters for name, change in changes.items()}
        return EncodedState(
            head=save({name: np.ascontiguousarray(array) for name, array in arrays.items()}),
            chunks={f"{name}/{c}": data for name, change in changes.items() for c, data in change.written.items()},
            deleted=tuple(f"{name}/{chunk}" for name, change in changes.items() for chunk in change.deleted),
        )

    def readable(self, head: bytes) -> bool:
        """Whether `head` is of these parameters; one of others is put aside and the account starts anew.

        Raises:
            StateError: the bytes are no state at all.
        """
        arrays = _load_head(head)
        same_rows = {name for name in arrays if name.startswith("rows.")} == {f"rows.{n}" for n in self._all_layouts()}
        written_by = arrays["fingerprint"].tobytes()
        return same_rows and int(arrays["version"][0]) == STATE_VERSION and written_by == self.fingerprint.encode()

    def needed_chunks(self, head: bytes) -> list[str]:
        """Names of the chunks that `decode` needs beside `head`.

        Raises:
            StateError: the bytes are no state.
        """
        arrays = _load_head(head)
        return [
            f"{name}/{chunk}"
            for name, layout in self._all_layouts().items()
            for chunk in Rows.needed_chunks(layout, arrays[f"rows.{name}"])
        ]

    def decode(self, head: bytes, chunks: Mapping[str, bytes]) -> State[MemoryType]:
        """The state as `encode` found it: going on from it gives, bit for bit, the same later output.

        Raises:
            StateError: the bytes are no state, or a chunk is missing.
        """
        arrays = _load_head(head)
        restored: dict[str, Rows] = {}
        for name, layout in self._all_layouts().items():
            counters = arrays[f"rows.{name}"]
            numbers = Rows.needed_chunks(layout, counters)
            mine = {number: chunks[f"{name}/{number}"] for number in numbers if f"{name}/{number}" in chunks}
            try:
                restored[name] = Rows.restore(layout, counters, mine)
            except ValueError as error:
                raise StateError(f"{self.name}: rows {name!r}: {error}") from error
        state = self.initial()
        state.queries, state.repeats = (int(count) for count in arrays["counts"])
        state.digests = restored.pop("digests")
        state.known = set(state.digests.array.tolist())
        state.evidence = EvidenceState(arrays["evidence"].copy())
        prefix = "novelty."
        state.novelty = Novelty.restore({k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)})
        memory = {name.removeprefix("memory."): a.copy() for name, a in arrays.items() if name.startswith("memory.")}
        state.memory.restore(memory, restored)
        return state


def _load_head(head: bytes) -> dict[str, NDArray[Any]]:
    try:
        arrays = load(head)
    except SafetensorError as error:
        raise StateError(f"the head of a state cannot be read: {error}") from error
    if missing := {"version", "fingerprint", "counts", "evidence", "novelty.count", "rows.digests"} - arrays.keys():
        raise StateError(f"the head of a state has no {', '.join(sorted(missing))}")
    return arrays
