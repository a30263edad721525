"""`python -m tests.faults` (`make faults`): kills, cuts and fills a whole system under load, and checks what is left.

As root on Linux every fault is made; without, cuts and full disks are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from deploy.kafka.broker import BrokerError, stop_on_sigterm
from deploy.local import REPOSITORY, LocalSystemError
from services.cli.output import CommandError
from services.cli.streams import publish, read_all
from services.decision.app import build_stage
from services.decision.policy_file import DEFAULT_POLICY
from services.decision.settings import DecisionSettings
from services.evaluation import report
from services.training.tracing import DETECTORS
from shared.bundle import Bundle
from shared.clock import SystemClock
from shared.codec import decode_perturbed, decode_queries, decode_signals, encode_override
from shared.events import Action, Override, OverrideKind
from shared.settings import ServiceSettings
from shared.stage import DetectorStage, Record
from shared.topics import (
    ALERTS,
    OVERRIDES,
    PERTURBED,
    QUERIES,
    READ_BY_STREAMS,
    SIGNALS,
    VERDICTS,
    Cleanup,
    Topic,
)
from tests.bench.measure import SectionError, trained_bundle
from tests.bench.system import issue_keys
from tests.faults.faults import plan
from tests.faults.findings import Stage, Trials, study
from tests.faults.invariants import (
    ANSWERED,
    AnyStage,
    Asked,
    answered_though_banned,
    different_states,
    latest,
    of_topic,
    published,
    replayed,
)
from tests.faults.network import can_cut
from tests.faults.trial import Trial, TrialError
from tests.load.traffic import draw_traffic

LOSS_SECONDS = 0.5
"""Before inference is killed, in which an answer may be lost: its publisher's linger, a round trip, a busy machine."""
BAN_AFTER = "for_queries: 10000"
BAN_SOONER = "for_queries: 50"
PINNED = 1
"""Number of the account that a person bans before."""


