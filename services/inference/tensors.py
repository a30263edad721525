"""The Open Inference Protocol's tensors to arrays and back: pure, and strict about what a client may send."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.responses.interface import AnswerMode
from shared.bundle import ModelSection
from shared.pb.open_inference import open_inference_grpc_pb2 as pb

LONGEST_REQUEST_ID = 256
LABEL_OUTPUT = "label"

_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}
_WIRE_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}


class InvalidRequestError(ValueError):
    """A request is malformed; the message names the field."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a valid request asks.

    Attributes:
        inputs: [n, ...] uint8, what the model and every detector sees.
        raw: whether tensors came, and so must go, as raw bytes.
        outputs: names of the outputs to answer, in order.
    """

    inputs: NDArray[np.uint8]
    raw: bool
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """The tensors of the served model.

    Attributes:
        model: its identity and its input.
        mode: what it answers.
        most_rows: queries that one request may hold.
        most_bytes: of one request.
    """

    model: ModelSection
    mode: AnswerMode
    most_rows: int
    most_bytes: int

    @property
    def output_name(self) -> str:
        """Of its only output."""
        return LABEL_OUTPUT if self.mode is AnswerMode.LABEL else self.model.output_name

    def metadata(self) -> pb.ModelMetadataResponse:
        """What a client may know of the model."""
        tensor = pb.ModelMetadataResponse.TensorMetadata
        output = (
            tensor(name=self.output_name, datatype="INT64", shape=[-1])
            if self.mode is AnswerMode.LABEL
            else tensor(name=self.output_name, datatype="FP32", shape=[-1, len(self.model.classes)])
        )
        return pb.ModelMetadataResponse(
            name=self.model.name,
            versions=[self.model.version],
            platform="pytorch",
            inputs=[tensor(name=self.model.input_name, datatype="FP32", shape=[-1, *self.model.input_shape])],
            outputs=[output],
            properties={"classes": ",".join(self.model.classes)},
        )

    def decode(self, request: pb.ModelInferRequest) -> Query:
        """Check a request and read its input.

        FP32 in [0, 1] is rounded to 256 steps, and the model runs on just that: what the detectors see is what the
        model saw, and differences below a step, which no detector could see, bring an attacker no answer.

        Raises:
            InvalidRequestError: the message names the field.
        """
        if (size := request.ByteSize()) > self.most_bytes:
            raise InvalidRequestError(f"ModelInferRequest has {size} bytes, at most {self.most_bytes} are accepted")
        if len(request.id) > LONGEST_REQUEST_ID:
            raise InvalidRequestError(f"id has {len(request.id)} characters, at most {LONGEST_REQUEST_ID} are accepted")
        outputs = self._outputs(request)
        if len(request.inputs) != 1:
            raise InvalidRequestError(f"inputs has {len(request.inputs)} tensors, the model takes 1")
        tensor = request.inputs[0]
        shape = self._shape(tensor)
        raw = bool(request.raw_input_contents)
        if raw and any(tensor.HasField("contents") for tensor in request.inputs):
            raise InvalidRequestError("raw_input_contents and inputs[0].contents are both set; send one of them")
        if raw and len(request.raw_input_contents) != len(request.inputs):
            raise InvalidRequestError(
                f"raw_input_contents has {len(request.raw_input_contents)} entries for {len(request.inputs)} inputs"
            )
        values = _raw_values(request.raw_input_contents[0], tensor, shape) if raw else _typed_values(tensor, shape)
        view = values if tensor.datatype == "UINT8" else _quantise(values)
        return Query(view.reshape(shape).astype(np.uint8, copy=False), raw, outputs)

    def _outputs(self, request: pb.ModelInferRequest) -> tuple[str, ...]:
        names = tuple(output.name for output in request.outputs) or (self.output_name,)
        for position, name in enumerate(names):
            if name != self.output_name:
                raise InvalidRequestError(f"outputs[{position}].name is not {self.output_name!r}, the model's output")
        if len(names) > 1:
            raise InvalidRequestError(f"outputs names {self.output_name!r} {len(names)} times")
        return names

    def _shape(self, tensor: pb.ModelInferRequest.InferInputTensor) -> tuple[int, ...]:
        if tensor.name != self.model.input_name:
            raise InvalidRequestError(f"inputs[0].name is not {self.model.input_name!r}, the model's input")
        if tensor.datatype not in _CONTENTS:
            raise InvalidRequestError(f"inputs[0].datatype is not one of {', '.join(_CONTENTS)}")
        shape = tuple(tensor.shape)
        if shape[1:] != self.model.input_shape or not 1 <= shape[0] <= self.most_rows:
            expected = ", ".join(str(size) for size in self.model.input_shape)
            raise InvalidRequestError(
                f"inputs[0].shape is {_short(shape)}, expected [n, {expected}] with n from 1 to {self.most_rows}"
            )
        return shape

    def encode(
        self, request: pb.ModelInferRequest, query: Query, answers: NDArray[np.float32]
    ) -> pb.ModelInferResponse:
        """The response to a request: nothing but the answers.

        Args:
            request: its id is echoed.
            query: what `decode` made of it.
            answers: [n, classes]; in label mode, one-hot.
        """
        if self.mode is AnswerMode.LABEL:
            array, datatype, field = answers.argmax(axis=1).astype("<i8"), "INT64", "int64_contents"
        else:
            array, datatype, field = answers.astype("<f4", copy=False), "FP32", "fp32_contents"
        response = pb.ModelInferResponse(model_name=self.model.name, model_version=self.model.version, id=request.id)
        for name in query.outputs:
            output = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            if query.raw:
                response.raw_output_contents.append(array.tobytes())
            else:
                getattr(output.contents, field).extend(array.ravel().tolist())
        return response


def _short(shape: tuple[int, ...]) -> str:
    # A client chose how long it is.
    return str(list(shape)) if len(shape) <= 8 else f"{str(list(shape[:8]))[:-1]}, ...]"


def _raw_values(data: bytes, tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = _WIRE_DTYPES[tensor.datatype]
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed:
        raise InvalidRequestError(
            f"raw_input_contents[0] has {len(data)} bytes, {tensor.datatype} of inputs[0].shape needs {needed}"
        )
    return np.frombuffer(data, dtype=dtype)


def _typed_values(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> NDArray[Any]:
    expected = _CONTENTS[tensor.datatype]
    filled: Mapping[str, int] = {field.name: len(values) for field, values in tensor.contents.ListFields()}
    for name in filled:
        if name != expected:
            raise InvalidRequestError(f"inputs[0].contents.{name} is set, datatype {tensor.datatype} needs {expected}")
    count, needed = filled.get(expected, 0), math.prod(shape)
    if count != needed:
        raise InvalidRequestError(f"inputs[0].contents.{expected} has {count} values, inputs[0].shape needs {needed}")
    if tensor.datatype == "FP32":
        return np.array(tensor.contents.fp32_contents, dtype=np.float32)
    values = np.array(tensor.contents.uint_contents, dtype=np.uint32)
    if values.max() > 255:
        raise InvalidRequestError("inputs[0].contents.uint_contents has a value above 255, which is no UINT8")
    return values


def _quantise(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = values.min(), values.max()  # a NaN anywhere makes both NaN
    if not (low >= 0.0 and high <= 1.0):
        if not np.isfinite(values).all():
            raise InvalidRequestError("inputs[0] has a value that is NaN or infinite")
        raise InvalidRequestError("inputs[0] has a value outside [0, 1]")
    return np.rint(values * np.float32(255.0)).astype(np.uint8)
