"""The launcher, with a real Kafka and services that have nothing to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.kafka.broker import Broker, BrokerError, answers
from deploy.local import LocalSystem, LocalSystemError
from deploy.processes import free_port
from tests.support.processes import alive, gone_within

pytestmark = pytest.mark.kafka

TINY_SERVICE = ("-m", "tests.support.tiny_service")
PARENT = """
import json, sys, time
from pathlib import Path
from deploy.local import LocalSystem
system = LocalSystem(Path(sys.argv[1]), services=("one", "two"), command=lambda name: [sys.executable, *sys.argv[2:]])
system.start()
pids = [system.process("one").pid, system.process("two").pid, system.broker.pid]
print(json.dumps({"pids": pids, "kafka": system.kafka}), flush=True)
time.sleep(600)
"""


def tiny(*options: str) -> Callable[[str], list[str]]:
    """Services that do nothing; the options go to the one named `faulty`."""
    return lambda name: [sys.executable, *TINY_SERVICE, *(options if name == "faulty" else ())]


def settings_for(broker: Broker, prefix: str) -> dict[str, str]:
    return {"PORTCULLIS_KAFKA": broker.address, "PORTCULLIS_TOPIC_PREFIX": prefix, "PORTCULLIS_PARTITIONS": "1"}


def test_services_come_up_ready_with_metrics_and_go_when_it_is_over(
    tmp_path: Path, broker: Broker, topic_prefix: str
) -> None:
    states: list[tuple[str, str]] = []
    with LocalSystem(
        tmp_path,
        settings_for(broker, topic_prefix),
        ("one", "two"),
        command=tiny(),
        progress=lambda name, state: states.append((name, state)),
    ) as system:
        assert system.process("one").poll() is None
        with urllib.request.urlopen(system.metrics_url("two"), timeout=5) as response:
            assert b"portcullis_events_failed_total" in response.read()
        assert "instance two-0" in system.log("two").read_text()
        system.check()
        pids = [system.process(name).pid for name in ("one", "two")]
    assert not any(map(alive, pids))
    assert answers(broker.address), "a broker of somebody else's was stopped"
    assert [state for name, state in states if name == "one"] == ["starting", "ready", "stopped"]


def test_a_service_that_fails_at_start_is_named_with_the_end_of_its_log_and_takes_the_rest_along(
    tmp_path: Path, broker: Broker, topic_prefix: str
) -> None:
    system = LocalSystem(
        tmp_path, settings_for(broker, topic_prefix), ("one", "faulty"), command=tiny("--fail-at-start")
    )
    with pytest.raises(LocalSystemError, match=r"(?s)faulty ended with status 1.*two rules have this name"):
        system.start()
    with pytest.raises(LocalSystemError, match="one has not been started"):
        system.process("one")


def test_a_service_that_never_gets_ready_is_named(tmp_path: Path, broker: Broker, topic_prefix: str) -> None:
    system = LocalSystem(tmp_path, settings_for(broker, topic_prefix), ("one",), command=tiny())
    with system:
        system.kill("one")
        with pytest.raises(LocalSystemError, match="one not ready in 0 s"):
            system.restart("one", ready_within=0.0)


def test_a_death_that_nobody_asked_for_is_noticed_and_a_kill_is_not_a_death(
    tmp_path: Path, broker: Broker, topic_prefix: str
) -> None:
    with LocalSystem(tmp_path, settings_for(broker, topic_prefix), ("one", "two"), command=tiny()) as system:
        system.kill("one", signal.SIGKILL)
        time.sleep(0.5)
        system.check()
        system.restart("one")
        os.kill(system.process("two").pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while "two" not in system.ended and time.monotonic() < deadline:
            time.sleep(0.05)
        assert system.ended == {"two": -signal.SIGKILL}
        with pytest.raises(LocalSystemError, match="two ended with status -9"):
            system.check()
        system.revive()
        system.wait_ready(["two"])
        system.check()


def test_a_broker_that_is_named_but_absent_is_an_error_that_names_it(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    system = LocalSystem(tmp_path, {"PORTCULLIS_KAFKA": address}, ("one",), command=tiny())
    with pytest.raises(BrokerError, match=f"PORTCULLIS_KAFKA={address}"):
        system.start()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_launcher_however_it_ends(tmp_path: Path, end: signal.Signals) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PORTCULLIS_KAFKA"}
    command = [sys.executable, "-c", PARENT, str(tmp_path), *TINY_SERVICE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as launcher:
        assert launcher.stdout is not None
        system = json.loads(launcher.stdout.readline())
        assert all(map(alive, system["pids"]))
        launcher.send_signal(end)
    assert all(gone_within(20, pid) for pid in system["pids"])
    assert not answers(system["kafka"])
