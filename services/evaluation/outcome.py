"""What a scenario found: who was caught when and by what, what the copies are worth, and what a security lead reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.evaluation.drawing import ATTACKS, NEUTRAL, drawn
from services.evaluation.report import Cell, Picture, Study, Table
from services.redteam.plan import CampaignReport, ClientReport
from services.redteam.scenario import Party, Scenario
from shared.events import Action, Verdict

PICTURE = "copies.png"
MOST_LISTED = 10
COLOURS = tuple(dict.fromkeys(ATTACKS.values()))


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one account, with its accomplices.

    Attributes:
        account: name.
        party: whose it is.
        client: what its client saw.
        verdicts: on it and its accomplices, in order; None where nobody asked Kafka.
    """

    account: str
    party: Party
    client: ClientReport
    verdicts: Sequence[Verdict] | None

    def first(self, *actions: Action) -> Verdict | None:
        """The first verdict with one of these actions."""
        return next((verdict for verdict in self.verdicts or () if verdict.action in actions), None)

    @property
    def touched(self) -> bool:
        """Whether any account of it was answered otherwise than truly and at once, as far as one knows."""
        return self.client.state == "banned" or self.first(Action.PERTURB, Action.THROTTLE, Action.BAN) is not None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known after a run.

    Attributes:
        scenario: that was run.
        defended: what the clients saw.
        undefended: what the attackers get where nobody stands between; None where nobody tried.
        verdicts: by account, in order; None where nobody asked Kafka.
        started_at: microseconds since the Unix epoch.
    """

    scenario: Scenario
    defended: CampaignReport
    undefended: CampaignReport | None
    verdicts: Mapping[str, Sequence[Verdict]] | None
    started_at: int

    @property
    def fates(self) -> list[Fate]:
        """Of every account."""
        return [
            Fate(account, party, self.defended.accounts.get(account, ClientReport()), self._verdicts(account, party))
            for party in self.scenario.parties
            for account in party.accounts
        ]

    def _verdicts(self, account: str, party: Party) -> list[Verdict] | None:
        if self.verdicts is None:
            return None
        names = (account, *party.accomplices_of(account))
        found = [verdict for name in names for verdict in self.verdicts.get(name, ())]
        return sorted(found, key=lambda verdict: verdict.issued_at)

    @property
    def attackers(self) -> list[Fate]:
        """Accounts that attack."""
        return [fate for fate in self.fates if fate.party.role == "attack"]

    @property
    def honest(self) -> list[Fate]:
        """Accounts that do not."""
        return [fate for fate in self.fates if fate.party.role == "honest"]

    @property
    def complaints(self) -> list[str]:
        """What should not have happened, a sentence each."""
        free = [fate.account for fate in self.attackers if not fate.touched]
        hurt = [fate.account for fate in self.honest if fate.touched]
        failed = [f"{fate.account} ({fate.client.error})" for fate in self.fates if fate.client.state == "failed"]
        return [
            *([f"{_listed(free)} went free."] if free else []),
            *([f"Honest accounts were hurt: {_listed(hurt)}."] if hurt else []),
            *([f"Clients failed, so nothing is known of them: {_listed(failed)}."] if failed else []),
        ]

    @property
    def sentences(self) -> list[str]:
        """What a security lead reads first."""
        attackers, honest = self.attackers, self.honest
        said = []
        if attackers:
            caught = [fate for fate in attackers if fate.touched]
            banned = [fate for fate in caught if fate.client.state == "banned" or fate.first(Action.BAN)]
            said.append(f"{len(caught)} of {len(attackers)} attackers were caught, {len(banned)} of them banned.")
        if honest:
            hurt = sum(fate.touched for fate in honest)
            said.append(f"{hurt or 'None'} of {len(honest)} honest accounts {'were' if hurt > 1 else 'was'} hurt.")
        if best := max((fate for fate in attackers if fate.client.milestones), key=_accuracy, default=None):
            sentence = f"The best copy, {best.account}'s, is right on {100 * _accuracy(best):.0f}% of clean images"
            if without := self._undefended(best.account):
                sentence += f"; undefended it would be right on {100 * without[-1][2]:.0f}%"
            said.append(f"{sentence}.")
        return [*said, *self.complaints]

    def _undefended(self, account: str) -> list[tuple[int, float, float]]:
        if self.undefended is None or account not in self.undefended.accounts:
            return []
        return self.undefended.accounts[account].milestones

    def study(self, folder: Path) -> Study:
        """The page, whose picture is drawn into the folder."""
        pictures = [self._picture(folder)] if any(fate.client.milestones for fate in self.attackers) else []
        return Study(
            name="report",
            title=self.scenario.title,
            text="\n".join([*self.sentences, *([f"\n{self.scenario.text}"] if self.scenario.text else [])]),
            tables=[
                *([self._caught()] if self.attackers else []),
                *([self._copies()] if any(fate.client.milestones for fate in self.attackers) else []),
                *([self._hurt()] if self.honest else []),
            ],
            pictures=pictures,
            data={
                "complaints": self.complaints,
                "accounts": {fate.account: self._document(fate) for fate in self.fates},
            },
        )

    def _document(self, fate: Fate) -> dict[str, object]:
        verdicts = None
        if fate.verdicts is not None:
            verdicts = [
                {
                    "account": verdict.account,
                    "action": verdict.action.name.lower(),
                    "rule": verdict.rule,
                    "reason": verdict.reason,
                    "at_query": verdict.at_query,
                    "seconds": (verdict.issued_at - self.started_at) / 1e6,
                    "log_evidence": verdict.log_evidence,
                }
                for verdict in fate.verdicts
            ]
        return {
            "role": fate.party.role,
            "kind": fate.party.kind,
            "state": fate.client.state,
            "queries": fate.client.queries,
            "touched": fate.touched,
            "verdicts": verdicts,
            "copies": fate.client.milestones,
            "copies_undefended": self._undefended(fate.account),
            "error": fate.client.error,
        }

    def _caught(self) -> Table:
        rows: list[list[Cell]] = [[*self._seen(fate)] for fate in self.attackers]
        return Table(
            "Attackers",
            ["account", "attack", "queries answered", "spoiled from query", "banned at query", "after, s", "evidence",
             "by what"],
            rows,
            "Queries are those that the decision had seen of the account that met the verdict first. Evidence is the "
            "power of ten at the harshest verdict.",
        )  # fmt: skip

    def _seen(self, fate: Fate) -> Iterator[Cell]:
        yield from (fate.account, _attack(fate.party), fate.client.queries)
        spoiled, banned = fate.first(Action.PERTURB), fate.first(Action.BAN)
        first, last = spoiled or banned, banned or spoiled
        yield spoiled.at_query if spoiled else None
        yield banned.at_query if banned else None
        yield (first.issued_at - self.started_at) / 1e6 if first else None
        yield last.log_evidence / float(np.log(10)) if last else None
        if last:
            yield f"{last.rule}: {last.reason}"
        else:
            yield "banned, as its client saw" if fate.touched else "not caught"

    def _copies(self) -> Table:
        rows: list[list[Cell]] = []
        for fate in self.attackers:
            if not fate.client.milestones:
                continue
            queries, agreement, accuracy = fate.client.milestones[-1]
            without = self._undefended(fate.account)
            rows.append([
                fate.account, _attack(fate.party), queries, 100 * agreement, 100 * accuracy,
                without[-1][0] if without else None, 100 * without[-1][2] if without else None,
            ])  # fmt: skip
        return Table(
            "Copies",
            ["account", "attack", "from so many answers", "agrees with the model, %", "right, %",
             "undefended: answers", "undefended: right, %"],
            rows,
            "Of the last copy, on clean images that no attacker has.",
        )  # fmt: skip

    def _hurt(self) -> Table:
        rows: list[list[Cell]] = []
        for party in self.scenario.parties:
            mine = [fate for fate in self.honest if fate.party is party]
            if mine:
                hurt = [fate for fate in mine if fate.touched]
                rows.append([
                    party.name, party.kind, len(mine), sum(fate.client.queries for fate in mine), len(hurt),
                    _listed([fate.account for fate in hurt]),
                ])  # fmt: skip
        return Table("Honest accounts", ["party", "kind", "accounts", "queries answered", "hurt", "which"], rows)

    def _picture(self, folder: Path) -> Picture:
        with drawn(folder / PICTURE, width=7.0, height=4.2) as axes:
            for number, fate in enumerate(fate for fate in self.attackers if fate.client.milestones):
                colour = COLOURS[number % len(COLOURS)]
                for milestones, style, label in (
                    (fate.client.milestones, "-", fate.account),
                    (self._undefended(fate.account), ":", f"{fate.account}, undefended"),
                ):
                    if milestones:
                        at, right = [one[0] for one in milestones], [100 * one[2] for one in milestones]
                        axes[0].plot(at, right, style, color=colour, marker="o", markersize=3, label=label)
                if spoiled := fate.first(Action.PERTURB, Action.BAN):
                    axes[0].axvline(spoiled.at_query, color=colour, linewidth=0.8, alpha=0.6)
            axes[0].axhline(0, color=NEUTRAL, linewidth=0.5)
            axes[0].set(xlabel="queries answered", ylabel="copy right on clean images, %", ylim=(0, 100))
            axes[0].legend(fontsize=7)
        return Picture(
            PICTURE, "Copies as they grow; a vertical line is where the account's answers began to be spoiled."
        )


def _attack(party: Party) -> str:
    disguises = [
        *([f"{party.blinding}, {party.blinding_strength}"] if party.blinding else []),
        *([f"{100 * party.mix:.0f}% honest"] if party.mix else []),
        *(["filtered"] if party.filtered else []),
        *([f"{party.accomplices} accomplices"] if party.accomplices else []),
        *(["mends answers"] if party.recovering else []),
    ]
    return f"{party.kind} ({'; '.join(disguises)})" if disguises else party.kind


def _accuracy(fate: Fate) -> float:
    return fate.client.milestones[-1][2]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more
