"""The ownership service as a process, against a real Kafka."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient

from deploy.kafka.broker import Broker
from deploy.processes import end, free_port, send_signal, spawn
from services.ownership.registry import Registry
from shared.settings import ServiceSettings
from shared.topics import PERTURBED, partition_of
from shared.topics_admin import create_topics
from tests.support.disks import fill
from tests.support.perturbed import record
from tests.support.postgresql import PostgreSQL, can_mount

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PARTITIONS = 2
ACCOUNTS = ("mallory", "oscar", "trudy")
PATIENCE_SECONDS = 60.0


class Ownership:
    """`with Ownership(...) as service:` runs it."""

    def __init__(self, deployment: ServiceSettings, folder: Path, registry: str, wrap: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.log = folder / "ownership.log"
        self._command = [*wrap, sys.executable, "-m", "services.ownership"]
        self._environment = {
            "PORTCULLIS_KAFKA": deployment.kafka,
            "PORTCULLIS_TOPIC_PREFIX": deployment.topic_prefix,
            "PORTCULLIS_PARTITIONS": str(PARTITIONS),
            "PORTCULLIS_REGISTRY": registry,
            "PORTCULLIS_METRICS_PORT": str(self.port),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = spawn(self._command, self.log, self._environment)

    def kill(self) -> None:
        assert self.process is not None
        send_signal(self.process, signal.SIGKILL)
        self.process.wait()

    def health(self, what: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/{what}", timeout=2) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=2) as response:
            lines = response.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def said(self) -> list[str]:
        return [line["event"] for line in self.events()]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process is not None
        end(self.process, 10.0)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def deployment(broker: Broker, topic_prefix: str) -> ServiceSettings:
    settings = ServiceSettings(kafka=broker.address, topic_prefix=topic_prefix, partitions=PARTITIONS)
    create_topics(settings)
    return settings


def publish(deployment: ServiceSettings, values: Sequence[tuple[str, bytes | None]]) -> None:
    producer = KafkaProducer(bootstrap_servers=deployment.kafka)
    for account, value in values:
        place = partition_of(account, PARTITIONS)
        producer.send(deployment.topic(PERTURBED), value, account.encode(), partition=place)
    producer.flush()
    producer.close()


def stream(first: int, count: int) -> list[tuple[str, bytes | None]]:
    return [(account, record(n, account)) for n in range(first, first + count) for account in ACCOUNTS]


def kept(url: str) -> dict[str, list[bytes]]:
    """What the registry holds, every chain whole; nothing before there is one."""
    registry = Registry.open(url)
    found = {
        chain.account: [link.record for link in registry.links("fashion", chain.account)] for chain in registry.chains()
    }
    for account in found:
        assert registry.verify_chain("fashion", account).broken is None
    registry.close()
    return found


def count(url: str, file: Path) -> int:
    return sum(map(len, kept(url).values())) if file.exists() and file.stat().st_size else 0


def test_killed_in_mid_stream_again_and_again_it_keeps_every_answer_once_and_in_order(
    deployment: ServiceSettings, tmp_path: Path
) -> None:
    file = tmp_path / "registry.db"
    url = f"sqlite:///{file}"
    service = Ownership(deployment, tmp_path, url)
    published = 0
    service.start()
    wait_until(lambda: service.health("ready") == 200, "ready")
    for _ in range(4):
        before = count(url, file)
        publish(deployment, stream(published, 300))
        published += 300
        wait_until(lambda before=before: count(url, file) > before, "some of it kept")  # type: ignore[misc]
        service.kill()
        service.start()
    wait_until(lambda: service.health("ready") == 200, "ready again")
    wait_until(lambda: count(url, file) >= 3 * published, "all of it kept")
    assert kept(url) == {account: [record(n, account) for n in range(published)] for account in ACCOUNTS}
    service.kill()


def test_a_bad_record_is_counted_and_kept_aside_and_the_next_ones_are_kept(
    deployment: ServiceSettings, tmp_path: Path
) -> None:
    file = tmp_path / "registry.db"
    url = f"sqlite:///{file}"
    publish(deployment, [*stream(0, 2), ("mallory", b"\xff\xff"), ("mallory", None), *stream(2, 2), *stream(0, 1)])
    with Ownership(deployment, tmp_path, url) as service:
        wait_until(lambda: service.health("ready") == 200, "ready")
        assert count(url, file) == 12
        outcomes = {
            outcome: service.metric(f'portcullis_ownership_records_total{{outcome="{outcome}"}}')
            for outcome in ("kept", "repeated", "rejected")
        }
        assert outcomes == {"kept": 12, "repeated": 3, "rejected": 2}
        assert service.said().count("record is no evidence and kept aside") == 2
    registry = Registry.open(url)
    assert [rejected.source.value for rejected in registry.rejected()] == [b"\xff\xff", None]
    registry.close()


def test_on_a_full_disk_it_stops_says_so_and_goes_on_by_itself_when_there_is_room(
    deployment: ServiceSettings, tmp_path: Path
) -> None:
    if not can_mount():
        pytest.skip("this machine lets nobody mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["sh", "-c", f'mount -t tmpfs -o size=2m tmpfs {disk} && exec "$@"', "sh"]
    wrap = ["unshare", "--user", "--map-root-user", "--mount", *mount]
    with Ownership(deployment, tmp_path, f"sqlite:///{disk}/registry.db", wrap) as service:
        wait_until(lambda: service.health("ready") == 200, "ready")
        assert service.process is not None
        inside = Path(f"/proc/{service.process.pid}/root") / disk.relative_to("/")
        filler = inside / "filler"
        fill(filler)
        publish(deployment, stream(0, 400))
        wait_until(lambda: service.health("ready") == 503, "not ready")
        assert service.health("live") == 200
        assert service.metric('portcullis_ownership_registry_unavailable{reason="full"}') == 1
        assert any(
            line["event"] == "registry is full, nothing is kept until there is room" for line in service.events()
        )
        filler.unlink()
        wait_until(lambda: service.health("ready") == 200, "ready again")
        wait_until(lambda: service.metric('portcullis_ownership_records_total{outcome="kept"}') == 1200, "all kept")
        for name in ("registry.db", "registry.db-wal"):  # SQLite finds no way through /proc
            shutil.copy(inside / name, tmp_path / name)
        assert kept(f"sqlite:///{tmp_path}/registry.db") == {
            account: [record(n, account) for n in range(400)] for account in ACCOUNTS
        }
        assert service.metric('portcullis_ownership_registry_unavailable{reason="full"}') == 0


def test_with_postgresql_it_waits_for_the_database_and_keeps_the_same(
    deployment: ServiceSettings, tmp_path: Path
) -> None:
    server = PostgreSQL(tmp_path)
    publish(deployment, stream(0, 100))
    with Ownership(deployment, tmp_path, server.url) as service:
        wait_until(lambda: service.health("live") == 200, "live")
        wait_until(lambda: service.log.exists() and "registry cannot be used" in service.log.read_text(), "says so")
        assert service.health("ready") == 503
        with server:
            wait_until(lambda: service.health("ready") == 200, "ready")
            assert kept(server.url) == {account: [record(n, account) for n in range(100)] for account in ACCOUNTS}


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(deployment: ServiceSettings, tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    url = f"sqlite:///{file}"
    publish(deployment, stream(0, 20))
    with Ownership(deployment, tmp_path, url) as service:
        wait_until(lambda: service.health("ready") == 200, "ready")
    admin = KafkaAdminClient(bootstrap_servers=deployment.kafka)
    admin.delete_topics([deployment.topic(PERTURBED)])
    wait_until(lambda: deployment.topic(PERTURBED) not in admin.list_topics(), "deleted")
    admin.close()
    create_topics(deployment)
    publish(deployment, stream(20, 30))
    with Ownership(deployment, tmp_path, url) as service:
        wait_until(lambda: service.health("ready") == 200, "ready")
    assert kept(url) == {account: [record(n, account) for n in range(50)] for account in ACCOUNTS}


@pytest.mark.parametrize("wrong", ["registry.db", "mysql://db/registry", "sqlite://"])
def test_a_setting_that_names_no_database_ends_it_with_status_2(
    deployment: ServiceSettings, tmp_path: Path, wrong: str
) -> None:
    service = Ownership(deployment, tmp_path, wrong)
    service.start()
    assert service.process is not None
    assert service.process.wait(60) == 2
    refusals = [line["error"] for line in service.events() if line["event"] == "cannot start"]
    assert len(refusals) == 1
    assert "sqlite:///FILE" in refusals[0]
