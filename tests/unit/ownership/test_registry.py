"""The registry, in SQLite and in a real PostgreSQL: everything once, in order, and nothing where a write fails."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from services.ownership.registry import Registry, RegistryError, RegistryUnavailableError, SourceRecord
from shared.codec import encode_perturbed
from tests.support.disks import fill
from tests.support.perturbed import record, spoiled
from tests.support.postgresql import PostgreSQL, can_mount

ACCOUNTS = ("mallory", "oscar")


def source(offset: int, value: bytes | None, partition: int = 0, topic_id: str = "t") -> SourceRecord:
    return SourceRecord(topic_id, partition, offset, value)


def stream(count: int) -> list[SourceRecord]:
    return [source(offset, record(offset, ACCOUNTS[offset % 2])) for offset in range(count)]


def kept(registry: Registry) -> dict[str, list[bytes]]:
    """Every account's records in order, each chain whole."""
    found: dict[str, list[bytes]] = {}
    for chain in registry.chains():
        checked = registry.verify_chain(chain.model_name, chain.account)
        assert (checked.broken, checked.records, checked.head) == (None, chain.records, chain.head)
        found[chain.account] = [link.record for link in registry.links(chain.model_name, chain.account)]
    return found


def test_records_are_kept_byte_for_byte_in_their_accounts_chains(url: str) -> None:
    records = stream(600)
    registry = Registry.create(url)
    appended = registry.append(records)
    assert (appended.kept, appended.repeated, appended.rejected) == (600, 0, ())
    assert registry.positions("t") == {0: 600}
    registry.close()
    again = Registry.open(url)
    assert kept(again) == {account: [r.value for r in records[start::2]] for start, account in enumerate(ACCOUNTS)}
    assert [link.position for link in again.links("fashion", "mallory", 260)] == list(range(260))
    again.close()


