"""How many honest accounts are ever hurt: the whole population, kinds that calibration has never seen, and drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from services.evaluation.context import Context
from services.evaluation.drawing import HONEST, NEUTRAL, drawn
from services.evaluation.figures import Finding
from services.evaluation.report import Cell, Picture, Study, Table
from services.evaluation.verdicts import Judge, first_alarm
from services.training.calibration import confidence_interval, pooled_models
from services.training.calibrator import STATISTICS, Calibrator, Rates
from services.training.tracing import HonestPlan, Trace, Traces, honest_plans, in_processes, read_traces
from shared.bundle import Bundle, Manifest
from shared.cameras import Camera, Images, photograph, shots_of
from shared.datasets import Dataset
from shared.detection import Statistic
from shared.evidence import EvidenceModel
from shared.population import KINDS, HonestAccount, steady

POPULATION_SEED = 9_000
ACCOUNTS_AT_ONCE = 32
LEVELS = (0.1, 0.01, 0.001)


def drifting(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop whose camera ages from the first photograph to the last: darker, softer, noisier. In no calibration."""
    images = steady(data, queries, random).images
    age = np.linspace(0.0, 1.0, len(images))
    worn = [Camera(gain=1 - 0.4 * a, noise=0.05 * a, blur=0.8 * a) for a in age]
    aged: Images = photograph(images, shots_of(worn, random), random)
    return HonestAccount("drifting", aged)


@dataclass(frozen=True, slots=True)
class Judged:
    """One honest account: the largest evidence that it ever had, and when it alarmed, if it did."""

    kind: str
    largest: float
    alarm: int | None


Followed = Sequence[tuple[str, Path]]
"""Accounts: each one's kind, and the file of its traces."""


def _followed(context: Context, plans: Sequence[HonestPlan], label: str) -> Followed:
    files = context.trace_files(plans, label)
    return [(plan.kind, file) for plan, file in zip(plans, files, strict=True)]


def judged(judge: Judge, accounts: Followed) -> list[Judged]:
    """The accounts before the judge."""
    found = []
    for start in range(0, len(accounts), ACCOUNTS_AT_ONCE):
        part = [(kind, read_traces(file)) for kind, file in accounts[start : start + ACCOUNTS_AT_ONCE]]
        for (kind, account), path in zip(part, judge.paths([account for _, account in part]), strict=True):
            alarm = first_alarm(path, account, judge.log_threshold)
            found.append(Judged(kind, float(path.max(initial=0.0)), alarm))
    return found


def alarmed_of(found: Sequence[Judged]) -> int:
    """How many accounts alarm."""
    return sum(one.alarm is not None for one in found)


# ---- calibrated without a kind ----


class _Worker:
    """What each process holds that calibrates without a kind."""

    manifest: ClassVar[Manifest]
    populations: ClassVar[tuple[list[tuple[str, Traces]], ...]] = ()

    @classmethod
    def load(cls, folder: Path, populations: Sequence[Followed]) -> None:
        cls.manifest = Bundle.load(folder).manifest
        cls.populations = tuple([(kind, read_traces(file)) for kind, file in part] for part in populations)

    @classmethod
    def judge(cls, kind: str, accounts: Followed) -> list[Judged]:
        """Calibrates as the bundle was calibrated, but on no account of one kind, and judges accounts."""
        manifest = cls.manifest
        tmsp = {"temperature": manifest.tmsp.temperature, "lambda": manifest.tmsp.lambda_}
        calibrator = Calibrator(Rates(), tmsp, manifest.likelihood.data_variance, manifest.seed + 30)
        known, held = ([traces for name, traces in part if name != kind] for part in cls.populations)
        found = calibrator.calibrate(known, held)
        return judged(Judge(found.models, float(found.sections["evidence"]["log_threshold"])), accounts)


