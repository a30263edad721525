"""What surrounds the protocol: health, reflection, metrics, keys that change, mistakes at the start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shared.keys import KeyFile
from tests.contract.conftest import RawClient
from tests.contract.test_bad_requests import refusal, valid_request
from tests.support.bundles import untrained_bundle
from tests.support.inference import InferenceProcess


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_the_health_service_says_serving_without_a_key(client: RawClient, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(client.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_protocol(client: RawClient) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
    names = {service.name for service in answer.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names


def fetch(server: InferenceProcess, path: str) -> tuple[int, str]:
    port = next(line["port"] for line in server.lines if line["event"] == "metrics listen")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_metrics_count_requests_by_status(client: RawClient, server: InferenceProcess) -> None:
    client.infer(valid_request())
    status, text = fetch(server, "/metrics")
    assert status == 200
    assert 'portcullis_inference_requests_total{code="OK"}' in text
    assert "alice" not in text


def test_a_server_without_kafka_is_live_but_not_ready_and_says_so(tmp_path: Path) -> None:
    server = InferenceProcess(tmp_path)
    key = server.key("alice")
    with server:
        server.wait_for("topic cannot be read, trying on")
        assert fetch(server, "/health/live")[0] == 200
        assert fetch(server, "/health/ready")[0] == 503
        with grpc.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            code, details = refusal(RawClient(channel, key), valid_request())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "not ready" in details


def test_a_new_key_works_and_a_revoked_one_stops_without_a_restart(tmp_path: Path) -> None:
    server = InferenceProcess(tmp_path, defence=False)
    old = server.key("alice")
    with server, grpc.insecure_channel(server.address) as channel:
        client = RawClient(channel, old)
        client.infer(valid_request())
        new = server.key("bob")
        keys = KeyFile.load(tmp_path / "keys.yaml")
        keys.revoke(keys.accounts["alice"][0].id).save()
        time.sleep(1.2)
        client.infer(valid_request(), new)
        assert refusal(client, valid_request(), old)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_sigterm_ends_the_server_with_status_0(tmp_path: Path) -> None:
    server = InferenceProcess(tmp_path, defence=False)
    server.start()
    assert server.stop() == 0
    server.wait_for("stopped", timeout=5)


def start_with_mistake(folder: Path, **settings: Any) -> tuple[int, str]:
    environment = {f"PORTCULLIS_{name.upper()}": str(value) for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-m", "services.inference"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=Path.cwd(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_bundle_with_a_mistake_is_refused_at_the_start_with_file_and_field(tmp_path: Path) -> None:
    untrained_bundle(tmp_path)
    manifest = tmp_path / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"temperature": 1.0', '"temperature": -1.0'))
    status, text = start_with_mistake(tmp_path, bundle=tmp_path)
    assert status == 2
    assert "bundle.json" in text
    assert "tmsp.temperature" in text


def test_a_key_file_with_a_mistake_is_refused_at_the_start_with_file_and_field(tmp_path: Path) -> None:
    untrained_bundle(tmp_path / "bundle")
    (tmp_path / "keys.yaml").write_text("accounts: {alice: [{id: short}]}")
    status, text = start_with_mistake(tmp_path, bundle=tmp_path / "bundle", keys=tmp_path / "keys.yaml")
    assert status == 2
    assert "keys.yaml" in text
    assert "accounts.alice.0.id" in text


def test_a_setting_with_a_mistake_is_refused_at_the_start_by_name() -> None:
    status, text = start_with_mistake(Path(), max_batch_rows="many")
    assert status == 2
    assert "PORTCULLIS_MAX_BATCH_ROWS" in text
