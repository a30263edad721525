"""API keys: who a client is.

A key is `pk_<id>_<secret>`. The file of keys holds only hashes. A key's secret has 256 random bits, so a plain SHA-256
is right: slow password hashes protect what people can guess, and would hand anybody a way to burn the server's time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import string
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.validation import first_mistake

DEFAULT_KEYS = Path("build/keys.yaml")
ACCOUNT_PATTERN = r"^[A-Za-z0-9._@:-]{1,128}$"

_ID_LETTERS = string.ascii_letters + string.digits
_KEY = re.compile(r"pk_(?P<id>[A-Za-z0-9]{12})_(?P<secret>[A-Za-z0-9_-]{43})")
_NOBODY = "0" * 64
"""Compared against where the key's id is unknown, so that the answer takes as long."""

Account = Annotated[str, Field(pattern=ACCOUNT_PATTERN)]


class KeyFileError(ValueError):
    """A file of keys cannot be used; the message names the file and the field."""


class KeyRecord(BaseModel):
    """What is kept of one key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9]{12}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the whole key, in hexadecimal digits."""
    created: datetime


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    accounts: dict[Account, tuple[KeyRecord, ...]]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def issue_key(account: str) -> tuple[str, KeyRecord]:
    """A new key for `account`, and what to keep of it; the key itself is shown once and stored nowhere.

    Raises:
        ValueError: no account can have this name.
    """
    if not re.fullmatch(ACCOUNT_PATTERN, account):
        raise ValueError(f"account {account!r} does not match {ACCOUNT_PATTERN}")
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(12))
    key = f"pk_{key_id}_{secrets.token_urlsafe(32)}"
    return key, KeyRecord(id=key_id, sha256=_hash(key), created=datetime.now(UTC).replace(microsecond=0))


class KeyFile:
    """Accounts and their keys. An account may have several: that is how keys are rotated."""

    def __init__(self, path: Path, accounts: dict[str, tuple[KeyRecord, ...]]) -> None:
        """
        Raises:
            KeyFileError: two keys have one id.
        """
        self.path = path
        self.accounts = accounts
        self._by_id: dict[str, tuple[str, KeyRecord]] = {}
        for account, records in accounts.items():
            for number, record in enumerate(records):
                if record.id in self._by_id:
                    raise KeyFileError(f"{path}: field accounts.{account}.{number}.id: {record.id} appears twice")
                self._by_id[record.id] = (account, record)

    @classmethod
    def load(cls, path: Path | str) -> KeyFile:
        """Read a file of keys, YAML or JSON.

        Raises:
            KeyFileError: the file cannot be read or is malformed; the message names the file and the field.
        """
        path = Path(path)
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"{path}: cannot be read ({error})") from error
        except yaml.YAMLError as error:
            raise KeyFileError(f"{path}: not YAML: {error}") from error
        try:
            document = _Document.model_validate(raw)
        except ValidationError as error:
            raise KeyFileError(f"{path}: {first_mistake(error)}") from error
        return cls(path, document.accounts)

    def add(self, account: str, record: KeyRecord) -> KeyFile:
        """The same keys and one more.

        Raises:
            KeyFileError: the id is taken.
        """
        return KeyFile(self.path, {**self.accounts, account: (*self.accounts.get(account, ()), record)})

    def revoke(self, key_id: str) -> KeyFile:
        """The same keys without the one of this id; an account that has no key left goes too.

        Raises:
            KeyError: there is no such key.
        """
        account, _ = self._by_id[key_id]
        kept = tuple(record for record in self.accounts[account] if record.id != key_id)
        others = {name: records for name, records in self.accounts.items() if name != account}
        return KeyFile(self.path, {**others, account: kept} if kept else others)

    def save(self) -> None:
        """Replace the file in one step: a reader sees the old keys or the new ones, never half a file."""
        document: dict[str, Any] = _Document(accounts=self.accounts).model_dump(mode="json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                yaml.safe_dump(document, file, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def authenticate(self, header: str) -> str | None:
        """The account of an `authorization` header's value, `Bearer <key>`; None for any other value.

        What it takes does not tell whether a key's id exists.
        """
        scheme, _, key = header.partition(" ")
        match = _KEY.fullmatch(key)
        if scheme.lower() != "bearer" or match is None:
            return None
        found = self._by_id.get(match["id"])
        same = hmac.compare_digest(_hash(key), found[1].sha256 if found else _NOBODY)
        return found[0] if found and same else None
