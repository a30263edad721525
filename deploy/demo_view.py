"""The demo in a terminal: a live table, or plain lines where nobody watches; and the table at the end."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.demo_ledger import AccountLedger, Kind, Ledger, Point
from shared.bundle import DETECTORS
from shared.events import Action

COLOURS = {
    Action.ALLOW: "green",
    Action.OBSERVE: "cyan",
    Action.PERTURB: "bold yellow",
    Action.THROTTLE: "bold magenta",
    Action.BAN: "bold red",
}
NEEDS_COLUMNS = 140
"""Narrower terminals get the table without the detectors' statistics."""


def log10(log_evidence: float) -> float:
    """People read R in powers of ten."""
    return log_evidence / math.log(10)


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"  # noqa: RUF001 - no value yet
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _statistic(point: Point | None) -> Text:
    if point is None:
        return Text("–", style="dim")  # noqa: RUF001
    style = "red" if point.flagged else "dim" if math.isnan(point.statistic) else ""
    return Text.assemble((_number(point.statistic), style), (f" / {_number(point.threshold)}", "dim"))


def _evidence(account: AccountLedger, log_threshold: float) -> Text:
    value = account.evidence[-1][1]
    style = "red" if value >= log_threshold else "yellow" if value >= log_threshold / 2 else ""
    return Text.assemble((f"10^{log10(value):.1f}", style), (f" / 10^{log10(log_threshold):.1f}", "dim"))


def _effect(account: AccountLedger) -> Text:
    at, seconds = account.effective_at_query, account.seconds_to_verdict
    if at is None:
        return Text("–", style="dim")  # noqa: RUF001
    return Text(f"{at:,}" + (f" ({seconds:.0f} s)" if seconds is not None else ""))


def _row(account: AccountLedger, log_threshold: float, wide: bool) -> list[RenderableType]:
    name = Text(account.account, style="red" if account.kind is Kind.ATTACK else "green")
    bar = ProgressBar(total=max(account.planned, 1), completed=account.queries, width=10)
    detectors = [_statistic(account.tracks[detector].latest) for detector in DETECTORS] if wide else []
    verdict = Text(account.verdict.name.lower(), style=COLOURS[account.verdict])
    evidence = _evidence(account, log_threshold)
    return [name, bar, f"{account.queries:,}", *detectors, evidence, verdict, _effect(account)]


def table(ledger: Ledger, columns: int, title: str = "") -> Table:
    """A row an account; each statistic beside the threshold of its paper's rule, red where the rule condemns."""
    wide = columns >= NEEDS_COLUMNS
    result = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    result.add_column("account", no_wrap=True)
    result.add_column("")
    result.add_column("queries", justify="right", no_wrap=True)
    for detector in DETECTORS if wide else ():
        result.add_column(detector, justify="right", no_wrap=True)
    result.add_column("evidence", justify="right", no_wrap=True)
    result.add_column("verdict", no_wrap=True)
    result.add_column("from query", justify="right", no_wrap=True)
    with ledger.lock:
        for kind in Kind:
            for account in ledger.of_kind(kind):
                result.add_row(*_row(account, ledger.log_threshold, wide))
            result.add_section()
    return result


class LiveView:
    """What `rich.live` draws: the table, and a line on what is going on."""

    def __init__(self, ledger: Ledger, console: Console) -> None:
        self._ledger = ledger
        self._console = console
        self.status = ""

    def __rich__(self) -> RenderableType:
        return Group(table(self._ledger, self._console.width), Text(self.status, style="dim"))


def line(ledger: Ledger, seconds: float) -> str:
    """The same in one line, where there is no terminal."""
    with ledger.lock:
        accounts = list(ledger.accounts.values())
        queries = sum(account.queries for account in accounts)
        caught = [f"{account.account} {account.verdict.name.lower()}" for account in accounts if account.hurt]
    verdicts = ", ".join(caught) or "none yet"
    return f"{seconds:5.0f} s  {queries:,} queries answered; enforced verdicts: {verdicts}"
