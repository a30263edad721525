"""What an attack is: a core that turns images into questions and answers into a copy, and knows no network.

`Attack.run` asks through any function from images to probabilities: a client of a real endpoint, or a local model when
detectors are calibrated or evaluated; or through a `Route`, which disguises what is asked on its way there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

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
    """None where it was not measured."""


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


class _Pile:
    """Rows in the order of their arrival, in one array that doubles as it grows: rounds ask for all of them."""

    def __init__(self) -> None:
        self._rows: NDArray[Any] | None = None
        self._end = 0

    def __len__(self) -> int:
        return self._end

    def add(self, rows: NDArray[Any]) -> None:
        """Put rows [n, ...] on top."""
        end = self._end + len(rows)
        if self._rows is None or end > len(self._rows):
            grown = np.empty((max(end, 2 * self._end), *rows.shape[1:]), dtype=rows.dtype)
            grown[: self._end] = self.array if self._rows is not None else rows[:0]
            self._rows = grown
        self._rows[self._end : end] = rows
        self._end = end

    @property
    def array(self) -> NDArray[Any]:
        """[len(self), ...], not to be written to.

        Raises:
            ValueError: there has been no row.
        """
        if self._rows is None:
            raise ValueError("nothing was answered yet")
        return self._rows[: self._end]


Progress: TypeAlias = Callable[[AttackReport], None]
"""Told of the report as it grows: after every answered request and every round."""


UNSPENT = 0.02
"""Share of a budget that is not worth another round: where a filter lets few questions pass, a copy would be trained
anew for ever fewer of them."""


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
    _images: _Pile = field(default_factory=_Pile)
    _numbers: _Pile = field(default_factory=_Pile)
    _told: _Pile = field(default_factory=_Pile)

    @property
    def left(self) -> int:
        """Queries that may still be sent; none after a ban."""
        return 0 if self.report.banned else self.budget - self.report.queries

    @property
    def goes_on(self) -> bool:
        """Whether enough of the budget is left for another round."""
        return self.left > UNSPENT * self.budget

    @property
    def wanted(self) -> int:
        """Questions that use up what is left: more where some are dropped on the way, fewer where others are added."""
        return -(-self.left * self.put // self.report.queries) if self.report.queries else self.left

    @property
    def answered(self) -> int:
        """Questions that were answered."""
        return len(self._told)

    @property
    def images(self) -> Images:
        """[answered, channels, height, width]"""
        return self._images.array

    @property
    def numbers(self) -> NDArray[np.int64]:
        """[answered], ascending; see `Questions`."""
        return self._numbers.array

    @property
    def told(self) -> Probabilities:
        """[answered, classes]"""
        return self._told.array

    def retold(self, told: Probabilities) -> Loot:
        """The same questions with other answers [answered, classes]."""
        pile = _Pile()
        pile.add(told)
        return replace(self, _told=pile)

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
                self._images.add(request.images[reply.rows])
                self._numbers.add(request.numbers[reply.rows])
                self._told.add(reply.answers)
            self.report.queries += reply.sent
            self.report.banned = reply.banned
            self.progress(self.report)


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
        self.measured_every = 0
        """Least number of queries between two measurements of the copy, where rounds are many and small."""

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
            yardstick: measures the copy after a round, and the last one in any case; the attack does not learn from it.
            progress: told of the report as it grows.
        """
        route = victim if isinstance(victim, Route) else Account(victim)
        loot = Loot(route, budget, random, self.request_rows, AttackReport(self.name), progress)
        substitute: Substitute | None = None
        due = 0
        while loot.goes_on:
            before = loot.report.queries
            loot.query(self.questions(loot, substitute))
            if loot.report.queries == before:
                break
            if loot.answered:
                if substitute is None:
                    substitute = Substitute(loot.told.shape[1], random, self.architecture)
                self.learn(loot, substitute)
                loot.report.copy = substitute
                similarity = None
                if yardstick and loot.report.queries >= due:
                    similarity = yardstick.measure(substitute)
                    due = loot.report.queries + self.measured_every
                loot.report.milestones.append(Milestone(loot.report.queries, similarity))
                progress(loot.report)
        if yardstick and substitute and loot.report.final is None:
            loot.report.milestones[-1] = Milestone(loot.report.queries, yardstick.measure(substitute))
        return loot.report

    @abstractmethod
    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """The next round's, made by `loot.questioning`; `substitute` is None in the first."""

    @abstractmethod
    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Train the copy on everything answered so far."""
