"""What the operator of the demo knows of each account, from the topics alone: pure, no Kafka and no clock."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from shared.bundle import DETECTORS
from shared.events import Action, QueryBatch, Signal, SignalBatch, Verdict
from shared.evidence import combine


class Kind(StrEnum):
    """What an account of the demo is in truth; no service knows."""

    BENIGN = "benign"
    ATTACK = "attack"


@dataclass(frozen=True, slots=True)
class Point:
    """One detector's word on an account at one moment."""

    queries: int
    statistic: float
    threshold: float
    flagged: bool
    log_evidence: float
    """Natural logarithm of the smallest R over the profiles."""


@dataclass(slots=True)
class DetectorTrack:
    """One detector's words on one account, oldest first."""

    points: list[Point] = field(default_factory=list)
    vector: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """[profiles], the latest log R."""

    @property
    def latest(self) -> Point | None:
        """None before the first word."""
        return self.points[-1] if self.points else None


@dataclass(slots=True)
class AccountLedger:
    """One account."""

    account: str
    kind: Kind
    attack: str
    """Name of the attack; empty for honest accounts."""
    planned: int
    """Queries that its client means to send."""
    queries: int = 0
    """Answered, and so seen by the detectors."""
    first_accepted_at: int = 0
    """Microseconds since the Unix epoch."""
    verdict: Action = Action.ALLOW
    """In force."""
    rule: str = ""
    """That gave the verdict."""
    worst: Action = Action.ALLOW
    """The severest that was ever in force."""
    enforced_query: int | None = None
    """The first query that was answered under an enforced action, counted from 1."""
    enforced_at: int | None = None
    """Microseconds since the Unix epoch: of that query, or of the verdict that left none to be answered."""
    tracks: dict[str, DetectorTrack] = field(default_factory=lambda: {name: DetectorTrack() for name in DETECTORS})
    evidence: list[tuple[int, float]] = field(default_factory=lambda: [(0, 0.0)])
    """Queries, and natural logarithm of R over all detectors."""

    @property
    def effective_at_query(self) -> int | None:
        """The first query that met an enforced verdict; the one after the last answered where all were refused."""
        if self.enforced_query is not None:
            return self.enforced_query
        return self.queries + 1 if self.worst in (Action.THROTTLE, Action.BAN) else None

    @property
    def seconds_to_verdict(self) -> float | None:
        """From the account's first query to the first enforced answer."""
        return None if self.enforced_at is None else (self.enforced_at - self.first_accepted_at) / 1e6

    @property
    def caught(self) -> bool:
        """Whether a verdict ever took effect."""
        return self.effective_at_query is not None

    @property
    def hurt(self) -> bool:
        """Whether an enforced verdict was ever issued, whether or not a query met it."""
        return self.caught or self.worst.enforced

    @property
    def judged(self) -> bool:
        """Whether every detector has spoken of every query."""
        return all(track.latest is not None and track.latest.queries >= self.queries for track in self.tracks.values())

    def answered(self, accepted_at: int, action: Action) -> None:
        """Take in one answered query."""
        self.queries += 1
        self.first_accepted_at = self.first_accepted_at or accepted_at
        self.worst = max(self.worst, action)
        if action.enforced and self.enforced_query is None:
            self.enforced_query, self.enforced_at = self.queries, accepted_at

    def signalled(self, detector: str, signal: Signal) -> None:
        """Take in one detector's word."""
        track = self.tracks[detector]
        track.vector = signal.log_evidence
        own = float(signal.log_evidence.min()) if len(signal.log_evidence) else 0.0
        track.points.append(Point(signal.queries, signal.statistic, signal.threshold, signal.flagged, own))
        spoken = [track.vector for track in self.tracks.values() if len(track.vector)]
        latest = max(signal.queries, self.evidence[-1][0])
        self.evidence.append((latest, combine(spoken, len(self.tracks))))

    def judged_by(self, verdict: Verdict) -> None:
        """Take in a verdict."""
        self.verdict, self.rule = verdict.action, verdict.rule
        self.worst = max(self.worst, verdict.action)
        if verdict.action in (Action.THROTTLE, Action.BAN) and self.enforced_at is None:
            self.enforced_at = verdict.issued_at


class Ledger:
    """All accounts of the demo. Written by one thread, read by others under `lock`."""

    def __init__(self, accounts: Iterable[AccountLedger], log_threshold: float) -> None:
        """
        Args:
            accounts: in the order in which they are shown.
            log_threshold: of the evidence; natural logarithm of R.
        """
        self.accounts = {account.account: account for account in accounts}
        self.log_threshold = log_threshold
        self.lock = threading.Lock()
        self._batches: set[bytes] = set()

    def queries(self, batch: QueryBatch) -> None:
        """Take in a batch of answered queries; one that was published twice counts once."""
        if batch.batch_id in self._batches:
            return
        self._batches.add(batch.batch_id)
        for name, accepted_at, action in zip(batch.accounts, batch.accepted_at, batch.actions, strict=True):
            if account := self.accounts.get(name):
                account.answered(int(accepted_at), Action(int(action)))

    def signals(self, batch: SignalBatch) -> None:
        """Take in a detector's words."""
        for signal in batch.signals:
            account = self.accounts.get(signal.account)
            if account and batch.detector in account.tracks:
                account.signalled(batch.detector, signal)

    def verdict(self, verdict: Verdict) -> None:
        """Take in a verdict."""
        if account := self.accounts.get(verdict.account):
            account.judged_by(verdict)

    def of_kind(self, kind: Kind) -> list[AccountLedger]:
        """The honest accounts, or the attackers."""
        return [account for account in self.accounts.values() if account.kind is kind]

    def complaints(self) -> list[str]:
        """What went wrong, a line each: attackers that went free and honest accounts that were hurt."""
        free = [
            f"{one.account} ({one.attack}) sent {one.queries:,} queries and was never perturbed or banned"
            for one in self.of_kind(Kind.ATTACK)
            if not one.caught
        ]
        hurt = [
            f"{one.account} is honest and got the verdict {one.worst.name.lower()} ({one.rule})"
            for one in self.of_kind(Kind.BENIGN)
            if one.hurt
        ]
        return free + hurt
