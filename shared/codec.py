"""Events to bytes and back: the only module that knows both the dataclasses and protobuf."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from shared.events import (
    Action,
    Override,
    OverrideKind,
    PerturbedAnswer,
    QueryBatch,
    ResponseNote,
    Signal,
    SignalBatch,
    Verdict,
)
from shared.pb.portcullis.v1 import events_pb2 as pb
from shared.responses import PHASH, SIMILAR_BITS

SCHEMA_VERSION = 1

_MessageType = TypeVar(
    "_MessageType", pb.QueryBatch, pb.SignalBatch, pb.Verdict, pb.Override, pb.PerturbedAnswer, pb.ResponseNote
)


class CodecError(ValueError):
    """A record's bytes are no event of this schema version; the message says which field is wrong."""


def _parse(message_type: Callable[[], _MessageType], data: bytes) -> _MessageType:
    message = message_type()
    name = type(message).__name__
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise CodecError(f"{name}: not a protobuf message ({error})") from error
    if message.schema_version != SCHEMA_VERSION:
        raise CodecError(f"{name}.schema_version is {message.schema_version}, this build reads {SCHEMA_VERSION}")
    return message


def _tensor(array: NDArray[Any]) -> pb.Tensor:
    # "|u1", "<f4": a big-endian machine's arrays are swapped before they leave it.
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return pb.Tensor(datatype=little.dtype.str, shape=little.shape, data=little.tobytes())


def _array(tensor: pb.Tensor, field: str, datatype: str, rows: int | None = None) -> NDArray[Any]:
    if tensor.datatype != datatype:
        raise CodecError(f"{field}.datatype is {tensor.datatype!r}, expected {datatype!r}")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise CodecError(f"{field}.shape {list(shape)} has a negative size")
    expected = math.prod(shape) * np.dtype(datatype).itemsize
    if len(tensor.data) != expected:
        raise CodecError(f"{field}.data holds {len(tensor.data)} bytes, shape {list(shape)} needs {expected}")
    if rows is not None and (not shape or shape[0] != rows):
        raise CodecError(f"{field}.shape {list(shape)} does not begin with the batch's {rows} rows")
    try:
        return np.frombuffer(tensor.data, dtype=datatype).reshape(shape)
    except ValueError as error:  # more axes, or larger ones beside an empty one, than numpy allows
        raise CodecError(f"{field}.shape {list(shape[:8])}: {error}") from error


def _action(value: int, field: str) -> Action:
    try:
        return Action(value)
    except ValueError:
        raise CodecError(f"{field} {value} is no action") from None


def encode_queries(batch: QueryBatch) -> bytes:
    """A batch of queries as a record's value."""
    return pb.QueryBatch(
        schema_version=SCHEMA_VERSION,
        batch_id=batch.batch_id,
        model_name=batch.model_name,
        model_version=batch.model_version,
        query_ids=batch.query_ids,
        accounts=batch.accounts,
        request_ids=batch.request_ids,
        accepted_at_us=batch.accepted_at.tolist(),
        inputs=_tensor(batch.inputs),
        logits=_tensor(batch.logits),
        answers=_tensor(batch.answers),
        actions=batch.actions.tolist(),
        perturbed=batch.perturbed.tolist(),
    ).SerializeToString()


def decode_queries(data: bytes) -> QueryBatch:
    """The inverse of `encode_queries`; arrays are read-only views of `data`'s copy in the message.

    Raises:
        CodecError: the bytes are no batch of this schema, or its columns differ in length.
    """
    message = _parse(pb.QueryBatch, data)
    rows = len(message.query_ids)
    if rows == 0:
        raise CodecError("QueryBatch.query_ids is empty")
    if len(message.batch_id) != 16:
        raise CodecError(f"QueryBatch.batch_id has {len(message.batch_id)} bytes, expected 16")
    for field in ("accounts", "request_ids", "accepted_at_us", "actions", "perturbed"):
        if len(getattr(message, field)) != rows:
            raise CodecError(f"QueryBatch.{field} has {len(getattr(message, field))} entries for {rows} queries")
    if not all(message.accounts):
        raise CodecError("QueryBatch.accounts has an empty name")
    for value in set(message.actions):
        _action(value, "QueryBatch.actions")
    logits = _array(message.logits, "QueryBatch.logits", "<f4", rows)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise CodecError("QueryBatch.logits are not a finite [n, classes] matrix")
    answers = _array(message.answers, "QueryBatch.answers", "<f4", rows)
    if answers.shape != logits.shape:
        raise CodecError(f"QueryBatch.answers.shape {list(answers.shape)} is not that of logits, {list(logits.shape)}")
    return QueryBatch(
        batch_id=message.batch_id,
        model_name=message.model_name,
        model_version=message.model_version,
        query_ids=tuple(message.query_ids),
        accounts=tuple(message.accounts),
        request_ids=tuple(message.request_ids),
        accepted_at=np.array(message.accepted_at_us, dtype=np.int64),
        inputs=_array(message.inputs, "QueryBatch.inputs", "|u1", rows),
        logits=logits,
        answers=answers,
        actions=np.array(message.actions, dtype=np.uint8),
        perturbed=np.array(message.perturbed, dtype=np.bool_),
    )