def main() -> int:
    """Strike, check, and write the page; 1 where an invariant is violated or the trial could not go on."""
    arguments = _arguments()
    stop_on_sigterm()
    console = Console(stderr=True)
    try:
        found = _run(arguments, console)
    except (SectionError, LocalSystemError, BrokerError, CommandError, TrialError) as error:
        console.print(f"[red]{error}", soft_wrap=True)
        return 1
    page = study(found)
    report.write(page, arguments.output, arguments.command)
    if arguments.write_docs:
        report.write(page, REPOSITORY / "docs" / "results", arguments.command)
    if arguments.json:
        print(json.dumps(page.data))
    else:
        print(f"{page.text}\n{arguments.output / 'faults.md'}")
    return 1 if found.violations else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--accounts", type=int, default=60, help="honest ones (%(default)s)")
    parser.add_argument("--attackers", type=int, default=5, help="accounts among them (%(default)s)")
    parser.add_argument("--rate", type=float, default=30.0, help="queries a second of all honest ones (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of traffic, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of every draw (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="the few faults that most can go wrong at")
    parser.add_argument("--only", default="", metavar="WORDS", help="only faults whose name holds these words")
    parser.add_argument("--output", type=Path, default=Path("build/faults"), help="folder (%(default)s)")
    parser.add_argument("--write-docs", action="store_true", help="write docs/results/faults.md too")
    parser.add_argument("--json", action="store_true", help="print the violations for programs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes = min(arguments.minutes, 8.0)
    options = [f"--{name}={getattr(arguments, name)}" for name in ("accounts", "attackers", "rate", "minutes", "seed")]
    options += [f"--only={arguments.only!r}"] if arguments.only else []
    arguments.command = f"python -m tests.faults {' '.join(options)}{' --quick' if arguments.quick else ''}"
    return arguments


def _run(arguments: argparse.Namespace, console: Console) -> Trials:
    """
    Raises:
        TrialError, SectionError, LocalSystemError, BrokerError, CommandError: the trial could not go on.
    """
    bundle = Bundle.load(trained_bundle())
    with tempfile.TemporaryDirectory(prefix="portcullis-faults-") as folder, console.status("drawing") as status:
        home = Path(folder)
        traffic = draw_traffic(
            bundle, arguments.accounts, arguments.attackers, arguments.rate, 60 * arguments.minutes, arguments.seed,
            status.update,
        )  # fmt: skip
        keys = issue_keys(home / "keys.yaml", traffic.accounts)
        policy = home / "policy.yaml"
        policy.write_text(_sooner_banning())
        settings = {
            "PORTCULLIS_BUNDLE": str(bundle.folder),
            "PORTCULLIS_KEYS": str(home / "keys.yaml"),
            "PORTCULLIS_POLICY": str(policy),
        }
        trial = Trial(home, settings, lambda what: console.print(f"  {what}"))
        pinned = traffic.accounts[PINNED]
        with trial:
            try:
                _ban(trial, pinned, bundle)
                with trial.load(traffic, keys, bundle.manifest.model.name) as asked:
                    for name, fault in plan(trial, arguments.seed, arguments.quick):
                        if arguments.only in name:
                            trial.strike(name, fault)
                trial.settle()
            finally:
                trial.keep_logs(arguments.output / "logs")
            console.print("  reading what is left, and replaying it undisturbed")
            return _found(trial, asked(), pinned, bundle, policy, (traffic.honest, traffic.attackers))


def _sooner_banning() -> str:
    """The default policy, under which an attacker of minutes is banned."""
    text = DEFAULT_POLICY.read_text()
    if BAN_AFTER not in text:
        raise TrialError(f"{DEFAULT_POLICY} has no {BAN_AFTER!r} any more: change tests/faults with it")
    return text.replace(BAN_AFTER, BAN_SOONER)


def _ban(trial: Trial, account: str, bundle: Bundle) -> None:
    now = SystemClock().now()
    override = Override(
        override_id="banned-before", account=account, model_name=bundle.manifest.model.name, kind=OverrideKind.PIN,
        action=Action.BAN, author="faults", reason="banned before anything happens", issued_at=now, expires_at=0,
    )  # fmt: skip
    publish(trial.system.settings, OVERRIDES, account, encode_override(override))
    trial.await_ban(account)


def _found(
    trial: Trial, asked: list[Asked], pinned: str, bundle: Bundle, policy: Path, accounts: tuple[int, int]
) -> Trials:
    settings, enforced = trial.system.settings, trial.banned_at()
    spoiled = {
        (answer.account, answer.query_id)
        for answer in (decode_perturbed(record.value) for record in read_all(settings, PERTURBED))
    }
    batches = [decode_queries(record.value) for record in read_all(settings, QUERIES)]
    return Trials(
        struck=trial.struck,
        left_out="" if can_cut() else " Cuts and full disks were left out: they need root on Linux.",
        accounts=accounts,
        asked=asked,
        published=published(asked, batches, trial.killed_at, LOSS_SECONDS),
        stages=_stages(settings, bundle, policy),
        dead=sum(len(read_all(settings, topic.dead)) for topic in READ_BY_STREAMS),
        pinned_answered=[one for one in asked if one.account == pinned and one.status == ANSWERED],
        banned=[account for account in enforced if account != pinned],
        answered_late=answered_though_banned(asked, enforced),
        registered=(trial.registered(len(spoiled)), len(spoiled)),
    )


def _stages(settings: ServiceSettings, bundle: Bundle, policy: Path) -> dict[str, Stage]:
    """Every stateful stage, beside one that takes in the same records undisturbed."""
    partitions = settings.partitions
    said_by: dict[str, list[bytes]] = {kind.name: [] for kind in DETECTORS}
    signals = _records(settings, SIGNALS)
    for record in signals:
        said_by[decode_signals(record.value).detector].append(record.value)
    queries = _records(settings, QUERIES)
    found = {
        kind.name: _beside(
            settings,
            DetectorStage(kind.from_bundle(bundle), bundle.manifest.model, partitions),
            queries,
            {SIGNALS.name: said_by[kind.name]},
        )
        for kind in DETECTORS
    }
    decision = build_stage(DecisionSettings(bundle=bundle.folder, policy=policy, partitions=partitions))
    said = {topic.name: [record.value for record in read_all(settings, topic)] for topic in (VERDICTS, ALERTS)}
    # The one override was there before the first signal.
    found[decision.name] = _beside(settings, decision, [*_records(settings, OVERRIDES), *signals], said)
    return found


def _records(settings: ServiceSettings, topic: Topic) -> list[Record]:
    """As a stage gets them."""
    return [
        Record(topic, record.partition, record.offset, record.timestamp * 1000, record.value, record.key)
        for record in read_all(settings, topic)
    ]


def _beside(
    settings: ServiceSettings,
    stage: AnyStage,
    records: Sequence[Record],
    said: Mapping[str, Sequence[bytes]],
) -> Stage:
    expected = replayed(stage, records)
    stored = latest(read_all(settings, Topic(f"{stage.name}-state-changelog", Cleanup.COMPACT, -1)))
    differences = {topic: of_topic(topic, values, expected.sent.get(topic, [])) for topic, values in said.items()}
    accounts = sum(key.startswith("head:account:") for _, key in expected.stored)
    return Stage(accounts, different_states(stage, stored, expected.stored), differences)


if __name__ == "__main__":
    sys.exit(main())
