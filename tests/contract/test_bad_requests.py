"""Whatever a client sends, it gets a clear status, and the server goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from shared.keys import issue_key
from shared.pb.open_inference import open_inference_grpc_pb2 as pb
from tests.contract.conftest import MOST_BYTES, MOST_ROWS, RawClient


def valid_request(rows: int = 1) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="fashion")
    request.inputs.add(name="image", datatype="FP32", shape=[rows, 1, 28, 28])
    request.raw_input_contents.append(np.zeros((rows, 1, 28, 28), dtype="<f4").tobytes())
    return request


def typed_request(values: list[float]) -> pb.ModelInferRequest:
    request = valid_request()
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(values)
    return request


def refusal(client: RawClient, request: pb.ModelInferRequest, key: str | None = None) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        client.infer(request, key)
    error: Any = caught.value
    return error.code(), error.details()


def set_values(*values: float) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        array = np.zeros(784, dtype="<f4")
        array[: len(values)] = values
        request.raw_input_contents[0] = array.tobytes()

    return change


def set_shape(*shape: int) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[0].shape[:] = shape

    return change


def mix_contents(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.fp32_contents.extend([0.0] * 784)


def second_input(request: pb.ModelInferRequest) -> None:
    request.inputs.add().CopyFrom(request.inputs[0])


def second_raw_contents(request: pb.ModelInferRequest) -> None:
    request.raw_input_contents.append(request.raw_input_contents[0])


def no_contents(request: pb.ModelInferRequest) -> None:
    del request.raw_input_contents[:]


def contents_of_another_type(request: pb.ModelInferRequest) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.int64_contents.extend([0] * 784)


def large_bytes(request: pb.ModelInferRequest) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].datatype = "UINT8"
    request.inputs[0].contents.uint_contents.extend([256] * 784)


def input_name(request: pb.ModelInferRequest) -> None:
    request.inputs[0].name = "picture"


def datatype(request: pb.ModelInferRequest) -> None:
    request.inputs[0].datatype = "FP64"


def datatype_of_another_size(request: pb.ModelInferRequest) -> None:
    request.inputs[0].datatype = "UINT8"


def unknown_output(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="logits")


def output_twice(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="probabilities")
    request.outputs.add(name="probabilities")


def no_input(request: pb.ModelInferRequest) -> None:
    del request.inputs[:]


def long_id(request: pb.ModelInferRequest) -> None:
    request.id = "x" * 300


INVALID = [
    (input_name, "inputs[0].name"),
    (datatype, "inputs[0].datatype"),
    (datatype_of_another_size, "raw_input_contents[0]"),
    (set_shape(1, 28, 28), "inputs[0].shape"),
    (set_shape(1, 1, 28, 27), "inputs[0].shape"),
    (set_shape(0, 1, 28, 28), "inputs[0].shape"),
    (set_shape(-1, 1, 28, 28), "inputs[0].shape"),
    (set_shape(MOST_ROWS + 1, 1, 28, 28), f"n from 1 to {MOST_ROWS}"),
    (set_shape(*range(1000)), "inputs[0].shape"),
    (set_shape(), "inputs[0].shape"),
    (set_shape(2, 1, 28, 28), "raw_input_contents[0]"),
    (second_input, "inputs has 2"),
    (no_input, "inputs has 0"),
    (second_raw_contents, "raw_input_contents has 2"),
    (no_contents, "inputs[0].contents.fp32_contents"),
    (contents_of_another_type, "inputs[0].contents.int64_contents"),
    (large_bytes, "inputs[0].contents.uint_contents"),
    (mix_contents, "raw_input_contents and inputs[0].contents"),
    (set_values(float("nan")), "inputs[0] has a value that is NaN"),
    (set_values(0.5, float("inf")), "inputs[0] has a value that is NaN or infinite"),
    (set_values(1.01), "outside [0, 1]"),
    (set_values(-0.01), "outside [0, 1]"),
    (unknown_output, "outputs[0].name"),
    (output_twice, "outputs names"),
    (long_id, "id has 300"),
]


@pytest.mark.parametrize(("change", "field"), INVALID, ids=[f"{i}-{field}" for i, (_, field) in enumerate(INVALID)])
def test_a_malformed_request_is_invalid_and_its_field_is_named(
    client: RawClient, change: Callable[[pb.ModelInferRequest], None], field: str
) -> None:
    request = valid_request()
    change(request)
    code, details = refusal(client, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in details
    assert len(details) < 300
    assert client.infer(valid_request()).outputs[0].name == "probabilities"


def test_a_typed_nan_is_refused_like_a_raw_one(client: RawClient) -> None:
    code, details = refusal(client, typed_request([float("nan")] * 784))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "inputs[0]" in details


def test_a_body_over_the_limit_is_refused_with_both_sizes(client: RawClient) -> None:
    request = valid_request()
    request.raw_input_contents[0] = bytes(MOST_BYTES + 1)
    code, details = refusal(client, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == f"ModelInferRequest has {request.ByteSize()} bytes, at most {MOST_BYTES} are accepted"


def test_a_body_far_over_the_limit_is_not_even_read(client: RawClient) -> None:
    request = valid_request()
    request.raw_input_contents[0] = bytes(2 * MOST_BYTES + 1)
    code, details = refusal(client, request)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(2 * MOST_BYTES) in details


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic YTpi", "Bearer pk_short", "Bearer "])
def test_a_missing_or_malformed_key_is_unauthenticated(client: RawClient, header: str | None) -> None:
    metadata = () if header is None else (("authorization", header),)
    with pytest.raises(grpc.RpcError) as caught:
        client.call("ModelInfer", valid_request(), pb.ModelInferResponse, metadata)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_unknown_key_and_a_wrong_secret_are_unauthenticated_alike(client: RawClient) -> None:
    unknown, _ = issue_key("alice")
    wrong = client.key[:-1] + ("A" if client.key[-1] != "A" else "B")
    assert refusal(client, valid_request(), unknown) == refusal(client, valid_request(), wrong)
    assert refusal(client, valid_request(), unknown)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_without_a_key_nobody_learns_whether_a_model_exists(client: RawClient) -> None:
    request = valid_request()
    request.model_name = "other"
    assert refusal(client, request, "nonsense")[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(("name", "version", "field"), [("other", "", "model_name"), ("fashion", "2", "model_version")])
def test_an_unknown_model_or_version_is_not_found(client: RawClient, name: str, version: str, field: str) -> None:
    request = valid_request()
    request.model_name, request.model_version = name, version
    code, details = refusal(client, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert field in details
    for method, message, response in (
        ("ModelReady", pb.ModelReadyRequest(name=name, version=version), pb.ModelReadyResponse),
        ("ModelMetadata", pb.ModelMetadataRequest(name=name, version=version), pb.ModelMetadataResponse),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            client.call(method, message, response)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.NOT_FOUND


def test_an_unknown_method_is_unimplemented(client: RawClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.call("ModelStreamInfer", valid_request(), pb.ModelInferResponse)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_typed_contents_are_answered_with_typed_contents(client: RawClient) -> None:
    raw = client.infer(valid_request())
    typed = client.infer(typed_request([0.0] * 784))
    assert not typed.raw_output_contents
    np.testing.assert_allclose(
        typed.outputs[0].contents.fp32_contents, np.frombuffer(raw.raw_output_contents[0], "<f4"), atol=1e-6
    )
    assert not raw.outputs[0].HasField("contents")


def test_differences_below_a_step_of_the_view_change_no_answer(client: RawClient) -> None:
    shifted = valid_request()
    shifted.raw_input_contents[0] = np.full(784, 0.4 / 255, dtype="<f4").tobytes()
    assert client.infer(shifted).raw_output_contents == client.infer(valid_request()).raw_output_contents
