"""Hypothesis strategies for the events, and equality of events that hold arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

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

TEXT = st.text(max_size=20)
NAME = st.text(min_size=1, max_size=20)
TIME = st.integers(-(2**63), 2**63 - 1)
COUNT = st.integers(0, 2**64 - 1)
FLOAT = st.floats(allow_nan=True)
FINITE32 = st.floats(-(2.0**99), 2.0**99, width=32)


@st.composite
def query_batches(draw: st.DrawFn) -> QueryBatch:
    """Valid batches of one to five rows."""
    rows = draw(st.integers(1, 5))
    classes = draw(st.integers(1, 4))
    shape = draw(st.sampled_from([(), (3,), (1, 4, 4), (3, 2, 5)]))

    def column(element: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(element, min_size=rows, max_size=rows))

    return QueryBatch(
        batch_id=draw(st.binary(min_size=16, max_size=16)),
        model_name=draw(TEXT),
        model_version=draw(TEXT),
        query_ids=tuple(column(TEXT)),
        accounts=tuple(column(NAME)),
        request_ids=tuple(column(TEXT)),
        accepted_at=np.array(column(TIME), dtype=np.int64),
        inputs=draw(npst.arrays(np.uint8, (rows, *shape))),
        logits=draw(npst.arrays(np.float32, (rows, classes), elements=FINITE32)),
        answers=draw(npst.arrays(np.float32, (rows, classes), elements=FINITE32)),
        actions=np.array(column(st.sampled_from(Action)), dtype=np.uint8),
        perturbed=np.array(column(st.booleans()), dtype=np.bool_),
    )


SIGNALS = st.builds(
    Signal,
    account=NAME,
    queries=COUNT,
    repeats=COUNT,
    statistic=FLOAT,
    threshold=FLOAT,
    flagged=st.booleans(),
    details=st.dictionaries(TEXT, FLOAT, max_size=3),
    log_evidence=npst.arrays(np.float32, st.integers(0, 4), elements=FINITE32),
    accepted_at=TIME,
    query_id=TEXT,
)

SIGNAL_BATCHES = st.builds(
    SignalBatch,
    detector=NAME,
    model_name=TEXT,
    model_version=TEXT,
    batch_id=st.binary(max_size=16),
    source_partition=st.integers(0, 2**31 - 1),
    source_offset=TIME,
    signals=st.lists(SIGNALS, max_size=3).map(tuple),
)

VERDICTS = st.builds(
    Verdict,
    verdict_id=TEXT,
    account=NAME,
    model_name=TEXT,
    action=st.sampled_from(Action),
    rule=TEXT,
    reason=TEXT,
    log_evidence=FLOAT,
    issued_at=TIME,
    expires_at=TIME,
    cause_query_id=TEXT,
    cause_accepted_at=TIME,
    response=TEXT,
    queries_per_second=FLOAT,
    at_query=COUNT,
)

OVERRIDES = st.builds(
    Override,
    override_id=TEXT,
    account=NAME,
    model_name=TEXT,
    kind=st.sampled_from(OverrideKind),
    action=st.sampled_from(Action),
    author=TEXT,
    reason=TEXT,
    issued_at=TIME,
    expires_at=TIME,
)

PERTURBED_ANSWERS = st.builds(
    PerturbedAnswer,
    query_id=TEXT,
    account=NAME,
    model_name=TEXT,
    model_version=TEXT,
    answered_at=TIME,
    response=TEXT,
    perceptual_hash=COUNT,
    hash_kind=NAME,
    similar_bits=st.integers(0, 64),
    input=npst.arrays(np.uint8, (1, 4, 4)),
    logits=npst.arrays(np.float32, (3,), elements=FINITE32),
    answer=npst.arrays(np.float32, (3,), elements=FINITE32),
)

RESPONSE_NOTES = st.builds(
    ResponseNote,
    account=NAME,
    model_name=TEXT,
    model_version=TEXT,
    response=TEXT,
    noted_at=TIME,
    note=st.binary(max_size=40),
)


def same(one: Any, other: Any) -> bool:
    """Whether two events are equal field by field: arrays in shape, dtype and bits, NaN equal to NaN."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one):
        fields = dataclasses.fields(one)
        return type(one) is type(other) and all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other) or (one != one and other != other)
