"""What a trial by faults found, as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.evaluation.report import Cell, Study, Table
from tests.faults.invariants import Asked, Difference, Published
from tests.faults.trial import Struck

SHOWN = 5
"""Of violations of one kind."""


@dataclass(slots=True)
class Stage:
    """A stateful stage beside one that nothing happened to.

    Attributes:
        accounts: with a state.
        different: accounts whose states differ.
        said: by topic.
    """

    accounts: int
    different: Sequence[str]
    said: Mapping[str, Difference]

    @property
    def sound(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.different or any(d.missing or d.unexpected for d in self.said.values()))


@dataclass(slots=True)
class Trials:
    """Everything that was found.

    Attributes:
        struck: the faults, in order.
        left_out: faults that this user may not make here.
        accounts: honest ones, and attackers.
        asked: all requests.
        published: what became of the answered ones.
        stages: by name.
        dead: records in dead topics.
        pinned_answered: requests of the account that a person had banned before, that were answered.
        banned: accounts that the decision banned meanwhile.
        answered_late: requests answered after their account's ban was enforced.
        registered: answers that the registry of ownership holds, and those that are in `perturbed`.
    """

    struck: Sequence[Struck]
    left_out: str
    accounts: tuple[int, int]
    asked: Sequence[Asked]
    published: Published
    stages: Mapping[str, Stage]
    dead: int
    pinned_answered: Sequence[Asked]
    banned: Sequence[str]
    answered_late: Sequence[Asked]
    registered: tuple[int, int]
    violations: list[str] = field(init=False)

    def __post_init__(self) -> None:
        held, sent = self.registered
        findings = {
            "answered queries are not in `queries`": [one.request_id for one in self.published.lost],
            "query ids are in `queries` twice": self.published.repeated,
            "requests of the banned account were answered": [one.request_id for one in self.pinned_answered],
            "requests were answered after a ban was enforced": [one.request_id for one in self.answered_late],
            "stages differ from an undisturbed replay": [n for n, stage in self.stages.items() if not stage.sound],
            "records are in dead topics": ["dead"] * self.dead,
            "spoiled answers are missing in the registry": ["perturbed"] * (sent - held),
        }
        self.violations = [
            f"{len(of):,} {what}: {', '.join(of[:SHOWN])}{', ...' if len(of) > SHOWN else ''}"
            for what, of in findings.items()
            if of
        ]


def study(trials: Trials) -> Study:
    """The page."""
    honest, attackers = trials.accounts
    statuses = [one.status for one in trials.asked]
    answered = sum(status == 0 for status in statuses)
    outcome = "Every invariant held." if not trials.violations else "VIOLATED: " + "; ".join(trials.violations) + "."
    return Study(
        name="faults",
        title="Killed, cut off and full",
        text=f"{len(trials.struck)} faults, one after another, under the load of {honest} honest accounts and "
        f"{attackers} attackers, on a Kafka of three brokers; {len(trials.asked):,} queries, {answered:,} of them "
        f"answered. {outcome}{trials.left_out}",
        tables=[_faults(trials.struck, trials.asked), _invariants(trials), _stages(trials.stages)],
        data={"violations": trials.violations},
    )


def _faults(struck: Sequence[Struck], asked: Sequence[Asked]) -> Table:
    begin = min((one.sent_at for one in asked), default=0.0)
    rows: list[list[Cell]] = []
    for fault in struck:
        end = fault.began + fault.seconds + fault.settled
        during = [one for one in asked if fault.began <= one.sent_at - begin < end]
        refused = sum(one.status not in (0, 7) for one in during)
        slowest = max((one.ended_at - one.sent_at for one in during if one.status == 0), default=0.0)
        rows.append([fault.name, fault.seconds, fault.settled, len(during), refused, slowest])
    return Table(
        "The faults",
        ["fault", "seconds", "until all is judged, s", "queries meanwhile", "refused", "slowest answer, s"],
        rows,
        "All is judged when every detector has judged every query published before the fault was over, and the "
        "decision all that they said; starting again is included. Refused: UNAVAILABLE, nobody listens, or no answer "
        "in time; a client may ask again.",
    )


def _invariants(trials: Trials) -> Table:
    published, (held, sent) = trials.published, trials.registered
    rows: list[list[Cell]] = [
        ["answered queries that are not in `queries`", len(published.lost), 0],
        ["the same, answered in the moment before inference was killed (stated)", len(published.excused), None],
        ["query ids in `queries` twice", len(published.repeated), 0],
        ["answers to the account that a person had banned", len(trials.pinned_answered), 0],
        [f"answers to {len(trials.banned)} accounts banned meanwhile, after enforcement", len(trials.answered_late), 0],
        ["records in dead topics", trials.dead, 0],
        ["spoiled answers that the registry lacks", sent - held, 0],
    ]
    return Table("The invariants", ["what", "found", "allowed"], rows, f"{published.rows:,} queries in the topic.")


def _stages(stages: Mapping[str, Stage]) -> Table:
    rows: list[list[Cell]] = [
        [
            name, stage.accounts, len(stage.different),
            sum(d.same for d in stage.said.values()), sum(d.missing for d in stage.said.values()),
            sum(d.unexpected for d in stage.said.values()),
        ]
        for name, stage in stages.items()
    ]  # fmt: skip
    return Table(
        "Beside an undisturbed replay of the same topics",
        ["stage", "accounts", "states that differ", "said alike", "never said", "said otherwise"],
        rows,
        "States bit for bit, as the changelog holds them; signals, verdicts and alerts bit for bit. What was said "
        "twice, and alike, counts once.",
    )
