"""The Open Inference Protocol's six calls: a thin shell over `Interface`, `Batcher` and `Defence`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn, TypeVar

import grpc

from services.inference.auth import Authenticator
from services.inference.batching import Batcher
from services.inference.defence import Defence
from services.inference.model import softmax
from services.inference.refusal import RefusedError
from services.inference.responses.interface import truth
from services.inference.tensors import Interface, InvalidRequestError
from shared.log import get_logger
from shared.metrics import INFERENCE_REQUESTS, INFERENCE_SECONDS
from shared.pb.open_inference import open_inference_grpc_pb2 as pb
from shared.pb.open_inference import open_inference_grpc_pb2_grpc as pb_grpc

log = get_logger(__name__)

SERVICE = "inference.GRPCInferenceService"
SERVER_NAME = "portcullis"

Response = TypeVar("Response")


class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService`."""

    def __init__(
        self,
        interface: Interface,
        batcher: Batcher,
        authenticator: Authenticator,
        defence: Defence | None,
        ready: Callable[[], bool],
    ) -> None:
        """
        Args:
            interface: the model's tensors.
            batcher: runs the model.
            authenticator: tells accounts.
            defence: None answers every account truly and records nothing.
            ready: whether queries can be answered.
        """
        self._interface = interface
        self._batcher = batcher
        self._authenticator = authenticator
        self._defence = defence
        self._ready = ready

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:  # noqa: N802
        """Whether the server answers at all."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:  # noqa: N802
        """Whether queries can be answered."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:  # noqa: N802
        """Whether queries to this model can be answered."""
        return await self._answer(context, lambda: self._model_ready(request))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:  # noqa: N802
        """Name and version of the server."""
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=version("portcullis"), extensions=[])

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:  # noqa: N802
        """The model's tensors."""
        return await self._answer(context, lambda: self._model_metadata(request))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        """Answer queries."""
        started = time.perf_counter()
        code = grpc.StatusCode.CANCELLED
        try:
            response = await self._infer(request, context)
            code = grpc.StatusCode.OK
            return response
        except InvalidRequestError as error:
            code = grpc.StatusCode.INVALID_ARGUMENT
            await _abort(context, RefusedError(code, str(error)))
        except RefusedError as refusal:
            code = refusal.code
            await _abort(context, refusal)
        except Exception:
            # gRPC would tell the client the exception's text.
            code = grpc.StatusCode.INTERNAL
            log.exception("a request failed")
            await _abort(context, RefusedError(code, "internal error"))
        finally:
            INFERENCE_REQUESTS.labels(code.name).inc()
            INFERENCE_SECONDS.observe(time.perf_counter() - started)

    async def _infer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        account = self._authenticator.account(context.invocation_metadata())
        if account is None:
            raise RefusedError(grpc.StatusCode.UNAUTHENTICATED, "authorization must be 'Bearer' and a valid API key")
        self._require_model(request.model_name, request.model_version)
        query = self._interface.decode(request)
        if not self._ready():
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is not ready, try again later", retry_after=1.0)
        verdict = self._defence.admit(account, len(query.inputs)) if self._defence else None
        outputs = await self._batcher.infer(query.inputs, account)
        if self._defence:
            answers = await self._defence.answer(account, request.id, verdict, query.inputs, outputs)
        else:
            answers = truth(softmax(outputs.logits), self._interface.mode)
        return self._interface.encode(request, query, answers)

    async def _answer(self, context: Any, call: Callable[[], Response]) -> Response:
        try:
            return call()
        except RefusedError as refusal:
            await _abort(context, refusal)

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        self._require_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._ready())

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        self._require_model(request.name, request.version)
        return self._interface.metadata()

    def _require_model(self, name: str, model_version: str) -> None:
        model = self._interface.model
        if name != model.name:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, f"model_name: this server serves {model.name!r} only")
        if model_version not in ("", model.version):
            raise RefusedError(
                grpc.StatusCode.NOT_FOUND, f"model_version: {model.name!r} is served in version {model.version!r} only"
            )


async def _abort(context: Any, refusal: RefusedError) -> NoReturn:
    wait = refusal.retry_after
    # Rounded up: a client that waits as told must not come too early.
    trailing = () if wait is None else (("retry-after", f"{math.ceil(wait * 1000) / 1000:.3f}"),)
    await context.abort(refusal.code, refusal.message, trailing)
    raise AssertionError("abort raises")
