"""A client of any endpoint of the Open Inference Protocol, over the stock `tritonclient`.

The process that imports this module must not import `shared.pb.open_inference`: two stub sets of one protobuf package
cannot live in one process.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from services.redteam.attack import Banned
from services.redteam.substitute import Images, Probabilities

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0
REQUEST_SECONDS = 20.0
"""A request unanswered for so long counts as one to an endpoint that is away."""
PASSING = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")
"""Refusals that waiting may mend: an endpoint that is away, slow, or that throttles."""


class EndpointError(RuntimeError):
    """The endpoint refuses for a reason that waiting will not mend; the message is the endpoint's own."""


class VictimClient:
    """One account's connection to a served model. Not for several threads at once."""

    def __init__(self, address: str, key: str, model_name: str, classes: int = 10, patience: float = 60.0) -> None:
        """
        Args:
            address: host:port of the gRPC endpoint.
            key: API key.
            model_name: which model.
            classes: how many it tells apart; an endpoint that answers with labels does not say.
            patience: seconds that a request may wait for an endpoint that is away or throttles.

        Raises:
            EndpointError: the endpoint does not know the key or the model, or is away.
        """
        self._client = InferenceServerClient(address)
        self._headers = {"authorization": f"Bearer {key}"}
        self._model_name = model_name
        self._patience = patience
        metadata = self._patiently(lambda: self._client.get_model_metadata(model_name, headers=self._headers))
        self._input_name: str = metadata.inputs[0].name
        self._output_name: str = metadata.outputs[0].name
        self._classes = classes

    def __enter__(self) -> VictimClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def query(self, images: Images) -> Probabilities:
        """Ask about images in one request.

        Args:
            images: [n, channels, height, width].

        Returns:
            [n, classes] float32; one-hot where the endpoint answers with labels.

        Raises:
            Banned: the account is answered no more.
            EndpointError: the request is refused, or the endpoint stays away for longer than the client's patience.
        """
        tensor = InferInput(self._input_name, list(images.shape), np_to_triton_dtype(images.dtype))
        tensor.set_data_from_numpy(np.ascontiguousarray(images))
        result = self._patiently(
            lambda: self._client.infer(
                self._model_name, [tensor], headers=self._headers, client_timeout=REQUEST_SECONDS
            )
        )
        return self._as_probabilities(result.as_numpy(self._output_name))

    def _as_probabilities(self, answer: Any) -> Probabilities:
        if np.issubdtype(answer.dtype, np.integer):
            answer = np.eye(self._classes)[answer.reshape(-1)]
        probabilities: Probabilities = answer.astype(np.float32)
        return probabilities

    def _patiently(self, call: Any) -> Any:
        deadline = time.monotonic() + self._patience
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                return call()
            except InferenceServerException as error:
                wait = backoff if (told := _told_to_wait(error)) is None else told
                if error.status() == "StatusCode.PERMISSION_DENIED":
                    raise Banned(error.message()) from error
                if error.status() not in PASSING or time.monotonic() + wait > deadline:
                    raise EndpointError(str(error)) from error
            time.sleep(wait)
            backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)


def _told_to_wait(error: InferenceServerException) -> float | None:
    """Seconds that the endpoint asked for in its trailing metadata: gRPC's own pushback, or HTTP's `retry-after`."""
    # tritonclient hands on neither metadata nor cause, but raises inside the handler of gRPC's error.
    cause = error.__context__
    if not isinstance(cause, grpc.Call):
        return None
    trailing = dict(cause.trailing_metadata() or ())
    for name, unit in (("grpc-retry-pushback-ms", 1e-3), ("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if name in trailing:
            return float(trailing[name]) * unit
    return None
