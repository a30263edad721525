"""The whole loop on a real Kafka: attackers are caught and answered, honest accounts are not.

    python -m deploy.demo [--quick] [--json FILE] [--picture FILE] [--folder FOLDER]     (`make demo`)

Starts a broker (or uses the one that PORTCULLIS_KAFKA names) and every service, drives honest and attacking clients
side by side through gRPC, shows what the operator sees, and ends with a table, build/demo.json and build/demo.png.
Exits non-zero where an attacker went free or an honest account was hurt.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from deploy.demo_accounts import FULL, PARTICIPANTS, QUICK, Volume
from deploy.demo_ledger import AccountLedger, Kind, Ledger
from deploy.demo_observer import Observer
from deploy.demo_plot import draw
from deploy.demo_view import NEEDS_COLUMNS, LiveView, line, table
from deploy.kafka.broker import VERSION as KAFKA_VERSION
from deploy.kafka.broker import BrokerError, stop_on_sigterm
from deploy.local import SERVICES, LocalSystem, LocalSystemError
from deploy.processes import end, spawn, tail
from services.redteam.plan import CampaignPlan, CampaignReport
from shared.bundle import Bundle, BundleError
from shared.datasets import DatasetError, load_digits, load_fashion_mnist
from shared.files import write_whole
from shared.keys import KeyFile, issue_key
from shared.topics_admin import TopicsError

REPOSITORY = Path(__file__).parents[1]
POLICY = REPOSITORY / "services" / "decision" / "policies" / "default.yaml"
PLAIN_LINE_SECONDS = 5.0
REFRESH_A_SECOND = 2
DRAIN_SECONDS = 30.0
SETTLE_SECONDS = 2.0
"""For the last signals to become verdicts."""
CLIENT_GRACE_SECONDS = 5.0
ADMIN_MS = 5000


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    volume: Volume
    json: Path
    picture: Path
    folder: Path


class Screen:
    """Where the demo shows itself: live in a terminal, line by line elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()

    @property
    def live(self) -> bool:
        """Whether somebody watches."""
        return self.console.is_terminal

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def starting(self) -> Iterator[StartUp]:
        """A progress bar for the processes that start."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.live) as bars:
            yield StartUp(self, bars)


class StartUp:
    """Told by the launcher of every process that starts."""

    def __init__(self, screen: Screen, bars: Progress) -> None:
        self._screen = screen
        self._bars = bars
        self._waiting = ["kafka", *SERVICES]
        self._task = bars.add_task(self._description(), total=len(self._waiting))

    def _description(self) -> str:
        return f"starting {', '.join(self._waiting)}" if self._waiting else "started"

    def __call__(self, name: str, state: str) -> None:
        """A process reached a state."""
        if state == "ready" and name in self._waiting:
            self._waiting.remove(name)
            self._bars.update(self._task, advance=1, description=self._description())
            if not self._screen.live:
                self._screen.say(f"{self._screen.seconds:5.0f} s  {name} is ready")


class Campaigns:
    """The clients' processes: one drives the honest accounts, one the attackers, which train as they go."""

    def __init__(self, plans: dict[Kind, CampaignPlan], folder: Path) -> None:
        self._plans = plans
        self._folder = folder
        self._processes: dict[Kind, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Campaigns:
        for kind, plan in self._plans.items():
            path = self._folder / f"plan-{kind}.json"
            write_whole(path, plan.model_dump_json().encode(), private=True)  # it holds the accounts' keys
            command = [sys.executable, "-m", "services.redteam", "campaign", "--quiet", str(path)]
            # Clients come after the defence: they must not take the processor from what they are to be caught by.
            self._processes[kind] = spawn(["nice", *command], self._log(kind), {"OMP_NUM_THREADS": "1"})
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes.values():
            end(process, CLIENT_GRACE_SECONDS)
        for kind in self._plans:
            (self._folder / f"plan-{kind}.json").unlink(missing_ok=True)

    def _log(self, kind: Kind) -> Path:
        return self._folder / f"clients-{kind}.log"

    @property
    def running(self) -> bool:
        """Whether any client has something left to send.

        Raises:
            DemoError: a client failed.
        """
        for kind, process in self._processes.items():
            if process.poll():
                failed = [f"{name}: {one.error}" for name, one in self.report(kind).accounts.items() if one.error]
                detail = "\n".join(failed) or tail(self._log(kind))
                raise DemoError(f"the {kind} clients failed with status {process.returncode}:\n{detail}")
        return any(process.poll() is None for process in self._processes.values())

    def report(self, kind: Kind) -> CampaignReport:
        """What the clients of one kind saw so far."""
        return CampaignReport.read(self._plans[kind].report)

    def reports(self) -> CampaignReport:
        """What all clients saw so far."""
        return CampaignReport(accounts={n: r for kind in self._plans for n, r in self.report(kind).accounts.items()})


def _plans(system: LocalSystem, model: str, volume: Volume, keys: dict[str, str]) -> dict[Kind, CampaignPlan]:
    return {
        kind: CampaignPlan(
            address=system.grpc_address,
            model=model,
            clients=tuple(one.plan(keys[one.account], volume) for one in PARTICIPANTS if one.kind is kind),
            report=system.folder / f"clients-{kind}.json",
            bundle=system.settings.bundle,
        )
        for kind in Kind
    }


def _issue_keys(path: Path) -> dict[str, str]:
    """A new file of keys with every account's; returns the keys themselves."""
    issued = {one.account: issue_key(one.account) for one in PARTICIPANTS}
    KeyFile(path, {account: (record,) for account, (_, record) in issued.items()}).save()
    return {account: key for account, (key, _) in issued.items()}


@contextlib.contextmanager
def own_topics(kafka: str | None) -> Iterator[str]:
    """A prefix for the demo's topics; on a broker of somebody else's they are deleted at the end.

    Args:
        kafka: host:port of that broker; None where the demo starts its own, whose data goes with it.
    """
    prefix = f"demo-{uuid.uuid4().hex[:8]}-"
    try:
        yield prefix
    finally:
        if kafka is not None:
            _delete_topics(kafka, prefix)


def _delete_topics(kafka: str, prefix: str) -> None:
    try:
        admin = KafkaAdminClient(bootstrap_servers=kafka.split(","), bootstrap_timeout_ms=ADMIN_MS)
        admin.delete_topics([topic for topic in admin.list_topics() if topic.startswith(prefix)])
        admin.close()
    except KafkaError as error:
        print(f"the topics {prefix}* may still be on {kafka}: {error}", file=sys.stderr)


def _watch(screen: Screen, ledger: Ledger, observer: Observer, system: LocalSystem, campaigns: Campaigns) -> None:
    """Show the ledger until every client is done and every query is judged."""
    view = LiveView(ledger, screen.console)
    with Live(view, console=screen.console, refresh_per_second=REFRESH_A_SECOND) if screen.live else _nothing():
        next_line = 0.0
        for status in _phases(ledger, campaigns):
            observer.check()
            system.check()
            view.status = f"{screen.seconds:.0f} s  {status}"
            if not screen.live and screen.seconds >= next_line:
                screen.say(f"{line(ledger, screen.seconds)}  [{status}]")
                next_line = screen.seconds + PLAIN_LINE_SECONDS
            time.sleep(1 / REFRESH_A_SECOND)


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


def _phases(ledger: Ledger, campaigns: Campaigns) -> Iterator[str]:
    """What is going on, again and again until it is over."""
    while campaigns.running:
        yield _training(campaigns.reports())
    answered = {name: report.queries for name, report in campaigns.reports().accounts.items()}
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline and not _judged(ledger, answered):
        yield "the clients are done; waiting for the detectors"
    settled = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < settled:
        yield "waiting for the last verdicts"


def _training(report: CampaignReport) -> str:
    copies = [f"{name} {one.milestones[-1][1]:.0%}" for name, one in report.accounts.items() if one.milestones]
    return "honest accounts and attackers send" + (
        f"; copies agree with the model: {', '.join(copies)}" if copies else ""
    )


def _judged(ledger: Ledger, answered: dict[str, int]) -> bool:
    with ledger.lock:
        return all(one.judged and one.queries >= answered[one.account] for one in ledger.accounts.values())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _detectors(account: AccountLedger) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "statistic": _finite(latest.statistic),
            "threshold": _finite(latest.threshold),
            "flagged": latest.flagged,
            "log_evidence": _finite(latest.log_evidence),
            "queries": latest.queries,
        }
        for name, track in account.tracks.items()
        if (latest := track.latest)
    }


