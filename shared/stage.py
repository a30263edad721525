"""What `shared.worker` drives: a stateful stage of the stream, free of Faust, Kafka and clocks.

A stage turns records into outputs, account by account, in the order of the records. For each take (many records at
once) the worker

1. calls `decode` for each record; one that raises goes to its dead topic, untouched, and is done with;
2. drops a batch whose `identity` came before at another offset of the same partition (a spool that was replayed);
3. calls `prepare` once with all batches of the take;
4. for each batch in the order of offsets, and for each of its accounts in the order of `Batch.rows`, calls `step`,
   unless the account's stored state has absorbed that offset already; then `outputs` for the batch, if it had any step;
5. sends all outputs, waits until Kafka has them, then stores the states, then commits the offsets.

So a crash anywhere leads to the same steps from the same states, and to the same outputs: some may be sent twice, none
is lost. That holds if the stage keeps its part: everything it returns is a function of the states and records that it
was given, never of how records were cut into takes, of time, or of chance.

A stage's methods are called one at a time, from a thread of the worker. Any exception but those that `decode` declares
is a bug: the worker logs it with the record and the account, acknowledges nothing, and ends with a non-zero status, so
that whatever started it starts it again and the records are replayed.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.bundle import ModelSection
from shared.codec import decode_queries, encode_queries, encode_signals
from shared.detection import Detector, EncodedState, Features, Memory, Observation, State
from shared.events import QueryBatch, Signal, SignalBatch
from shared.topics import QUERIES, SIGNALS, Topic, partition_of


class StageError(ValueError):
    """A record is well-formed, and yet this stage must not use it; `reason` is a word for metrics and headers."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it came from Kafka."""

    topic: Topic
    partition: int
    offset: int
    timestamp: int
    """Microseconds since the Unix epoch, as Kafka keeps it: the same on every replay, so a stage may use it as now."""
    value: bytes
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """A record to send. Without a partition, Kafka's default partitioner looks at the key."""

    topic: Topic
    value: bytes | None
    """None deletes the key from a compacted topic."""
    key: bytes | None = None
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Rejection:
    """A bad row of a record whose other rows are good: it goes to the record's dead topic alone."""

    value: bytes
    """A record of its own, that could be sent to the source topic again once its fault is mended."""
    error: StageError


ContentType = TypeVar("ContentType")
PreparedType = TypeVar("PreparedType")
StateType = TypeVar("StateType")
ResultType = TypeVar("ResultType")


@dataclass(frozen=True, slots=True)
class Batch(Generic[ContentType]):
    """A record that has been understood."""

    record: Record
    content: ContentType
    rows: Mapping[str, NDArray[np.intp]]
    """For each account's state key, in the order of first appearance, which rows of the content are its own."""
    identity: bytes | None = None
    """16 bytes that tell this batch from all others; sent again at another offset it is dropped. None: never is."""
    rejected: tuple[Rejection, ...] = ()