@settings(max_examples=25, deadline=None)
@given(takes=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6))
def test_however_records_are_cut_and_repeated_each_is_kept_once(
    takes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    records = stream(20)
    registry = Registry.create(f"sqlite:///{tmp_path_factory.mktemp('cuts')}/registry.db")
    reached = 0
    for back, ahead in [*takes, (20, 20)]:
        first = max(0, reached - back)
        registry.append(records[first : reached + ahead])
        reached = max(reached, min(20, reached + ahead))
    assert kept(registry) == {account: [r.value for r in records[start::2]] for start, account in enumerate(ACCOUNTS)}
    registry.close()


def test_a_query_that_was_published_twice_or_in_a_topic_made_anew_is_kept_once(url: str) -> None:
    registry = Registry.create(url)
    registry.append(stream(4))
    assert registry.append([source(4, record(0, "mallory"))]).repeated == 1
    anew = [source(r.offset, r.value, topic_id="anew") for r in stream(6)]
    assert registry.append(anew).kept == 2
    assert {account: len(records) for account, records in kept(registry).items()} == {"mallory": 3, "oscar": 3}
    assert registry.positions("anew") == {0: 6}
    registry.close()


def test_what_is_no_evidence_is_kept_aside_and_blocks_nothing(url: str) -> None:
    registry = Registry.create(url)
    other = encode_perturbed(spoiled(7, query_id="mallory-0"))
    records = [record(0), b"\xff\xff", None, record(1), other]
    appended = registry.append([source(offset, value) for offset, value in enumerate(records)])
    assert appended.kept == 2
    assert kept(registry) == {"mallory": [record(0), record(1)]}
    aside = registry.rejected()
    assert [(one.source.offset, one.source.value) for one in aside] == [(1, b"\xff\xff"), (2, None), (4, other)]
    assert "is known with another content" in aside[2].reason
    registry.close()


def test_writers_take_turns_and_readers_wait_for_nobody(url: str) -> None:
    registries = [Registry.create(url) for _ in range(3)]
    reader = Registry.open(url)
    pages = reader.links("fashion", "mallory")
    registries[0].append(stream(2))
    next(pages)
    threads = [
        threading.Thread(
            target=lambda registry=registry: [  # type: ignore[misc]
                registry.append(stream(100)[start : start + 10]) for start in range(0, 100, 10)
            ]
        )
        for registry in registries
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {account: len(records) for account, records in kept(reader).items()} == {"mallory": 50, "oscar": 50}
    for registry in (*registries, reader):
        registry.close()


def test_a_chain_altered_in_the_database_is_broken_at_its_first_altered_record(url: str) -> None:
    registry = Registry.create(url)
    registry.append(stream(20))
    with registry.engine.begin() as connection:
        connection.execute(
            text("UPDATE perturbed_answers SET record = :record WHERE account = 'mallory' AND position IN (4, 7)"),
            {"record": record(99)},
        )
    checked = registry.verify_chain("fashion", "mallory")
    assert checked.broken is not None
    assert (checked.records, checked.broken.position) == (4, 4)
    assert registry.verify_chain("fashion", "oscar").broken is None
    registry.close()


def test_a_full_sqlite_file_keeps_all_or_nothing_and_takes_more_when_there_is_room(tmp_path: Path) -> None:
    registry = Registry.create(f"sqlite:///{tmp_path}/registry.db")
    registry.append(stream(2))
    with registry.engine.connect() as connection:
        limit = {"pages": connection.exec_driver_sql("PRAGMA page_count").scalar_one() + 4}
    registry.engine.dispose()

    @event.listens_for(registry.engine, "begin")
    def _limit(connection: object) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={limit['pages']}")  # type: ignore[attr-defined]

    with pytest.raises(RegistryUnavailableError) as caught:
        registry.append(stream(200))
    assert caught.value.full
    assert registry.positions("t") == {0: 2}
    limit["pages"] = 1_000_000
    assert registry.append(stream(200)).kept == 198
    assert sum(len(records) for records in kept(registry).values()) == 200
    registry.close()


def test_a_full_postgresql_keeps_all_or_nothing_and_takes_more_when_there_is_room(tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("this machine lets nobody mount a small file system")
    with PostgreSQL(tmp_path, megabytes=100) as server:
        registry = Registry.create(server.url)
        registry.append(stream(2))
        filler = server.data / "filler"
        fill(filler)
        with pytest.raises(RegistryUnavailableError) as caught:
            registry.append(stream(400))
        assert caught.value.full
        filler.unlink()
        assert registry.append(stream(400)).kept == 398
        assert sum(len(records) for records in kept(registry).values()) == 400
        registry.close()


def test_a_postgresql_that_goes_away_is_waited_for_and_nothing_is_half_kept(tmp_path: Path) -> None:
    server = PostgreSQL(tmp_path)
    with server:
        registry = Registry.create(server.url)
        registry.append(stream(10))
    with pytest.raises(RegistryUnavailableError) as caught:
        registry.append(stream(20))
    assert not caught.value.full
    with server:
        assert registry.append(stream(20)).kept == 10
        assert sum(len(records) for records in kept(registry).values()) == 20
        registry.close()


def test_a_folder_that_cannot_be_written_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RegistryUnavailableError, match="file"):
        Registry.create(f"sqlite:///{tmp_path}/file/registry.db")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("registry.db", "is no URL of a database"),
        ("mysql://root:secret@db/registry", "mysql is not supported"),
        ("sqlite://", "would be lost"),
        ("sqlite:///nowhere/registry.db", "there is no registry at"),
    ],
)
def test_a_registry_that_cannot_be_is_refused_with_what_to_do_and_without_its_password(wrong: str, said: str) -> None:
    with pytest.raises(RegistryError, match=said) as caught:
        Registry.open(wrong)
    assert "secret" not in str(caught.value)


def test_a_registry_of_another_format_or_another_database_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    sqlite3.connect(tmp_path / "registry.db").executescript("CREATE TABLE other (x)")
    with pytest.raises(RegistryError, match="there is no registry at"):
        Registry.open(url)
    registry = Registry.create(url)
    with registry.engine.begin() as connection:
        connection.execute(text("UPDATE registry_format SET format = 2"))
    with pytest.raises(RegistryError, match="format 2, this build reads 1"):
        Registry.create(url)
    registry.close()


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    program = (
        "import os, sys; from services.ownership.registry import Registry; "
        "from tests.unit.ownership.test_registry import stream; "
        f"registry = Registry.create({url!r}); registry.append(stream(50)); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": "."}, check=False)
    assert ended.returncode == -9
    registry = Registry.open(url)
    assert sum(len(records) for records in kept(registry).values()) == 50
    registry.close()
