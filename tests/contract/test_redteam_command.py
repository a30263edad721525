"""`portcullis redteam` against a real endpoint and a real Kafka: keys, a run, and its report."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.kafka.broker import Broker
from shared.events import Action
from tests.support.command import Command
from tests.support.deployment import Deployment

SCENARIO = {
    "title": "One thief, one shop",
    "model": "fashion",
    "parties": [
        {"name": "thief", "role": "attack", "kind": "knockoff-digits", "queries": 60, "request_rows": 20},
        {"name": "shop", "role": "honest", "kind": "steady", "queries": 10},
    ],
}


def test_a_scenario_is_run_and_told(
    broker: Broker,
    topic_prefix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployment, command = Deployment(broker, topic_prefix), Command(capsys)
    deployment.create_topics()
    deployment.issue("thief", Action.BAN)
    server = deployment.inference(tmp_path)
    scenario, secrets, output = tmp_path / "one.yaml", tmp_path / "secrets.yaml", tmp_path / "report"
    scenario.write_text(yaml.safe_dump(SCENARIO))
    issued = command.json(
        "redteam", "keys", str(scenario), "--secrets", str(secrets), "--keys", str(server.folder / "keys.yaml")
    )
    assert issued["issued"] == ["thief", "shop"]
    assert secrets.stat().st_mode & 0o077 == 0
    for name, value in {
        "KAFKA": broker.address, "TOPIC_PREFIX": topic_prefix, "PARTITIONS": "2", "BUNDLE": f"{server.folder}/bundle",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"PORTCULLIS_{name}", value)
    output.mkdir()
    (output / "started").write_text("0")  # as of a run that was cut: the ban is older than this one
    with server:
        server.wait_for("ready")
        options = (str(scenario), "--address", f"127.0.0.1:{server.port}", "--secrets", str(secrets))
        found = command.json("redteam", "run", *options, "--output", str(output))
        thief, shop = found["data"]["accounts"]["thief"], found["data"]["accounts"]["shop"]
        assert found["data"]["complaints"] == []
        assert (thief["state"], thief["queries"], thief["touched"]) == ("banned", 0, True)
        assert [verdict["action"] for verdict in thief["verdicts"]] == ["ban"]
        assert thief["copies"] == []
        assert thief["copies_undefended"][-1][0] == 60
        assert (shop["state"], shop["queries"], shop["touched"]) == ("done", 10, False)
        page = (output / "report.md").read_text()
        assert "1 of 1 attackers were caught, 1 of them banned." in page
        assert not (output / "plan.json").exists(), "the plan holds keys"

    assert "None of 1 honest accounts was hurt." in page
    assert sum(map(len, deployment.queries())) == 10
    assert sorted(path.name for path in (output / "journals").iterdir()) == ["shop.journal", "thief.journal"]
