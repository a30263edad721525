"""Pictures for docs/evidence.md: from a statistic to a verdict, on one honest account and one attacker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.evaluation.attackers import attackers
from services.evaluation.context import Context
from services.evaluation.guarantee import POPULATION_SEED
from services.evaluation.report import Picture, Study, Table
from services.redteam.jacobian import JbaPgd, JbdaTr, JbTop3
from services.redteam.knockoff import KnockoffNets
from services.training.calibration import account_e_values
from services.training.calibrator import STATISTICS
from services.training.tracing import Traces, honest_plans
from shared.evidence import BET_SIZES, advance, e_value, log_by_profile
from shared.population import KINDS

DRAWN_ATTACKS = (JbdaTr.name, JbaPgd.name, JbTop3.name, KnockoffNets.name)
HONEST_COLOUR, ATTACK_COLOUR, GREY = "#3b6ea5", "#b3372b", "#333333"
SHOWN = ("similarity", 4)
"""Detector and number of the statistic that the pictures follow: the log-odds of a crafted image."""


def study(context: Context) -> Study:
    """Draws the pictures; the table says what is in the first."""
    sizes = context.sizes
    queries = sizes.drawn_queries
    plans = honest_plans(context.splits.test, sizes.drawn_accounts * len(KINDS), queries, POPULATION_SEED + 2)
    honest = context.traces(plans, "accounts of the explanation: detectors")
    middle = sizes.radii[len(sizes.radii) // 2]
    everyone = attackers(
        context.splits.test, context.foreign, sizes.seeds[:1], [middle], (), sizes.seed_counts[:1], queries
    )
    shown = [attacker for attacker in everyone if attacker.attack in DRAWN_ATTACKS]
    streams = context.streams(shown, "attackers of the explanation: recording")
    attacks = context.traces([stream.recording for stream in streams], "attackers of the explanation: detectors")
    named = [(f"{s.attacker.attack}, {s.attacker.strength}", t) for s, t in zip(streams, attacks, strict=True)]
    by_kind = [(plan.kind.replace("_", " "), traces) for plan, traces in zip(plans, honest, strict=True)]
    pictures = [
        _differences(context, by_kind, named),
        _bets(context),
        _sums(context, by_kind[0][1], named[0][1]),
    ]
    rows: list[list[str | int | float | None]] = [
        [name, *(float(q) for q in np.nanquantile(_values(traces), [0.5, 0.95, 0.99]))]
        for name, traces in (*by_kind, *named)
    ]
    return Study(
        name="explained",
        title="From a statistic to a verdict",
        text=f"{len(plans)} honest accounts of {queries} queries and {len(streams)} attackers, for the pictures of "
        "docs/evidence.md.",
        tables=[Table("The log-odds of a crafted image", ["account", "median", "95%", "99%"], rows)],
        pictures=pictures,
    )


def _values(traces: Traces) -> NDArray[np.float32]:
    detector, number = SHOWN
    return traces[detector].values[:, number]


def _new(columns: int = 1, height: float = 3.6, **options: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(8, height), squeeze=False, **options)


def _save(context: Context, figure: Any, name: str, caption: str) -> Picture:
    from matplotlib import pyplot

    figure.tight_layout()
    context.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(context.output / name, dpi=110)
    pyplot.close(figure)
    return Picture(name, caption)


def _differences(
    context: Context, honest: Sequence[tuple[str, Traces]], attacks: Sequence[tuple[str, Traces]]
) -> Picture:
    figure, axes = _new(height=0.16 * (len(honest) + len(attacks)) + 1.2)
    axis = axes[0][0]
    everyone = [*honest, *attacks]
    for row, (_, traces) in enumerate(everyone):
        values = _values(traces)
        low, middle, high = np.nanquantile(values[np.isfinite(values)], [0.05, 0.5, 0.95])
        colour = HONEST_COLOUR if row < len(honest) else ATTACK_COLOUR
        axis.plot([low, high], [row, row], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.6)
        axis.plot(middle, row, "o", color=colour, markersize=4)
    axis.set_yticks(range(len(everyone)), [name for name, _ in everyone], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("log-odds that an image is crafted: median, and 5% to 95% of the account's queries")
    caption = "Honest accounts differ from each other (blue); one threshold for all would hurt some. Attackers in red."
    return _save(context, figure, "explained-accounts.png", caption)


def _bets(context: Context) -> Picture:
    figure, axes = _new()
    p = np.geomspace(1e-4, 1, 200)
    for bet in BET_SIZES:
        axes[0][0].loglog(p, 1 - bet + bet * e_value(p), label=f"{bet:.0%} of the wealth staked")
    axes[0][0].axhline(1.0, color=GREY, linewidth=0.8)
    axes[0][0].set(xlabel="conformal p-value of a query", ylabel="factor on the wealth")
    axes[0][0].legend(frameon=False)
    caption = "What a query's p-value does to the wealth: common queries cost a little, rare ones pay."
    return _save(context, figure, "explained-bets.png", caption)


def _sums(context: Context, honest: Traces, attack: Traces) -> Picture:
    figure, axes = _new(columns=2, sharey=True)
    detector, _ = SHOWN
    for axis, traces, name, colour in zip(
        axes[0], (honest, attack), ("an honest account", "JBDA-TR"), (HONEST_COLOUR, ATTACK_COLOUR), strict=True
    ):
        model = context.judge.models[detector]
        sums = np.zeros((model.profiles, len(model.statistics), len(BET_SIZES)))
        lines = []
        for e_values in account_e_values(detector, STATISTICS[detector], model, traces):
            sums = advance(sums, e_values)
            lines.append(log_by_profile(sums) / np.log(10))
        path = np.array(lines)
        axis.plot(path, color=GREY, alpha=0.25, linewidth=0.8)
        axis.plot(path.min(axis=1), color=colour, linewidth=2)
        axis.axhline(context.judge.log_threshold / np.log(10), color=GREY, linestyle="--", linewidth=1)
        axis.set(title=name, xlabel="queries")
    axes[0][0].set_ylabel(f"R of the detector {detector}, powers of ten")
    caption = (
        "R under every honest profile (thin) and the smallest (thick), which is the evidence; dashed, the threshold."
    )
    return _save(context, figure, "explained-sums.png", caption)
