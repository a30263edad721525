"""A file of evidence shows by itself whether anything in it was altered."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ownership.chain import BrokenChainError, genesis, link
from services.ownership.evidence import Evidence, EvidenceError, export_evidence
from services.ownership.registry import Registry, SourceRecord
from tests.support.perturbed import record

RECORDS = 5


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    registry = Registry.create(f"sqlite:///{folder}/registry.db")
    registry.append([SourceRecord("t", 0, n, record(n)) for n in range(RECORDS)])
    export_evidence(registry, registry.chains()[0], folder / "evidence.jsonl")
    registry.close()
    return folder / "evidence.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, documents: list[dict[str, Any]]) -> Evidence:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return Evidence.open(path)


def test_what_was_exported_is_sound_and_holds_every_record(exported: Path) -> None:
    evidence = Evidence.open(exported)
    assert evidence.check() == RECORDS
    assert [link.record for link in evidence.links()] == [record(n) for n in range(RECORDS)]
    header = lines(exported)[0]
    assert (header["model_name"], header["account"], header["records"]) == ("fashion", "mallory", RECORDS)


def test_an_export_that_others_append_to_meanwhile_ends_where_it_began(tmp_path: Path) -> None:
    registry = Registry.create(f"sqlite:///{tmp_path}/registry.db")
    registry.append([SourceRecord("t", 0, n, record(n)) for n in range(3)])
    chain = registry.chains()[0]
    registry.append([SourceRecord("t", 0, n, record(n)) for n in range(3, 9)])
    export_evidence(registry, chain, tmp_path / "evidence.jsonl")
    assert Evidence.open(tmp_path / "evidence.jsonl").check() == 3
    registry.close()


@pytest.mark.parametrize("position", range(RECORDS))
def test_a_head_that_was_kept_elsewhere_says_how_many_records_there_were_then(exported: Path, position: int) -> None:
    head = lines(exported)[1 + position]["hash"]
    assert Evidence.open(exported).check(head.upper()) == position + 1


def test_a_head_that_this_chain_never_had_is_refused(exported: Path) -> None:
    with pytest.raises(EvidenceError, match="never had the head"):
        Evidence.open(exported).check("0" * 64)


Change = Callable[[list[dict[str, Any]]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d[3].update(record=base64.b64encode(record(99)).decode()), "record 2 or its hash was altered"),
        (lambda d: d[3].update(hash="0" * 64), "record 2 or its hash was altered"),
        (lambda d: d[3].update(told=(d[3]["told"] + 1) % 10), "record 2 is described as what it is not"),
        (lambda d: d[3].update(answered_at="2020-01-01T00:00:00.000+00:00"), "record 2 is described as what it is not"),
        (lambda d: d[3].update(query_id="other"), "record 2 is described as what it is not"),
        (lambda d: d[3].update(record="*"), "record 2 was altered"),
        (lambda d: d[3].pop("hash"), "line 4: field hash"),
        (lambda d: d.pop(3), "record 2 is missing, record 3 follows"),
        (lambda d: d.pop(), "line 6 is missing or cut"),
        (lambda d: d.insert(3, d[3]), "record 3 is missing, record 2 follows"),
        (lambda d: d.append(d[-1]), "goes on after its 5 records"),
        (lambda d: d[0].update(account="alice"), "record 0 or its hash was altered"),
        (lambda d: d[0].update(head="0" * 64), "its head says 0000"),
        (lambda d: d[0].update(records=4), "goes on after its 4 records"),
        (lambda d: d[0].update(format="other"), "line 1: field format"),
    ],
)
def test_every_alteration_is_named_by_its_record(exported: Path, tmp_path: Path, change: Change, said: str) -> None:
    documents = lines(exported)
    change(documents)
    with pytest.raises(EvidenceError, match=said):
        written(tmp_path / "altered.jsonl", documents).check()


def test_who_forges_the_whole_chain_is_found_by_a_head_that_was_kept_elsewhere(exported: Path, tmp_path: Path) -> None:
    documents = lines(exported)
    kept = documents[0]["head"]
    head = genesis("fashion", "mallory")
    del documents[2:]
    head = link(head, base64.b64decode(documents[1]["record"]))
    documents[0].update(records=1, head=head.hex())
    forged = written(tmp_path / "forged.jsonl", documents)
    forged.check()
    with pytest.raises(EvidenceError, match="never had the head"):
        forged.check(kept)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_altered_byte_is_overlooked(
    data: st.DataObject, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(exported.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    path = tmp_path_factory.mktemp("altered") / "evidence.jsonl"
    path.write_bytes(content)
    try:
        evidence = Evidence.open(path)
        evidence.check()
    except EvidenceError:
        return
    # What may change without being noticed says the same.
    assert evidence.header == Evidence.open(exported).header
    assert list(evidence.links()) == list(Evidence.open(exported).links())


def test_a_registry_whose_chain_is_broken_exports_nothing_that_looks_sound(tmp_path: Path) -> None:
    registry = Registry.create(f"sqlite:///{tmp_path}/registry.db")
    registry.append([SourceRecord("t", 0, n, record(n)) for n in range(4)])
    with registry.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM perturbed_answers WHERE position = 2")
    with pytest.raises(BrokenChainError, match="record 2 is missing"):
        export_evidence(registry, registry.chains()[0], tmp_path / "evidence.jsonl")
    with pytest.raises(EvidenceError):
        Evidence.open(tmp_path / "evidence.jsonl").check()
    registry.close()
