"""Who takes part in the demo, and how much they send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.demo_ledger import AccountLedger, Kind
from services.redteam.plan import ClientPlan

HEAVY = 10
"""Times the others' volume."""


@dataclass(frozen=True, slots=True)
class Volume:
    """How long the clients go on.

    Attributes:
        honest: queries of an ordinary honest account.
        attack: budget of an attacker.
        seconds: over which the honest accounts spread their queries; attackers keep within them but for the pauses in
            which they train.
    """

    honest: int
    attack: int
    seconds: float


FULL = Volume(honest=400, attack=1500, seconds=120)
QUICK = Volume(honest=80, attack=750, seconds=60)


@dataclass(frozen=True, slots=True)
class Participant:
    """One account of the demo."""

    account: str
    kind: Kind
    drives: str
    """Kind of client, as `services.redteam` names it."""
    attack: str = ""
    times: int = 1
    """Of the ordinary volume."""

    def queries(self, volume: Volume) -> int:
        """How many it means to send."""
        return volume.attack if self.kind is Kind.ATTACK else self.times * volume.honest

    def ledger(self, volume: Volume) -> AccountLedger:
        """Its page in the ledger."""
        return AccountLedger(self.account, self.kind, self.attack, self.queries(volume))

    def plan(self, key: str, volume: Volume) -> ClientPlan:
        """What its client is told."""
        role: Literal["honest", "attack"] = "attack" if self.kind is Kind.ATTACK else "honest"
        queries = self.queries(volume)
        return ClientPlan(
            account=self.account,
            key=key,
            role=role,
            kind=self.drives,
            queries=queries,
            queries_per_second=queries / volume.seconds,
        )


PARTICIPANTS = (
    Participant("shop-steady", Kind.BENIGN, "steady"),
    Participant("shop-shoes", Kind.BENIGN, "shoes"),
    Participant("shop-dark", Kind.BENIGN, "dark"),
    Participant("shop-burst", Kind.BENIGN, "burst"),
    Participant("shop-batches", Kind.BENIGN, "batches"),
    Participant("shop-retrying", Kind.BENIGN, "retrying"),
    Participant("shop-heavy", Kind.BENIGN, "steady", times=HEAVY),
    Participant("thief-jbda-tr", Kind.ATTACK, "jbda-tr", "JBDA-TR"),
    Participant("thief-jba-pgd", Kind.ATTACK, "jba-pgd", "JBA-PGD"),
    Participant("thief-jb-top3", Kind.ATTACK, "jb-top3", "JB-top3"),
    Participant("thief-digits", Kind.ATTACK, "knockoff-digits", "KnockoffNets (digits)"),
)
"""Honest shops first, then the attackers."""