class Stage(ABC, Generic[ContentType, PreparedType, StateType, ResultType]):
    """A stateful stage; the module's text says when each method is called.

    `ContentType` is a decoded record, `PreparedType` what `prepare` made of it, `StateType` one account's state,
    `ResultType` what one step says.
    """

    name: str
    """Names the consumer group, the changelog and the metrics; a change of it starts from nothing."""
    sources: tuple[Topic, ...]
    """Read by this stage, all with the same number of partitions."""
    sinks: tuple[Topic, ...]
    """Written by `outputs`."""

    @abstractmethod
    def decode(self, record: Record) -> Batch[ContentType]:
        """Understand one record.

        Raises:
            CodecError: the bytes are no record of this schema.
            StageError: they are, and this stage must not use them.
        """

    @abstractmethod
    def prepare(self, batches: Sequence[Batch[ContentType]]) -> Sequence[PreparedType]:
        """The stateless part of the work, for all batches of a take at once; one result for each batch."""

    @abstractmethod
    def initial(self, key: str) -> StateType:
        """The state of an account that has sent nothing."""

    @abstractmethod
    def readable(self, head: bytes) -> bool:
        """Whether `restore` can go on from this head; if not, the worker says so in its log and starts anew.

        Raises:
            StateError: the bytes are no state at all.
        """

    @abstractmethod
    def needed_chunks(self, head: bytes) -> Sequence[str]:
        """Names of the chunks that `restore` needs beside `head`."""

    @abstractmethod
    def restore(self, key: str, head: bytes, chunks: Mapping[str, bytes]) -> StateType:
        """The state as `encode` found it.

        Raises:
            StateError: the bytes are no state, or a chunk is missing.
        """

    @abstractmethod
    def encode(self, state: StateType) -> EncodedState:
        """What has changed in a state since the last call, or since `restore`; its head whole."""

    @abstractmethod
    def step(
        self, state: StateType, batch: Batch[ContentType], prepared: PreparedType, key: str
    ) -> tuple[StateType, ResultType]:
        """Take in one account's rows of one record; the state is handed over, go on with the one that is returned."""

    @abstractmethod
    def outputs(self, batch: Batch[ContentType], results: Mapping[str, ResultType]) -> Sequence[Output]:
        """What to send for one record.

        Args:
            batch: the record.
            results: of `step`, by state key, in the order of the batch's rows. After a crash accounts may be missing
                whose states were stored before it: what was to be said of them has been sent.
        """

    def accepted_at(self, batch: Batch[ContentType]) -> NDArray[np.int64] | None:
        """[n], microseconds since the Unix epoch when each of the batch's queries was accepted; None if unknown."""
        return None


