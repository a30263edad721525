"""How records are cut into the rounds that Kafka takes whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.link import ROUND_BYTES, KafkaLink, LinkError, _round_ends
from services.inference.spool import Record


@given(sizes=st.lists(st.integers(1, 2 * ROUND_BYTES), max_size=8))
def test_rounds_hold_every_record_in_order_and_one_or_no_more_than_the_bytes_allowed(sizes: list[int]) -> None:
    records = [Record("queries", 0, b"", bytes(size), 1) for size in sizes]
    ends = list(_round_ends(records))
    starts = [0, *ends[:-1]] if ends else []
    rounds = [sizes[start:end] for start, end in zip(starts, ends, strict=True)]
    assert [size for part in rounds for size in part] == sizes
    assert all(len(part) == 1 or 0 < sum(part) <= ROUND_BYTES for part in rounds)


def test_where_nobody_listens_a_link_says_so_at_once() -> None:
    with pytest.raises(LinkError, match=r"no broker answers at 127\.0\.0\.1:1"):
        KafkaLink("127.0.0.1:1", ["queries"], 4, timeout_ms=1000, most_record_bytes=1000)
