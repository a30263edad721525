"""What a load found, as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.local import SERVICES
from services.evaluation.drawing import DEFENCES, NEUTRAL, drawn
from services.evaluation.report import Cell, Picture, Study, Table
from tests.load.traffic import HEAVY, Traffic
from tests.load.watch import WORKERS, Samples

MIB = 1 << 20
QUANTILES = (0.5, 0.9, 0.99, 0.999)
WARM = 1 / 6
"""Share of a run after which memory is compared with memory at the end: ten minutes of an hour."""


@dataclass(frozen=True, slots=True)
class Load:
    """Everything that was measured.

    Attributes:
        traffic: that was sent, without its images.
        closed: how many queries were under way at a time; None where each was sent at its moment.
        seconds: that the traffic lasts.
        at: [n], when each query was due (open) or sent (closed), seconds.
        account: [n], whose it was.
        latency: [n], seconds from then to the answer or refusal.
        answered: [n], whether it was answered.
        samples: of the system.
        delays: seconds from the query that caused a verdict to its enforcement, by account that met one.
        touched: accounts that met a verdict: first action, at which query.
        drained_seconds: that the detectors needed after the last query; None where they did not catch up.
    """

    traffic: Traffic
    closed: int | None
    seconds: float
    at: NDArray[np.float64]
    account: NDArray[np.int64]
    latency: NDArray[np.float64]
    answered: NDArray[np.bool_]
    samples: Samples
    delays: Sequence[float]
    touched: Mapping[str, tuple[str, int]]
    drained_seconds: float | None

    @property
    def rate(self) -> float:
        """Queries a second that were answered or refused."""
        return len(self.at) / max(float((self.at + self.latency).max(initial=0.0)), 1e-9)

    @property
    def caught(self) -> list[str]:
        """Attackers that met a verdict."""
        return [name for name in self.traffic.accounts[self.traffic.honest :] if name in self.touched]

    @property
    def hurt(self) -> list[str]:
        """Honest accounts that met one."""
        return [name for name in self.traffic.accounts[: self.traffic.honest] if name in self.touched]


def study(load: Load, folder: Path) -> Study:
    """The page; its picture goes into the folder."""
    attackers, honest = load.traffic.attackers, load.traffic.honest
    shape = f"{load.closed} queries under way at any time" if load.closed else "each query at its own moment"
    return Study(
        name="load",
        title="The whole system under load",
        text=f"{honest:,} honest accounts of every kind, one of them with {HEAVY} times the median's rate, and "
        f"{attackers} attackers, for {load.seconds:,.0f} s; {shape}. {len(load.at):,} queries, {load.rate:,.0f} a "
        f"second. {len(load.caught)} of {attackers} attackers met a verdict, and {len(load.hurt) or 'none'} of the "
        "honest accounts. Kafka, all services and the clients share the machine.",
        tables=[_latencies(load), _verdicts(load), _processes(load), _detectors(load)],
        pictures=[_picture(load, folder)],
    )


def _latencies(load: Load) -> Table:
    attacks = load.account >= load.traffic.honest
    rows: list[list[Cell]] = []
    for name, mine in (("honest accounts", ~attacks), ("attackers", attacks)):
        of = 1e3 * load.latency[mine & load.answered]
        quantiles = [float(np.quantile(of, q)) if len(of) else None for q in QUANTILES]
        rows.append([name, int(mine.sum()), int((mine & ~load.answered).sum()), *quantiles])
    since = "from the moment a query was due" if load.closed is None else "from the moment a query was sent"
    return Table(
        "Queries",
        ["of", "sent", "refused", *(f"p{100 * q:g}, ms" for q in QUANTILES)],
        rows,
        f"Latency of answered ones, {since}, as the clients measured it.",
    )


def _verdicts(load: Load) -> Table:
    at = [load.touched[name][1] for name in load.caught]
    quantiles = [float(np.quantile(load.delays, q)) if load.delays else None for q in (0.5, 0.99)]
    return Table(
        "Verdicts",
        ["attackers", "caught", "at query (median)", "at query (largest)", "honest accounts", "hurt",
         "query to verdict in force: p50, s", "p99, s"],
        [[
            load.traffic.attackers, len(load.caught), float(np.median(at)) if at else None, max(at, default=None),
            load.traffic.honest, len(load.hurt), *quantiles,
        ]],
        "The query is the one that caused the verdict. Attackers begin at any moment of the first half.",
    )  # fmt: skip


def _processes(load: Load) -> Table:
    rows: list[list[Cell]] = []
    warm = int(np.searchsorted(load.samples.seconds, WARM * load.seconds))
    for name in SERVICES:
        column = load.samples.resident[name]
        first, then, last = column[0], column[min(warm, len(column) - 1)], column[-1]
        rows.append([name, first / MIB, then / MIB, last / MIB, last / then])
    minutes = WARM * load.seconds / 60
    return Table(
        "Memory of each service, MiB",
        ["service", "at the start", f"after {minutes:.1f} min", "at the end", "end over that"],
        rows,
    )


def _detectors(load: Load) -> Table:
    rows: list[list[Cell]] = []
    for name in WORKERS:
        lag, held = np.array(load.samples.lag[name]), load.samples.accounts[name][-1]
        rows.append([name, float(np.median(lag)), float(lag.max()), int(held)])
    caught_up = "did not catch up" if load.drained_seconds is None else f"caught up {load.drained_seconds:.1f} s later"
    return Table(
        "Detectors: published queries that are not judged yet",
        ["detector", "median", "most", "accounts held at the end"],
        rows,
        f"After the last query the detectors {caught_up}.",
    )


def _picture(load: Load, folder: Path) -> Picture:
    samples, minutes = load.samples, np.array(load.samples.seconds) / 60
    with drawn(folder / "load.png", columns=2, rows=2, width=5.4, height=3.4) as axes:
        answered = np.sort(1e3 * load.latency[load.answered])
        axes[0].plot(answered, np.linspace(0, 1, len(answered)), color=NEUTRAL)
        axes[0].set(xlabel="latency, ms", ylabel="share of queries", xscale="log", title="Latency")
        if len(minutes) > 1:
            rate = np.diff(samples.answered) / np.maximum(np.diff(samples.seconds), 1e-9)
            axes[1].plot(minutes[1:], rate, color=NEUTRAL)
        axes[1].set(xlabel="minutes", ylabel="queries a second", title="Answered", ylim=(0, None))
        for colour, name in zip(DEFENCES, WORKERS, strict=False):
            axes[2].plot(minutes, samples.lag[name], color=colour, label=name)
        axes[2].set(xlabel="minutes", ylabel="queries", title="Published and not judged yet")
        axes[2].legend(fontsize=7)
        for colour, name in zip((*DEFENCES, "#CC79A7"), SERVICES, strict=False):
            axes[3].plot(minutes, np.array(samples.resident[name]) / MIB, color=colour, label=name)
        axes[3].set(xlabel="minutes", ylabel="MiB", title="Resident memory", ylim=(0, None))
        axes[3].legend(fontsize=7)
    return Picture(
        "load.png", "Latency of every query; and over time: answers, what detectors have to catch up, memory."
    )
