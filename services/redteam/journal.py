"""What an account was answered, on disk: an attack that was cut goes on where it was.

An attack is a function of its randomness and of the answers. So one that is begun again puts the same questions, gets
the answers of the first time from here, and comes to where it was cut without asking anybody anything twice.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from services.redteam.attack import Ask
from services.redteam.substitute import Images, Probabilities

DIGEST_BYTES = 16
_HEAD = struct.Struct(f"<{DIGEST_BYTES}sII")
"""Digest of a request's images, its rows, and the classes of each answer; the answers follow as float32."""


class JournalError(ValueError):
    """The journal is of other questions; the message says whose and what to do."""


class Journal:
    """One account's."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: of the file; made where it is missing. What a cut left unfinished at its end is dropped.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=True)
        self._path = path
        whole = sum(_HEAD.size + answers.nbytes for _, answers in self._records())
        with path.open("r+b") as file:
            file.truncate(whole)

    def keeping(self, ask: Ask) -> Ask:
        """The same account, asked only what it has not answered yet.

        The function returned raises JournalError where it is asked otherwise than the first time.
        """
        known = self._records()

        def kept(images: Images) -> Probabilities:
            digest = _digest(images)
            earlier = next(known, None)
            if earlier is None:
                answers = np.ascontiguousarray(ask(images), dtype=np.float32)
                with self._path.open("ab") as file:
                    file.write(_HEAD.pack(digest, *answers.shape) + answers.tobytes())
                return answers
            if earlier[0] != digest:
                raise JournalError(
                    f"{self._path} is of other questions: of another seed, attack or version; delete it to begin anew"
                )
            return earlier[1]

        return kept

    def _records(self) -> Iterator[tuple[bytes, Probabilities]]:
        """Digest and answers [rows, classes] of every request, as far as they are whole."""
        end = self._path.stat().st_size
        with self._path.open("rb") as file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                digest, rows, classes = _HEAD.unpack(head)
                if file.tell() + 4 * rows * classes > end:
                    return
                answers = np.frombuffer(file.read(4 * rows * classes), dtype="<f4")
                yield digest, answers.reshape(rows, classes).copy()


def _digest(images: Images) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(images).tobytes(), digest_size=DIGEST_BYTES).digest()
