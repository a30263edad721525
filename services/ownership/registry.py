"""The registry: every spoiled answer, durably, in a hash chain for each account of each model. Nothing is ever changed.

SQLite in a file by default, or PostgreSQL: whatever `sqlalchemy.create_engine` takes of these two.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from services.ownership.chain import (
    LONGEST_NAME,
    Checked,
    Link,
    RecordError,
    check,
    genesis,
    link,
    understand,
)
from services.ownership.errors import OwnershipError
from shared.events import PerturbedAnswer
from shared.validation import printable

FORMAT = 1
BUSY_MS = 5000
"""How long a write waits for another process's, in SQLite."""
CONNECT_SECONDS = 5
PAGE = 256
"""Records read at a time."""

_NAME = String(LONGEST_NAME)
_metadata = MetaData()
_format = Table("registry_format", _metadata, Column("format", Integer, primary_key=True, autoincrement=False))
_answers = Table(
    "perturbed_answers",
    _metadata,
    Column("model_name", _NAME, primary_key=True),
    Column("account", _NAME, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("query_id", _NAME, nullable=False),
    Column("model_version", _NAME, nullable=False),
    Column("answered_at", BigInteger, nullable=False),
    Column("response", _NAME, nullable=False),
    Column("topic_id", _NAME, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    UniqueConstraint("model_name", "query_id"),
)
_sources = Table(
    "sources",
    _metadata,
    Column("topic_id", _NAME, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
)
_rejected = Table(
    "rejected_records",
    _metadata,
    Column("topic_id", _NAME, primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("reason", String, nullable=False),
    Column("record", LargeBinary),
)

_SQLITE_PASSING = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
)
_POSTGRESQL_PASSING = ("08", "25006", "40", "53", "55P03", "57", "58")
"""Beginnings of SQLSTATE: connection lost, read-only replica, deadlock, no room, lock, shutdown, input/output."""
_POSTGRESQL_FULL = "53100"


class RegistryError(OwnershipError):
    """The registry cannot be used; the message says why and what to do."""


class RegistryUnavailableError(RegistryError):
    """Not now: a full disk, or a database that is away. The same call may succeed later; nothing was changed."""

    def __init__(self, message: str, full: bool) -> None:
        super().__init__(message)
        self.full = full
        """Whether there is no room."""


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """A record of the topic `perturbed`, and where it lies."""

    topic_id: str
    """Kafka's own, of which a topic that is made anew has another."""
    partition: int
    offset: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is kept aside."""

    source: SourceRecord
    reason: str


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of records."""

    kept: int
    repeated: int
    """Known already, by their offset or by their query."""
    rejected: Sequence[Rejected]


@dataclass(frozen=True, slots=True)
class Chain:
    """One account's evidence against copies of one model."""

    model_name: str
    account: str
    records: int
    head: bytes


class Registry:
    """The registry in one database. Safe for several processes and threads at once; writes take turns."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def create(cls, url: str) -> Registry:
        """Open the registry to write, and make it where it is not there.

        Args:
            url: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.

        Raises:
            RegistryError: the URL names no database of these two kinds, or there is a registry of another format.
            RegistryUnavailableError: not now.
        """
        where = _parse(url)
        if where.drivername == "sqlite":
            folder = Path(where.database or "").parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RegistryUnavailableError(f"{folder}: {error.strerror}", full=False) from error
        registry = cls(_engine(where, writes=True))
        with registry._closed_on_failure(), registry._transaction() as connection:
            if not inspect(connection).has_table(_format.name):
                _metadata.create_all(connection)
                connection.execute(insert(_format).values(format=FORMAT))
            registry._require_format(connection)
        return registry

    @classmethod
    def open(cls, url: str) -> Registry:
        """Open a registry that is there, to read.

        Raises:
            RegistryError: the URL names no database of the two kinds, or there is no registry of this format.
            RegistryUnavailableError: not now.
        """
        where = _parse(url)
        missing = f"there is no registry at {where}; the ownership service makes it, or set PORTCULLIS_REGISTRY"
        if where.drivername == "sqlite" and not Path(where.database or "").is_file():
            raise RegistryError(missing)
        registry = cls(_engine(where, writes=False))
        with registry._closed_on_failure(), registry._transaction() as connection:
            if not inspect(connection).has_table(_format.name):
                raise RegistryError(missing)
            registry._require_format(connection)
        return registry

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def positions(self, topic_id: str) -> Mapping[int, int]:
        """The next offset to read of a topic, by partition, where anything has been read.

        Raises:
            RegistryUnavailableError: not now.
        """
        with self._transaction() as connection:
            return self._positions(connection, topic_id)

    def append(self, records: Sequence[SourceRecord]) -> Appended:
        """Add records to their accounts' chains, and remember that they were read: both or neither.

        A record below the offset that was read last is skipped, and so is one whose query is known with the same bytes
        (a publisher that repeats itself). One that is no evidence, or whose query is known with other bytes, is kept
        aside. Several thousand at a time are too many for one statement; a poll's few hundred are not.

        Args:
            records: in the order of offsets in each partition.

        Raises:
            RegistryUnavailableError: not now; nothing was changed.
        """
        with self._transaction() as connection:
            self._wait_for_turn(connection)
            fresh, read = self._unread(connection, records)
            understood, rejected = _sorted_out(fresh)
            known = self._known(connection, [answer for _, answer in understood])
            heads: dict[tuple[str, str], tuple[int, bytes]] = {}
            rows: list[dict[str, Any]] = []
            for source, answer in understood:
                record = source.value or b""
                query = (answer.model_name, answer.query_id)
                if query in known:
                    if known[query] != record:
                        reason = f"query {answer.query_id!r} of {answer.model_name} is known with another content"
                        rejected.append(Rejected(source, reason))
                    continue
                known[query] = record
                of = (answer.model_name, answer.account)
                position, previous = heads.get(of) or self._head(connection, *of)
                heads[of] = (position + 1, link(previous, record))
                rows.append(_row(source, answer, position, record, heads[of][1]))
            if rows:
                connection.execute(insert(_answers), rows)
            if rejected:
                connection.execute(insert(_rejected), [_rejected_row(one) for one in rejected])
            for (topic_id, partition), (known_before, offset) in read.items():
                _store_position(connection, topic_id, partition, offset, known_before)
        return Appended(len(rows), len(records) - len(rows) - len(rejected), tuple(rejected))

    def chains(self, model_name: str = "") -> list[Chain]:
        """Every account's chain, of one model or of all, by name.

        Raises:
            RegistryUnavailableError: not now.
        """
        last = (
            select(_answers.c.model_name, _answers.c.account, func.max(_answers.c.position).label("position"))
            .group_by(_answers.c.model_name, _answers.c.account)
            .subquery()
        )
        query = select(_answers.c.model_name, _answers.c.account, _answers.c.position, _answers.c.hash).join(
            last,
            (_answers.c.model_name == last.c.model_name)
            & (_answers.c.account == last.c.account)
            & (_answers.c.position == last.c.position),
        )
        if model_name:
            query = query.where(_answers.c.model_name == model_name)
        with self._transaction() as connection:
            found = connection.execute(query).all()
        return sorted(
            (Chain(row.model_name, row.account, row.position + 1, row.hash) for row in found),
            key=lambda chain: (chain.model_name, chain.account),
        )

    def links(self, model_name: str, account: str, most: int | None = None) -> Iterator[Link]:
        """One account's chain in order, its first `most` records; a page at a time, so that the service can write.

        Raises:
            RegistryUnavailableError: not now.
        """
        position = 0
        while True:
            query = (
                select(_answers.c.position, _answers.c.record, _answers.c.hash)
                .where(
                    _answers.c.model_name == model_name,
                    _answers.c.account == account,
                    _answers.c.position >= position,
                )
                .order_by(_answers.c.position)
                .limit(PAGE if most is None else min(PAGE, most - position))
            )
            with self._transaction() as connection:
                found = connection.execute(query).all()
            for row in found:
                yield Link(row.position, row.record, row.hash)
            if len(found) < PAGE:
                return
            position = found[-1].position + 1

    def verify_chain(self, model_name: str, account: str) -> Checked:
        """Go along an account's chain, to its end or to its first broken link.

        Raises:
            RegistryUnavailableError: not now.
        """
        return check(model_name, account, self.links(model_name, account))

    def rejected(self) -> list[Rejected]:
        """The records that are kept aside, in the order of partitions and offsets.

        Raises:
            RegistryUnavailableError: not now.
        """
        query = select(_rejected).order_by(_rejected.c.topic_id, _rejected.c.partition, _rejected.c.offset)
        with self._transaction() as connection:
            return [
                Rejected(SourceRecord(row.topic_id, row.partition, row.offset, row.record), row.reason)
                for row in connection.execute(query)
            ]

    @contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            passes, full = _looks_passing(error)
            if not passes:
                raise
            raise RegistryUnavailableError(f"{self.engine.url}: {str(error.orig).strip()}", full) from error

    def _require_format(self, connection: Connection) -> None:
        (found,) = connection.execute(select(_format.c.format)).scalars().all() or (None,)
        if found != FORMAT:
            raise RegistryError(f"{self.engine.url}: a registry of format {found}, this build reads {FORMAT}")

    def _wait_for_turn(self, connection: Connection) -> None:
        # SQLite has taken its lock with BEGIN IMMEDIATE.
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"LOCK TABLE {_sources.name} IN EXCLUSIVE MODE"))

    def _positions(self, connection: Connection, topic_id: str) -> dict[int, int]:
        query = select(_sources.c.partition, _sources.c.next_offset).where(_sources.c.topic_id == topic_id)
        return {row.partition: row.next_offset for row in connection.execute(query)}

    def _unread(
        self, connection: Connection, records: Sequence[SourceRecord]
    ) -> tuple[list[SourceRecord], dict[tuple[str, int], tuple[bool, int]]]:
        """Records that no earlier call has read, and the offsets after this one: whether there was one, and which."""
        stored = {
            (topic_id, partition): offset
            for topic_id in {record.topic_id for record in records}
            for partition, offset in self._positions(connection, topic_id).items()
        }
        fresh: list[SourceRecord] = []
        read: dict[tuple[str, int], tuple[bool, int]] = {}
        for record in records:
            of = (record.topic_id, record.partition)
            known, position = read.get(of) or (of in stored, stored.get(of, 0))
            if record.offset >= position:
                fresh.append(record)
                read[of] = (known, record.offset + 1)
        return fresh, read

    def _known(self, connection: Connection, answers: Sequence[PerturbedAnswer]) -> dict[tuple[str, str], bytes]:
        query = select(_answers.c.model_name, _answers.c.query_id, _answers.c.record).where(
            _answers.c.query_id.in_([answer.query_id for answer in answers])
        )
        return {(row.model_name, row.query_id): row.record for row in connection.execute(query)}

    def _head(self, connection: Connection, model_name: str, account: str) -> tuple[int, bytes]:
        """The next position of a chain, and the hash to go on from."""
        query = (
            select(_answers.c.position, _answers.c.hash)
            .where(_answers.c.model_name == model_name, _answers.c.account == account)
            .order_by(_answers.c.position.desc())
            .limit(1)
        )
        last = connection.execute(query).first()
        return (last.position + 1, last.hash) if last else (0, genesis(model_name, account))


def _sorted_out(
    records: Sequence[SourceRecord],
) -> tuple[list[tuple[SourceRecord, PerturbedAnswer]], list[Rejected]]:
    understood: list[tuple[SourceRecord, PerturbedAnswer]] = []
    rejected: list[Rejected] = []
    for record in records:
        try:
            understood.append((record, understand(record.value)))
        except RecordError as error:
            rejected.append(Rejected(record, str(error)))
    return understood, rejected


def _row(source: SourceRecord, answer: PerturbedAnswer, position: int, record: bytes, digest: bytes) -> dict[str, Any]:
    return {
        "model_name": answer.model_name,
        "account": answer.account,
        "position": position,
        "query_id": answer.query_id,
        "model_version": answer.model_version,
        "answered_at": answer.answered_at,
        "response": answer.response,
        "topic_id": source.topic_id,
        "partition": source.partition,
        "offset": source.offset,
        "record": record,
        "hash": digest,
    }


def _rejected_row(rejected: Rejected) -> dict[str, Any]:
    source = rejected.source
    return {
        "topic_id": source.topic_id,
        "partition": source.partition,
        "offset": source.offset,
        # What is in it came from the record.
        "reason": printable(rejected.reason),
        "record": source.value,
    }


def _store_position(connection: Connection, topic_id: str, partition: int, offset: int, known: bool) -> None:
    if known:
        of = (_sources.c.topic_id == topic_id) & (_sources.c.partition == partition)
        connection.execute(update(_sources).where(of).values(next_offset=offset))
    else:
        connection.execute(insert(_sources).values(topic_id=topic_id, partition=partition, next_offset=offset))


def _parse(url: str) -> URL:
    hint = "expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        where = make_url(url)
    except ArgumentError:
        # Not the URL itself: there may be a password in it.
        raise RegistryError(f"the registry's setting is no URL of a database; {hint}") from None
    if where.drivername == "postgresql":
        where = where.set(drivername="postgresql+psycopg")
    if where.get_backend_name() not in ("sqlite", "postgresql"):
        raise RegistryError(f"{where}: {where.get_backend_name()} is not supported; {hint}")
    if where.drivername == "sqlite" and where.database in (None, "", ":memory:"):
        raise RegistryError(f"{where}: a registry in memory would be lost; {hint}")
    return where


def _engine(where: URL, writes: bool) -> Engine:
    sqlite = where.get_backend_name() == "sqlite"
    try:
        engine = create_engine(
            where,
            # A connection that a restarted server has closed is found out before it is used.
            pool_pre_ping=not sqlite,
            connect_args={"timeout": BUSY_MS / 1000} if sqlite else {"connect_timeout": CONNECT_SECONDS},
        )
    except (NoSuchModuleError, ImportError) as error:
        raise RegistryError(f"{where}: its driver is missing ({error}); pip install 'portcullis[ownership]'") from error
    if sqlite:
        _set_up_sqlite(engine, writes)
    return engine


def _set_up_sqlite(engine: Engine, writes: bool) -> None:
    """Durable at every commit, readers beside the writer, and real transactions (Python's own begin too late)."""

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: object) -> None:
        connection.isolation_level = None
        if writes:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _looks_passing(error: DBAPIError) -> tuple[bool, bool]:
    """Whether waiting may mend it, and whether there is no room; otherwise it is a bug or a broken database."""
    if not isinstance(error, OperationalError) and not error.connection_invalidated:
        return False, False
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # without what it says in detail
        return code in _SQLITE_PASSING, code == sqlite3.SQLITE_FULL
    state: str = getattr(cause, "sqlstate", None) or "08"  # psycopg has none where there was no connection at all
    return state.startswith(_POSTGRESQL_PASSING), state == _POSTGRESQL_FULL