def _account(account: AccountLedger, clients: CampaignReport) -> dict[str, Any]:
    client = clients.accounts[account.account]
    copies = [
        {"queries": queries, "agreement": agreement, "accuracy": accuracy}
        for queries, agreement, accuracy in client.milestones
    ]
    return {
        "account": account.account,
        "kind": account.kind.value,
        "attack": account.attack or None,
        "queries": account.queries,
        "verdict": account.verdict.name.lower(),
        "rule": account.rule or None,
        "effective_at_query": account.effective_at_query,
        "seconds_to_verdict": account.seconds_to_verdict,
        "log_evidence": account.evidence[-1][1],
        "detectors": _detectors(account),
        **({"substitute": copies[-1] if copies else None, "substitutes": copies} if account.attack else {}),
    }


def _versions(bundle: Bundle, own_broker: bool) -> dict[str, str]:
    packages = {"torch": "torch", "faust": "faust-streaming", "kafka-python": "kafka-python", "grpc": "grpcio"}
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(package) for name, package in packages.items()},
        "kafka": KAFKA_VERSION if own_broker else "the broker of PORTCULLIS_KAFKA",
        "bundle": f"{bundle.manifest.model.name} {bundle.manifest.model.version} ({bundle.fingerprint})",
    }


def _write_json(path: Path, ledger: Ledger, clients: CampaignReport, bundle: Bundle, own_broker: bool) -> None:
    document = {
        "accounts": [_account(account, clients) for account in ledger.accounts.values()],
        "log_threshold": ledger.log_threshold,
        "threat_model": _threat_model(),
        "versions": _versions(bundle, own_broker),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def _threat_model() -> str:
    return str(yaml.safe_load(POLICY.read_text())["threat_model"])


def _conclude(screen: Screen, options: Options, ledger: Ledger, clients: CampaignReport) -> int:
    """The table and what it means; returns the exit status."""
    screen.console.print(table(ledger, screen.console.width))
    for account in ledger.of_kind(Kind.ATTACK):
        if milestones := clients.accounts[account.account].milestones:
            queries, agreement, accuracy = milestones[-1]
            screen.say(
                f"{account.account}: after {queries:,} answers its copy agrees with the model on {agreement:.1%} "
                f"of clean images and is right on {accuracy:.1%}"
            )
    screen.say(f"{options.json} and {options.picture} written after {screen.seconds:.0f} s")
    complaints = ledger.complaints()
    for complaint in complaints:
        screen.console.print(complaint, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if not complaints:
        thieves, shops = len(ledger.of_kind(Kind.ATTACK)), len(ledger.of_kind(Kind.BENIGN))
        screen.console.print(
            f"all {thieves} attackers were caught, none of the {shops} honest accounts noticed anything",
            style="bold green",
            highlight=False,
        )
    return 1 if complaints else 0


def run(screen: Screen, options: Options) -> int:
    """The demo from start to end; returns the exit status.

    Raises:
        BrokerError, TopicsError, LocalSystemError, BundleError, DatasetError, DemoError: the message says why.
    """
    bundle = Bundle.load(os.environ.get("PORTCULLIS_BUNDLE", REPOSITORY / "deploy" / "bundle"))
    load_fashion_mnist("test")
    load_digits()
    screen.say(f"Policy {POLICY.stem}: {_threat_model()}.")
    options.folder.mkdir(parents=True, exist_ok=True)
    keys_file = options.folder.resolve() / "keys.yaml"
    keys = _issue_keys(keys_file)
    ledger = Ledger((one.ledger(options.volume) for one in PARTICIPANTS), bundle.manifest.evidence.log_threshold)
    with contextlib.ExitStack() as stack:
        prefix = stack.enter_context(own_topics(os.environ.get("PORTCULLIS_KAFKA") or None))
        settings = {"PORTCULLIS_KEYS": str(keys_file), "PORTCULLIS_TOPIC_PREFIX": prefix}
        with screen.starting() as progress:
            system = stack.enter_context(LocalSystem(options.folder, settings, progress=progress))
        observer = stack.enter_context(Observer(system.settings, ledger))
        plans = _plans(system, bundle.manifest.model.name, options.volume, keys)
        campaigns = stack.enter_context(Campaigns(plans, system.folder))
        _watch(screen, ledger, observer, system, campaigns)
        clients = campaigns.reports()
        own_broker = system.broker is not None
        screen.say("stopping the services")
    _write_json(options.json, ledger, clients, bundle, own_broker)
    draw(ledger, options.picture, "Portcullis: what the operator saw of each account, query by query")
    return _conclude(screen, options, ledger, clients)


def _console() -> Console:
    console = Console()
    # A file or a pipe has no width: it gets the whole table.
    return console if console.is_terminal else Console(width=NEEDS_COLUMNS)


def main() -> int:
    """Run the demo; 0 where every attacker was caught and no honest account hurt, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer queries: about two minutes in all")
    parser.add_argument("--json", type=Path, default=Path("build/demo.json"), help="the result (%(default)s)")
    parser.add_argument("--picture", type=Path, default=Path("build/demo.png"), help="the picture (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="logs and keys (%(default)s)")
    arguments = parser.parse_args()
    options = Options(QUICK if arguments.quick else FULL, arguments.json, arguments.picture, arguments.folder)
    stop_on_sigterm()
    try:
        return run(Screen(_console()), options)
    except (BrokerError, TopicsError, LocalSystemError, BundleError, DatasetError, DemoError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; everything is stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