def rows_by_key(keys: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """Which rows belong to each key, in the order of first appearance."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return {key: np.array(numbers, dtype=np.intp) for key, numbers in rows.items()}


def own_batch_id(batch_id: bytes, row: int) -> bytes:
    """16 bytes for a row that goes on alone: under its batch's id it would be dropped as a duplicate of it."""
    return hashlib.blake2b(batch_id + row.to_bytes(4, "big"), digest_size=16).digest()


class DetectorStage(Stage[QueryBatch, Features, State[Any], Observation]):
    """A detector as a stage: `queries` in, one record of `signals` out for each, at the same partition."""

    sources = (QUERIES,)
    sinks = (SIGNALS,)

    def __init__(self, detector: Detector[Any], model: ModelSection, partitions: int) -> None:
        """
        Args:
            detector: built from a bundle.
            model: identity and input shape of that bundle's model; batches of another model or version are rejected.
            partitions: of `queries`; a row in a partition where its account does not belong is rejected.
        """
        self.name = detector.name
        self._detector: Detector[Memory] = detector
        self._model = model
        self._partitions = partitions

    def decode(self, record: Record) -> Batch[QueryBatch]:
        """A batch of the bundle's model and version, without the rows that lie in a wrong partition.

        Raises:
            CodecError: the bytes are no batch of queries.
            StageError: the batch is of another model, version or shape, or none of its rows is in its place.
        """
        queries = decode_queries(record.value)
        self._check(queries)
        places = np.array([partition_of(account, self._partitions) for account in queries.accounts])
        good, misplaced = np.flatnonzero(places == record.partition), np.flatnonzero(places != record.partition)
        if not len(good):
            raise StageError("misplaced", f"partition {record.partition} is of none of the batch's accounts")
        rejected = tuple(
            Rejection(
                encode_queries(_only_row(queries, row)),
                StageError("misplaced", f"row {row} belongs to partition {places[row]}, not {record.partition}"),
            )
            for row in misplaced.tolist()
        )
        if len(misplaced):
            queries = _take_rows(queries, good)
        keys = [f"{queries.model_name}/{account}" for account in queries.accounts]
        return Batch(record, queries, rows_by_key(keys), queries.batch_id, rejected)

    def _check(self, queries: QueryBatch) -> None:
        """
        Raises:
            StageError: the batch is of another model, version or shape than the bundle's.
        """
        got, expected = (queries.model_name, queries.model_version), (self._model.name, self._model.version)
        if got != expected:
            raise StageError("version", f"the batch is of model {got}, this detector's bundle is of {expected}")
        if queries.inputs.shape[1:] != self._model.input_shape:
            raise StageError(
                "shape", f"inputs have shape {queries.inputs.shape[1:]}, the bundle says {self._model.input_shape}"
            )
        if queries.logits.shape[1] != len(self._model.classes):
            raise StageError(
                "shape", f"logits are of {queries.logits.shape[1]} classes, the bundle has {len(self._model.classes)}"
            )

    def prepare(self, batches: Sequence[Batch[QueryBatch]]) -> Sequence[Features]:
        """Score all rows of the take together."""
        features = self._detector.features(
            np.concatenate([batch.content.inputs for batch in batches]),
            np.concatenate([batch.content.logits for batch in batches]),
        )
        ends = np.cumsum([len(batch.content) for batch in batches])
        starts = ends - [len(batch.content) for batch in batches]
        return [
            {name: column[start:end] for name, column in features.items()}
            for start, end in zip(starts, ends, strict=True)
        ]

    def initial(self, key: str) -> State[Any]:
        """The state of an account that has sent nothing."""
        return self._detector.initial()

    def readable(self, head: bytes) -> bool:
        """Whether the state was made under this bundle."""
        return self._detector.readable(head)

    def needed_chunks(self, head: bytes) -> Sequence[str]:
        """The detector's."""
        return self._detector.needed_chunks(head)

    def restore(self, key: str, head: bytes, chunks: Mapping[str, bytes]) -> State[Any]:
        """The detector's."""
        return self._detector.decode(head, chunks)

    def encode(self, state: State[Any]) -> EncodedState:
        """The detector's."""
        return self._detector.encode(state)

    def step(
        self, state: State[Any], batch: Batch[QueryBatch], prepared: Features, key: str
    ) -> tuple[State[Any], Observation]:
        """The account's rows of one record: what is observed does not depend on how records were cut into takes."""
        return self._detector.step(state, prepared, batch.rows[key])

    def outputs(self, batch: Batch[QueryBatch], results: Mapping[str, Observation]) -> Sequence[Output]:
        """One record of signals, in the partition of the queries."""
        queries, record = batch.content, batch.record
        signals = SignalBatch(
            detector=self.name,
            model_name=queries.model_name,
            model_version=queries.model_version,
            batch_id=queries.batch_id,
            source_partition=record.partition,
            source_offset=record.offset,
            signals=[
                signal_of(seen, queries.accounts[row], int(queries.accepted_at[row]), queries.query_ids[row])
                for seen, row in ((seen, int(batch.rows[key][-1])) for key, seen in results.items())
            ],
        )
        return (Output(SIGNALS, encode_signals(signals), partition=record.partition),)

    def accepted_at(self, batch: Batch[QueryBatch]) -> NDArray[np.int64]:
        """As the batch says."""
        return batch.content.accepted_at


def signal_of(seen: Observation, account: str, accepted_at: int, query_id: str) -> Signal:
    """What a detector publishes of an account.

    Args:
        seen: what it says after the account's rows of a batch.
        account: whose.
        accepted_at: of the last of these rows, microseconds since the Unix epoch.
        query_id: of the same row.
    """
    return Signal(
        account=account,
        queries=seen.queries,
        repeats=seen.repeats,
        statistic=seen.rule.statistic,
        threshold=seen.rule.threshold,
        flagged=seen.rule.flagged,
        details=seen.rule.details,
        log_evidence=seen.log_evidence,
        accepted_at=accepted_at,
        query_id=query_id,
    )


def _take_rows(queries: QueryBatch, rows: NDArray[np.intp]) -> QueryBatch:
    numbers = rows.tolist()
    return replace(
        queries,
        query_ids=tuple(queries.query_ids[row] for row in numbers),
        accounts=tuple(queries.accounts[row] for row in numbers),
        request_ids=tuple(queries.request_ids[row] for row in numbers),
        accepted_at=queries.accepted_at[rows],
        inputs=queries.inputs[rows],
        logits=queries.logits[rows],
        answers=queries.answers[rows],
        actions=queries.actions[rows],
        perturbed=queries.perturbed[rows],
    )


def _only_row(queries: QueryBatch, row: int) -> QueryBatch:
    return replace(_take_rows(queries, np.array([row])), batch_id=own_batch_id(queries.batch_id, row))
