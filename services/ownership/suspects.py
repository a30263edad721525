"""Suspect models, of which only labels are asked: an endpoint of the Open Inference Protocol, or a file.

A file is data. An ONNX graph is computed by onnxruntime with its own operators on the CPU; safetensors and TorchScript
files give their weights to a network of ours, and no code that a file carries is run (`services.ownership.archives`).
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import nn

from services.ownership.archives import ArchiveError, read_archive
from services.ownership.errors import OwnershipError
from services.ownership.verification import Labels
from shared.bundle import ModelSection
from shared.networks import ImageShape, images, load_network
from shared.pb.open_inference import open_inference_grpc_pb2 as pb
from shared.pb.open_inference import open_inference_grpc_pb2_grpc as rpc

BATCH = 32
"""Most inputs of one question."""
MOST_QUESTION_BYTES = 2 * 2**20
"""Of the inputs of one question, as float32; servers take a few MiB."""
MOST_FIXED_VALUES = 2**26
"""Of one batch of a size that an ONNX model insists on."""
MOST_FILE_BYTES = 2**30
ANSWER_SECONDS = 20.0
"""A question unanswered for so long is asked again, or given up."""
PATIENCE_SECONDS = 60.0
"""How long one question is asked again where its refusal may pass."""
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 5.0

_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
)
_KEY_STATES = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_NUMBERS = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4", "UINT8": "u1"}
_CONTENTS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT64": "int64_contents",
    "INT32": "int_contents",
    "UINT8": "uint_contents",
}
_ONNX_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")

Architectures = Mapping[str, Callable[[ImageShape, int], nn.Module]]


class SuspectError(OwnershipError):
    """A suspect cannot be asked, or answers what cannot be compared; the message names it and says what to do."""


class Suspect(ABC):
    """A model that may be a copy of ours."""

    def __init__(self, name: str, section: ModelSection, class_map: Sequence[int] | None) -> None:
        """
        Args:
            name: as messages call it.
            section: the model whose copy it may be.
            class_map: for each of its classes, the number of ours that is meant, -1 for none of them; None where its
                classes are ours in our order.
        """
        self.name = name
        self._section = section
        self._class_map = None if class_map is None else np.array(class_map, dtype=np.int64)
        self._classes = len(section.classes) if class_map is None else len(class_map)
        self._rows = max(1, min(BATCH, MOST_QUESTION_BYTES // (4 * math.prod(section.input_shape))))

    def labels(self, inputs: NDArray[np.uint8]) -> Labels:
        """What it says of inputs.

        Args:
            inputs: [n, channels, height, width], uint8; it sees them as the marked model does, in [0, 1].

        Returns:
            [n], numbers of our classes; -1 where it says one that we have not.

        Raises:
            SuspectError: it does not answer, or not in our terms.
        """
        said = [self._ask(inputs[start : start + self._rows]) for start in range(0, len(inputs), self._rows)]
        labels = np.concatenate(said) if said else np.zeros(0, dtype=np.int64)
        return labels if self._class_map is None else self._class_map[labels]

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what it holds."""

    @abstractmethod
    def _ask(self, inputs: NDArray[np.uint8]) -> Labels:
        """Numbers of its own classes for at most `BATCH` inputs."""

    def _as_labels(self, answer: NDArray[Any], rows: int) -> Labels:
        """Scores [n, classes], or labels [n] or [n, 1], as labels.

        Raises:
            SuspectError: it is neither.
        """
        shape = list(answer.shape)
        if np.issubdtype(answer.dtype, np.integer) and shape in ([rows], [rows, 1]):
            labels: Labels = answer.reshape(rows).astype(np.int64)
            if rows and not (labels.min() >= 0 and labels.max() < self._classes):
                raise SuspectError(
                    f"{self.name}: says the label {labels.max() if labels.max() >= self._classes else labels.min()}, "
                    f"{self._expected_classes()}"
                )
            return labels
        if np.issubdtype(answer.dtype, np.floating) and len(shape) == 2 and shape[0] == rows:
            self._require_classes(shape[1])
            if not np.isfinite(answer).all():
                raise SuspectError(f"{self.name}: answers with numbers that are not finite")
            best: Labels = answer.argmax(axis=1).astype(np.int64)
            return best
        raise SuspectError(
            f"{self.name}: answers {rows} inputs with {answer.dtype} of shape {shape}; expected scores "
            f"[{rows}, {self._classes}] or labels [{rows}]"
        )

    def _require_classes(self, found: int) -> None:
        if found != self._classes:
            raise SuspectError(f"{self.name}: tells {found} classes apart, {self._expected_classes()}")

    def _expected_classes(self) -> str:
        if self._class_map is not None:
            return f"--class-map has {self._classes}"
        named = ", ".join(self._section.classes)
        return f"the marked model {self._classes} ({named}); say with --class-map which of its classes is which of ours"

    def _require_shape(self, found: Sequence[Any]) -> None:
        """Compare the shape of one input; what is no number may be anything."""
        wanted = self._section.input_shape
        fits = len(found) == len(wanted) and all(
            not isinstance(size, int) or size in (-1, ours) for size, ours in zip(found, wanted, strict=True)
        )
        if not fits:
            raise SuspectError(
                f"{self.name}: takes inputs of shape {list(found)}, the marked model's are {list(wanted)}; it must be "
                "given ours, put what scales them in front of it"
            )


