"""Health is what the service says it is at that moment, and the port is free once it has stopped."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from shared.metrics import EVENTS_FAILED, HealthServer


@dataclass
class Service:
    live: bool = True
    ready: bool = False


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def server(service: Service) -> Iterator[HealthServer]:
    server = HealthServer("127.0.0.1", 0, live=lambda: service.live, ready=lambda: service.ready)
    server.start()
    yield server
    server.stop()


def get(server: HealthServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_ready_and_live_follow_the_service(server: HealthServer, service: Service) -> None:
    assert get(server, "/health/live") == (200, "ok\n")
    assert get(server, "/health/ready") == (503, "not yet\n")
    service.ready, service.live = True, False
    assert get(server, "/health/ready") == (200, "ok\n")
    assert get(server, "/health/live") == (503, "not yet\n")


def test_metrics_are_in_prometheus_form_with_their_meaning(server: HealthServer) -> None:
    status, text = get(server, "/metrics")
    assert status == 200
    assert "# HELP portcullis_events_failed_total Query rows lost; anything but 0 is an incident" in text
    before = EVENTS_FAILED._value.get()
    EVENTS_FAILED.inc(2)
    assert f"portcullis_events_failed_total {before + 2}" in get(server, "/metrics")[1]


def test_another_path_is_told_where_to_look(server: HealthServer) -> None:
    status, text = get(server, "/")
    assert status == 404
    assert "/health/ready" in text


def test_stopping_frees_the_port() -> None:
    server = HealthServer("127.0.0.1", 0, live=lambda: True, ready=lambda: True)
    port = server.port
    server.start()
    server.stop()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))


@pytest.mark.timeout(20)
def test_a_server_that_never_started_can_be_stopped() -> None:
    HealthServer("127.0.0.1", 0, live=lambda: True, ready=lambda: True).stop()


def test_a_port_that_is_taken_is_refused_at_once(server: HealthServer) -> None:
    with pytest.raises(OSError, match="in use"):
        HealthServer("127.0.0.1", server.port, live=lambda: True, ready=lambda: True)
