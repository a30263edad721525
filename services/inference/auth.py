"""Who sends a request: by its `authorization` metadata alone, never by anything in its body."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shared.clock import Clock
from shared.keys import KeyFile, KeyFileError
from shared.log import get_logger

log = get_logger(__name__)

LOOK_SECONDS = 1.0
"""How often the file is looked at: a revoked key works no longer than this."""


class Authenticator:
    """The accounts of a file of keys, read again whenever the file changes."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """
        Raises:
            KeyFileError: the file cannot be used; the message names the file and the field.
        """
        self._path = path
        self._clock = clock
        self._stamp = self._read_stamp()
        self._keys = KeyFile.load(path)
        self._looked_at = clock.monotonic()

    def account(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
        """The account that a call's metadata prove; None where they prove none."""
        self._look()
        headers = [value for key, value in metadata or () if key == "authorization"]
        if len(headers) != 1 or not isinstance(headers[0], str):
            return None
        return self._keys.authenticate(headers[0])

    def _read_stamp(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_ino)

    def _look(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = KeyFile.load(self._path)
        except KeyFileError as error:
            log.error("keys not read again, those read before stay valid", error=str(error))
        else:
            log.info("keys read again", accounts=len(self._keys.accounts))
