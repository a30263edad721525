"""The server with the whole defence on, against the same server with it off, taking turns in one run.

With it on, Kafka, four detectors and the decision run on the same cores: latency and throughput show what this machine
has left for the server. The server's own processor time a query shows what the defence costs where those run elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from deploy.local import LocalSystem
from services.evaluation.figures import Finding
from shared.bundle import Bundle
from tests.bench.measure import Plan, SectionError, in_words, photographs, spread, trained_bundle
from tests.bench.system import enforced, issue_keys, system

CLIENTS = 2
CONCURRENT = 4
"""Requests that each client has under way."""
ROWS = (1, 32)
IMAGES = 60_000
"""Every round begins with others, so that no detector meets its latest queries again."""


def measure(plan: Plan) -> dict[str, Any]:
    """Requests and queries a second, latency, and processor time a query; on and off."""
    rounds, seconds = plan.size(6, 2), plan.size(8, 3)
    model = Bundle.load(trained_bundle()).manifest.model.name
    accounts = [f"honest-{client}" for client in range(CLIENTS)]
    keys = issue_keys(plan.folder / "keys.yaml", accounts)
    for number in range(CLIENTS):
        np.save(plan.folder / f"{number}.npy", photographs(IMAGES, plan.seed + number))
    result: dict[str, Any] = {"clients": CLIENTS, "concurrent": CLIENTS * CONCURRENT, "seconds_a_round": seconds}
    with system(plan, "on", plan.folder / "keys.yaml") as on:
        beside = {"PORTCULLIS_KAFKA": on.kafka, "PORTCULLIS_DEFENCE": "false"}
        with system(plan, "off", plan.folder / "keys.yaml", beside, ["inference"]) as off:
            for rows in ROWS:
                measured: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
                for turn in range(2 * rounds):
                    name, server = (("off", off), ("on", on))[(turn + turn // 2) % 2]
                    plan.report(f"{rows} rows a request, defence {name}, round {turn // 2 + 1} of {rounds}")
                    measured[name].append(_round(plan, server, list(keys.values()), model, rows, seconds, 8192 * turn))
                result[f"{rows} rows"] = _summary(measured)
            # A false alarm would spoil the numbers: spoiled answers cost more.
            result["accounts_under_a_verdict"] = len(enforced(on.log("inference")))
    return result


def findings(results: dict[str, Any]) -> list[Finding]:
    """Rows of docs/results/figures.json."""
    single, batches = (results[f"{rows} rows"] for rows in ROWS)
    added = single["on"]["p99_ms"]["median"] - single["off"]["p99_ms"]["median"]
    return [
        in_words("ratio-single", single["on_over_off"]["queries_a_second"]),
        in_words("ratio-batch32", batches["on_over_off"]["queries_a_second"]),
        Finding("added-p99-ms", added, f"difference of the medians of {single['on']['p99_ms']['repeats']} rounds each"),
    ]


def _round(
    plan: Plan, server: LocalSystem, keys: list[str], model: str, rows: int, seconds: float, first: int
) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.client", server.grpc_address, key, model]
            + [str(value) for value in (plan.folder / f"{number}.npy", first, rows, seconds, CONCURRENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number, key in enumerate(keys)
    ]
    try:
        for client in clients:
            if client.stdout is None or client.stdout.readline() != "ready\n":
                raise SectionError("a client of the benchmark was refused")
        before = _processor_seconds(server)
        outputs = [client.communicate(timeout=seconds + 60)[0] for client in _started(clients)]
        used = _processor_seconds(server) - before
    finally:
        for client in clients:
            client.kill()
            client.wait()
    latencies = np.concatenate([json.loads(output) for output in outputs])
    return {
        "requests_a_second": len(latencies) / seconds,
        "queries_a_second": len(latencies) * rows / seconds,
        "p50_ms": float(np.quantile(latencies, 0.5) * 1e3),
        "p99_ms": float(np.quantile(latencies, 0.99) * 1e3),
        "server_cpu_us_a_query": used / (len(latencies) * rows) * 1e6,
    }


def _started(clients: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Let all begin before the first is waited for."""
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    return clients


def _processor_seconds(server: LocalSystem) -> float:
    """Of the inference process and what it started, from /proc."""
    group = os.getpgid(server.process("inference").pid)
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                ticks += sum(int(value) for value in (folder / "stat").read_text().rsplit(")", 1)[1].split()[11:13])
        except (ProcessLookupError, FileNotFoundError):
            continue  # ended while we looked
    return ticks / os.sysconf("SC_CLK_TCK")


def _summary(measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    names = measured["on"][0]
    summary: dict[str, Any] = {
        side: {name: spread([one[name] for one in rounds]) for name in names} for side, rounds in measured.items()
    }
    summary["on_over_off"] = {
        name: spread([on[name] / off[name] for on, off in zip(measured["on"], measured["off"], strict=True)])
        for name in names
    }
    return summary