class EndpointSuspect(Suspect):
    """A model behind the Open Inference Protocol (version 2) over gRPC."""

    def __init__(
        self,
        url: str,
        section: ModelSection,
        class_map: Sequence[int] | None,
        key: str = "",
        answer_seconds: float = ANSWER_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """
        Args:
            url: grpc://HOST:PORT/MODEL, or grpcs:// for TLS.
            section: the model whose copy it may be.
            class_map: see `Suspect`.
            key: sent as `authorization: Bearer KEY`, if there is one.
            answer_seconds: until a question counts as unanswered.
            patience_seconds: how long a question is asked again.

        Raises:
            SuspectError: it does not answer, or tells that its input or its classes are not ours.
        """
        super().__init__(url, section, class_map)
        parts = urlsplit(url)
        self._model_name = parts.path.strip("/")
        if not parts.netloc or not self._model_name:
            raise SuspectError(f"{url}: expected grpc://HOST:PORT/MODEL or grpcs://HOST:PORT/MODEL")
        self._channel = (
            grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials())
            if parts.scheme == "grpcs"
            else grpc.insecure_channel(parts.netloc)
        )
        self._stub = rpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._answer_seconds = answer_seconds
        self._patience_seconds = patience_seconds
        try:
            self._input, self._output = self._tensors()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def _tensors(self) -> tuple[Any, str]:
        metadata = self._call(self._stub.ModelMetadata, pb.ModelMetadataRequest(name=self._model_name))
        if len(metadata.inputs) != 1 or not metadata.outputs:
            raise SuspectError(
                f"{self.name}: has {len(metadata.inputs)} inputs and {len(metadata.outputs)} outputs; expected one "
                "input and its scores or label"
            )
        taken, given = metadata.inputs[0], metadata.outputs[0]
        if taken.datatype not in ("FP32", "UINT8"):
            raise SuspectError(f"{self.name}: its input is {taken.datatype}; FP32 in [0, 1] and UINT8 can be sent")
        self._require_shape([int(size) for size in taken.shape[1:]])
        if given.datatype in ("FP32", "FP64") and len(given.shape) == 2 and given.shape[1] > 0:
            self._require_classes(int(given.shape[1]))
        return taken, given.name

    def _ask(self, inputs: NDArray[np.uint8]) -> Labels:
        request = pb.ModelInferRequest(model_name=self._model_name)
        request.inputs.add(name=self._input.name, datatype=self._input.datatype, shape=inputs.shape)
        request.outputs.add(name=self._output)
        sent = inputs if self._input.datatype == "UINT8" else (inputs / np.float32(255.0)).astype("<f4")
        request.raw_input_contents.append(np.ascontiguousarray(sent).tobytes())
        response = self._call(self._stub.ModelInfer, request)
        return self._as_labels(self._answer(response), len(inputs))

    def _answer(self, response: Any) -> NDArray[Any]:
        if len(response.outputs) != 1 or response.outputs[0].datatype not in _NUMBERS:
            kinds = ", ".join(output.datatype for output in response.outputs) or "nothing"
            raise SuspectError(f"{self.name}: answers with {kinds}; expected one of {', '.join(_NUMBERS)}")
        output = response.outputs[0]
        kind = _NUMBERS[output.datatype]
        try:
            values = (
                np.frombuffer(response.raw_output_contents[0], dtype=kind)
                if response.raw_output_contents
                else np.array(getattr(output.contents, _CONTENTS[output.datatype]), dtype=kind)
            )
            return values.reshape(tuple(output.shape))
        except ValueError as error:
            raise SuspectError(f"{self.name}: its answer is not as large as it says ({error})") from error

    def _call(self, method: Any, request: Any) -> Any:
        deadline = time.monotonic() + self._patience_seconds
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                return method(request, metadata=self._metadata, timeout=self._answer_seconds)
            except grpc.RpcError as error:
                status, details = error.code(), _printable(error.details() or "")
                if status in _KEY_STATES:
                    raise SuspectError(f"{self.name}: refuses ({status.name}: {details}); give --key") from error
                if status not in _PASSING:
                    raise SuspectError(f"{self.name}: refuses ({status.name}: {details})") from error
                if time.monotonic() + backoff > deadline:
                    raise SuspectError(
                        f"{self.name}: did not answer within {self._patience_seconds:g} s ({status.name}: {details}); "
                        "nothing was concluded, ask again when it does"
                    ) from error
            time.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)


