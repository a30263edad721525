"""The pure half of a worker: what to send and what to store for a take of records, whatever was interrupted before.

No Kafka, no clock, no I/O but a function that reads what was stored. For a take the engine decodes, drops duplicates,
steps every account through its rows and says, in this order, what to send and what to store. Crash-exactness rests on
three facts:

- an account's head carries the last offset that the account has absorbed of each source partition, in one value: either
  both are stored or neither is;
- chunks are stored before, and deleted after, the head that speaks of them; storage of one partition keeps its order,
  so what a crash leaves is a prefix of it, and every prefix is readable;
- outputs are sent before anything is stored, and are a function of the stored state and the records.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from shared.codec import CodecError
from shared.detection import EncodedState, StateError
from shared.rows import Rows, RowsLayout
from shared.stage import Batch, ContentType, Output, PreparedType, Record, ResultType, Stage, StageError, StateType

Read = Callable[[int, str], bytes | None]
"""What is stored in a partition under a key; None where nothing is."""

Offsets = dict[str, int]
"""The last offset absorbed, by "topic/partition"."""


class StageBug(Exception):  # noqa: N818  (it is no error of the data)
    """A stage broke its promise: the message says at which record and account, the cause is the stage's exception."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record, or one row of it, that nobody can use."""

    record: Record
    value: bytes | None
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class Write:
    """Something to store in a partition under a key; None deletes."""

    partition: int
    key: str
    value: bytes | None


@dataclass(slots=True)
class Take:
    """What to do for a number of records."""

    outputs: list[Output] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    """In the order in which they must be stored."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """Records by what became of them: processed, absorbed (before a crash), duplicate, dead."""
    queries: int = 0
    """Rows that were stepped through."""
    oldest_accepted: list[int] = field(default_factory=list)
    """Microseconds since the Unix epoch, of the oldest row of each record that was processed."""
    anew: list[str] = field(default_factory=list)
    """Keys of accounts whose stored state is of other parameters, so that they start anew."""


def head_key(owner: str) -> str:
    """Where the head of a state is stored."""
    return f"head:{owner}"


def chunk_key(owner: str, chunk: str) -> str:
    """Where a chunk is stored; chunk names hold no colon, so an account's name can hold anything."""
    return f"chunk:{chunk}:{owner}"


def seal(offsets: Offsets, head: bytes) -> bytes:
    """One value of the offsets absorbed and the head that absorbed them."""
    return json.dumps(offsets, sort_keys=True).encode() + b"\n" + head


def unseal(sealed: bytes) -> tuple[Offsets, bytes]:
    """The inverse of `seal`.

    Raises:
        StateError: the bytes were not sealed.
    """
    line, separator, head = sealed.partition(b"\n")
    try:
        offsets = json.loads(line)
    except ValueError as error:
        raise StateError(f"a stored head does not begin with its offsets: {error}") from error
    if not separator or not isinstance(offsets, dict):
        raise StateError("a stored head does not begin with its offsets")
    return offsets, head


def store_encoded(partition: int, owner: str, encoded: EncodedState) -> tuple[list[Write], Write, list[Write]]:
    """The writes of a state: chunks, head, deletions, to be stored in this order."""
    return (
        [Write(partition, chunk_key(owner, name), data) for name, data in encoded.chunks.items()],
        Write(partition, head_key(owner), encoded.head),
        [Write(partition, chunk_key(owner, name), None) for name in encoded.deleted],
    )


