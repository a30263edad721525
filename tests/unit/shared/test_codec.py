"""Events come back from bytes as they were; bytes that are no event are refused by the field that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import codec
from shared.codec import CodecError
from shared.events import PerturbedAnswer
from shared.pb.portcullis.v1 import events_pb2 as pb
from tests.support.events import (
    OVERRIDES,
    PERTURBED_ANSWERS,
    RESPONSE_NOTES,
    SIGNAL_BATCHES,
    VERDICTS,
    query_batches,
    same,
)

KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "QueryBatch": (query_batches(), codec.encode_queries, codec.decode_queries),
    "SignalBatch": (SIGNAL_BATCHES, codec.encode_signals, codec.decode_signals),
    "Verdict": (VERDICTS, codec.encode_verdict, codec.decode_verdict),
    "Override": (OVERRIDES, codec.encode_override, codec.decode_override),
    "PerturbedAnswer": (PERTURBED_ANSWERS, codec.encode_perturbed, codec.decode_perturbed),
    "ResponseNote": (RESPONSE_NOTES, codec.encode_response_note, codec.decode_response_note),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def decodes_or_is_refused(kind: str, data: bytes) -> None:
    """Either an event, or a CodecError that begins with the message's name; any other exception fails the test."""
    refusal = None
    try:
        KINDS[kind][2](data)
    except CodecError as error:
        refusal = str(error)
    assert refusal is None or re.match(rf"{kind}(\.[a-z_.]+|:) ?\S", refusal), refusal


@every_kind
@relaxed
@given(data=st.data())
def test_an_event_comes_back_as_it_was(kind: str, data: st.DataObject) -> None:
    strategy, encode, decode = KINDS[kind]
    event = data.draw(strategy)
    assert same(decode(encode(event)), event)


@every_kind
@relaxed
@given(data=st.data())
def test_equal_events_give_equal_bytes(kind: str, data: st.DataObject) -> None:
    strategy, encode, decode = KINDS[kind]
    encoded = encode(data.draw(strategy))
    assert encode(decode(encoded)) == encoded


