"""The spool: records on disk while the broker is away, in order, until it is back.

Segments of frames `length, CRC-32, payload`. An append reaches the operating system before it returns, so a record
survives the death of the process; `sync` makes it survive that of the machine. A frame that a crash has torn is cut
off at the next start. Read records are only forgotten when `advance` says so, and where reading stands is kept on
disk; a crash in between sends the last records again, under the same batch ids, which the receivers drop.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.log import get_logger

log = get_logger(__name__)

_FRAME = struct.Struct("<II")
_PAYLOAD = struct.Struct("<HHII")
"""Lengths of topic and key, partition, rows."""

SEGMENT_BYTES = 16 * 1024 * 1024


class SpoolError(RuntimeError):
    """The spool's folder cannot be used; the message names it."""


class SpoolFullError(SpoolError):
    """Nothing was written: the records do not fit into the spool."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record on its way to Kafka."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    rows: int
    """Query rows in it, for the counters."""

    def to_bytes(self) -> bytes:
        """As the spool keeps it."""
        topic = self.topic.encode()
        return _PAYLOAD.pack(len(topic), len(self.key), self.partition, self.rows) + topic + self.key + self.value

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """The inverse of `to_bytes`."""
        topic_length, key_length, partition, rows = _PAYLOAD.unpack_from(data)
        key = _PAYLOAD.size + topic_length
        value = key + key_length
        return cls(data[_PAYLOAD.size : key].decode(), partition, data[key:value], data[value:], rows)


def _frames(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Payload and end of each whole frame from where the file stands; ends at the first that is torn or altered."""
    end = file.tell()
    while len(head := file.read(_FRAME.size)) == _FRAME.size:
        length, checksum = _FRAME.unpack(head)
        payload = file.read(length)
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        end += _FRAME.size + length
        yield payload, end


class Spool:
    """A queue of records on disk. Used by one thread of one process, which holds the folder's lock."""

    def __init__(self, folder: Path, most_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """
        Args:
            folder: made where it is missing; what an earlier process left is kept.
            most_bytes: on disk.
            segment_bytes: a segment that has reached this size is followed by a new one.

        Raises:
            SpoolError: the folder cannot be written, or another process uses it.
        """
        self._folder = folder
        self._most_bytes = most_bytes
        self._segment_bytes = segment_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SpoolError(f"{folder}: another process uses this spool; give each replica its own") from error
        except OSError as error:
            raise SpoolError(f"{folder}: cannot be used as a spool ({error.strerror})") from error
        self._segments = deque(sorted(int(path.stem) for path in folder.glob("*.segment")))
        self._offset = 0
        self._tail: BinaryIO | None = None
        self._ends: list[int] = []
        self._recover()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to read."""
        return self.bytes == 0

    @property
    def bytes(self) -> int:
        """Of unread records, frames included."""
        return self._size - self._offset

    def append(self, records: Sequence[Record]) -> None:
        """Add records at the end: all of them or none.

        Raises:
            SpoolFullError: they do not fit.
            OSError: the disk does not take them.
        """
        payloads = [record.to_bytes() for record in records]
        data = b"".join(_FRAME.pack(len(payload), zlib.crc32(payload)) + payload for payload in payloads)
        if self._size + len(data) > self._most_bytes:
            raise SpoolFullError(f"{self._folder}: {self._size} bytes of {self._most_bytes} are taken")
        tail = self._open_tail()
        start = tail.seek(0, os.SEEK_END)
        try:
            # A disk that is nearly full takes a part and says so; only the next write fails.
            rest = memoryview(data)
            while rest:
                rest = rest[tail.write(rest) :]
        except OSError:
            tail.truncate(start)
            raise
        self._size += len(data)
        if start + len(data) >= self._segment_bytes:
            self._close_tail()

    def peek(self, most_bytes: int) -> list[Record]:
        """The oldest records, one or more where there are any, of about `most_bytes`; they stay until `advance`."""
        while self._segments:
            with self._path(self._segments[0]).open("rb") as file:
                file.seek(self._offset)
                records, self._ends = [], []
                for payload, end in _frames(file):
                    records.append(Record.from_bytes(payload))
                    self._ends.append(end)
                    if end - self._offset >= most_bytes:
                        break
            if records:
                return records
            self._set_damaged_aside()
        return []

    def advance(self, count: int) -> None:
        """Forget the first `count` of the records that `peek` gave last."""
        if count == 0:
            return
        self._offset = self._ends[count - 1]
        head = self._path(self._segments[0])
        if self._offset == head.stat().st_size:
            self._drop_head()
        self._store_position()

    def sync(self) -> None:
        """Make all that was appended survive the machine's death."""
        if self._tail is not None:
            os.fsync(self._tail.fileno())

    def close(self) -> None:
        """Sync, and let another process use the folder."""
        self._close_tail()
        self._lock.close()

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:012d}.segment"

    @property
    def _position(self) -> Path:
        return self._folder / "position"

    def _recover(self) -> None:
        if self._segments:
            self._cut_torn_tail(self._path(self._segments[-1]))
        self._size = sum(self._path(segment).stat().st_size for segment in self._segments)
        if self._position.exists() and self._segments:
            segment, offset = (int(word) for word in self._position.read_text().split())
            self._offset = offset if segment == self._segments[0] else 0
        if self._segments and self._offset >= self._path(self._segments[0]).stat().st_size:
            self._drop_head()

    @staticmethod
    def _cut_torn_tail(path: Path) -> None:
        with path.open("r+b") as file:
            end = max((end for _, end in _frames(file)), default=0)
            torn = path.stat().st_size - end
            if torn:
                log.warning("spool: torn end of the last segment cut off", path=str(path), bytes=torn)
                file.truncate(end)

    def _set_damaged_aside(self) -> None:
        path = self._path(self._segments[0])
        lost = path.stat().st_size - self._offset
        log.error("spool: records are damaged and set aside", path=f"{path}.damaged", bytes=lost)
        if len(self._segments) == 1:
            self._close_tail()
        path.rename(f"{path}.damaged")
        self._forget_head(self._offset + lost)

    def _drop_head(self) -> None:
        path = self._path(self._segments[0])
        size = path.stat().st_size
        if len(self._segments) == 1:
            self._close_tail()
        path.unlink()
        self._forget_head(size)

    def _forget_head(self, size: int) -> None:
        self._segments.popleft()
        self._size -= size
        self._offset = 0

    def _store_position(self) -> None:
        if not self._segments:
            self._position.unlink(missing_ok=True)
            return
        temporary = self._position.with_suffix(".new")
        try:
            temporary.write_text(f"{self._segments[0]} {self._offset}")
            temporary.replace(self._position)
        except OSError as error:
            # Without it a crash sends records again, under the batch ids that they had.
            log.warning("spool: where reading stands cannot be kept", folder=str(self._folder), error=str(error))

    def _open_tail(self) -> BinaryIO:
        if self._tail is None:
            following = self._segments[-1] + 1 if self._segments else self._first_free()
            self._segments.append(following)
            self._tail = self._path(following).open("wb", buffering=0)
        return self._tail

    def _first_free(self) -> int:
        taken = (int(path.name.split(".")[0]) for path in self._folder.glob("*.segment*"))
        return max(taken, default=-1) + 1

    def _close_tail(self) -> None:
        if self._tail is not None:
            self.sync()
            self._tail.close()
            self._tail = None