def _unseen(context: Context, populations: Sequence[Followed], accounts: Followed) -> dict[str, tuple[int, int]]:
    """For each kind, how many of its accounts alarm, of how many, where calibration has not seen the kind."""
    kinds = [kind.__name__ for kind in KINDS][: context.sizes.kinds_left_out]
    task = context.progress.add_task("calibrating without a kind", total=len(kinds))
    work = [(kind, [account for account in accounts if account[0] == kind]) for kind in kinds]
    start = partial(_Worker.load, context.bundle.folder, populations)
    found = {}
    results = in_processes(_Worker.judge, work, start, context.sizes.processes)
    for kind, verdicts in zip(kinds, results, strict=True):
        found[kind] = (alarmed_of(verdicts), len(verdicts))
        context.progress.advance(task)
    return found


# ---- the studies ----


def study(context: Context) -> Study:
    """The share of honest accounts that alarm, against what was promised."""
    sizes = context.sizes
    plans = honest_plans(context.splits.test, sizes.honest_accounts, sizes.honest_queries, POPULATION_SEED)
    population = _followed(context, plans, "honest population: detectors")
    found = judged(context.judge, population)
    calibration_plans, held_plans = context.populations()
    calibration = _followed(context, calibration_plans, "calibration accounts: detectors")
    held = _followed(context, held_plans, "holdout accounts: detectors")
    unseen = _unseen(context, (calibration, held), population)
    drift = honest_plans(
        context.splits.test, 5 * sizes.drawn_accounts, sizes.honest_queries, POPULATION_SEED + 1, (drifting,)
    )
    drifted = judged(context.judge, _followed(context, drift, "drifting accounts: detectors"))
    alarmed = alarmed_of(found)
    lower, upper = confidence_interval(alarmed, len(found))
    worst, (worst_alarmed, worst_of) = max(unseen.items(), key=lambda item: item[1][0] / item[1][1])
    evidence = context.bundle.manifest.evidence
    return Study(
        name="guarantee",
        title="How many honest accounts are hurt",
        text=f"{len(plans)} honest accounts of {sizes.honest_queries:,} queries, every kind in turn, on images that "
        f"neither training nor calibration has seen. {alarmed} ever reach the threshold "
        f"10^{evidence.log_threshold / np.log(10):.1f}: {100 * alarmed / len(found):.2f}% (95% limits "
        f"{100 * lower:.2f} to {100 * upper:.2f}). Each kind is also judged by a calibration that has not seen it.",
        tables=[
            _by_kind(found, unseen, drifted),
            _uniformity(context, calibration, population),
        ],
        pictures=[_picture(context, found)],
        findings=[
            Finding("decision-false", 100 * upper, f"{alarmed} of {len(found)} accounts"),
            Finding(
                "decision-false-unseen",
                100 * worst_alarmed / worst_of,
                f"{worst_alarmed} of {worst_of} accounts of kind {worst.replace('_', ' ')}",
            ),
        ],
    )


def lives(context: Context) -> Study:
    """The same of more accounts than can be followed for long, and for longer than many can be followed."""
    rows: list[list[Cell]] = []
    for number, (accounts, queries) in enumerate(context.sizes.lives):
        plans = honest_plans(context.splits.test, accounts, queries, POPULATION_SEED + 2 + number)
        label = f"{accounts:,} accounts of {queries:,} queries: detectors"
        found = judged(context.judge, _followed(context, plans, label))
        alarmed, loudest = alarmed_of(found), max(found, key=lambda one: one.largest)
        lower, upper = confidence_interval(alarmed, len(found))
        limits = f"{100 * lower:.2f} to {100 * upper:.2f}"
        power = loudest.largest / np.log(10)
        rows.append([accounts, queries, accounts * queries, alarmed, limits, power, loudest.kind.replace("_", " ")])
    threshold = context.bundle.manifest.evidence.log_threshold / np.log(10)
    return Study(
        name="lives",
        title="How many honest accounts are hurt, by how long they live",
        text="Further accounts of every kind in turn, as far as they go, on images that neither training nor "
        f"calibration has seen: many that are short, a few that are long. The threshold is 10^{threshold:.1f}. "
        "[guarantee](guarantee.md) has the accounts between, by kind.",
        tables=[
            Table(
                "By length",
                [
                    "accounts", "queries of each", "queries", "alarmed", "95% limits, %",
                    "largest evidence, power of ten", "of an account of kind",
                ],
                rows,
            )
        ],
    )  # fmt: skip


