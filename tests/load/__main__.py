"""`python -m tests.load`: thousands of accounts at a set rate against the whole system, on a real Kafka."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from deploy.kafka.broker import BrokerError, stop_on_sigterm
from deploy.local import REPOSITORY, LocalSystem, LocalSystemError
from services.cli.output import CommandError
from services.cli.streams import read_verdicts
from services.evaluation import report
from shared.bundle import Bundle
from shared.events import Action
from tests.bench.measure import Plan, SectionError, trained_bundle
from tests.bench.system import enforced, issue_keys, system
from tests.load.findings import Load, study
from tests.load.generator import ANSWERED
from tests.load.traffic import Traffic, draw_traffic
from tests.load.watch import WORKERS, Watch

SAMPLES = 120
"""Of memory and lag over a run."""
DRAIN_SECONDS = 120.0
SETTLED = 3.0


def main() -> int:
    """Draw traffic, send it, and write what was found; 1 where it could not be done."""
    arguments = _arguments()
    stop_on_sigterm()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="portcullis-load-") as folder, console.status("drawing") as status:
        plan = Plan(arguments.quick, arguments.seed, Path(folder), status.update)
        try:
            load = run(plan, arguments)
        except (SectionError, LocalSystemError, BrokerError, CommandError) as error:
            console.print(f"[red]{error}", soft_wrap=True)
            return 1
    found = study(load, arguments.output)
    report.write(found, arguments.output, arguments.command)
    (arguments.output / "load-samples.json").write_text(json.dumps(asdict(load.samples)) + "\n")
    if arguments.write_docs:
        pages = REPOSITORY / "docs" / "results"
        report.write(study(load, pages), pages, arguments.command)
    console.print(found.text, soft_wrap=True)
    console.print(f"{arguments.output / 'load.md'}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--accounts", type=int, default=2_000, help="honest ones (%(default)s)")
    parser.add_argument("--attackers", type=int, default=20, help="accounts among them (%(default)s)")
    parser.add_argument("--rate", type=float, default=150.0, help="queries a second of all honest ones (%(default)s)")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (%(default)s)")
    parser.add_argument("--closed", type=int, metavar="CONCURRENT", help="as fast as answers come, so many at a time")
    parser.add_argument("--quick", action="store_true", help="100 accounts, 3 attackers, a minute: for a look")
    parser.add_argument("--seed", type=int, default=1, help="of every draw (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("build/load"), help="folder (%(default)s)")
    parser.add_argument("--write-docs", action="store_true", help="write docs/results/load.md too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.accounts, arguments.attackers, arguments.minutes = 100, 3, 1.0
    options = [f"--{name}={getattr(arguments, name)}" for name in ("accounts", "attackers", "rate", "minutes", "seed")]
    if arguments.closed:
        options.append(f"--closed={arguments.closed}")
    arguments.command = f"python -m tests.load {' '.join(options)}"
    return arguments


def run(plan: Plan, arguments: argparse.Namespace) -> Load:
    """Send the load against a system of its own.

    Raises:
        SectionError: the clients failed.
        LocalSystemError, BrokerError: the system did not start, or fell.
    """
    bundle, seconds = Bundle.load(trained_bundle()), 60 * arguments.minutes
    traffic = draw_traffic(
        bundle, arguments.accounts, arguments.attackers, arguments.rate, seconds, arguments.seed, plan.report
    )
    keys = issue_keys(plan.folder / "keys.yaml", traffic.accounts)
    np.save(plan.folder / "images.npy", traffic.images)
    np.savez(plan.folder / "traffic.npz", at=traffic.at, account=traffic.account, image=traffic.image)
    (plan.folder / "keys.json").write_text(json.dumps([keys[account] for account in traffic.accounts]))
    with system(plan, "load", plan.folder / "keys.yaml") as running:
        with Watch(running, max(seconds / SAMPLES, 0.5)) as watch:
            drained = _send(plan, running, bundle.manifest.model.name, arguments.closed, seconds, watch)
        results = np.load(plan.folder / "results.npz")
        delays = [entry["latency_seconds"] for entry in enforced(running.log("inference")).values()]
        touched = _touched(running)
        running.check()
    return Load(
        traffic=_without_images(traffic),
        closed=arguments.closed,
        seconds=seconds,
        at=results["at"],
        account=traffic.account[results["number"]],
        latency=results["latency"],
        answered=results["outcome"] == ANSWERED,
        samples=watch.samples,
        delays=delays,
        touched=touched,
        drained_seconds=drained,
    )


def _without_images(traffic: Traffic) -> Traffic:
    nothing: NDArray[np.uint8] = traffic.images[:0]
    return Traffic(traffic.accounts, traffic.attackers, nothing, traffic.at, traffic.account, traffic.image)


def _send(
    plan: Plan, running: LocalSystem, model: str, closed: int | None, seconds: float, watch: Watch
) -> float | None:
    """Returns how many seconds the detectors needed after the last query; None where they did not catch up."""
    loop = ("closed", str(closed)) if closed else ("open", "0")
    command = [sys.executable, "-m", "tests.load.generator", str(plan.folder), running.grpc_address, model, *loop]
    generator = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        assert generator.stdin
        assert generator.stdout
        if generator.stdout.readline().strip() != "ready":
            raise SectionError("the clients did not get ready; their error is above")
        generator.stdin.write("go\n")
        generator.stdin.flush()
        began = time.monotonic()
        while generator.poll() is None:
            running.check()
            plan.report(f"{time.monotonic() - began:.0f} of {seconds:.0f} s: {_state(watch)}")
            time.sleep(1.0)
        if generator.returncode:
            raise SectionError(f"the clients ended with status {generator.returncode}; their error is above")
    finally:
        generator.kill()
    ended = time.monotonic()
    while time.monotonic() < ended + DRAIN_SECONDS:
        watch.sample()
        plan.report(f"waiting for the detectors: {_state(watch)}")
        if all(watch.samples.lag[name][-1] == 0 for name in WORKERS):
            drained = time.monotonic() - ended
            time.sleep(SETTLED)
            return drained
        time.sleep(0.5)
    return None


def _state(watch: Watch) -> str:
    samples = watch.samples
    if not samples.seconds:
        return ""
    lags = ", ".join(f"{name} {samples.lag[name][-1]:,.0f}" for name in WORKERS)
    return f"{samples.answered[-1]:,.0f} answered; rows behind: {lags}"


def _touched(running: LocalSystem) -> Mapping[str, tuple[str, int]]:
    """Accounts that met a verdict: the first action other than allow, and at which query."""
    found: dict[str, tuple[str, int]] = {}
    for account, verdict in read_verdicts(running.settings):
        if verdict and verdict.action in (Action.PERTURB, Action.THROTTLE, Action.BAN):
            found.setdefault(account, (verdict.action.name.lower(), verdict.at_query))
    return found


if __name__ == "__main__":
    sys.exit(main())
