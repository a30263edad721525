"""The demo as its user runs it, on a real Kafka: attackers are caught, shops are not, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient
from matplotlib import image

from deploy.demo import own_topics
from deploy.kafka.broker import Broker
from shared.bundle import DETECTORS
from tests.support.processes import alive

REPOSITORY = Path(__file__).parents[2]
DEMO_SECONDS = 900

pytestmark = pytest.mark.kafka


def start(folder: Path) -> subprocess.Popen[str]:
    """The quick demo with everything that it writes in `folder`."""
    command = [sys.executable, "-m", "deploy.demo", "--quick", "--folder", str(folder / "run")]
    return subprocess.Popen(
        [*command, "--json", str(folder / "demo.json"), "--picture", str(folder / "demo.png")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def descendants(pid: int) -> set[int]:
    """Every process that `pid` started, and that those started."""
    children: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            child = int(status.parent.name)
            children |= {child} | descendants(child)
    return children


@pytest.mark.timeout(DEMO_SECONDS)
def test_attackers_are_caught_and_shops_are_not(tmp_path: Path) -> None:
    demo = start(tmp_path)
    output, _ = demo.communicate(timeout=DEMO_SECONDS)
    assert demo.returncode == 0, output
    document = json.loads((tmp_path / "demo.json").read_text())
    accounts = document["accounts"]
    attackers = [one for one in accounts if one["kind"] == "attack"]
    shops = [one for one in accounts if one["kind"] == "benign"]

    assert {one["attack"] for one in attackers} == {"JBDA-TR", "JBA-PGD", "JB-top3", "KnockoffNets (digits)"}
    for one in attackers:
        assert one["verdict"] in ("perturb", "throttle", "ban"), one
        assert 50 <= one["effective_at_query"] <= one["queries"] + 1, one
        assert one["seconds_to_verdict"] > 0, one
        assert 0 < one["substitute"]["agreement"] < 1, one

    assert len(shops) == 7
    assert max(one["queries"] for one in shops) == 10 * min(one["queries"] for one in shops)
    for one in shops:
        assert one["verdict"] in ("allow", "observe"), one
        assert one["effective_at_query"] is None, one

    for one in accounts:
        assert set(one["detectors"]) == set(DETECTORS), one
        assert all(detector["queries"] == one["queries"] for detector in one["detectors"].values()), one
    assert {"python", "torch", "faust", "kafka", "bundle"} <= set(document["versions"])
    assert image.imread(tmp_path / "demo.png").shape[0] > 1000
    assert "foreign natural data counts as malicious" in output
    assert not list((tmp_path / "run").glob("plan-*.json"))


def test_on_somebody_elses_broker_the_demo_deletes_its_topics_and_no_others(broker: Broker, topic_prefix: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.address)
    try:
        with own_topics(broker.address) as prefix:
            admin.create_topics({f"{name}queries": {"num_partitions": 1} for name in (prefix, topic_prefix)})
            assert {f"{prefix}queries", f"{topic_prefix}queries"} <= set(admin.list_topics())
        deadline = time.monotonic() + 10
        while f"{prefix}queries" in admin.list_topics() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert f"{prefix}queries" not in admin.list_topics()
        assert f"{topic_prefix}queries" in admin.list_topics()
    finally:
        admin.close()


@pytest.mark.timeout(300)
def test_an_interrupted_demo_leaves_no_process_and_no_key_behind(tmp_path: Path) -> None:
    demo = start(tmp_path)
    assert demo.stdout is not None
    seen = []
    for line in demo.stdout:
        seen.append(line)
        if "queries answered" in line and " 0 queries" not in line:
            break
    started = descendants(demo.pid)
    assert len(started) >= 9, seen  # a broker, six services, two kinds of clients
    os.kill(demo.pid, signal.SIGINT)
    assert demo.wait(timeout=90) == 130
    deadline = time.monotonic() + 10
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in started if alive(pid)] == []
    assert not list((tmp_path / "run").glob("plan-*.json"))
    assert not (tmp_path / "demo.json").exists()
