"""Evidence for others: one account's chain in a file of JSON lines, which shows by itself whether it was altered.

The first line names the model, the account, how many records there are and the chain's head. Each other line is a
record: its position, the value of the topic's record (base64 of `portcullis.v1.PerturbedAnswer`), its hash, and what
is in it for people to read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.ownership.chain import BrokenChainError, Link, follow, genesis
from services.ownership.errors import OwnershipError
from services.ownership.registry import Chain, Registry
from shared.events import PerturbedAnswer
from shared.validation import first_mistake

FORMAT = "portcullis-evidence-1"
LONGEST_LINE = 64 * 2**20
_HASH = r"^[0-9a-f]{64}$"


class EvidenceError(OwnershipError):
    """A file of evidence was altered or is none; the message names the line or the record."""


class Header(BaseModel):
    """The first line."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: str = Field(pattern=f"^{FORMAT}$")
    model_name: str
    account: str
    records: int = Field(ge=0)
    head: str = Field(pattern=_HASH)


class Line(BaseModel):
    """One record."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    position: int = Field(ge=0)
    hash: str = Field(pattern=_HASH)
    query_id: str
    model_version: str
    answered_at: str
    told: int
    """The label told."""
    true: int
    """The label that the model would have told."""
    record: str


LineType = TypeVar("LineType", Header, Line)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A file of evidence, its header read and nothing checked yet."""

    path: Path
    header: Header

    @classmethod
    def open(cls, path: Path) -> Evidence:
        """
        Raises:
            EvidenceError: it does not begin as one.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            return cls(path, _parsed(path, file, 1, Header))

    def links(self) -> Iterator[Link]:
        """The chain as the file has it.

        Raises:
            EvidenceError: a line is malformed or missing, or the last hash is not the header's.
            OSError: it cannot be read.
        """
        return (found for found, _ in self._read())

    def check(self, head: str = "") -> int:
        """Make sure that nothing in the file was altered.

        Args:
            head: the chain's head in hexadecimal, as somebody else kept it at some time.

        Returns:
            How many records the chain had when `head` was its head; all of them where none is given.

        Raises:
            EvidenceError: the message names the first altered record, or the head was never this chain's.
            OSError: it cannot be read.
        """
        described: list[Line] = []
        known = 0 if head else self.header.records

        def links() -> Iterator[Link]:
            for found, line in self._read():
                described[:] = [line]
                yield found

        try:
            for found, answer in follow(self.header.model_name, self.header.account, links()):
                if described != [_line(found, answer)]:
                    raise EvidenceError(f"{self.path}: record {found.position} is described as what it is not")
                if found.hash.hex() == head.lower():
                    known = found.position + 1
        except BrokenChainError as error:
            raise EvidenceError(f"{self.path}: {error}") from error
        if head and not known:
            raise EvidenceError(f"{self.path}: sound in itself, but its chain never had the head {head}")
        return known

    def _read(self) -> Iterator[tuple[Link, Line]]:
        head = genesis(self.header.model_name, self.header.account).hex()
        with self.path.open("rb") as file:
            _parsed(self.path, file, 1, Header)
            for position in range(self.header.records):
                line = _parsed(self.path, file, position + 2, Line)
                try:
                    record = base64.b64decode(line.record, validate=True)
                except binascii.Error as error:
                    raise EvidenceError(f"{self.path}: record {position} was altered ({error})") from error
                head = line.hash
                yield Link(line.position, record, bytes.fromhex(head)), line
            if file.read(1):
                raise EvidenceError(f"{self.path}: goes on after its {self.header.records} records")
        if head != self.header.head:
            raise EvidenceError(f"{self.path}: ends with the hash {head}, its head says {self.header.head}")


def export_evidence(registry: Registry, chain: Chain, path: Path) -> None:
    """Write one account's chain, as far as `chain` knows it.

    Raises:
        BrokenChainError: the registry's own chain is not what it was; the file ends before the broken record.
        RegistryUnavailableError: the registry cannot be read now.
        OSError: the file cannot be written.
    """
    header = Header(
        format=FORMAT,
        model_name=chain.model_name,
        account=chain.account,
        records=chain.records,
        head=chain.head.hex(),
    )
    links = registry.links(chain.model_name, chain.account, chain.records)
    with path.open("w", encoding="utf-8") as file:
        file.write(header.model_dump_json() + "\n")
        for found, answer in follow(chain.model_name, chain.account, links):
            file.write(_line(found, answer).model_dump_json() + "\n")


def _line(found: Link, answer: PerturbedAnswer) -> Line:
    return Line(
        position=found.position,
        hash=found.hash.hex(),
        query_id=answer.query_id,
        model_version=answer.model_version,
        answered_at=_moment(answer.answered_at),
        told=int(answer.answer.argmax()),
        true=int(answer.logits.argmax()),
        record=base64.b64encode(found.record).decode(),
    )


def _moment(microseconds: int) -> str:
    try:
        return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):  # of a clock that was far off
        return f"{microseconds} microseconds"


def _parsed(path: Path, file: BinaryIO, number: int, kind: type[LineType]) -> LineType:
    text = file.readline(LONGEST_LINE)
    if not text.endswith(b"\n"):
        what = "ends" if len(text) < LONGEST_LINE else f"has over {LONGEST_LINE} bytes"
        raise EvidenceError(f"{path}: line {number} is missing or cut: the file {what} there")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise EvidenceError(f"{path}: line {number}: {first_mistake(error)}") from error
