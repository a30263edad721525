"""Pictures for docs/evidence.md: from a statistic to a verdict, on one honest account and one attacker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.evaluation.attackers import attackers
from services.evaluation.context import Context
from services.evaluation.drawing import ATTACKS, HONEST, NEUTRAL, drawn
from services.evaluation.guarantee import POPULATION_SEED
from services.evaluation.report import Picture, Study, Table
from services.redteam.jacobian import JbaPgd, JbdaTr, JbTop3
from services.redteam.pool import KnockoffNets
from services.training.calibration import account_bets
from services.training.calibrator import STATISTICS
from services.training.tracing import Traces, honest_plans
from shared.evidence import BETS, advance, log_by_profile
from shared.population import KINDS

DRAWN_ATTACKS = (JbdaTr.name, JbaPgd.name, JbTop3.name, KnockoffNets.name)
ATTACK = ATTACKS["JBDA-TR"]
WIDTH = 8
"""Of a picture, inches."""
SHOWN = ("similarity", [statistic.name for statistic in STATISTICS["similarity"]].index("crafted"))
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


def _differences(
    context: Context, honest: Sequence[tuple[str, Traces]], attacks: Sequence[tuple[str, Traces]]
) -> Picture:
    everyone = [*honest, *attacks]
    file = "explained-accounts.png"
    with drawn(context.output / file, width=WIDTH, height=0.16 * len(everyone) + 1.2) as (axis,):
        for row, (_, traces) in enumerate(everyone):
            values = _values(traces)
            low, middle, high = np.nanquantile(values[np.isfinite(values)], [0.05, 0.5, 0.95])
            colour = HONEST if row < len(honest) else ATTACK
            axis.plot([low, high], [row, row], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.6)
            axis.plot(middle, row, "o", color=colour, markersize=4)
        axis.set_yticks(range(len(everyone)), [name for name, _ in everyone], fontsize=7)
        axis.invert_yaxis()
        axis.set_xlabel("log-odds that an image is crafted: median, and 5% to 95% of the account's queries")
    caption = (
        "Honest accounts differ from each other (blue); one threshold for all would hurt some. Attackers in orange."
    )
    return Picture(file, caption)


def _bets(context: Context) -> Picture:
    file = "explained-bets.png"
    p = np.geomspace(1, 1e-4, 400)
    with drawn(context.output / file, width=WIDTH) as (axis,):
        for bet in BETS:
            on = "all" if bet.tail is None else f"the rarest {bet.tail:.1%}"
            axis.loglog(p, 1 - bet.size + bet.size * bet.payoff(p), label=f"{bet.size:.0%} of the wealth on {on}")
        axis.axhline(1.0, color=NEUTRAL, linewidth=0.8)
        axis.set(xlabel="conformal p-value of a query", ylabel="factor on the wealth")
        axis.legend(frameon=False)
    caption = "What a query's p-value does to the wealth: common queries cost a little, rare ones pay."
    return Picture(file, caption)


def _sums(context: Context, honest: Traces, attack: Traces) -> Picture:
    file = "explained-sums.png"
    detector, _ = SHOWN
    model = context.judge.models[detector]
    with drawn(context.output / file, columns=2, width=WIDTH / 2, sharey=True) as axes:
        for axis, traces, name, colour in zip(
            axes, (honest, attack), ("an honest account", "JBDA-TR"), (HONEST, ATTACK), strict=True
        ):
            sums = np.zeros((model.profiles, len(model.statistics), len(BETS)))
            lines = []
            for factors in account_bets(detector, STATISTICS[detector], model, traces):
                sums = advance(sums, factors)
                lines.append(log_by_profile(sums) / np.log(10))
            path = np.array(lines)
            axis.plot(path, color=NEUTRAL, alpha=0.25, linewidth=0.8)
            axis.plot(path.min(axis=1), color=colour, linewidth=2)
            axis.axhline(context.judge.log_threshold / np.log(10), color=NEUTRAL, linestyle="--", linewidth=1)
            axis.set(title=name, xlabel="queries")
        axes[0].set_ylabel(f"R of the detector {detector}, powers of ten")
    caption = (
        "R under every honest profile (thin) and the smallest (thick), which is the evidence; dashed, the threshold."
    )
    return Picture(file, caption)