class OnnxSuspect(Suspect):
    """An ONNX file, computed by onnxruntime with its own operators, on the CPU."""

    def __init__(
        self,
        path: Path,
        section: ModelSection,
        class_map: Sequence[int] | None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """
        Args:
            path: of the file.
            section: the model whose copy it may be.
            class_map: see `Suspect`.
            answer_seconds: after which a computation is ended.

        Raises:
            SuspectError: it is no ONNX file, keeps weights in other files, has operators of its own, or its input or
                classes are not ours.
        """
        super().__init__(str(path), section, class_map)
        self._answer_seconds = answer_seconds
        data = path.read_bytes()
        self._require_plain(data)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no other class in common
            raise SuspectError(f"{path}: onnxruntime does not take it ({_printable(str(error))})") from error
        taken, given = self._session.get_inputs(), self._session.get_outputs()
        if len(taken) != 1 or taken[0].type not in ("tensor(float)", "tensor(uint8)") or len(taken[0].shape) < 2:
            kinds = ", ".join(f"{tensor.type} {tensor.shape}" for tensor in taken)
            raise SuspectError(f"{path}: takes {kinds}; expected one batch of images, float in [0, 1] or uint8")
        self._require_shape(taken[0].shape[1:])
        if len(given[0].shape) == 2 and isinstance(given[0].shape[1], int) and given[0].type != "tensor(int64)":
            self._require_classes(given[0].shape[1])
        self._input, self._output = taken[0], given[0].name
        rows = taken[0].shape[0]
        self._fixed_rows = rows if isinstance(rows, int) and rows > 0 else 0
        if self._fixed_rows * math.prod(section.input_shape) > MOST_FIXED_VALUES:
            raise SuspectError(f"{path}: takes {rows} inputs at once, which is too many; export it for fewer")

    def _require_plain(self, data: bytes) -> None:
        """
        Raises:
            SuspectError: there is something else in it than a graph of standard operators and its weights.
        """
        try:
            model = onnx.load_model_from_string(data)
        except Exception as error:  # protobuf's error class depends on its implementation
            raise SuspectError(f"{self.name}: neither ONNX nor safetensors nor a torch archive ({error})") from error
        if _has_external_data(model):
            raise SuspectError(f"{self.name}: keeps weights in other files, which are not read; export it as one file")
        foreign = {opset.domain for opset in model.opset_import} - set(_ONNX_DOMAINS)
        foreign -= {function.domain for function in model.functions}
        if foreign:
            raise SuspectError(f"{self.name}: needs operators of {', '.join(map(_printable, sorted(foreign)))}")

    def _ask(self, inputs: NDArray[np.uint8]) -> Labels:
        if not self._fixed_rows:
            return self._as_labels(self._run(inputs), len(inputs))
        said: list[Labels] = []
        for start in range(0, len(inputs), self._fixed_rows):
            part = inputs[start : start + self._fixed_rows]
            padded = np.zeros((self._fixed_rows, *inputs.shape[1:]), dtype=np.uint8)
            padded[: len(part)] = part
            said.append(self._as_labels(self._run(padded), self._fixed_rows)[: len(part)])
        return np.concatenate(said)

    def _run(self, inputs: NDArray[np.uint8]) -> NDArray[Any]:
        sent = inputs if self._input.type == "tensor(uint8)" else inputs.astype(np.float32) / np.float32(255.0)
        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        timer = threading.Timer(self._answer_seconds, setattr, (options, "terminate", True))
        timer.start()
        try:
            (answer,) = self._session.run([self._output], {self._input.name: sent}, options)
        except Exception as error:  # as above
            why = f"took over {self._answer_seconds:g} s" if options.terminate else _printable(str(error))
            raise SuspectError(f"{self.name}: fails on an input of ours ({why})") from error
        finally:
            timer.cancel()
        return np.asarray(answer)


class NetworkSuspect(Suspect):
    """Weights of a network of ours, from a file that carries nothing else that is used."""

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, NDArray[Any]],
        section: ModelSection,
        class_map: Sequence[int] | None,
        architectures: Architectures,
    ) -> None:
        """
        Args:
            path: of the file.
            tensors: what was in it.
            section: the model whose copy it may be.
            class_map: see `Suspect`.
            architectures: every network that it may be, by name; the one whose tensors have these names and shapes.

        Raises:
            SuspectError: they are those of no network of ours.
        """
        super().__init__(str(path), section, class_map)
        channels, height, width = section.input_shape
        shape = (channels, height, width)
        found = {name: array.shape for name, array in tensors.items()}
        lacks: dict[str, str] = {}
        for name, build in architectures.items():
            with torch.device("meta"):  # names and shapes without memory
                wanted = {key: tuple(tensor.shape) for key, tensor in build(shape, self._classes).state_dict().items()}
            lacks[name] = _difference(found, wanted)
            if not lacks[name]:
                self._network = load_network(build(shape, self._classes), tensors)
                return
        ours = section.architecture if section.architecture in lacks else next(iter(lacks))
        raise SuspectError(
            f"{path}: holds the tensors of none of {', '.join(lacks)} for images {list(shape)} and {self._classes} "
            f"classes; of {ours}: {lacks[ours]}"
        )

    def _ask(self, inputs: NDArray[np.uint8]) -> Labels:
        with torch.inference_mode():
            answer = self._network(images(inputs)).float().cpu().numpy()
        return self._as_labels(answer, len(inputs))


