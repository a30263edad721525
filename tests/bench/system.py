"""A whole system for one section, with accounts of its own."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.local import SERVICES, LocalSystem
from shared.keys import KeyFile, issue_key
from tests.bench.measure import Plan, trained_bundle


def issue_keys(path: Path, accounts: Sequence[str]) -> dict[str, str]:
    """A file with one key an account; the keys by account."""
    issued = {account: issue_key(account) for account in accounts}
    KeyFile(path, {account: (record,) for account, (_, record) in issued.items()}).save()
    return {account: key for account, (key, _) in issued.items()}


def system(
    plan: Plan,
    name: str,
    keys: Path,
    settings: Mapping[str, str] | None = None,
    services: Sequence[str] = SERVICES,
) -> LocalSystem:
    """Kafka and services over the trained bundle, with a folder of their own."""
    own = {"PORTCULLIS_BUNDLE": str(trained_bundle()), "PORTCULLIS_KEYS": str(keys)} | dict(settings or {})
    return LocalSystem(
        plan.folder / name, own, services, progress=lambda process, state: plan.report(f"{process}: {state}")
    )


def metric(url: str, pattern: str) -> float:
    """Sum of the samples at `url` whose line matches; 0 where there is none."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(pattern, line))


def enforced(log: Path) -> dict[str, dict[str, Any]]:
    """Each account's first verdict that changes its answers."""
    found: dict[str, dict[str, Any]] = {}
    for line in log.read_text().splitlines():
        if '"verdict enforced"' in line:
            entry = json.loads(line)
            if entry["action"] in ("perturb", "throttle", "ban") and entry["latency_seconds"] is not None:
                found.setdefault(entry["account"], entry)
    return found