def encode_signals(batch: SignalBatch) -> bytes:
    """A detector's signals as a record's value."""
    return pb.SignalBatch(
        schema_version=SCHEMA_VERSION,
        detector=batch.detector,
        model_name=batch.model_name,
        model_version=batch.model_version,
        batch_id=batch.batch_id,
        source_partition=batch.source_partition,
        source_offset=batch.source_offset,
        signals=[
            pb.Signal(
                account=signal.account,
                queries=signal.queries,
                repeats=signal.repeats,
                statistic=signal.statistic,
                threshold=signal.threshold,
                flagged=signal.flagged,
                details=signal.details,
                log_evidence=signal.log_evidence.tolist(),
                accepted_at_us=signal.accepted_at,
                query_id=signal.query_id,
            )
            for signal in batch.signals
        ],
    ).SerializeToString(deterministic=True)


def decode_signals(data: bytes) -> SignalBatch:
    """The inverse of `encode_signals`.

    Raises:
        CodecError: the bytes are no signals of this schema.
    """
    message = _parse(pb.SignalBatch, data)
    if not message.detector:
        raise CodecError("SignalBatch.detector is empty")
    if not all(signal.account for signal in message.signals):
        raise CodecError("SignalBatch.signals.account is empty")
    return SignalBatch(
        detector=message.detector,
        model_name=message.model_name,
        model_version=message.model_version,
        batch_id=message.batch_id,
        source_partition=message.source_partition,
        source_offset=message.source_offset,
        signals=tuple(
            Signal(
                account=signal.account,
                queries=signal.queries,
                repeats=signal.repeats,
                statistic=signal.statistic,
                threshold=signal.threshold,
                flagged=signal.flagged,
                details=dict(signal.details),
                log_evidence=np.array(signal.log_evidence, dtype=np.float32),
                accepted_at=signal.accepted_at_us,
                query_id=signal.query_id,
            )
            for signal in message.signals
        ),
    )


def encode_verdict(verdict: Verdict) -> bytes:
    """A verdict as a record's value."""
    return pb.Verdict(
        schema_version=SCHEMA_VERSION,
        verdict_id=verdict.verdict_id,
        account=verdict.account,
        model_name=verdict.model_name,
        action=int(verdict.action),  # type: ignore[arg-type]
        rule=verdict.rule,
        reason=verdict.reason,
        log_evidence=verdict.log_evidence,
        issued_at_us=verdict.issued_at,
        expires_at_us=verdict.expires_at,
        cause_query_id=verdict.cause_query_id,
        cause_accepted_at_us=verdict.cause_accepted_at,
        response=verdict.response,
        queries_per_second=verdict.queries_per_second,
        at_query=verdict.at_query,
    ).SerializeToString()


def decode_verdict(data: bytes) -> Verdict:
    """The inverse of `encode_verdict`.

    Raises:
        CodecError: the bytes are no verdict of this schema.
    """
    message = _parse(pb.Verdict, data)
    if not message.account:
        raise CodecError("Verdict.account is empty")
    return Verdict(
        verdict_id=message.verdict_id,
        account=message.account,
        model_name=message.model_name,
        action=_action(message.action, "Verdict.action"),
        rule=message.rule,
        reason=message.reason,
        log_evidence=message.log_evidence,
        issued_at=message.issued_at_us,
        expires_at=message.expires_at_us,
        cause_query_id=message.cause_query_id,
        cause_accepted_at=message.cause_accepted_at_us,
        response=message.response,
        queries_per_second=message.queries_per_second,
        at_query=message.at_query,
    )


