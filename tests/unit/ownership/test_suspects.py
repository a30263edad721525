"""Suspect models: real endpoints and real files, honest, broken and hostile."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from services.inference.network import ARCHITECTURES
from services.ownership.suspects import EndpointSuspect, OnnxSuspect, SuspectError, open_suspect
from shared.bundle import ModelSection
from shared.pb.open_inference import open_inference_grpc_pb2 as pb
from shared.pb.open_inference import open_inference_grpc_pb2_grpc as rpc
from tests.support.bundles import untrained_bundle, untrained_manifest
from tests.support.inference import InferenceProcess
from tests.support.thieves import labels_of, saved

SECTION = ModelSection.model_validate(untrained_manifest()["model"])
PICTURES: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (70, 1, 28, 28), dtype=np.uint8)


def network(architecture: str = "lenet5", classes: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = ARCHITECTURES[architecture]((1, 28, 28), classes).eval()
        # Random weights say one class to noise; larger ones say many.
        for parameter in made.parameters():
            parameter.data *= 2
    return made


def opened(what: object, **options: Any) -> Any:
    return open_suspect(str(what), SECTION, ARCHITECTURES, **options)


def refusal(what: object, **options: Any) -> str:
    with pytest.raises(SuspectError) as caught:
        opened(what, **options)
    assert str(what) in str(caught.value)
    return str(caught.value)


# Files


@pytest.mark.parametrize("architecture", ["convnet", "lenet5"])
def test_a_network_of_ours_says_the_same_from_a_file(architecture: str, tmp_path: Path) -> None:
    made = network(architecture)
    wanted = labels_of(made, PICTURES)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(made).save(str(tmp_path / "script.pt"))
    for file in (saved(made, tmp_path / "w.safetensors"), tmp_path / "state.pt", tmp_path / "script.pt"):
        np.testing.assert_array_equal(opened(file).labels(PICTURES), wanted)
    assert len(opened(tmp_path / "state.pt").labels(PICTURES[:0])) == 0


def test_weights_of_no_network_of_ours_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    weights = network().state_dict()
    file = tmp_path / "w.safetensors"
    save_file({**weights, "extra": torch.zeros(1)}, file)
    assert "none of convnet, lenet5" in refusal(file)
    convnet = network("convnet").state_dict()
    save_file({**convnet, "head.bias": torch.zeros(7)}, file)
    assert "of convnet: head.bias is [7], not [10]" in refusal(file)
    del convnet["head.bias"]
    save_file(convnet, file)
    assert "of convnet: head.bias is missing" in refusal(file)


def test_a_file_that_cannot_be_read_or_is_something_else_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nowhere.onnx")
    assert "no file" in refusal(tmp_path)
    (tmp_path / "text").write_text("what is this?")
    assert "neither ONNX nor safetensors nor a torch archive" in refusal(tmp_path / "text")
    (tmp_path / "empty").write_bytes(b"")
    refusal(tmp_path / "empty")


def test_a_huge_header_and_a_huge_file_are_refused_without_reading_them(tmp_path: Path) -> None:
    (tmp_path / "header.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{" + bytes(100))
    assert "eader" in refusal(tmp_path / "header.safetensors")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2**31)
    assert "at most" in refusal(tmp_path / "huge.onnx")


def test_a_hostile_pickle_in_a_models_file_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {witness}",)

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as written:
        written.writestr("model/data.pkl", pickle.dumps({"weight": Hostile()}, 2))
    assert "nothing of it was run" in refusal(tmp_path / "model.pt")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Hostile()))
    assert "neither ONNX" in refusal(tmp_path / "model.pkl")
    assert not witness.exists()


# ONNX


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.int64]]:
    """A network as torch exports it, and what it says of the pictures."""
    made = network()
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            made,
            (torch.zeros(2, 1, 28, 28),),
            str(file),
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            verbose=False,
        )
    return file, labels_of(made, PICTURES)


def linear(
    path: Path, size: Sequence[Any] = (None, 1, 28, 28), classes: int = 10, domain: str = "", nodes: Any = None
) -> Path:
    """A small ONNX model: scores are random sums of pixels."""
    weights = np.random.default_rng(0).normal(size=(math.prod(size[1:]), classes)).astype(np.float32)
    weights -= weights.mean(axis=0)
    graph = onnx.helper.make_graph(
        nodes
        or [
            onnx.helper.make_node("Flatten", ["image"], ["flat"]),
            onnx.helper.make_node("MatMul", ["flat", "weights"], ["scores"], domain=domain),
        ],
        "linear",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, size)],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [size[0], classes])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    opsets = [onnx.helper.make_opsetid(name, 17 if not name else 1) for name in dict.fromkeys(("", domain))]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return path


def test_an_exported_network_says_the_same_from_an_onnx_file(exported: tuple[Path, NDArray[np.int64]]) -> None:
    file, wanted = exported
    assert len(set(wanted.tolist())) > 1
    np.testing.assert_array_equal(opened(file).labels(PICTURES), wanted)


def test_an_onnx_model_of_a_fixed_batch_is_asked_by_such_batches(tmp_path: Path) -> None:
    free, fixed = linear(tmp_path / "free.onnx"), linear(tmp_path / "fixed.onnx", (8, 1, 28, 28))
    np.testing.assert_array_equal(opened(fixed).labels(PICTURES), opened(free).labels(PICTURES))


def test_an_onnx_model_that_insists_on_a_huge_batch_is_refused(tmp_path: Path) -> None:
    assert "takes 1000000000 inputs at once" in refusal(linear(tmp_path / "huge.onnx", (10**9, 1, 28, 28)))


def test_an_onnx_model_of_other_inputs_or_classes_is_refused_with_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    said = refusal(linear(file, (None, 3, 32, 32)))
    assert "takes inputs of shape [3, 32, 32], the marked model's are [1, 28, 28]" in said
    said = refusal(linear(file, classes=7))
    assert "tells 7 classes apart, the marked model 10" in said
    assert "--class-map" in said


def test_an_onnx_model_that_needs_other_files_or_operators_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(784 * 10 * 4))
    model = onnx.load(linear(tmp_path / "model.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")
    (tmp_path / "external.onnx").write_bytes(model.SerializeToString())
    assert "keeps weights in other files" in refusal(tmp_path / "external.onnx")
    assert "needs operators of evil" in refusal(linear(tmp_path / "model.onnx", domain="evil"))


def test_an_onnx_model_that_never_ends_is_ended(tmp_path: Path) -> None:
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Identity", ["going"], ["goes_on"]),
            onnx.helper.make_node("MatMul", ["state", "square"], ["next"]),
        ],
        "body",
        [
            onnx.helper.make_tensor_value_info("turn", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, None),
        ],
        [
            onnx.helper.make_tensor_value_info("goes_on", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, None),
        ],
        [onnx.numpy_helper.from_array(np.eye(10, dtype=np.float32), "square")],
    )
    nodes = [
        onnx.helper.make_node("Flatten", ["image"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "weights"], ["first"]),
        onnx.helper.make_node("Constant", [], ["turns"], value_int=2**62),
        onnx.helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
        onnx.helper.make_node("Loop", ["turns", "yes", "first"], ["scores"], body=body),
    ]
    suspect = OnnxSuspect(linear(tmp_path / "model.onnx", nodes=nodes), SECTION, None, answer_seconds=1.0)
    started = time.monotonic()
    with pytest.raises(SuspectError, match="took over 1 s"):
        suspect.labels(PICTURES[:1])
    assert time.monotonic() - started < 20


# Classes


def test_a_class_map_says_which_of_our_classes_the_suspects_are(tmp_path: Path) -> None:
    file = linear(tmp_path / "model.onnx", classes=3)
    own = open_suspect(str(file), SECTION.model_copy(update={"classes": ("a", "b", "c")}), ARCHITECTURES)
    said = own.labels(PICTURES)
    assert set(said.tolist()) == {0, 1, 2}
    mapped = opened(file, class_map=[7, -1, 2]).labels(PICTURES)
    np.testing.assert_array_equal(mapped, np.array([7, -1, 2])[said])
    assert "--class-map has 4" in refusal(file, class_map=[0, 1, 2, 3])


# Endpoints


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    folder = tmp_path_factory.mktemp("suspect")
    untrained_bundle(folder / "bundle")
    process = InferenceProcess(folder, defence=False)
    process.key("alice")
    with process:
        yield process


def test_our_own_server_is_asked_and_says_what_its_model_says(server: InferenceProcess) -> None:
    file = server.folder / "bundle" / "victim.safetensors"
    wanted = opened(file).labels(PICTURES)
    suspect = opened(f"grpc://{server.address}/fashion", key=server.key("alice"))
    np.testing.assert_array_equal(suspect.labels(PICTURES), wanted)
    suspect.close()


def test_a_server_that_wants_a_key_or_does_not_know_the_model_says_so(server: InferenceProcess) -> None:
    for key in ("", "wrong"):
        with pytest.raises(SuspectError, match=r"refuses \(UNAUTHENTICATED.*give --key"):
            opened(f"grpc://{server.address}/fashion", key=key).labels(PICTURES)
    assert "NOT_FOUND" in refusal(f"grpc://{server.address}/other", key=server.key("alice"))
    assert "expected grpc://HOST:PORT/MODEL" in refusal(f"grpc://{server.address}")


def test_nobody_at_the_address_is_waited_for_and_then_said() -> None:
    started = time.monotonic()
    assert "did not answer within 1 s" in refusal("grpc://127.0.0.1:1/fashion", patience_seconds=1.0)
    assert time.monotonic() - started < 15


Answer = Callable[[int, NDArray[np.float32]], Any]


class Endpoint(rpc.GRPCInferenceServiceServicer):
    """An endpoint of another make: its answers are what a test says."""

    def __init__(self, answer: Answer, shape: Sequence[int], classes: int, datatype: str) -> None:
        self._answer = answer
        self._shape = shape
        self._classes = classes
        self._datatype = datatype
        self._count = itertools.count()

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        metadata = pb.ModelMetadataResponse(name=request.name)
        metadata.inputs.add(name="x", datatype=self._datatype, shape=self._shape)
        metadata.outputs.add(name="y", datatype="FP32", shape=[-1, self._classes])
        return metadata

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        kind = "u1" if self._datatype == "UINT8" else "<f4"
        inputs = np.frombuffer(request.raw_input_contents[0], dtype=kind).reshape(request.inputs[0].shape)
        answer = self._answer(next(self._count), inputs)
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "as the test\nwants")
        response = pb.ModelInferResponse()
        datatype = "FP32" if answer.dtype == np.float32 else "INT64"
        output = response.outputs.add(name="y", datatype=datatype, shape=answer.shape)
        field = "fp32_contents" if datatype == "FP32" else "int64_contents"
        getattr(output.contents, field).extend(answer.ravel().tolist())
        return response


@contextmanager
def endpoint(
    answer: Answer, shape: Sequence[int] = (-1, 1, 28, 28), classes: int = 10, datatype: str = "FP32"
) -> Iterator[str]:
    made = grpc.server(ThreadPoolExecutor(2))
    rpc.add_GRPCInferenceServiceServicer_to_server(Endpoint(answer, shape, classes, datatype), made)  # type: ignore[no-untyped-call]
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    try:
        yield f"grpc://127.0.0.1:{port}/model"
    finally:
        made.stop(0)


def by_brightness(_: int, inputs: NDArray[Any]) -> NDArray[np.float32]:
    """Scores: the class that follows from the first pixel."""
    first = inputs.reshape(len(inputs), -1)[:, 0]
    label = np.rint(first * 255 if inputs.dtype == np.float32 else first).astype(int) % 10
    return np.eye(10, dtype=np.float32)[label]


@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_every_pixel_arrives_as_it_was(datatype: str) -> None:
    with endpoint(by_brightness, datatype=datatype) as url:
        np.testing.assert_array_equal(opened(url).labels(PICTURES), PICTURES[:, 0, 0, 0] % 10)


def test_an_endpoint_that_fails_for_a_while_is_asked_again() -> None:
    refusals = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]

    def moody(number: int, inputs: NDArray[np.float32]) -> Any:
        return refusals[number] if number < len(refusals) else by_brightness(number, inputs)

    with endpoint(moody) as url:
        np.testing.assert_array_equal(opened(url).labels(PICTURES), PICTURES[:, 0, 0, 0] % 10)


def test_an_endpoint_that_times_out_ends_the_questions_with_its_name() -> None:
    def asleep(_: int, inputs: NDArray[np.float32]) -> Any:
        time.sleep(1.0)
        return by_brightness(0, inputs)

    with endpoint(asleep) as url:
        suspect = EndpointSuspect(url, SECTION, None, answer_seconds=0.2, patience_seconds=1.0)
        with pytest.raises(SuspectError, match=r"did not answer within 1 s \(DEADLINE_EXCEEDED.*nothing was concluded"):
            suspect.labels(PICTURES)
        suspect.close()


def test_an_endpoint_that_refuses_for_good_is_asked_once() -> None:
    asked: list[int] = []

    def refuses(number: int, _: NDArray[np.float32]) -> Any:
        asked.append(number)
        return grpc.StatusCode.INVALID_ARGUMENT

    with endpoint(refuses) as url, pytest.raises(SuspectError, match=r"refuses \(INVALID_ARGUMENT: as the test wants"):
        opened(url).labels(PICTURES)
    assert asked == [0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": 7}, "tells 7 classes apart, the marked model 10"),
        ({"shape": (-1, 3, 32, 32)}, r"takes inputs of shape \[3, 32, 32\]"),
        ({"shape": (-1, 784)}, r"takes inputs of shape \[784\]"),
        ({"datatype": "BYTES"}, "its input is BYTES"),
    ],
)
def test_an_endpoint_of_another_form_is_refused_before_it_is_asked(options: dict[str, Any], said: str) -> None:
    with endpoint(by_brightness, **options) as url, pytest.raises(SuspectError, match=said):
        opened(url)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.zeros((70, 7), dtype=np.float32), "expected scores"),
        (np.full((32, 7), 0.1, dtype=np.float32), "tells 7 classes apart"),
        (np.full((32, 10), np.nan, dtype=np.float32), "not finite"),
        (np.full(32, 10, dtype=np.int64), "says the label 10"),
        (np.full(32, -1, dtype=np.int64), "says the label -1"),
    ],
)
def test_an_answer_that_is_none_is_refused(answer: NDArray[Any], said: str) -> None:
    with endpoint(lambda _, __: answer) as url, pytest.raises(SuspectError, match=said):
        opened(url).labels(PICTURES[:32])


def test_an_endpoint_that_answers_with_labels_is_understood() -> None:
    with endpoint(lambda _, inputs: by_brightness(0, inputs).argmax(axis=1)) as url:
        np.testing.assert_array_equal(opened(url).labels(PICTURES), PICTURES[:, 0, 0, 0] % 10)
