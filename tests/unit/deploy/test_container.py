"""Kafka in a container: what can be said without an engine."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.kafka.broker import ContainerRuntime


def command(folder: Path) -> list[str]:
    return ContainerRuntime("docker").command(folder, 9092, ["kafka.Kafka", str(folder / "server.properties")])


@pytest.fixture
def inside(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """What runs inside of the container, with a Java that tells how it was called and then stays."""
    java = tmp_path / "java"
    java.write_text('#!/bin/sh\necho "$@"\nexec sleep 60\n')
    java.chmod(0o755)
    whole = command(tmp_path)
    return ["sh", *whole[whole.index("-c") :]], {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_the_broker_is_reached_from_this_machine_alone(tmp_path: Path) -> None:
    arguments = command(tmp_path)
    assert arguments[arguments.index("--publish") + 1] == "127.0.0.1:9092:9092"


def test_java_gets_its_arguments_and_ends_when_the_engines_client_is_gone(
    inside: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    shell, environment = inside
    with subprocess.Popen(
        shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        assert container.stdout.readline().split() == [
            "-cp", "/opt/kafka/libs/*", "kafka.Kafka", str(tmp_path / "server.properties"),
        ]  # fmt: skip
        assert container.poll() is None
        container.stdin.close()
        assert container.wait(5) == -signal.SIGTERM


def test_two_brokers_are_two_containers(tmp_path: Path) -> None:
    one, other = command(tmp_path / "one"), command(tmp_path / "other")
    name = one.index("--name") + 1
    assert one[name] != other[name]
