"""One inference server without Kafka for all contract tests, and a raw client that checks nothing by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from shared.pb.open_inference import open_inference_grpc_pb2 as pb
from tests.support.inference import InferenceProcess

SERVICE = "/inference.GRPCInferenceService/"
MOST_BYTES = 1024 * 1024
MOST_ROWS = 64


@dataclass
class RawClient:
    """Sends any message, however wrong, as an account."""

    channel: grpc.Channel
    key: str

    def call(self, method: str, request: Any, response: Any, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
        """One call; raises grpc.RpcError."""
        invoke = self.channel.unary_unary(
            SERVICE + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return invoke(request, metadata=metadata, timeout=20)

    def infer(self, request: pb.ModelInferRequest, key: str | None = None) -> pb.ModelInferResponse:
        """ModelInfer with this client's key, or another."""
        response: pb.ModelInferResponse = self.call(
            "ModelInfer",
            request,
            pb.ModelInferResponse,
            (("authorization", f"Bearer {self.key if key is None else key}"),),
        )
        return response


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    process = InferenceProcess(
        tmp_path_factory.mktemp("inference"), defence=False, max_request_bytes=MOST_BYTES, max_request_rows=MOST_ROWS
    )
    process.key("alice")
    with process:
        yield process


@pytest.fixture(scope="session")
def client(server: InferenceProcess) -> Iterator[RawClient]:
    with grpc.insecure_channel(server.address) as channel:
        yield RawClient(channel, server.key("alice"))
