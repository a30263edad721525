"""What was measured becomes tables and a page; what was not measured is left out."""

from __future__ import annotations

from typing import Any

from tests.bench.measure import machine, spread
from tests.bench.page import HEADINGS, page, tables

SURROUNDINGS: dict[str, Any] = {"measured_at": "2026-11-22", "machine": machine(), "seed": 1, "quick": True}
MANY = spread([1.0, 2.0, 4000.0])
SERVER = dict.fromkeys(("requests_a_second", "queries_a_second", "p50_ms", "p99_ms", "server_cpu_us_a_query"), MANY)
RESULTS: dict[str, Any] = {
    "detectors": SURROUNDINGS
    | {
        "detectors": {
            "tmsp": {
                "score_us_a_query": {"1": MANY, "32": MANY},
                "histories": {"1000": {"step_us_a_query": MANY, "state_bytes": 12_345}},
            }
        }
    },
    "inference": SURROUNDINGS | {"1 rows": {"on": SERVER, "off": SERVER, "on_over_off": SERVER}},
    "pipeline": SURROUNDINGS
    | {
        "attackers": 4,
        "met_a_verdict": 3,
        "latency_seconds": {"min": 0.1, "p50": 0.2, "p99": 0.3, "max": 0.4},
        "at_query": {"median": 61.0},
    },
    "worker": SURROUNDINGS | {"workers": {"tmsp": {"records_a_second": MANY, "queries_a_second": MANY}}},
    "responses": SURROUNDINGS
    | {
        "responses": {"amao": dict.fromkeys(("look", "answer", "together"), MANY)},
        "allowed": MANY,
        "hashes": {"pHash, one picture": MANY},
    },
}


def test_the_page_has_a_section_for_each_that_was_measured() -> None:
    text = page(RESULTS)
    assert [heading in text for heading in HEADINGS.values()] == [True] * 5
    assert "| tmsp | 2 (1 to 4,000) | 2 (1 to 4,000) | 2 (1 to 4,000) | 12,345 |" in text
    assert "| 3 of 4 | 0.1 | 0.2 | 0.3 | 0.4 | 61 |" in text
    assert "with `--quick`" in text
    assert page({}) == "\n\n".join(text.split("\n\n")[:2]) + "\n"


def test_every_table_has_as_many_cells_in_each_row_as_it_has_columns() -> None:
    found = list(tables(RESULTS))
    assert [table.section for table in found] == list(HEADINGS)
    assert all(len(row) == len(table.columns) for table in found for row in table.rows)
    assert all(table.rich().row_count == len(table.rows) for table in found)