def encode_override(override: Override) -> bytes:
    """An override as a record's value."""
    return pb.Override(
        schema_version=SCHEMA_VERSION,
        override_id=override.override_id,
        account=override.account,
        model_name=override.model_name,
        kind=int(override.kind),  # type: ignore[arg-type]
        action=int(override.action),  # type: ignore[arg-type]
        author=override.author,
        reason=override.reason,
        issued_at_us=override.issued_at,
        expires_at_us=override.expires_at,
    ).SerializeToString()


def decode_override(data: bytes) -> Override:
    """The inverse of `encode_override`.

    Raises:
        CodecError: the bytes are no override of this schema.
    """
    message = _parse(pb.Override, data)
    if not message.account:
        raise CodecError("Override.account is empty")
    try:
        kind = OverrideKind(message.kind)
    except ValueError:
        raise CodecError(f"Override.kind {message.kind} is no kind of override") from None
    return Override(
        override_id=message.override_id,
        account=message.account,
        model_name=message.model_name,
        kind=kind,
        action=_action(message.action, "Override.action"),
        author=message.author,
        reason=message.reason,
        issued_at=message.issued_at_us,
        expires_at=message.expires_at_us,
    )


def encode_perturbed(answer: PerturbedAnswer) -> bytes:
    """A perturbed answer as a record's value."""
    return pb.PerturbedAnswer(
        schema_version=SCHEMA_VERSION,
        query_id=answer.query_id,
        account=answer.account,
        model_name=answer.model_name,
        model_version=answer.model_version,
        answered_at_us=answer.answered_at,
        response=answer.response,
        perceptual_hash=answer.perceptual_hash.to_bytes(8, "big"),
        hash_kind=answer.hash_kind,
        similar_bits=answer.similar_bits,
        input=_tensor(answer.input),
        logits=_tensor(answer.logits),
        answer=_tensor(answer.answer),
    ).SerializeToString()


def decode_perturbed(data: bytes) -> PerturbedAnswer:
    """The inverse of `encode_perturbed`.

    Raises:
        CodecError: the bytes are no perturbed answer of this schema.
    """
    message = _parse(pb.PerturbedAnswer, data)
    if not message.account:
        raise CodecError("PerturbedAnswer.account is empty")
    if len(message.perceptual_hash) != 8:
        raise CodecError(f"PerturbedAnswer.perceptual_hash has {len(message.perceptual_hash)} bytes, expected 8")
    similar_bits = message.similar_bits if message.HasField("similar_bits") else SIMILAR_BITS
    if similar_bits > 64:
        raise CodecError(f"PerturbedAnswer.similar_bits is {similar_bits}, a hash has 64")
    return PerturbedAnswer(
        query_id=message.query_id,
        account=message.account,
        model_name=message.model_name,
        model_version=message.model_version,
        answered_at=message.answered_at_us,
        response=message.response,
        perceptual_hash=int.from_bytes(message.perceptual_hash, "big"),
        hash_kind=message.hash_kind or PHASH,
        similar_bits=similar_bits,
        input=_array(message.input, "PerturbedAnswer.input", "|u1"),
        logits=_array(message.logits, "PerturbedAnswer.logits", "<f4"),
        answer=_array(message.answer, "PerturbedAnswer.answer", "<f4"),
    )


def encode_response_note(note: ResponseNote) -> bytes:
    """A response policy's note as a record's value."""
    return pb.ResponseNote(
        schema_version=SCHEMA_VERSION,
        account=note.account,
        model_name=note.model_name,
        model_version=note.model_version,
        response=note.response,
        noted_at_us=note.noted_at,
        note=note.note,
    ).SerializeToString()


def decode_response_note(data: bytes) -> ResponseNote:
    """The inverse of `encode_response_note`.

    Raises:
        CodecError: the bytes are no note of this schema.
    """
    message = _parse(pb.ResponseNote, data)
    if not message.account:
        raise CodecError("ResponseNote.account is empty")
    return ResponseNote(
        account=message.account,
        model_name=message.model_name,
        model_version=message.model_version,
        response=message.response,
        noted_at=message.noted_at_us,
        note=message.note,
    )
