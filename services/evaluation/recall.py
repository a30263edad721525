"""Who is caught, and how soon: every attack at every strength, alone, adapted, and hidden among honest queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.evaluation.attackers import EVERYWHERE, Insider, attackers, bounded_attackers, middle_of
from services.evaluation.baselines import PAPER_RULES
from services.evaluation.context import Context
from services.evaluation.drawing import ATTACKS, NEUTRAL, drawn, mean_and_spread
from services.evaluation.figures import Finding
from services.evaluation.report import Cell, Picture, Study, Table
from services.evaluation.streams import Stream, mixed
from services.evaluation.verdicts import alarms_on, attack_queries_until
from services.redteam.substitute import Substitute, VictimsOwn, Yardstick
from services.training.calibration import confidence_interval
from services.training.tracing import Recording, Traces, honest_plans

RECALL_QUERIES = 300
"""Attack queries within which an attacker is to be caught (decision-recall)."""
MIXED_QUERIES = 500
"""The same where honest queries are mixed in (decision-mixed)."""
MIXED_SHARE = 0.875
PICTURE_COLUMNS = 3
EQUAL_RATE = 0.01
"""Share of honest accounts that each rule may condemn where rules are compared."""

Untils = Sequence[int | None]
"""Of each attacker, his queries until the verdict; None where it never came."""
Paths = Sequence[NDArray[np.float64]]
"""Of each attacker [m], the log evidence after each query that counted."""
CAUGHT_COLUMNS = ("attackers", f"caught within {RECALL_QUERIES}, %", "median", "95th percentile")
UNTIL_NOTE = "Attack queries until the answers are spoiled; natural seeds and honest queries are not counted."


def recalled(untils: Untils, within: int) -> int:
    """How many were caught within so many attack queries."""
    return sum(until is not None and until <= within for until in untils)


def quantile(untils: Untils, share: float) -> str:
    """A quantile that counts the uncaught as later than all; "never" where it falls among them."""
    ordered = sorted(float("inf") if until is None else float(until) for until in untils)
    value = ordered[min(int(share * len(ordered)), len(ordered) - 1)]
    return "never" if np.isinf(value) else f"{value:,.0f}"


def recall_row(name: Sequence[str | int], untils: Untils, within: int) -> list[Cell]:
    """A row under `CAUGHT_COLUMNS`, after the columns of its name."""
    caught = recalled(untils, within)
    return [*name, len(untils), 100 * caught / len(untils), quantile(untils, 0.5), quantile(untils, 0.95)]


def grouped(
    streams: Sequence[Stream], untils: Untils, key: Callable[[Stream], tuple[str | int, ...]]
) -> Mapping[tuple[str | int, ...], list[int | None]]:
    """Each group's `untils`, by key."""
    groups: dict[tuple[str | int, ...], list[int | None]] = defaultdict(list)
    for stream, until in zip(streams, untils, strict=True):
        groups[key(stream)].append(until)
    return groups


def attack_queries(streams: Sequence[Stream], alarms: Sequence[int | None]) -> list[int | None]:
    """Queries of the attack proper until each attacker's alarm."""
    return [attack_queries_until(alarm, s.attacking) for alarm, s in zip(alarms, streams, strict=True)]


def _spread(untils: Untils, within: int) -> str:
    lower, upper = confidence_interval(recalled(untils, within), len(untils))
    return f"{100 * lower:.1f} to {100 * upper:.1f} of {len(untils)} attackers"


def finding(name: str, untils: Untils, within: int) -> Finding:
    """The share that was caught, %."""
    return Finding(name, 100 * recalled(untils, within) / len(untils), _spread(untils, within))


def study(context: Context) -> Study:
    """Recall of the decision, beside the papers' rules at an equal rate of falsely condemned accounts."""
    sizes = context.sizes
    streams = context.streams(
        attackers(
            context.natural, context.foreign, sizes.seeds, sizes.radii, sizes.weights, sizes.seed_counts, sizes.crafted
        ),
        "attackers: recording",
    )
    traces = context.traces([stream.recording for stream in streams], "attackers: detectors")
    paths = context.judge.paths(traces)
    untils = attack_queries(streams, alarms_on(paths, traces, context.judge.log_threshold))
    mixed_streams, mixed_untils = _mixed(context, streams)
    by_strength = grouped(streams, untils, lambda s: (s.attacker.attack, s.attacker.strength))
    by_count = grouped(streams, untils, lambda s: (s.attacker.attack, s.attacker.seeds))
    starts = (0, middle_of(sizes.seed_counts))
    middle = [number for number, stream in enumerate(streams) if stream.attacker.seeds in starts]
    hidden = grouped(mixed_streams, mixed_untils, lambda s: (s.attacker.attack, s.attacker.strength))
    tables = [
        Table("By strength", ["attack", "strength", *CAUGHT_COLUMNS], [
            recall_row(name, group, RECALL_QUERIES) for name, group in sorted(by_strength.items())
        ], UNTIL_NOTE),
        Table("By the number of natural seeds", ["attack", "seeds", *CAUGHT_COLUMNS], [
            recall_row(name, group, RECALL_QUERIES) for name, group in sorted(by_count.items())
        ]),
        Table(
            f"{MIXED_SHARE:.1%} honest queries mixed in",
            ["attack", "strength", "attackers", f"caught within {MIXED_QUERIES}, %", "median", "95th percentile"],
            [recall_row(name, group, MIXED_QUERIES) for name, group in sorted(hidden.items())],
        ),
        _rules(context, streams, traces, paths),
        _copies(
            context, [streams[n] for n in middle], [untils[n] for n in middle], "the middle number of natural seeds"
        ),
    ]  # fmt: skip
    from_all = ", ".join(kind.name for kind in EVERYWHERE)
    return Study(
        name="recall",
        title="Who is caught, and how soon",
        text=f"{len(streams)} attackers' accounts, of {len(sizes.seeds)} random seeds, each with {sizes.crafted} "
        f"queries after its natural seeds: attacks that have a radius at {len(sizes.radii)} radii; {from_all} from "
        f"{', '.join(map(str, sizes.seed_counts))} natural seeds, the others that need any from "
        f"{middle_of(sizes.seed_counts)}. The victim tells labels only. Neither training nor calibration knew an "
        "attack.",
        tables=tables,
        pictures=_pictures(context, streams, traces, paths),
        findings=[
            finding("decision-recall", untils, RECALL_QUERIES),
            finding("decision-mixed", mixed_untils, MIXED_QUERIES),
        ],
    )


