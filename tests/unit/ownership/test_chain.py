"""The hash chain: every change is found, and the first one is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ownership.chain import HASH_BYTES, Link, RecordError, check, genesis, link, understand
from shared.codec import encode_perturbed
from tests.support.events import PERTURBED_ANSWERS, same
from tests.support.perturbed import record, spoiled

LENGTHS = st.integers(1, 6)


def chain(records: int, account: str = "mallory") -> list[Link]:
    made: list[Link] = []
    head = genesis("fashion", account)
    for position in range(records):
        value = record(position, account)
        head = link(head, value)
        made.append(Link(position, value, head))
    return made


@given(records=st.integers(0, 6))
def test_a_whole_chain_is_sound_and_its_head_is_its_last_hash(records: int) -> None:
    links = chain(records)
    checked = check("fashion", "mallory", links)
    assert (checked.records, checked.broken) == (records, None)
    assert checked.head == (links[-1].hash if links else genesis("fashion", "mallory"))
    assert len(checked.head) == HASH_BYTES


@given(records=LENGTHS, data=st.data())
def test_one_altered_byte_of_a_record_breaks_the_chain_just_there(records: int, data: st.DataObject) -> None:
    links = chain(records)
    position = data.draw(st.integers(0, records - 1))
    value = bytearray(links[position].record)
    value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    links[position] = dataclasses.replace(links[position], record=bytes(value))
    checked = check("fashion", "mallory", links)
    assert checked.broken is not None
    assert checked.records == checked.broken.position == position


@given(records=LENGTHS, data=st.data())
def test_a_record_that_is_dropped_exchanged_or_put_in_is_found(records: int, data: st.DataObject) -> None:
    links = chain(records)
    position = data.draw(st.integers(0, records - 1))
    change = data.draw(st.sampled_from(["drop", "exchange", "insert"]))
    if change == "drop" and position < records - 1:
        del links[position]
    elif change == "exchange" and position < records - 1:
        links[position], links[position + 1] = links[position + 1], links[position]
    else:
        links.insert(position, Link(position, record(99), link(links[position].hash, record(99))))
    checked = check("fashion", "mallory", links)
    assert checked.broken is not None
    assert checked.broken.position == position


@given(records=LENGTHS, data=st.data())
def test_who_makes_every_later_hash_anew_gets_another_head(records: int, data: st.DataObject) -> None:
    links = chain(records)
    position = data.draw(st.integers(0, records - 1))
    values = [made.record for made in links]
    values[position] = record(99)
    head, forged = genesis("fashion", "mallory"), []
    for number, value in enumerate(values):
        head = link(head, value)
        forged.append(Link(number, value, head))
    checked = check("fashion", "mallory", forged)
    assert checked.broken is None
    assert checked.head != links[-1].hash


def test_a_record_of_another_account_is_no_part_of_the_chain() -> None:
    foreign = record(0, "alice")
    links = [Link(0, foreign, link(genesis("fashion", "mallory"), foreign))]
    broken = check("fashion", "mallory", links).broken
    assert broken is not None
    assert "is of account 'alice'" in str(broken)


@pytest.mark.parametrize("names", [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "")])
def test_every_chain_begins_somewhere_else(names: tuple[str, str]) -> None:
    others = {("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "")} - {names}
    assert genesis(*names) not in {genesis(*other) for other in others}


@given(answer=PERTURBED_ANSWERS)
def test_what_is_understood_is_what_was_published_and_the_rest_says_why(answer: object) -> None:
    value = encode_perturbed(answer)  # type: ignore[arg-type]
    try:
        assert same(understand(value), answer)
    except RecordError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "a tombstone"),
        (b"", "schema_version is 0"),
        (b"\xff\xff", "not a protobuf message"),
        (
            encode_perturbed(dataclasses.replace(spoiled(1), account="mal\x00lory")),
            "PerturbedAnswer.account is empty, not",
        ),
        (
            encode_perturbed(dataclasses.replace(spoiled(1), query_id="q" * 257)),
            "PerturbedAnswer.query_id is empty, not",
        ),
        (encode_perturbed(dataclasses.replace(spoiled(1), answer=spoiled(1).answer[:3])), "are not both"),
        (
            encode_perturbed(dataclasses.replace(spoiled(1), logits=spoiled(1).logits * np.float32(np.inf))),
            "not finite",
        ),
    ],
)
def test_a_record_that_is_no_evidence_is_refused_with_the_field(value: bytes | None, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        understand(value)
