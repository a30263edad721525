"""From a query's acceptance to its account's verdict being enforced, as the server that enforces it logs it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from deploy.local import LocalSystem
from services.redteam.attack import Banned
from services.redteam.client import VictimClient
from shared.bundle import Bundle
from shared.datasets import load_digits
from tests.bench.measure import Plan, SectionError, trained_bundle
from tests.bench.system import enforced, issue_keys, system

QUERIES = 600
"""Most that an attacker sends; one that is never noticed ends there."""
PAUSE_SECONDS = 0.02
"""Between two queries of an attacker: a system at rest, not a full one."""


def measure(plan: Plan) -> dict[str, Any]:
    """One attacker after another sends digits to a model of clothes until a verdict of its own is in force."""
    attackers = plan.size(30, 4)
    model = Bundle.load(trained_bundle()).manifest.model.name
    accounts = [f"attacker-{number}" for number in range(attackers)]
    keys = issue_keys(plan.folder / "keys.yaml", accounts)
    digits = load_digits().images
    random = np.random.default_rng(plan.seed)
    with system(plan, "pipeline", plan.folder / "keys.yaml") as running:
        for number, account in enumerate(accounts):
            plan.report(f"attacker {number + 1} of {attackers}")
            images = digits[random.permutation(len(digits))[:QUERIES]]
            _attack(running, account, keys[account], model, images)
        verdicts = list(enforced(running.log("inference")).values())
    if not verdicts:
        raise SectionError("no attacker met a verdict")
    latencies = [verdict["latency_seconds"] for verdict in verdicts]
    return {
        "attackers": attackers,
        "met_a_verdict": len(verdicts),
        "latency_seconds": {
            "p50": float(np.quantile(latencies, 0.5)),
            "p99": float(np.quantile(latencies, 0.99)),
            "min": min(latencies),
            "max": max(latencies),
        },
        "at_query": {"median": float(np.median([verdict["at_query"] for verdict in verdicts]))},
    }


def _attack(running: LocalSystem, account: str, key: str, model: str, images: np.ndarray) -> None:
    with VictimClient(running.grpc_address, key, model) as client:
        for number, image in enumerate(images):
            try:
                client.query(image[None])
            except Banned:
                return
            if number % 10 == 9 and account in enforced(running.log("inference")):
                return
            time.sleep(PAUSE_SECONDS)
