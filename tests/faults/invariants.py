"""What must hold of the topics when everything is over, whatever was killed, cut off or full meanwhile.

Pure: records and answers in, violations out. A stage's outputs and states are a function of its records, so the oracle
of a detector and of the decision is the engine itself, driven through the very records that Kafka holds, with nothing
in between that could fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from safetensors.numpy import load as safetensors

from shared.codec import decode_signals
from shared.engine import Engine, chunk_key, unseal
from shared.events import QueryBatch, Signal
from shared.stage import DetectorStage, Record, Stage
from shared.topics import SIGNALS
from shared.worker import WorkerSettings
from tests.support.streams import identity_of, same_signal

ANSWERED = grpc.StatusCode.OK.value[0]
DENIED = grpc.StatusCode.PERMISSION_DENIED.value[0]
TAKE = 256
"""Records that the oracle takes at once: what it finds does not depend on it."""

AnyStage: TypeAlias = Stage[Any, Any, Any, Any]

Stored = dict[tuple[int, str], bytes]
"""What a stage keeps, by partition and key."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a client.

    Attributes:
        request_id: its name.
        account: whose.
        sent_at: seconds since the Unix epoch.
        ended_at: the same, of the answer or refusal.
        status: gRPC's number.
    """

    request_id: str
    account: str
    sent_at: float
    ended_at: float
    status: int


@dataclass(frozen=True, slots=True)
class Published:
    """What became of the answered queries.

    Attributes:
        lost: answered, and in no record of `queries`.
        excused: of these, answered within the stated moment before inference was killed.
        repeated: query ids that are in two different batches.
        rows: in `queries`, of different ids.
    """

    lost: Sequence[Asked]
    excused: Sequence[Asked]
    repeated: Sequence[str]
    rows: int


def published(
    asked: Iterable[Asked], batches: Iterable[QueryBatch], killed_at: Sequence[float], moment: float
) -> Published:
    """Whether every accepted query is in `queries` exactly once by its id; a batch that was sent again is one batch.

    Args:
        asked: all requests.
        batches: of `queries`.
        killed_at: when inference was killed (SIGKILL), seconds since the Unix epoch.
        moment: seconds before it in which an answer may be lost (`services.inference.publisher`).
    """
    different = {batch.batch_id: batch for batch in batches}
    rows = Counter(query_id for batch in different.values() for query_id in batch.query_ids)
    there = {request_id for batch in different.values() for request_id in batch.request_ids}
    missing = [one for one in asked if one.status == ANSWERED and one.request_id not in there]
    excused = [one for one in missing if any(0.0 <= at - one.ended_at <= moment for at in killed_at)]
    lost = [one for one in missing if one not in excused]
    return Published(lost, excused, [query_id for query_id, times in rows.items() if times > 1], len(rows))


@dataclass(slots=True)
class Replayed:
    """What an undisturbed worker makes of the same records.

    Attributes:
        stored: at the end.
        sent: values of each topic.
        dead: records, or rows of records, that nobody can use.
    """

    stored: Stored = field(default_factory=dict)
    sent: dict[str, list[bytes]] = field(default_factory=dict)
    dead: int = 0


def replayed(stage: AnyStage, records: Sequence[Record]) -> Replayed:
    """Drive a stage through all records.

    Args:
        stage: with a fresh detector or policy.
        records: of its sources, of each partition in the order of their offsets.
    """
    found, defaults = Replayed(), WorkerSettings()

    def read(partition: int, key: str) -> bytes | None:
        return found.stored.get((partition, key))

    engine = Engine(stage, read, defaults.recent_batches, defaults.accounts_in_memory)
    for start in range(0, len(records), TAKE):
        take = engine.take(records[start : start + TAKE])
        for output in take.outputs:
            if output.value is not None:
                found.sent.setdefault(output.topic.name, []).append(output.value)
        for write in take.writes:
            if write.value is None:
                found.stored.pop((write.partition, write.key), None)
            else:
                found.stored[write.partition, write.key] = write.value
        found.dead += len(take.dead)
    return found


def latest(records: Iterable[Any]) -> Stored:
    """What a compacted topic holds: the last value of each key, of Kafka's records in order."""
    stored: Stored = {}
    for record in records:
        place = (record.partition, record.key.decode())
        if record.value is None:
            stored.pop(place, None)
        else:
            stored[place] = record.value
    return stored


def different_states(stage: AnyStage, found: Stored, expected: Stored) -> list[str]:
    """Accounts that only one of them has, or whose states differ in any bit that says something."""
    one, other = _states(stage, found), _states(stage, expected)
    return sorted(owner for owner in one.keys() | other.keys() if one.get(owner) != other.get(owner))


def _states(stage: AnyStage, stored: Stored) -> dict[str, Any]:
    """Offsets absorbed, head and needed chunks of every account."""
    heads = {
        (partition, owner): value
        for (partition, key), value in stored.items()
        if (owner := key.removeprefix("head:")) != key and owner.startswith("account:")
    }
    states = {}
    for (partition, owner), value in heads.items():
        offsets, head = unseal(value)
        chunks = {name: stored.get((partition, chunk_key(owner, name))) for name in stage.needed_chunks(head)}
        states[owner] = (partition, offsets, _comparable(stage, head), chunks)
    return states


def _comparable(stage: AnyStage, head: bytes) -> Any:
    """A detector's head without the one counter that tells which chunks were deleted when: that follows the takes."""
    if not isinstance(stage, DetectorStage):
        return head
    return {
        name: (array[:2] if name.startswith("rows.") else array).tobytes() for name, array in safetensors(head).items()
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """Between what was sent and what an undisturbed worker sends.

    Attributes:
        missing: never sent.
        unexpected: sent, and an undisturbed worker never says so.
        same: sent as it should be, once or several times.
    """

    missing: int
    unexpected: int
    same: int


def different_signals(found: Iterable[bytes], expected: Iterable[bytes]) -> Difference:
    """Of `signals`, account by account: after a crash a record may speak of some of a batch's accounts again."""
    wanted: dict[tuple[str, int, int, str], Signal] = {}
    for value in expected:
        batch = decode_signals(value)
        wanted |= {identity_of(batch, said): said for said in batch.signals}
    seen: set[tuple[str, int, int, str]] = set()
    unexpected = 0
    for value in found:
        batch = decode_signals(value)
        for said in batch.signals:
            identity = identity_of(batch, said)
            if identity in wanted and same_signal(wanted[identity], said):
                seen.add(identity)
            else:
                unexpected += 1
    return Difference(len(wanted) - len(seen), unexpected, len(seen))


def different_values(found: Iterable[bytes], expected: Iterable[bytes]) -> Difference:
    """Of a topic whose records are alike bit for bit when they are sent again."""
    there, wanted = set(found), set(expected)
    return Difference(len(wanted - there), len(there - wanted), len(there & wanted))


def of_topic(topic: str, found: Sequence[bytes], expected: Sequence[bytes]) -> Difference:
    """The one or the other."""
    return different_signals(found, expected) if topic == SIGNALS.name else different_values(found, expected)


def answered_though_banned(asked: Iterable[Asked], banned_at: Mapping[str, float]) -> list[Asked]:
    """Requests that were sent after their account's ban was enforced, and answered all the same.

    Args:
        asked: all requests.
        banned_at: when a ban was first enforced, seconds since the Unix epoch, by account.
    """
    return [
        one
        for one in asked
        if one.status == ANSWERED and one.account in banned_at and one.sent_at > banned_at[one.account]
    ]