def open_suspect(
    what: str,
    section: ModelSection,
    architectures: Architectures,
    class_map: Sequence[int] | None = None,
    key: str = "",
    patience_seconds: float = PATIENCE_SECONDS,
) -> Suspect:
    """A suspect by its URL or its file; what kind of file it is, its content says.

    Raises:
        SuspectError: it cannot be asked.
    """
    if what.startswith(("grpc://", "grpcs://")):
        return EndpointSuspect(what, section, class_map, key, min(ANSWER_SECONDS, patience_seconds), patience_seconds)
    path = Path(what)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise SuspectError(f"{path}: no file; expected one, or grpc://HOST:PORT/MODEL")
        if size > MOST_FILE_BYTES:
            raise SuspectError(f"{path}: {size:,} bytes, at most {MOST_FILE_BYTES:,} are read")
        with path.open("rb") as file:
            head = file.read(9)
        if head.startswith(b"PK"):
            tensors = read_archive(path)
        elif head[8:] == b"{":
            loaded = load_safetensors(path.read_bytes())
            tensors = {
                name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
                for name, tensor in loaded.items()
            }
        else:
            return OnnxSuspect(path, section, class_map)
    except OSError as error:
        raise SuspectError(
            f"{path}: cannot be read ({error.strerror}); expected a file or grpc://HOST:PORT/MODEL"
        ) from error
    except (ArchiveError, SafetensorError) as error:
        raise SuspectError(f"{path}: {_printable(str(error))}") from error
    return NetworkSuspect(path, tensors, section, class_map, architectures)


def _has_external_data(message: Any) -> bool:
    """Whether a tensor anywhere in an ONNX model lies in another file."""
    if isinstance(message, onnx.TensorProto):
        return bool(message.data_location == onnx.TensorProto.EXTERNAL or message.external_data)
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = value if field.is_repeated else (value,)
            if any(_has_external_data(part) for part in parts):
                return True
    return False


def _difference(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """The first one, in words; empty where there is none."""
    for name, shape in wanted.items():
        if name not in found:
            return f"{name} is missing"
        # A counter of batches has no axis or one: bundles write one, and torch takes either.
        if found[name] != shape and (found[name], shape) != ((1,), ()):
            return f"{name} is {list(found[name])}, not {list(shape)}"
    left = set(found) - set(wanted)
    return f"{_printable(min(left))} is left over" if left else ""


def _printable(text: str) -> str:
    """The beginning of what a suspect said, without control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:300])
