"""What an attack is: a core that turns images into questions and answers into a copy, and knows no network.

`Attack.run` asks through any function from images to probabilities: a client of a real endpoint, or a local model when
detectors are calibrated or evaluated; or through a `Route`, which disguises what is asked on its way there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.redteam.substitute import (
    Architecture,
    Images,
    Probabilities,
    Similarity,
    Substitute,
    Yardstick,
    small_network,
)

Ask: TypeAlias = Callable[[Images], Probabilities]
"""From images [n, channels, height, width] uint8 to answers [n, classes].

Raises `Banned` when there will be no more.
"""

NATURAL = -1
"""Origin of a question that was not made from another."""


class Banned(Exception):  # noqa: N818 - a state of the account, not a fault of the program
    """The victim answers this account no more."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What an attack wants to know.

    Attributes:
        images: [n, channels, height, width] uint8.
        numbers: [n] int64, ascending: each question's own, in the order in which the attack puts them.
        origins: [n] int64, the number of the question that each was made from; `NATURAL` for none.
        exact: [n] bool, answers that the attack compares with each other: no disguise may change or drop their images
            (TR 2021-126, section VII, leaves the gradient estimates of DFME untouched).
    """

    images: Images
    numbers: NDArray[np.int64]
    origins: NDArray[np.int64]
    exact: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Questions:
        return Questions(self.images[rows], self.numbers[rows], self.origins[rows], self.exact[rows])


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of questions.

    Attributes:
        rows: [m] ascending, the questions that were answered; the others were not sent, or not answered.
        answers: [m, classes] float32.
        sent: images that were sent and answered, whatever for.
        banned: whether there will be no more answers.
    """

    rows: NDArray[np.intp]
    answers: Probabilities
    sent: int
    banned: bool = False

    @classmethod
    def of(cls, answers: Mapping[int, NDArray[np.float32]], sent: int, banned: bool) -> Reply:
        """A reply from the answers [classes] by row, in any order."""
        rows = sorted(answers)
        told = np.stack([answers[row] for row in rows]) if rows else np.empty((0, 0), dtype=np.float32)
        return cls(np.array(rows, dtype=np.intp), told, sent, banned)


class Route(ABC):
    """How an attacker's questions get to the victim."""

    @abstractmethod
    def send(self, questions: Questions, limit: int) -> Reply:
        """Ask, in order.

        Args:
            questions: one request of the attack.
            limit: most images sent.
        """


class Account(Route):
    """One account that sends what it is given."""

    def __init__(self, ask: Ask) -> None:
        """
        Args:
            ask: the victim, as this account reaches it.
        """
        self._ask = ask

    def send(self, questions: Questions, limit: int) -> Reply:
        """The first `limit` questions, in one request."""
        images = questions.images[:limit]
        try:
            answers = np.asarray(self._ask(images), dtype=np.float32)
        except Banned:
            return Reply.of({}, 0, banned=True)
        return Reply(np.arange(len(images)), answers, len(images))


@dataclass(frozen=True, slots=True)
class Milestone:
    """The copy after one round."""

    queries: int
    similarity: Similarity | None
    """None where there is no yardstick."""


@dataclass(slots=True)
class AttackReport:
    """What an attack got."""

    attack: str
    queries: int = 0
    """Answered, including those that a disguise added."""
    banned: bool = False
    milestones: list[Milestone] = field(default_factory=list)
    copy: Substitute | None = None
    """As the last round left it; None before the first."""

    @property
    def final(self) -> Similarity | None:
        """The last copy's similarity."""
        return self.milestones[-1].similarity if self.milestones else None


Progress: TypeAlias = Callable[[AttackReport], None]
"""Told of the report as it grows: after every answered request and every round."""


