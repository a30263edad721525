"""What every test may use: one real Kafka a session, and names on it that no other test has."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator

import pytest

from deploy.kafka.broker import Broker, open_broker

# A script's background jobs ignore SIGINT, and so would every process that is to be interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests share the cores, those with Kafka stay one after another, and the demo comes last of them."""
    for item in items:
        if item.get_closest_marker("kafka"):
            item.add_marker(pytest.mark.xdist_group("kafka"))
    items.sort(key=lambda item: item.path.name == "test_demo.py")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Kafka, started for the first test that asks; a test that stops or kills one starts its own."""
    with open_broker(tmp_path_factory.mktemp("kafka")) as shared:
        yield shared


@pytest.fixture
def topic_prefix() -> str:
    """Put before every topic and group of the test (PORTCULLIS_TOPIC_PREFIX), so that tests do not meet."""
    return f"test-{uuid.uuid4().hex[:12]}-"
