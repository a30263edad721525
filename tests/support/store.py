"""A table of encoded states that a test can crash in the middle of a write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shared.detection import Detector, EncodedState, State


class Store:
    """One account's head and chunks, written in the order that `EncodedState` asks for."""

    def __init__(self) -> None:
        self.head: bytes | None = None
        self.chunks: dict[str, bytes] = {}

    def writes(self, encoded: EncodedState) -> Iterator[None]:
        """Write one thing for each step of the iterator: chunks, then the head, then deletions."""
        for name, data in encoded.chunks.items():
            self.chunks[name] = data
            yield
        self.head = encoded.head
        yield
        for name in encoded.deleted:
            # A chunk that came and went between two writes was never here.
            self.chunks.pop(name, None)
            yield

    def save(self, encoded: EncodedState, most: int | None = None) -> None:
        """Write everything, or crash after `most` writes."""
        for done, _ in enumerate(self.writes(encoded), start=1):
            if done == most:
                return

    def load(self, detector: Detector[Any]) -> State[Any]:
        """What a worker finds: only the chunks that the head asks for; a new state where there is no head."""
        if self.head is None:
            return detector.initial()
        needed = detector.needed_chunks(self.head)
        return detector.decode(self.head, {name: self.chunks[name] for name in needed})

    @property
    def size(self) -> int:
        """Bytes of everything, the head excepted."""
        return sum(len(data) for data in self.chunks.values())
