"""Attackers that know of the detectors: filtering, mixing with honest queries, and accounts that collude.

Each is a `Route`, so that it serves any attack and goes around any other: `Blinded(Mixed(Filtered(Account(ask), ...),
...), ...)` blinds, adds honest queries, and drops what would look similar to what was sent before. Blinding itself is
in `services.redteam.blinding`.
"""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress as ProgressBars

from services.redteam.attack import NATURAL, Questions, Reply, Route
from services.redteam.substitute import Images
from services.training.networks import train_similarity
from shared.datasets import Dataset
from shared.neighbours import NeighbourIndex
from shared.networks import in_fixed_batches

Encode: TypeAlias = Callable[[Images], NDArray[np.float32]]
"""From images [n, channels, height, width] uint8 to vectors [n, dimensions]: close for variants of one image."""

PAIR_SHARE = 0.005
"""Of natural queries that make a similar pair: an alarm in 10,000 queries at 50 pairs each (TR 2021-126, VIII-A 1)."""

_global_generator = threading.Lock()


def train_encoder(data: Dataset, epochs: int, contrastive_epochs: int, seed: int) -> Encode:
    """A similarity encoder of the attacker's own, E_sub, trained as the defender's is (TR 2021-126, VI-A and VII-B).

    Args:
        data: the attacker's own images, with labels.
        epochs: of its first stage, as a classifier.
        contrastive_epochs: of its second.
        seed: the encoder is a function of it and of `data`.
    """
    # The training draws from torch's global generator, which other attackers of this process must not see move.
    with (
        _global_generator,
        torch.random.fork_rng(devices=[]),
        ProgressBars(disable=True) as bars,
        tempfile.TemporaryDirectory() as checkpoints,
    ):
        classes = int(data.labels.max()) + 1
        network = train_similarity(data, classes, epochs, contrastive_epochs, seed, bars, Path(checkpoints))
    return lambda images: in_fixed_batches(network, images)


class SubstituteDetector:
    """D_sub: says of each query whether the attacker believes it to make a similar pair with an earlier one.

    The nearest of all the vectors that were sent before, as in the defender's detector (TR 2021-126, VI-A).
    """

    def __init__(self, encode: Encode, delta: float) -> None:
        """
        Args:
            encode: E_sub.
            delta: delta_sub, the L2 distance of two vectors below which they are a similar pair.
        """
        self.encode = encode
        self.delta = delta
        self._sent: NeighbourIndex | None = None

    @classmethod
    def tuned(cls, encode: Encode, natural: Images, share: float = PAIR_SHARE) -> SubstituteDetector:
        """With the threshold at which a stream of the attacker's own natural images makes pairs of this share of them.

        Args:
            encode: E_sub.
            natural: [n, channels, height, width].
            share: in (0, 1).
        """
        stream = cls(encode, 0.0)
        distances = [stream.nearest_then_sent(vector) for vector in encode(natural)]
        return cls(encode, float(np.quantile(distances[1:], share)))

    def nearest_then_sent(self, vector: NDArray[np.float32]) -> float:
        """L2 distance to the nearest sent so far, infinite where there is none; then it counts as sent itself."""
        distance = self.distance(vector)
        self.remember(vector)
        return distance

    def distance(self, vector: NDArray[np.float32]) -> float:
        """L2 distance to the nearest sent so far; infinite where there is none."""
        return self._sent.nearest(vector)[0] if self._sent else float("inf")

    def remember(self, vector: NDArray[np.float32]) -> None:
        """Count a vector [dimensions] as sent."""
        if self._sent is None:
            self._sent = NeighbourIndex(len(vector))
        self._sent.add(vector)

    def admitted(self, questions: Questions, limit: int) -> NDArray[np.intp]:
        """Rows that make no similar pair with what was sent or with each other, `limit` at most; they count as sent.

        Those that the attack compares exactly are sent whatever they look like.
        """
        rows: list[int] = []
        for row, vector in enumerate(self.encode(questions.images)):
            if len(rows) == limit:
                break
            if questions.exact[row] or self.distance(vector) >= self.delta:
                self.remember(vector)
                rows.append(row)
        return np.array(rows, dtype=np.intp)


class Filtered(Route):
    """Query filtering (TR 2021-126, VII-B): what the substitute detector believes suspicious is not sent."""

    def __init__(self, route: Route, detector: SubstituteDetector) -> None:
        """
        Args:
            route: of one account, as the detector's memory is one account's.
            detector: emulates the defender's.
        """
        self._route = route
        self._detector = detector

    def send(self, questions: Questions, limit: int) -> Reply:
        """The questions that pass; the others have no answer."""
        rows = self._detector.admitted(questions, limit)
        if not len(rows):
            return Reply.of({}, 0, banned=False)
        reply = self._route.send(questions[rows], limit)
        return Reply(rows[reply.rows], reply.answers, reply.sent, reply.banned)