@dataclass(slots=True)
class Loot:
    """The attacker's side of a running attack: what it asked and what it was told."""

    route: Route
    budget: int
    random: np.random.Generator
    request_rows: int
    report: AttackReport
    progress: Progress
    put: int = 0
    """Questions so far, answered or not."""
    questions: list[Questions] = field(default_factory=list)
    """Answered ones."""
    answers: list[Probabilities] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Queries that may still be sent; none after a ban."""
        return 0 if self.report.banned else self.budget - self.report.queries

    @property
    def wanted(self) -> int:
        """Questions that use up what is left: more where some are dropped on the way, fewer where others are added."""
        return -(-self.left * self.put // self.report.queries) if self.report.queries else self.left

    @property
    def images(self) -> Images:
        """[answered, channels, height, width]"""
        return np.concatenate([questions.images for questions in self.questions])

    @property
    def numbers(self) -> NDArray[np.int64]:
        """[answered], ascending; see `Questions`."""
        return np.concatenate([questions.numbers for questions in self.questions])

    @property
    def told(self) -> Probabilities:
        """[answered, classes]"""
        return np.concatenate(self.answers)

    def questioning(
        self, images: Images, origins: NDArray[np.int64] | None = None, exact: NDArray[np.bool_] | None = None
    ) -> Questions:
        """The next questions, numbered on from those already put.

        Args:
            images: [n, channels, height, width].
            origins: [n], see `Questions`; natural images where not given.
            exact: [n], see `Questions`; none where not given.
        """
        return Questions(
            images,
            self.put + np.arange(len(images)),
            np.full(len(images), NATURAL) if origins is None else origins,
            np.zeros(len(images), dtype=bool) if exact is None else exact,
        )

    def query(self, questions: Questions) -> None:
        """Put questions in order, `request_rows` a request, until they, the budget or the account end."""
        for start in range(0, len(questions), self.request_rows):
            if not self.left:
                return
            request = questions[start : start + self.request_rows]
            reply = self.route.send(request, self.left)
            self.put += len(request)
            if len(reply.rows):
                self.questions.append(request[reply.rows])
                self.answers.append(reply.answers)
            self.report.queries += reply.sent
            self.report.banned = reply.banned
            self.progress(self.report)


UNSPENT = 0.02
"""Share of a budget that is not worth another round: where a filter lets few questions pass, a copy would be trained
anew for ever fewer of them."""


class Attack(ABC):
    """A learning-based extraction attack."""

    name: ClassVar[str]

    def __init__(self, request_rows: int = 1) -> None:
        """
        Args:
            request_rows: images a request.
        """
        self.request_rows = request_rows
        self.architecture: Architecture = small_network
        """Of the copy."""

    def run(
        self,
        victim: Ask | Route,
        budget: int,
        random: np.random.Generator,
        yardstick: Yardstick | None = None,
        progress: Progress = lambda report: None,
    ) -> AttackReport:
        """Attack until the budget, but for `UNSPENT` of it, or the account ends.

        Args:
            victim: asked as it is, or through a route.
            budget: most images sent.
            random: the attack is a function of it and of the answers.
            yardstick: measures the copy after every round; the attack does not learn from it.
            progress: told of the report as it grows.
        """
        route = victim if isinstance(victim, Route) else Account(victim)
        loot = Loot(route, budget, random, self.request_rows, AttackReport(self.name), progress)
        substitute: Substitute | None = None
        while loot.left > UNSPENT * budget:
            before = loot.report.queries
            loot.query(self.questions(loot, substitute))
            if loot.report.queries == before:
                break
            if loot.questions:
                if substitute is None:
                    substitute = Substitute(loot.told.shape[1], random, self.architecture)
                self.learn(loot, substitute)
                loot.report.copy = substitute
                similarity = yardstick.measure(substitute) if yardstick else None
                loot.report.milestones.append(Milestone(loot.report.queries, similarity))
                progress(loot.report)
        return loot.report

    @abstractmethod
    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """The next round's, made by `loot.questioning`; `substitute` is None in the first."""

    @abstractmethod
    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Train the copy on everything answered so far."""
