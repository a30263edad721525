"""What every test may use: one real Kafka a session, and names on it that no other test has."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from deploy.kafka.broker import Broker, open_broker


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real Kafka, started for the first test that asks; a test that stops or kills one starts its own."""
    with open_broker(tmp_path_factory.mktemp("kafka")) as shared:
        yield shared


@pytest.fixture
def topic_prefix() -> str:
    """Put before every topic and group of the test (PORTCULLIS_TOPIC_PREFIX), so that tests do not meet."""
    return f"test-{uuid.uuid4().hex[:12]}-"