class RecentBatches:
    """The identities of the latest batches of one source partition, and where each came first."""

    _ROW_BYTES = 24
    """16 of identity, 8 of offset."""

    def __init__(self, capacity: int) -> None:
        chunk_rows = min(256, capacity)
        self._rows = Rows(RowsLayout((self._ROW_BYTES,), np.uint8, capacity, chunk_rows))
        self._offsets: dict[bytes, int] = {}

    def first_offset(self, identity: bytes, offset: int) -> int:
        """Where the batch came first; remembered to be `offset` if it is new."""
        known = self._offsets.get(identity)
        if known is not None:
            return known
        row = np.frombuffer(identity + offset.to_bytes(8, "little"), dtype=np.uint8)
        for forgotten in self._rows.append(row):
            self._offsets.pop(forgotten.tobytes()[:16], None)
        self._offsets[identity] = offset
        return offset

    def encode(self) -> EncodedState:
        """What has changed since the last call."""
        changes = self._rows.take_changes()
        return EncodedState(
            head=changes.counters.astype("<i8").tobytes(),
            chunks={str(chunk): data for chunk, data in changes.written.items()},
            deleted=tuple(str(chunk) for chunk in changes.deleted),
        )

    @classmethod
    def restore(cls, capacity: int, head: bytes, read_chunk: Callable[[str], bytes | None]) -> RecentBatches:
        """As `encode` left it.

        Raises:
            StateError: a chunk is missing.
        """
        recent = cls(capacity)
        counters = np.frombuffer(head, dtype="<i8").astype(np.int64)
        chunks = {
            number: data
            for number in Rows.needed_chunks(recent._rows.layout, counters)
            if (data := read_chunk(str(number))) is not None
        }
        try:
            recent._rows = Rows.restore(recent._rows.layout, counters, chunks)
        except ValueError as error:
            raise StateError(f"recent batches: {error}") from error
        for row in recent._rows.array:
            data = row.tobytes()
            recent._offsets[data[:16]] = int.from_bytes(data[16:], "little")
        return recent


@dataclass(slots=True)
class _Account(Generic[StateType]):
    partition: int
    offsets: Offsets
    state: StateType


