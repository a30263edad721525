"""The local Kafka that the demo and the tests start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from deploy.kafka.broker import BrokerError, LocalBroker, answers
from tests.support.processes import alive, gone_within

pytestmark = pytest.mark.kafka


@pytest.fixture
def own_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalBroker]:
    """A broker of the test's own, whose cluster's identifier looks like an option of the command line."""
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(bytes=b"\xfb\xef\xbe" * 5 + b"\xfb"))
    with LocalBroker(tmp_path / "kafka") as broker:
        monkeypatch.undo()
        yield broker


def create_topic(address: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()


def write(address: str, topic: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=address)
    producer.send(topic, value).get(timeout=30)
    producer.close()


def read_all(address: str, topic: str) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest")
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    values: list[bytes] = []
    end = consumer.end_offsets([partition])[partition]
    while consumer.position(partition) < end:
        values += [record.value for records in consumer.poll(1_000).values() for record in records]
    consumer.close()
    return values


def test_what_was_written_survives_a_restart_and_a_crash_at_the_same_address(own_broker: LocalBroker) -> None:
    address = own_broker.address
    create_topic(address, "kept")
    write(address, "kept", b"before the restart")

    own_broker.restart()
    write(address, "kept", b"before the crash")
    own_broker.kill()
    assert not answers(address)
    own_broker.start()

    assert own_broker.address == address
    assert read_all(address, "kept") == [b"before the restart", b"before the crash"]


def test_stopping_leaves_neither_process_nor_file_behind(tmp_path: Path) -> None:
    with LocalBroker(tmp_path / "kafka") as broker:
        pid = broker.pid
        assert pid is not None
        assert alive(pid)
    assert not alive(pid)
    assert not answers(broker.address)
    assert list(tmp_path.iterdir()) == []


def test_stopping_spares_what_others_put_into_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    LocalBroker(tmp_path).stop()
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_record_of_eight_mebibytes_is_admitted(own_broker: LocalBroker) -> None:
    create_topic(own_broker.address, "large")
    value = os.urandom(8 * 1024 * 1024 - 1_024)
    producer = KafkaProducer(bootstrap_servers=own_broker.address, max_request_size=16 * 1024 * 1024)
    producer.send("large", value).get(timeout=30)
    producer.close()
    consumer = KafkaConsumer(
        "large", bootstrap_servers=own_broker.address, auto_offset_reset="earliest", consumer_timeout_ms=20_000
    )
    assert next(consumer).value == value
    consumer.close()


def test_a_broker_whose_port_is_taken_says_so_and_leaves_no_process(tmp_path: Path, own_broker: LocalBroker) -> None:
    second = LocalBroker(tmp_path / "second", port=own_broker.port)
    with pytest.raises(BrokerError, match=f"port {own_broker.port} is in use"):
        second.start()
    assert not second.running


def test_the_broker_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from deploy.kafka.broker import LocalBroker\n"
        "broker = LocalBroker(Path(sys.argv[1])); broker.launch(); print(broker.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "kafka")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
    assert gone_within(10, pid)


def test_the_command_runs_one_until_it_is_told_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.kafka.broker", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[3].rstrip(",")
        assert answers(address)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert not answers(address)
    assert list(tmp_path.iterdir()) == []