def patient(context: Context) -> Study:
    """Recall of attackers whose first thousands of queries are photographs, with which nobody could find fault."""
    sizes, count = context.sizes, context.sizes.many_seeds
    streams = context.streams(
        [
            attacker
            for seed in sizes.seeds
            for attacker in bounded_attackers(context.natural, seed, sizes.radii, count, RECALL_QUERIES)
        ],
        "patient attackers: recording",
    )
    traces = context.traces([stream.recording for stream in streams], "patient attackers: detectors")
    untils = attack_queries(streams, context.judge.first_alarms(traces))
    by_strength = grouped(streams, untils, lambda s: (s.attacker.attack, s.attacker.strength))
    return Study(
        name="patient",
        title=f"Who is caught after {count:,} photographs",
        text=f"{len(streams)} attackers' accounts: JBDA-TR, JBA-PGD and JB-top3, each from {count:,} natural seeds, of "
        f"{len(sizes.seeds)} random seeds, with {RECALL_QUERIES} crafted queries after them. The seeds are images that "
        "the victim was made for, each sent once: an honest customer's. What a thief learns from them alone no "
        "detector of queries can keep from him; whether thousands of them buy him crafted queries is asked here.",
        tables=[
            Table(
                "By strength",
                ["attack", "strength", *CAUGHT_COLUMNS],
                [recall_row(name, group, RECALL_QUERIES) for name, group in sorted(by_strength.items())],
                UNTIL_NOTE,
            ),
            _copies(context, streams, untils, f"{count:,} natural seeds"),
        ],
    )


INSIDER = "the victim's architecture"


def insiders(context: Context) -> Study:
    """Recall of attackers whose copies are of the victim's own architecture: what is crafted with those looks otherwise
    than what is crafted with the small network of an attacker who guesses.
    """
    sizes, count = context.sizes, middle_of(context.sizes.seed_counts)
    architecture = VictimsOwn(context.bundle.manifest.model.architecture)
    everyone = attackers(
        context.natural, context.foreign, sizes.seeds, sizes.radii, sizes.weights, (count,), RECALL_QUERIES
    )
    streams = context.streams(
        [replace(one, build=Insider(one.build, architecture), scheme=INSIDER) for one in everyone if one.seeds],
        "insiders: recording",
    )
    traces = context.traces([stream.recording for stream in streams], "insiders: detectors")
    untils = attack_queries(streams, context.judge.first_alarms(traces))
    by_strength = grouped(streams, untils, lambda s: (s.attacker.attack, s.attacker.strength))
    return Study(
        name="insiders",
        title="Who is caught although he knows the victim's architecture",
        text=f"{len(streams)} attackers' accounts, of {len(sizes.seeds)} random seeds, each with {RECALL_QUERIES} "
        f"queries after {count} natural seeds. Their copies, with which they craft, are of the architecture "
        f"{architecture.name}, as the victim is; networks that the detectors learnt from are smaller.",
        tables=[
            Table(
                "By strength",
                ["attack", "strength", *CAUGHT_COLUMNS],
                [recall_row(name, group, RECALL_QUERIES) for name, group in sorted(by_strength.items())],
                UNTIL_NOTE,
            )
        ],
    )


def _mixed(context: Context, streams: Sequence[Stream]) -> tuple[list[Stream], list[int | None]]:
    """The attackers that started from the middle number of seeds, each among honest queries of its own."""
    middle = middle_of(context.sizes.seed_counts)
    chosen = [s.until(s.attacker.seeds + MIXED_QUERIES) for s in streams if s.attacker.seeds in (0, middle)]
    hidden = []
    for number, stream in enumerate(chosen):
        random = np.random.default_rng([stream.attacker.seed, number])
        needed = round(len(stream) * MIXED_SHARE / (1 - MIXED_SHARE))
        plan = honest_plans(context.splits.test, number + 1, needed, seed=7_000 + stream.attacker.seed)[number]
        images = plan.account().images
        hidden.append(mixed(stream, Recording(images, context.logits(images)), MIXED_SHARE, random))
    traces = context.traces([stream.recording for stream in hidden], "attackers among honest queries: detectors")
    return hidden, attack_queries(hidden, context.judge.first_alarms(traces))