class Engine(Generic[ContentType, PreparedType, StateType, ResultType]):
    """Drives one stage over takes of records; see `shared.stage` for what it calls when."""

    def __init__(
        self,
        stage: Stage[ContentType, PreparedType, StateType, ResultType],
        read: Read,
        recent_batches: int,
        accounts_in_memory: int,
    ) -> None:
        """
        Args:
            stage: driven.
            read: what earlier takes have stored; called during `take` only.
            recent_batches: how many identities are remembered for each source partition.
            accounts_in_memory: decoded states kept between takes; others are decoded again when they return.
        """
        self.stage = stage
        self._read = read
        self._recent_batches = recent_batches
        self._accounts_in_memory = accounts_in_memory
        self._accounts: OrderedDict[str, _Account[StateType]] = OrderedDict()
        self._recent: dict[tuple[str, int], RecentBatches] = {}

    @property
    def accounts(self) -> int:
        """Accounts held in memory."""
        return len(self._accounts)

    def forget(self) -> None:
        """Drop everything held in memory: what is stored may have been changed by others."""
        self._accounts.clear()
        self._recent.clear()

    def take(self, records: Sequence[Record]) -> Take:
        """What to send and what to store for these records; the caller does both before the next take.

        Args:
            records: of each partition in the order of their offsets.

        Raises:
            StageBug: the stage raised what it must not. The engine is of no use any more.
        """
        take = Take()
        batches = self._without_duplicates(self._decode(records, take), take)
        if batches:
            touched = self._step(batches, self._prepare(batches), take)
            take.writes += self._writes(touched, batches)
            self._evict()
        return take

    def _decode(self, records: Sequence[Record], take: Take) -> list[Batch[ContentType]]:
        batches = []
        for record in records:
            try:
                batches.append(self.stage.decode(record))
            except CodecError as error:
                self._bury(record, "undecodable", error, take)
            except StageError as error:
                self._bury(record, error.reason, error, take)
            except Exception as error:
                raise StageBug(f"decode failed at {_place(record)}") from error
        return batches

    @staticmethod
    def _bury(record: Record, reason: str, error: Exception, take: Take) -> None:
        take.dead.append(DeadLetter(record, record.value, reason, str(error)))
        _count(take, "dead")

    def _without_duplicates(self, batches: list[Batch[ContentType]], take: Take) -> list[Batch[ContentType]]:
        kept = []
        for batch in batches:
            record = batch.record
            if batch.identity is not None:
                first = self._recent_of(record).first_offset(batch.identity, record.offset)
                if first != record.offset:
                    _count(take, "duplicate")
                    continue
            kept.append(batch)
            for rejection in batch.rejected:
                take.dead.append(
                    DeadLetter(record, rejection.value, rejection.error.reason, f"one row: {rejection.error}")
                )
        return kept

    def _recent_of(self, record: Record) -> RecentBatches:
        source = (record.topic.name, record.partition)
        if source not in self._recent:
            owner = _recent_owner(*source)
            head = self._read(record.partition, head_key(owner))
            self._recent[source] = (
                RecentBatches(self._recent_batches)
                if head is None
                else RecentBatches.restore(
                    self._recent_batches, head, lambda chunk: self._read(record.partition, chunk_key(owner, chunk))
                )
            )
        return self._recent[source]

    def _prepare(self, batches: Sequence[Batch[ContentType]]) -> Sequence[PreparedType]:
        try:
            return self.stage.prepare(batches)
        except Exception as error:
            raise StageBug(f"prepare failed at {', '.join(_place(batch.record) for batch in batches)}") from error

    def _step(
        self, batches: Sequence[Batch[ContentType]], prepared: Sequence[PreparedType], take: Take
    ) -> dict[str, _Account[StateType]]:
        touched: dict[str, _Account[StateType]] = {}
        for batch, features in zip(batches, prepared, strict=True):
            record, source = batch.record, f"{batch.record.topic.name}/{batch.record.partition}"
            results: dict[str, ResultType] = {}
            for key, rows in batch.rows.items():
                try:
                    account = self._account(key, record.partition, take)
                    if account.offsets.get(source, -1) >= record.offset:
                        continue
                    account.state, results[key] = self.stage.step(account.state, batch, features, key)
                except Exception as error:
                    raise StageBug(f"step failed at {_place(record)}, account {key!r}") from error
                account.offsets[source] = record.offset
                touched[key] = account
                take.queries += len(rows)
            self._conclude(batch, results, take)
        return touched

    def _conclude(self, batch: Batch[ContentType], results: Mapping[str, ResultType], take: Take) -> None:
        if not results:
            _count(take, "absorbed")
            return
        try:
            take.outputs += self.stage.outputs(batch, results)
            accepted: NDArray[Any] | None = self.stage.accepted_at(batch)
        except Exception as error:
            raise StageBug(f"outputs failed at {_place(batch.record)}") from error
        if accepted is not None and len(accepted):
            take.oldest_accepted.append(int(accepted.min()))
        _count(take, "processed")

    def _account(self, key: str, partition: int, take: Take) -> _Account[StateType]:
        account = self._accounts.get(key)
        if account is not None and account.partition != partition:
            # One name in two partitions is two accounts, as far as order goes; the stage lets only one of them in.
            raise ValueError(f"account {key!r} is in partitions {account.partition} and {partition}")
        if account is None:
            account = self._accounts[key] = self._load(key, partition, take)
        self._accounts.move_to_end(key)
        return account

    def _load(self, key: str, partition: int, take: Take) -> _Account[StateType]:
        owner = _account_owner(key)
        sealed = self._read(partition, head_key(owner))
        if sealed is None:
            return _Account(partition, {}, self.stage.initial(key))
        offsets, head = unseal(sealed)
        if not self.stage.readable(head):
            take.anew.append(key)
            return _Account(partition, offsets, self.stage.initial(key))
        chunks = {
            name: data
            for name in self.stage.needed_chunks(head)
            if (data := self._read(partition, chunk_key(owner, name))) is not None
        }
        return _Account(partition, offsets, self.stage.restore(key, head, chunks))

    def _writes(self, touched: Mapping[str, _Account[StateType]], batches: Sequence[Batch[ContentType]]) -> list[Write]:
        chunks: list[Write] = []
        heads: list[Write] = []
        deletions: list[Write] = []
        for key, account in touched.items():
            encoded = self.stage.encode(account.state)
            sealed = EncodedState(seal(account.offsets, encoded.head), encoded.chunks, encoded.deleted)
            new_chunks, head, new_deletions = store_encoded(account.partition, _account_owner(key), sealed)
            chunks += new_chunks
            heads.append(head)
            deletions += new_deletions
        # Identities last: one that is stored while its rows are not would let a replay drop the rows.
        identified = {(b.record.topic.name, b.record.partition): None for b in batches if b.identity is not None}
        recent: list[Write] = []
        for topic, partition in identified:
            encoded = self._recent[topic, partition].encode()
            new_chunks, head, new_deletions = store_encoded(partition, _recent_owner(topic, partition), encoded)
            recent += [*new_chunks, head, *new_deletions]
        return chunks + heads + deletions + recent

    def _evict(self) -> None:
        while len(self._accounts) > self._accounts_in_memory:
            self._accounts.popitem(last=False)


def _account_owner(key: str) -> str:
    return f"account:{key}"


def _recent_owner(topic: str, partition: int) -> str:
    return f"batches:{topic}/{partition}"


def _place(record: Record) -> str:
    return f"{record.topic.name}/{record.partition}@{record.offset}"


def _count(take: Take, outcome: str) -> None:
    take.outcomes[outcome] = take.outcomes.get(outcome, 0) + 1