class Mixed(Route):
    """Honest queries among the attack's own, at random places, so that their share of all that was sent is a given one.

    The attack's budget pays for them too.
    """

    def __init__(self, route: Route, honest: Images, share: float, random: np.random.Generator) -> None:
        """
        Args:
            route: what all of them take from here.
            honest: [n, channels, height, width], sent in order, and from the start again after the last.
            share: of honest queries, in [0, 1); 0.875 is seven to each of the attack's own.
            random: of the places.

        Raises:
            ValueError: no honest images, or no such share.
        """
        if not len(honest) or not 0.0 <= share < 1.0:
            raise ValueError(f"cannot mix {len(honest)} honest images in at a share of {share}")
        self._route = route
        self._honest = honest
        self._each = share / (1.0 - share)
        self._random = random
        self._taken = 0
        self._owed = 0.0

    def send(self, questions: Questions, limit: int) -> Reply:
        """The answers to the attack's own questions; requests stay as large as they were."""
        owed = self._owed + self._each * len(questions)
        # Sums of fractions may come out a little less than whole.
        added = max(0, int(owed + 1e-9))
        honest = self._next(added)
        mixed = np.concatenate([np.arange(len(questions)), np.full(added, NATURAL)])
        # The attack's own stay in their order.
        order = np.sort(self._random.permutation(len(mixed))[: len(questions)])
        own = np.full(len(mixed), NATURAL)
        own[order] = np.arange(len(questions))
        images = np.empty((len(mixed), *questions.images.shape[1:]), dtype=np.uint8)
        images[own >= 0], images[own < 0] = questions.images, honest
        stream = Questions(
            images,
            np.where(own >= 0, questions.numbers[own], NATURAL),
            np.where(own >= 0, questions.origins[own], NATURAL),
            (own >= 0) & questions.exact[own],
        )
        answers: dict[int, NDArray[np.float32]] = {}
        sent, banned = 0, False
        for start in range(0, len(stream), len(questions)):
            if banned or sent >= limit:
                break
            reply = self._route.send(stream[start : start + len(questions)], limit - sent)
            sent, banned = sent + reply.sent, reply.banned
            answers |= {int(own[start + row]): answer for row, answer in zip(reply.rows, reply.answers, strict=True)}
        answers.pop(NATURAL, None)
        # What a filter dropped of the attack's own needs no company.
        self._owed += self._each * len(answers) - (sent - len(answers))
        return Reply.of(answers, sent, banned)

    def _next(self, count: int) -> Images:
        rows = (self._taken + np.arange(count)) % len(self._honest)
        self._taken += count
        return self._honest[rows]


class Repeating(Route):
    """Everything is asked several times, and the mean is believed: what is added at random averages away.

    Of labels, the one that was told most often.
    """

    def __init__(self, route: Route, times: int) -> None:
        """
        Args:
            route: what all of it takes from here.
            times: that each question is asked, one after the other.

        Raises:
            ValueError: less than once.
        """
        if times < 1:
            raise ValueError(f"cannot ask everything {times} times")
        self._route = route
        self._times = times

    def send(self, questions: Questions, limit: int) -> Reply:
        """What was told on average; requests become as many times as large."""
        rows = np.repeat(np.arange(len(questions)), self._times)
        reply = self._route.send(questions[rows], limit)
        told: defaultdict[int, list[NDArray[np.float32]]] = defaultdict(list)
        for row, answer in zip(rows[reply.rows].tolist(), reply.answers, strict=True):
            told[row].append(answer)
        labels = bool(len(reply.answers)) and bool((reply.answers.max(axis=1) == 1.0).all())
        believed = {row: np.stack(answers).mean(axis=0) for row, answers in told.items()}
        if labels:
            whole = np.eye(reply.answers.shape[1], dtype=np.float32)
            believed = {row: whole[mean.argmax()] for row, mean in believed.items()}
        return Reply.of(believed, reply.sent, reply.banned)


class Colluding(Route):
    """Several accounts of one attacker, each of which sees as little as possible of what belongs together.

    A question goes to the account that has had the fewest of its relatives, which are the question it was made from
    and the others made from that; among equals to the one that has had the fewest questions. An account that is banned
    leaves the rest to the others.
    """

    def __init__(self, accounts: Sequence[Route]) -> None:
        """
        Args:
            accounts: a route for each.

        Raises:
            ValueError: no accounts.
        """
        if not accounts:
            raise ValueError("collusion needs accounts")
        self._accounts = accounts
        self._alive = list(range(len(accounts)))
        self._load = np.zeros(len(accounts), dtype=np.int64)
        self._account_of: dict[int, int] = {}
        self._children: defaultdict[int, NDArray[np.int64]] = defaultdict(lambda: np.zeros(len(accounts), np.int64))

    def send(self, questions: Questions, limit: int) -> Reply:
        """Each account's share in one request, in order."""
        answers: dict[int, NDArray[np.float32]] = {}
        sent = 0
        waiting = np.arange(min(len(questions), limit))
        while len(waiting) and self._alive:
            chosen = np.array([self._choose(questions, int(row)) for row in waiting])
            again: list[int] = []
            for account in np.unique(chosen).tolist():
                rows = waiting[chosen == account]
                if sent >= limit:
                    break
                reply = self._accounts[account].send(questions[rows], limit - sent)
                sent += reply.sent
                answers |= {int(rows[row]): answer for row, answer in zip(reply.rows, reply.answers, strict=True)}
                if reply.banned:
                    self._alive.remove(account)
                    left_over = [int(row) for row in rows if int(row) not in answers]
                    for row in left_over:
                        self._book(questions, row, account, -1)
                    again += left_over
            waiting = np.array(sorted(again), dtype=np.intp)
        return Reply.of(answers, sent, banned=not self._alive)

    def _choose(self, questions: Questions, row: int) -> int:
        origin = int(questions.origins[row])
        relatives = np.zeros(len(self._accounts), dtype=np.int64)
        if origin != NATURAL:
            relatives += self._children[origin]
            if origin in self._account_of:
                relatives[self._account_of[origin]] += 1
        account = min(self._alive, key=lambda one: (relatives[one], self._load[one]))
        self._account_of[int(questions.numbers[row])] = account
        self._book(questions, row, account, 1)
        return account

    def _book(self, questions: Questions, row: int, account: int, count: int) -> None:
        self._load[account] += count
        if (origin := int(questions.origins[row])) != NATURAL:
            self._children[origin][account] += count