def _rules(context: Context, streams: Sequence[Stream], traces: Sequence[Traces], paths: Paths) -> Table:
    """Every rule at one rate of falsely condemned accounts, its threshold from the holdout accounts."""
    _, held = context.populations()
    honest = context.traces(held, "holdout accounts: detectors")
    judge = context.judge
    largest = np.array([path.max(initial=0.0) for path in judge.paths(honest)])
    equal = np.sort(largest)[::-1][int(EQUAL_RATE * len(largest))] + 1e-9
    names = sorted({stream.attacker.attack for stream in streams})
    rows: list[list[Cell]] = []

    def add(name: str, alarms: Sequence[int | None]) -> None:
        found = attack_queries(streams, alarms)
        groups = grouped(streams, found, lambda s: (s.attacker.attack,))
        rows.append([name, *(f"{quantile(groups[n,], 0.5)} ({_caught(groups[n,])})" for n in names), _caught(found)])

    add("evidence, the bundle's threshold", alarms_on(paths, traces, judge.log_threshold))
    add("evidence, equal rate", alarms_on(paths, traces, equal))
    for kind in PAPER_RULES:
        rule = kind(context.bundle)
        threshold = rule.threshold(honest, EQUAL_RATE)
        add(rule.name, [rule.first_alarm(account, threshold) for account in traces])
    return Table(
        f"Beside the papers' rules, each condemning {EQUAL_RATE:.0%} of the same {len(honest)} honest accounts",
        ["rule", *names, f"caught within {RECALL_QUERIES}"],
        rows,
        "Median attack queries until the alarm, and the share caught in time.",
    )


def _caught(untils: Untils) -> str:
    return f"{100 * recalled(untils, RECALL_QUERIES) / len(untils):.0f}%"


def _copies(context: Context, streams: Sequence[Stream], untils: Untils, start: str) -> Table:
    """What the attacker has when his answers begin to be spoiled, and what he would have had at the end."""
    seen: set[tuple[str, str]] = set()
    rows: list[list[Cell]] = []
    for stream, until in zip(streams, untils, strict=True):
        name = (stream.attacker.attack, stream.attacker.strength)
        if name in seen:
            continue
        seen.add(name)
        verdict = len(stream) if until is None else stream.attacker.seeds + until
        whole = _copy_accuracy(stream, len(stream), context.yardstick)
        rows.append([*name, verdict, _copy_accuracy(stream, verdict, context.yardstick), len(stream), whole])
    return Table(
        "The substitute's accuracy at the verdict",
        ["attack", "strength", "queries", "accuracy, %", "queries undefended", "accuracy undefended, %"],
        rows,
        f"Of the first random seed and {start}; the victim's own accuracy is "
        f"{100 * context.bundle.manifest.model.test_accuracy:.1f}%.",
    )


def last_copies(streams: Sequence[Stream]) -> str:
    """Accuracy of the copies at the ends of streams, %: mean and standard deviation."""
    values = [100 * float(stream.copies[-1, 2]) for stream in streams if len(stream.copies)]
    return mean_and_spread(values) if values else "not measured"


def _copy_accuracy(stream: Stream, queries: int, yardstick: Yardstick) -> float:
    logits = stream.recording.logits[:queries]
    answers = np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(axis=1)]
    substitute = Substitute(logits.shape[1], np.random.default_rng(stream.attacker.seed))
    substitute.train(stream.recording.inputs[:queries], answers, epochs=20)
    return 100 * yardstick.measure(substitute).accuracy


def _pictures(context: Context, streams: Sequence[Stream], traces: Sequence[Traces], paths: Paths) -> list[Picture]:
    """Evidence over attack queries, one line an attacker."""
    names = sorted({stream.attacker.attack for stream in streams})
    with drawn(context.output / "recall.png", columns=PICTURE_COLUMNS, rows=-(-len(names) // PICTURE_COLUMNS)) as axes:
        for axis, name in zip(axes, names, strict=False):
            for stream, path, account in zip(streams, paths, traces, strict=True):
                if stream.attacker.attack == name:
                    rows = next(iter(account.values())).rows
                    sent = np.cumsum(stream.attacking)[rows]
                    axis.plot(sent, path / np.log(10), color=ATTACKS["JB-top3"], alpha=0.25, linewidth=1)
            axis.axhline(context.judge.log_threshold / np.log(10), color=NEUTRAL, linestyle="--", linewidth=1)
            axis.set(title=name, xlabel="attack queries", ylabel="evidence, powers of ten")
            axis.set_xlim(0, context.sizes.crafted)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
    return [Picture("recall.png", "Evidence against every attacker; dashed, the threshold.")]