def _by_kind(found: Sequence[Judged], unseen: dict[str, tuple[int, int]], drifted: Sequence[Judged]) -> Table:
    rows: list[list[Cell]] = []
    for kind in (*(kind.__name__ for kind in KINDS), "drifting"):
        mine = [one for one in (*found, *drifted) if one.kind == kind]
        alarmed = alarmed_of(mine)
        upper = confidence_interval(alarmed, len(mine))[1]
        largest = max(one.largest for one in mine) / np.log(10)
        without = f"{unseen[kind][0]} of {unseen[kind][1]}" if kind in unseen else None
        rows.append([kind.replace("_", " "), len(mine), alarmed, 100 * upper, largest, without])
    return Table(
        "By kind of account",
        [
            "kind", "accounts", "alarmed", "upper 95% limit, %", "largest evidence, power of ten",
            "alarmed, calibrated without the kind",
        ],
        rows,
        "Drifting accounts, whose camera ages all the while, are in no calibration and not in the population's share.",
    )  # fmt: skip


def p_values(model: EvidenceModel, statistics: Sequence[Statistic], seen: Trace) -> NDArray[np.float64]:
    """[m, S], conformal p-values of an account's queries under the only profile; NaN where a query has no value."""
    ranks = model.ranks(seen.scores(statistics), seen.history)[:, 0]
    return np.where(ranks < 0, np.nan, model.tails[ranks])


def _uniformity(context: Context, calibrated: Followed, accounts: Followed) -> Table:
    """Fresh honest p-values: pooled over accounts they are uniform if calibration is sound; single accounts are not."""
    rows: list[list[Cell]] = []
    models = pooled_models(STATISTICS, [read_traces(file) for _, file in calibrated])
    values: dict[str, list[NDArray[np.float64]]] = {detector: [] for detector in STATISTICS}
    for _, file in accounts:
        account = read_traces(file)
        for detector, statistics in STATISTICS.items():
            values[detector].append(p_values(models[detector], statistics, account[detector]))
    for detector, statistics in STATISTICS.items():
        for number, statistic in enumerate(statistics):
            columns = [v[:, number][np.isfinite(v[:, number])] for v in values[detector]]
            columns = [column for column in columns if len(column) >= 100]
            if not columns:
                continue
            pooled = np.concatenate(columns)
            shares = [100 * float((pooled <= level).mean()) for level in LEVELS]
            worst = 100 * max(float((column <= LEVELS[1]).mean()) for column in columns)
            discount = context.judge.models[detector].discount[number]
            name = f"{detector}: {statistic.name.replace('_', ' ')}"
            rows.append([name, *shares, worst, f"{discount.min():.1f} to {discount.max():.1f}"])
    return Table(
        "Are honest p-values uniform?",
        ["statistic", *(f"p <= {level:g}, %" for level in LEVELS), "worst account, p <= 0.01, %", "discounts"],
        rows,
        "Shares of the population's queries under all calibration accounts together; uniform would be 10, 1 and 0.1. "
        "Single accounts differ, which is why evidence is the smallest over many profiles. Discounts are of the bets "
        "on the statistic; 1 is none.",
    )


def _picture(context: Context, found: Sequence[Judged]) -> Picture:
    kinds = [kind.__name__ for kind in KINDS]
    with drawn(context.output / "guarantee.png", width=8, height=4) as (axis,):
        for row, kind in enumerate(kinds):
            largest = [one.largest / np.log(10) for one in found if one.kind == kind]
            axis.scatter(largest, [row] * len(largest), color=HONEST, alpha=0.5, s=14)
        axis.axvline(context.judge.log_threshold / np.log(10), color=NEUTRAL, linestyle="--", linewidth=1)
        axis.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
        axis.set(xlabel="largest evidence that the account ever reached, powers of ten", xlim=(0, None))
        axis.invert_yaxis()
    return Picture("guarantee.png", "Every honest account's largest evidence; dashed, the threshold.")
