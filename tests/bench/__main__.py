"""`python -m tests.bench`: measure, and keep what was measured in build/bench.json (`make bench`)."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from deploy.kafka.broker import BrokerError, stop_on_sigterm
from deploy.local import REPOSITORY, LocalSystemError
from services.evaluation.figures import Finding, record
from services.evaluation.report import machine as processor
from tests.bench import detectors, inference, pipeline, responses, worker
from tests.bench.measure import Plan, SectionError, machine
from tests.bench.page import page, tables

SECTIONS: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "detectors": detectors.measure,
    "inference": inference.measure,
    "pipeline": pipeline.measure,
    "worker": worker.measure,
    "responses": responses.measure,
}
FINDINGS: dict[str, Callable[[dict[str, Any]], list[Finding]]] = {
    "detectors": detectors.findings,
    "inference": inference.findings,
    "responses": responses.findings,
}
"""Rows of docs/results/figures.json."""
PAGE = REPOSITORY / "docs" / "results" / "bench.md"


def main() -> int:
    """Measure the sections asked for; the others stay in the file as they were."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section; may be given several times")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a look")
    parser.add_argument("--seed", type=int, default=1, help="of every draw (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="(%(default)s)")
    parser.add_argument("--write-docs", action="store_true", help="write docs/results/bench.md too")
    arguments = parser.parse_args()
    stop_on_sigterm()
    console = Console()
    results: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    failed = False
    for name in arguments.only or SECTIONS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="portcullis-bench-") as folder, console.status(name) as status:
            plan = Plan(arguments.quick, arguments.seed, Path(folder), lambda line, s=status: s.update(line))
            surroundings = {
                "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": machine(),
                "seed": arguments.seed,
                "quick": arguments.quick,
            }
            try:
                measured = SECTIONS[name](plan)
            except (SectionError, LocalSystemError, BrokerError) as error:
                console.print(f"[red]{name}: {error}")
                failed = True
                continue
        results[name] = surroundings | {"seconds": round(time.monotonic() - started, 1), **measured}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    for table in tables(results):
        console.print(table.rich())
    console.print(f"{arguments.output}")
    if arguments.write_docs:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(results))
        console.print(f"{PAGE.relative_to(REPOSITORY)}")
        for name, findings in FINDINGS.items():
            if name in (arguments.only or SECTIONS) and name in results and not arguments.quick:
                record(findings(results[name]), f"python -m tests.bench --only {name} --write-docs", processor())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
