"""The hash chain over one account's records: nobody can alter, insert, drop or reorder one without every later hash
changing. Pure.

A chain proves that records are the ones that its last hash, the head, was made of. It says nothing of when: whoever
holds the registry can cut its end off, or make another chain of other records. So a head must be left with somebody
else (a notary, a timestamping service) before a suspect model is looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from services.ownership.errors import OwnershipError
from shared.codec import CodecError, decode_perturbed
from shared.events import PerturbedAnswer

HASH_BYTES = 32
LONGEST_NAME = 256

_DOMAIN = b"portcullis ownership chain 1\0"


class RecordError(ValueError):
    """A record's bytes are no spoiled answer that could be evidence; the message says why."""


class BrokenChainError(OwnershipError):
    """A chain is not what it was; the message says where and why."""

    def __init__(self, account: str, position: int, reason: str) -> None:
        super().__init__(f"the evidence of {account} is not what it was: {reason}")
        self.position = position
        """Of the first broken link."""


@dataclass(frozen=True, slots=True)
class Link:
    """One record of a chain, as it is stored."""

    position: int
    """From 0."""
    record: bytes
    """The value of the topic's record, untouched."""
    hash: bytes
    """SHA-256 of the previous link's hash (the genesis for the first) and the record."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a look at a whole chain found."""

    records: int
    """Sound ones, up to the break if there is one."""
    head: bytes
    """Hash of the last sound one; the genesis of an empty chain."""
    broken: BrokenChainError | None


def genesis(model_name: str, account: str) -> bytes:
    """Where the chain of one account of one model begins; 32 bytes that are no other chain's."""
    names = b"".join(len(name).to_bytes(4, "big") + name for name in (model_name.encode(), account.encode()))
    return hashlib.sha256(_DOMAIN + names).digest()


def link(previous: bytes, record: bytes) -> bytes:
    """The hash of a record that follows the link with the hash `previous` (32 bytes)."""
    return hashlib.sha256(previous + record).digest()


def follow(model_name: str, account: str, links: Iterable[Link]) -> Iterator[tuple[Link, PerturbedAnswer]]:
    """Go along a chain from its beginning, and hand on each sound link with what its record says.

    A link is broken where its position is not the next one, its hash is not that of its record after the previous
    link, or its record is not of this model and account.

    Raises:
        BrokenChainError: at the first broken link.
    """
    head = genesis(model_name, account)
    for position, found in enumerate(links):
        if found.position != position:
            raise BrokenChainError(account, position, f"record {position} is missing, record {found.position} follows")
        if link(head, found.record) != found.hash:
            raise BrokenChainError(account, position, f"record {position} or its hash was altered")
        try:
            answer = understand(found.record)
        except RecordError as error:
            raise BrokenChainError(account, position, f"record {position} is no spoiled answer: {error}") from error
        if (answer.model_name, answer.account) != (model_name, account):
            raise BrokenChainError(
                account, position, f"record {position} is of account {answer.account!r} of model {answer.model_name!r}"
            )
        yield found, answer
        head = found.hash


def check(model_name: str, account: str, links: Iterable[Link]) -> Checked:
    """Go along a chain to its end, or to its first broken link; see `follow`."""
    head = genesis(model_name, account)
    records = 0
    try:
        for found, _ in follow(model_name, account, links):
            head = found.hash
            records += 1
    except BrokenChainError as error:
        return Checked(records, head, error)
    return Checked(records, head, None)


def understand(value: bytes | None) -> PerturbedAnswer:
    """A record of the topic `perturbed`, as evidence needs it.

    Raises:
        RecordError: it is a tombstone, cannot be decoded, names nobody, or its logits and answer are no two finite
            vectors of the same classes.
    """
    if value is None:
        raise RecordError("a tombstone: the topic is not compacted, and nothing is taken back")
    try:
        answer = decode_perturbed(value)
    except CodecError as error:
        raise RecordError(str(error)) from error
    for field in ("query_id", "account", "model_name", "model_version", "response"):
        name = getattr(answer, field)
        # Longer ones no index takes, and PostgreSQL knows no NUL.
        if len(name) > LONGEST_NAME or not name.isprintable() or (not name and field != "response"):
            raise RecordError(f"PerturbedAnswer.{field} is empty, not printable or over {LONGEST_NAME} characters")
    if answer.logits.ndim != 1 or len(answer.logits) < 2 or answer.answer.shape != answer.logits.shape:
        raise RecordError(
            f"PerturbedAnswer.logits {list(answer.logits.shape)} and answer {list(answer.answer.shape)} are not both "
            "[classes]"
        )
    if not (np.isfinite(answer.logits).all() and np.isfinite(answer.answer).all()):
        raise RecordError("PerturbedAnswer.logits or answer has a value that is not finite")
    return answer
