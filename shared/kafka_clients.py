"""Makes kafka-python's clients so that an attempt that fails is quick and leaves nothing behind."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient


def connect(kind: Callable[..., Any], brokers: str, timeout_ms: int, **settings: Any) -> Any:
    """A KafkaProducer or KafkaConsumer that has met a broker.

    Args:
        kind: the class.
        brokers: host:port, separated by commas.
        timeout_ms: at most so long for each broker, and as long again for the first conversation.
        settings: of the class.

    Raises:
        ConnectionError: no broker answers; the message names them.
    """
    addresses = brokers.split(",")
    if not any(_listens(address, timeout_ms / 1000) for address in addresses):
        raise ConnectionError(f"no broker answers at {brokers}")
    made: list[Any] = []

    def client(**config: Any) -> Any:
        made.append(KafkaNetClient(**config))
        return made[-1]

    try:
        return kind(bootstrap_servers=addresses, bootstrap_timeout_ms=timeout_ms, kafka_client=client, **settings)
    except (KafkaError, OSError) as error:
        # A constructor that fails leaves its client's thread and sockets to nobody.
        for left in made:
            left.close()
        raise ConnectionError(f"no broker answers at {brokers} ({words(error)})") from error


def words(error: BaseException) -> str:
    """An error as a log line tells it; kafka-python's often say their name themselves."""
    text = str(error)
    name = type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}"


def _listens(address: str, timeout: float) -> bool:
    host, _, port = address.strip().rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    except (OSError, ValueError):
        return False
    return True
