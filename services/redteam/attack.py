"""What an attack is: a core that turns images into questions and answers into a copy, and knows no network.

`Attack.run` asks through any function from images to probabilities: a client of a real endpoint, or a local model when
detectors are calibrated or evaluated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np

from services.redteam.substitute import Images, Probabilities, Similarity, Substitute, Yardstick

Ask: TypeAlias = Callable[[Images], Probabilities]
"""From images [n, 1, 28, 28] uint8 to answers [n, classes]; raises `Banned` when there will be no more."""


class Banned(Exception):  # noqa: N818 - a state of the account, not a fault of the program
    """The victim answers this account no more."""


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
    """Answered."""
    banned: bool = False
    milestones: list[Milestone] = field(default_factory=list)

    @property
    def final(self) -> Similarity | None:
        """The last copy's similarity."""
        return self.milestones[-1].similarity if self.milestones else None


Progress: TypeAlias = Callable[[AttackReport], None]
"""Told of the report as it grows: after every answered request and every round."""


@dataclass(slots=True)
class Loot:
    """The attacker's side of a running attack: what it asked and what it was told."""

    ask: Ask
    budget: int
    random: np.random.Generator
    request_rows: int
    report: AttackReport
    progress: Progress
    questions: list[Images] = field(default_factory=list)
    answers: list[Probabilities] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Queries that may still be sent; none after a ban."""
        return 0 if self.report.banned else self.budget - self.report.queries

    @property
    def images(self) -> Images:
        """[queries, 1, 28, 28], everything that was answered."""
        return np.concatenate(self.questions)

    @property
    def told(self) -> Probabilities:
        """[queries, classes]"""
        return np.concatenate(self.answers)

    def query(self, images: Images) -> None:
        """Send images in order, `request_rows` a request, until they, the budget or the account end."""
        images = images[: self.left]
        for start in range(0, len(images), self.request_rows):
            request = images[start : start + self.request_rows]
            try:
                answer = self.ask(request)
            except Banned:
                self.report.banned = True
                self.progress(self.report)
                return
            self.questions.append(request)
            self.answers.append(np.asarray(answer, dtype=np.float32))
            self.report.queries += len(request)
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

    def run(
        self,
        ask: Ask,
        budget: int,
        random: np.random.Generator,
        yardstick: Yardstick | None = None,
        progress: Progress = lambda report: None,
    ) -> AttackReport:
        """Attack until the budget or the account ends.

        Args:
            ask: the victim.
            budget: most images sent.
            random: the attack is a function of it and of the answers.
            yardstick: measures the copy after every round; the attack does not learn from it.
            progress: told of the report as it grows.
        """
        loot = Loot(ask, budget, random, self.request_rows, AttackReport(self.name), progress)
        substitute: Substitute | None = None
        while loot.left:
            before = loot.report.queries
            loot.query(self.questions(loot, substitute))
            if loot.report.queries == before:
                break
            if substitute is None:
                substitute = Substitute(loot.told.shape[1], random)
            self.learn(loot, substitute)
            similarity = yardstick.measure(substitute) if yardstick else None
            loot.report.milestones.append(Milestone(loot.report.queries, similarity))
            progress(loot.report)
        return loot.report

    @abstractmethod
    def questions(self, loot: Loot, substitute: Substitute | None) -> Images:
        """The next round's images; `substitute` is None in the first."""

    @abstractmethod
    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """Train the copy on everything answered so far."""
