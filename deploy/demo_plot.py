"""The demo's picture: each account's statistics over its queries, thresholds, and the moment of its verdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, ScalarFormatter

from deploy.demo_ledger import AccountLedger, Kind, Ledger
from deploy.demo_view import log10
from shared.bundle import DETECTORS

TITLES = {
    "tmsp": "TMSP: share of uncertain answers",
    "prada": "PRADA: Shapiro-Wilk W",
    "similarity": "Similarity: similar pairs",
    "likelihood": "Likelihood: upper end of the interval",
}
COLUMN_TITLES = {Kind.BENIGN: "honest accounts", Kind.ATTACK: "attackers"}
PALETTES = {
    Kind.BENIGN: ("#1f77b4", "#17becf", "#2ca02c", "#9467bd", "#8c8c8c", "#14532d", "#60a5fa"),
    Kind.ATTACK: ("#c1121f", "#f77f00", "#d63a9a", "#7f1d1d"),
}
FIRST_QUERY_SHOWN = 10
PAIR_TICKS = (0, 5, 10, 20, 50, 100, 200, 500)


def draw(ledger: Ledger, path: Path, title: str) -> None:
    """Write the picture: a row a statistic, honest accounts on the left and attackers on the right.

    Args:
        ledger: at the end of the demo.
        path: of the PNG.
        title: above everything.
    """
    rows = len(DETECTORS) + 1
    figure, axes = pyplot.subplots(
        rows, len(Kind), figsize=(15, 3.1 * rows), sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    for column, kind in enumerate(Kind):
        accounts = ledger.of_kind(kind)
        colours = dict(zip((account.account for account in accounts), _colours(kind), strict=False))
        for row, detector in enumerate(DETECTORS):
            _draw_detector(axes[row][column], detector, accounts, colours)
        _draw_evidence(axes[-1][column], accounts, colours, ledger.log_threshold)
        axes[0][column].set_title(COLUMN_TITLES[kind], loc="left", fontsize=12)
        axes[-1][column].set_xlabel("queries of the account")
        axes[0][column].legend(
            handles=_legend(kind, accounts, colours), ncols=4, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.12),
            frameon=False,
        )  # fmt: skip
    for one in axes.flat:
        one.set_xlim(left=FIRST_QUERY_SHOWN)
        one.set_xscale("log")
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _legend(kind: Kind, accounts: list[AccountLedger], colours: dict[str, str]) -> list[Line2D]:
    lines = [
        Line2D([], [], color=colours[one.account], label=f"{one.account}: {one.attack}" if one.attack else one.account)
        for one in accounts
    ]
    lines.append(Line2D([], [], color="black", linestyle="--", label="threshold"))
    if kind is Kind.ATTACK:
        lines.append(Line2D([], [], color="black", linestyle=":", marker="o", label="verdict takes effect"))
    return lines


def _colours(kind: Kind) -> Iterator[str]:
    while True:
        yield from PALETTES[kind]


def _draw_detector(axes: Axes, detector: str, accounts: list[AccountLedger], colours: dict[str, str]) -> None:
    for account in accounts:
        points = account.tracks[detector].points
        if not points:
            continue
        queries = np.array([point.queries for point in points])
        values = np.array([point.statistic for point in points])
        axes.plot(queries, values, color=colours[account.account], linewidth=1.4, alpha=0.9)
        _mark(axes, account, queries, values, colours[account.account])
        axes.axhline(points[-1].threshold, color="black", linestyle="--", linewidth=1)
    if detector == "similarity":
        # Pairs grow with the square of the queries.
        axes.set_yscale("symlog", linthresh=10)
        axes.yaxis.set_major_locator(FixedLocator(PAIR_TICKS))
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylabel(TITLES[detector])


def _draw_evidence(axes: Axes, accounts: list[AccountLedger], colours: dict[str, str], log_threshold: float) -> None:
    for account in accounts:
        queries = np.array([queries for queries, _ in account.evidence])
        values = np.array([log10(value) for _, value in account.evidence])
        axes.plot(queries, values, color=colours[account.account], linewidth=1.4, alpha=0.9)
        _mark(axes, account, queries, values, colours[account.account])
    axes.axhline(log10(log_threshold), color="black", linestyle="--", linewidth=1)
    axes.set_ylabel("Evidence: log10 R, all detectors")


def _mark(axes: Axes, account: AccountLedger, queries: np.ndarray, values: np.ndarray, colour: str) -> None:
    """A dot where the verdict took effect, and a hairline down to the axis."""
    at = account.effective_at_query
    if at is None:
        return
    known = np.flatnonzero((queries <= at) & ~np.isnan(values))
    axes.axvline(at, color=colour, linestyle=":", linewidth=1)
    if len(known):
        axes.plot([at], [values[known[-1]]], marker="o", markersize=7, color=colour, markeredgecolor="black", zorder=5)
