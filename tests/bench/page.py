"""From build/bench.json to tables for the terminal and the page docs/results/bench.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table as RichTable

HEADINGS = {
    "detectors": "What a query costs each detector, and an account in bytes",
    "inference": "The server with the whole defence on, against the same server with it off",
    "pipeline": "From a query's acceptance to its account's verdict being enforced",
    "worker": "How fast each worker drains a full topic",
    "responses": "What it costs to spoil an answer",
}
EXPLANATIONS = {
    "detectors": (
        "Microseconds of processor time a query, one thread. `score` sees queries of any accounts at once; `step` "
        "takes one account's queries in order, here 32 at a time, after so many earlier ones."
    ),
    "inference": (
        "Two clients with four requests each under way, in turns of on and off. With the defence on, Kafka, four "
        "detectors and the decision share the machine with server and clients; the server's own processor time a query "
        "is what the defence costs where they run elsewhere."
    ),
    "pipeline": "Attackers that send digits, one after another, on a system at rest; as the server logs it.",
    "worker": (
        "Records of 32 rows of 200 accounts, that lay in the topic before the worker started. Detectors by Kafka's "
        "timestamps of their signals; the decision, which drains what all four said, by the time its takes took."
    ),
    "responses": (
        "Milliseconds for one query of an account under perturbation, beside 5,000 remembered answers. Its hash "
        "and what the response looks at come first, in another thread where that takes long; then the event loop "
        "answers. Below, the hashes alone, and one compared with all records, beside imagehash's interface."
    ),
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts."""

    section: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(*self.columns, title=HEADINGS[self.section])
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For the page."""
        rule = "|" + "|".join(" --- " if column == 0 else " ---: " for column in range(len(self.columns))) + "|"
        return "\n".join(
            ["| " + " | ".join(row) + " |" for row in [self.columns]]
            + [rule]
            + ["| " + " | ".join(row) + " |" for row in self.rows]
        )


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """One table for each section that has been measured."""
    for name, make in _MAKERS.items():
        if name in results:
            columns, rows = make(results[name])
            yield Table(name, columns, tuple(rows))


def page(results: Mapping[str, Any]) -> str:
    """docs/results/bench.md, whole."""
    parts = [
        "# Benchmarks",
        "Made from `build/bench.json` by `make bench`; medians of several repeats, with their extremes.",
    ]
    for table in tables(results):
        section = results[table.section]
        parts += [
            f"## {HEADINGS[table.section]}",
            EXPLANATIONS[table.section],
            table.markdown(),
            _surroundings(section),
        ]
    return "\n\n".join(parts) + "\n"


def _surroundings(section: Mapping[str, Any]) -> str:
    machine = section["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    size = "; with `--quick`" if section["quick"] else ""
    return (
        f"Measured {section['measured_at']} on {machine['cores']} cores ({machine['processor']}), "
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}, {packages}; load at the start "
        f"{machine['load_at_start']:.1f}; seed {section['seed']}{size}."
    )


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _spread(values: Mapping[str, float]) -> str:
    return f"{_number(values['median'])} ({_number(values['min'])} to {_number(values['max'])})"


Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _detectors(section: Mapping[str, Any]) -> Rows:
    histories = list(next(iter(section["detectors"].values()))["histories"])
    columns = ("", "score, 1 row", "score, 32 rows")
    for history in histories:
        columns += (f"step after {int(history):,}", f"bytes after {int(history):,}")
    rows = []
    for name, detector in section["detectors"].items():
        row = [name, *(_spread(detector["score_us_a_query"][rows]) for rows in ("1", "32"))]
        for history in histories:
            found = detector["histories"][history]
            row += [_spread(found["step_us_a_query"]), f"{found['state_bytes']:,}"]
        rows.append(tuple(row))
    return columns, rows


def _inference(section: Mapping[str, Any]) -> Rows:
    columns = ("", "requests/s", "queries/s", "p50, ms", "p99, ms", "server's processor time a query, us")
    names = ("requests_a_second", "queries_a_second", "p50_ms", "p99_ms", "server_cpu_us_a_query")
    rows = []
    for size in (key for key in section if key.endswith(" rows")):
        for side, label in (("off", "off"), ("on", "on"), ("on_over_off", "on / off")):
            rows.append(
                (
                    f"{size.replace('1 rows', '1 row')} a request, {label}",
                    *(_spread(section[size][side][n]) for n in names),
                )
            )
    return columns, rows


def _pipeline(section: Mapping[str, Any]) -> Rows:
    latency = section["latency_seconds"]
    row = (
        f"{section['met_a_verdict']} of {section['attackers']}",
        *(_number(latency[name]) for name in ("min", "p50", "p99", "max")),
        _number(section["at_query"]["median"]),
    )
    return ("attackers that met a verdict", "min, s", "p50, s", "p99, s", "max, s", "at query (median)"), [row]


def _worker(section: Mapping[str, Any]) -> Rows:
    names = ("records_a_second", "queries_a_second")
    rows = [(name, *(_spread(found[unit]) for unit in names)) for name, found in section["workers"].items()]
    return ("", "records/s", "queries/s"), rows


def _responses(section: Mapping[str, Any]) -> Rows:
    names = ("look", "answer", "together")
    rows = [(name, *(_spread(found[part]) for part in names)) for name, found in section["responses"].items()]
    rows.append(("an account that nobody suspects", "", "", _spread(section["allowed"])))
    rows += [(name, _spread(found), "", "") for name, found in section["hashes"].items()]
    return ("", "hash and look, ms", "answer, ms", "together, ms"), rows


_MAKERS = {
    "detectors": _detectors,
    "inference": _inference,
    "pipeline": _pipeline,
    "worker": _worker,
    "responses": _responses,
}
