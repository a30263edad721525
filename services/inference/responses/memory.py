"""What was told before under PERTURB, so that it is told again: wrong answers of all accounts, true ones of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray


class PerturbedMemory:
    """Spoiled answers by the perceptual hash of their queries; the oldest are forgotten when it is full."""

    def __init__(self, capacity: int, similar_bits: int) -> None:
        """
        Args:
            capacity: answers kept.
            similar_bits: hashes that differ in no more bits are of similar queries.
        """
        self._similar_bits = similar_bits
        self._hashes = np.zeros(capacity, dtype=np.uint64)
        self._answers: list[NDArray[np.float32]] = []
        self._query_ids: list[str] = []
        self._known: set[str] = set()
        self._next = 0

    def __len__(self) -> int:
        return len(self._answers)

    def record(self, query_id: str, perceptual_hash: int, answer: NDArray[np.float32]) -> None:
        """Remember the [classes] answer to a query; once, however often the topic tells of it."""
        if query_id in self._known:
            return
        if len(self._answers) < len(self._hashes):
            self._answers.append(answer)
            self._query_ids.append(query_id)
        else:
            self._known.discard(self._query_ids[self._next])
            self._answers[self._next] = answer
            self._query_ids[self._next] = query_id
        self._hashes[self._next] = perceptual_hash
        self._known.add(query_id)
        self._next = (self._next + 1) % len(self._hashes)

    def recall(self, perceptual_hash: int) -> NDArray[np.float32] | None:
        """The recorded answer to the most similar query, None where none is similar."""
        if not self._answers:
            return None
        distances = np.bitwise_count(self._hashes[: len(self._answers)] ^ np.uint64(perceptual_hash))
        nearest = int(distances.argmin())
        return self._answers[nearest] if distances[nearest] <= self._similar_bits else None


class Promises:
    """Inputs of accounts under PERTURB that were answered truly and will be again; the oldest are forgotten."""

    def __init__(self, capacity: int, capacity_an_account: int) -> None:
        """
        Args:
            capacity: inputs of all accounts together.
            capacity_an_account: inputs of one account, so that nobody can make the others' be forgotten alone.
        """
        self._capacity = capacity
        self._capacity_an_account = capacity_an_account
        self._accounts: OrderedDict[str, OrderedDict[int, None]] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def holds(self, account: str, digest: int) -> bool:
        """Whether the account was told the truth of this input."""
        return digest in self._accounts.get(account, ())

    def keep(self, account: str, digests: Collection[int]) -> None:
        """Remember that the account was told the truth of inputs."""
        if not digests:
            return
        own = self._accounts.setdefault(account, OrderedDict())
        self._accounts.move_to_end(account)
        for digest in digests:
            self._held += digest not in own
            own[digest] = None
            own.move_to_end(digest)
        while len(own) > self._capacity_an_account:
            own.popitem(last=False)
            self._held -= 1
        while self._held > self._capacity:
            # Who has been silent longest loses first.
            silent = next(iter(self._accounts))
            self._accounts[silent].popitem(last=False)
            self._held -= 1
            if not self._accounts[silent]:
                del self._accounts[silent]