@every_kind
@relaxed
@given(data=st.data())
def test_a_record_cut_short_is_refused_or_read_but_never_crashes(kind: str, data: st.DataObject) -> None:
    strategy, encode, _ = KINDS[kind]
    encoded = encode(data.draw(strategy))
    decodes_or_is_refused(kind, encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@every_kind
@relaxed
@given(data=st.data())
def test_an_altered_record_is_refused_or_read_but_never_crashes(kind: str, data: st.DataObject) -> None:
    strategy, encode, _ = KINDS[kind]
    altered = bytearray(encode(data.draw(strategy)))
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_is_refused(kind, bytes(altered))


@every_kind
@relaxed
@given(foreign=st.binary(max_size=200))
def test_foreign_bytes_never_crash(kind: str, foreign: bytes) -> None:
    decodes_or_is_refused(kind, foreign)


@every_kind
@pytest.mark.parametrize("foreign", [b"", b"{}", b"\x00", b'{"account": "a"}', b"\xff" * 40])
def test_what_is_no_event_is_refused(kind: str, foreign: bytes) -> None:
    with pytest.raises(CodecError, match=rf"^{kind}"):
        KINDS[kind][2](foreign)


@every_kind
def test_another_schema_version_is_refused_by_its_number(kind: str) -> None:
    later = getattr(pb, kind)(schema_version=codec.SCHEMA_VERSION + 1).SerializeToString()
    with pytest.raises(CodecError, match=rf"{kind}.schema_version is 2, this build reads 1"):
        KINDS[kind][2](later)


def a_message() -> pb.QueryBatch:
    """A valid batch of two rows, open for damage."""
    return pb.QueryBatch(
        schema_version=codec.SCHEMA_VERSION,
        batch_id=bytes(16),
        query_ids=["1", "2"],
        accounts=["ann", "bob"],
        request_ids=["", ""],
        accepted_at_us=[1, 2],
        inputs=pb.Tensor(datatype="|u1", shape=[2, 3], data=bytes(6)),
        logits=pb.Tensor(datatype="<f4", shape=[2, 2], data=bytes(16)),
        answers=pb.Tensor(datatype="<f4", shape=[2, 2], data=bytes(16)),
        actions=[1, 1],
        perturbed=[False, True],
    )


def set_shape(tensor: pb.Tensor, shape: list[int]) -> None:
    del tensor.shape[:]
    tensor.shape.extend(shape)


NOT_A_NUMBER = np.full((2, 2), np.nan, dtype="<f4").tobytes()
MISTAKES: dict[str, tuple[Callable[[pb.QueryBatch], object], str]] = {
    "no rows": (lambda m: m.ClearField("query_ids"), "QueryBatch.query_ids is empty"),
    "short batch id": (lambda m: setattr(m, "batch_id", b"123"), "QueryBatch.batch_id has 3 bytes"),
    "missing account": (lambda m: m.accounts.pop(), "QueryBatch.accounts has 1 entries for 2 queries"),
    "nameless account": (lambda m: m.accounts.__setitem__(1, ""), "QueryBatch.accounts has an empty name"),
    "missing request id": (lambda m: m.request_ids.pop(), "QueryBatch.request_ids has 1"),
    "missing time": (lambda m: m.accepted_at_us.pop(), "QueryBatch.accepted_at_us has 1"),
    "missing action": (lambda m: m.actions.pop(), "QueryBatch.actions has 1"),
    "unknown action": (lambda m: m.actions.__setitem__(0, 77), "QueryBatch.actions 77 is no action"),
    "unspecified action": (lambda m: m.actions.__setitem__(0, 0), "QueryBatch.actions 0 is no action"),
    "missing perturbed": (lambda m: m.perturbed.pop(), "QueryBatch.perturbed has 1"),
    "inputs of floats": (lambda m: setattr(m.inputs, "datatype", "<f4"), "QueryBatch.inputs.datatype is '<f4'"),
    "inputs cut": (lambda m: setattr(m.inputs, "data", bytes(5)), "QueryBatch.inputs.data holds 5 bytes"),
    "negative size": (lambda m: set_shape(m.inputs, [-2, -3]), r"QueryBatch.inputs.shape \[-2, -3\]"),
    "too many axes": (lambda m: set_shape(m.inputs, [2, 3] + [1] * 70), "QueryBatch.inputs.shape"),
    "empty but huge": (
        lambda m: (set_shape(m.inputs, [2, 0, 2**62, 2**62]), setattr(m.inputs, "data", b"")),
        "QueryBatch.inputs.shape",
    ),
    "rows swapped": (lambda m: set_shape(m.inputs, [3, 2]), "does not begin with the batch's 2 rows"),
    "scalar inputs": (
        lambda m: (set_shape(m.inputs, []), setattr(m.inputs, "data", b"1")),
        "QueryBatch.inputs.shape",
    ),
    "no inputs": (lambda m: m.ClearField("inputs"), "QueryBatch.inputs.datatype is ''"),
    "logits not finite": (lambda m: setattr(m.logits, "data", NOT_A_NUMBER), "QueryBatch.logits are not a finite"),
    "logits of one axis": (
        lambda m: (set_shape(m.logits, [2]), setattr(m.logits, "data", bytes(8))),
        "QueryBatch.logits are not a finite",
    ),
    "answers of other classes": (
        lambda m: (set_shape(m.answers, [2, 3]), setattr(m.answers, "data", bytes(24))),
        r"QueryBatch.answers.shape \[2, 3\]",
    ),
}


def test_the_message_that_the_mistakes_are_made_in_is_valid() -> None:
    assert codec.decode_queries(a_message().SerializeToString()).accounts == ("ann", "bob")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_in_a_batch_of_queries_is_refused_by_its_field(mistake: str) -> None:
    damage, said = MISTAKES[mistake]
    message = a_message()
    damage(message)
    with pytest.raises(CodecError, match=said):
        codec.decode_queries(message.SerializeToString())


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("SignalBatch", {}, "SignalBatch.detector is empty"),
        ("SignalBatch", {"detector": "prada", "signals": [pb.Signal()]}, "SignalBatch.signals.account is empty"),
        ("Verdict", {"action": 1}, "Verdict.account is empty"),
        ("Verdict", {"account": "a"}, "Verdict.action 0 is no action"),
        ("Override", {"kind": 1, "action": 1}, "Override.account is empty"),
        ("Override", {"account": "a", "action": 1}, "Override.kind 0 is no kind of override"),
        ("Override", {"account": "a", "kind": 1}, "Override.action 0 is no action"),
        ("PerturbedAnswer", {}, "PerturbedAnswer.account is empty"),
        ("PerturbedAnswer", {"account": "a", "perceptual_hash": b"12"}, "perceptual_hash has 2 bytes, expected 8"),
        ("PerturbedAnswer", {"account": "a", "perceptual_hash": bytes(8)}, "PerturbedAnswer.input.datatype"),
        ("PerturbedAnswer", {"account": "a", "perceptual_hash": bytes(8), "similar_bits": 65}, "a hash has 64"),
    ],
)
def test_each_mistake_in_the_other_events_is_refused_by_its_field(kind: str, fields: Any, said: str) -> None:
    message = getattr(pb, kind)(schema_version=codec.SCHEMA_VERSION, **fields)
    with pytest.raises(CodecError, match=said):
        KINDS[kind][2](message.SerializeToString())


def test_arrays_of_either_byte_order_arrive_alike() -> None:
    def answer(order: str) -> PerturbedAnswer:
        values = np.array([1.5, -2.25], dtype=f"{order}f4")
        return PerturbedAnswer("q", "a", "m", "1", 0, "flip", 0, "phash", 8, np.zeros(1, np.uint8), values, values)

    assert codec.encode_perturbed(answer(">")) == codec.encode_perturbed(answer("<"))
