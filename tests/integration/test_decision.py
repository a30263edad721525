"""Decision as a process on a real Kafka, with the command beside it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.kafka.broker import Broker
from deploy.processes import end, send_signal, spawn, tail
from services.cli.streams import publish
from services.decision.policy_file import DEFAULT_POLICY
from shared.bundle import Bundle
from shared.codec import decode_verdict, encode_signals
from shared.events import Action, SignalBatch
from shared.settings import ServiceSettings
from shared.topics import OVERRIDES, partition_of
from shared.topics_admin import create_topics
from tests.support.bundles import untrained_bundle
from tests.support.decisions import DETECTORS, sighting
from tests.support.streams import Reader, produce

pytestmark = pytest.mark.kafka

PARTITIONS = 4
HOME = partition_of("mallory", PARTITIONS)
NEIGHBOUR = next(name for name in (f"user-{n}" for n in range(100)) if partition_of(name, PARTITIONS) == HOME)
"""Another account of the same partition: heard after what was said before."""
PATIENCE = 90.0
"""Seconds; the machine that runs the tests may be busy."""


@dataclass
class Deployment:
    """Topics of its own, a bundle, and decision as a process."""

    broker: Broker
    prefix: str
    folder: Path
    bundle: Bundle
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PORTCULLIS_KAFKA": self.broker.address,
            "PORTCULLIS_TOPIC_PREFIX": self.prefix,
            "PORTCULLIS_PARTITIONS": str(PARTITIONS),
            "PORTCULLIS_BUNDLE": str(self.bundle.folder),
            "OMP_NUM_THREADS": "1",
        }

    @property
    def settings(self) -> ServiceSettings:
        return ServiceSettings(kafka=self.broker.address, topic_prefix=self.prefix, partitions=PARTITIONS)

    @property
    def log(self) -> Path:
        return self.folder / "decision.log"

    def start(self) -> None:
        self.process = spawn([sys.executable, "-m", "services.decision"], self.log, self.environment)

    def kill(self) -> None:
        assert self.process is not None
        send_signal(self.process, signal.SIGKILL)
        self.process.wait()

    def say(self, offset: int, r: float, account: str = "mallory", **changes: object) -> None:
        """All detectors say of an account that its evidence is `r` after `offset + 1` queries."""
        records = []
        for detector in DETECTORS:
            evidence = np.full(self.bundle.manifest.profiles, np.log(r), dtype=np.float32)
            said = replace(sighting(offset).signal, account=account, log_evidence=evidence)
            model = self.bundle.manifest.model
            batch_id = hashlib.blake2b(f"{account}/{offset}".encode(), digest_size=16).digest()
            batch = SignalBatch(
                detector,
                model.name,
                model.version,
                batch_id,
                HOME,
                offset,
                (replace(said, **changes),),
            )
            records.append((partition_of(account, PARTITIONS), encode_signals(batch)))
        produce(self.broker.address, f"{self.prefix}signals", records)

    def command(self, *arguments: str) -> Any:
        """What `portcullis ARGUMENTS --json` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments, "--json"],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def reader(self, topic: str) -> Reader:
        return Reader(self.broker.address, f"{self.prefix}{topic}", PARTITIONS)

    def wait(self, reader: Reader, enough: Callable[[], bool]) -> None:
        try:
            reader.until(enough, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{tail(self.log, 30)}") from error


@pytest.fixture
def deployment(broker: Broker, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    deployed = Deployment(broker, topic_prefix, tmp_path, untrained_bundle(tmp_path / "bundle"))
    create_topics(deployed.settings)
    deployed.start()
    yield deployed
    if deployed.process is not None:
        end(deployed.process, 20.0)


def actions_of(reader: Reader, account: str) -> list[Action]:
    """In the order of issue; a verdict that was sent twice counts once."""
    verdicts = {verdict.verdict_id: verdict for verdict in map(decode_verdict, reader.values)}
    mine = [verdict for verdict in verdicts.values() if verdict.account == account]
    return [verdict.action for verdict in sorted(mine, key=lambda verdict: verdict.issued_at)]


def test_signals_become_a_verdict_and_an_alert_and_a_person_outranks_them_across_a_crash(
    deployment: Deployment,
) -> None:
    with deployment.reader("verdicts") as verdicts, deployment.reader("alerts") as alerts:
        deployment.say(99, 1e7)
        deployment.wait(verdicts, lambda: Action.PERTURB in actions_of(verdicts, "mallory"))
        assert {(record.key, record.partition) for record in verdicts.records} == {(b"mallory", HOME)}
        (held,) = deployment.command("verdicts")
        assert (held["account"], held["action"], held["rule"]) == ("mallory", "perturb", "extraction")

        pin = ("override", "pin", "mallory", "--action", "allow", "--reason", "a customer", "--author", "ada")
        assert deployment.command(*pin)["partition"] == HOME
        deployment.wait(verdicts, lambda: actions_of(verdicts, "mallory")[-1] is Action.ALLOW)
        assert deployment.command("verdicts") == []

        deployment.kill()
        deployment.say(1500, 1e12)
        deployment.start()
        deployment.say(99, 1e8, account=NEIGHBOUR)
        deployment.wait(verdicts, lambda: Action.PERTURB in actions_of(verdicts, NEIGHBOUR))
        assert actions_of(verdicts, "mallory")[-1] is Action.ALLOW, "the pin outlived the crash"

        clear = ("override", "clear", "mallory", "--reason", "no customer after all", "--author", "ada")
        deployment.command(*clear)
        deployment.wait(verdicts, lambda: actions_of(verdicts, "mallory")[-1] is not Action.ALLOW)
        assert actions_of(verdicts, "mallory")[-3:] == [Action.PERTURB, Action.ALLOW, Action.PERTURB]

        deployment.wait(alerts, lambda: any(b"no customer after all" in value for value in alerts.values))
        assert deployment.command("alerts", "tail", "--from-beginning", "--count", "1")["class_uid"] == 2004
        assert deployment.command("topics", "create")["created"] == []
        findings = [json.loads(record.value) for record in alerts.records if record.key == b"mallory"]
        assert findings[0]["activity_name"] == "Create"
        assert {finding["class_uid"] for finding in findings} == {2004}
        assert len({finding["finding_info"]["uid"] for finding in findings}) == 1
        assert dict(alerts.records[0].headers)["ce_specversion"] == b"1.0"


def test_what_cannot_be_used_goes_to_the_dead_topic_and_the_rest_goes_on(deployment: Deployment) -> None:
    address, prefix = deployment.broker.address, deployment.prefix
    with deployment.reader("signals.dead") as dead, deployment.reader("overrides.dead") as dead_overrides:
        publish(deployment.settings, OVERRIDES, "mallory", b"forged")
        produce(address, f"{prefix}signals", [(HOME, b"\xff")])
        deployment.say(99, 1e8, log_evidence=np.full(7, 27.0, np.float32))
        deployment.say(100, 1e8, account=NEIGHBOUR)
        with deployment.reader("verdicts") as verdicts:
            deployment.wait(verdicts, lambda: Action.PERTURB in actions_of(verdicts, NEIGHBOUR))
            assert not actions_of(verdicts, "mallory")
        deployment.wait(dead, lambda: len(dead.records) >= 5)
        deployment.wait(dead_overrides, lambda: bool(dead_overrides.records))
        assert dead_overrides.values[0] == b"forged"
        reasons = [dict(record.headers)["portcullis-error"].decode() for record in dead.records]
        assert sum("log_evidence has 7 numbers, the bundle has 2 profiles" in reason for reason in reasons) == 4


@pytest.mark.parametrize("mistaken", ["policy", "bundle"])
def test_a_mistake_in_policy_or_bundle_is_refused_at_start_in_one_line(tmp_path: Path, mistaken: str) -> None:
    bundle = untrained_bundle(tmp_path / "bundle")
    policy = tmp_path / "policy.yaml"
    policy.write_text(DEFAULT_POLICY.read_text().replace("action: ban\n", "action: bann\n"))
    environment = {"PORTCULLIS_POLICY": str(policy if mistaken == "policy" else DEFAULT_POLICY)}
    if mistaken == "bundle":
        (bundle.folder / "victim.safetensors").write_bytes(b"altered")
    done = subprocess.run(
        [sys.executable, "-m", "services.decision"],
        env={**os.environ, **environment, "PORTCULLIS_BUNDLE": str(bundle.folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    expected = f"{policy}:" if mistaken == "policy" else "victim.safetensors: its SHA-256"
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
