"""The protocol's tensors; what clients do wrong is in tests/contract/test_bad_requests.py."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from services.inference.responses.interface import AnswerMode
from services.inference.tensors import Interface
from shared.bundle import ModelSection
from shared.pb.open_inference import open_inference_grpc_pb2 as pb

MODEL = ModelSection(name="m", version="1", classes=("a", "b", "c"), input_shape=(2, 3), test_accuracy=1.0)
INTERFACE = Interface(MODEL, AnswerMode.PROBABILITIES, most_rows=10, most_bytes=1 << 20)

VIEWS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 10), st.just(2), st.just(3)))


def request(array: np.ndarray, datatype: str, raw: bool) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="image", datatype=datatype, shape=array.shape)
    if raw:
        message.raw_input_contents.append(array.tobytes())
    else:
        field = "fp32_contents" if datatype == "FP32" else "uint_contents"
        getattr(tensor.contents, field).extend(array.ravel().tolist())
    return message


@given(view=VIEWS, raw=st.booleans())
def test_bytes_and_their_fractions_of_255_are_the_same_view(view: np.ndarray, raw: bool) -> None:
    as_bytes = INTERFACE.decode(request(view, "UINT8", raw))
    as_floats = INTERFACE.decode(request((view / 255).astype("<f4"), "FP32", raw))
    np.testing.assert_array_equal(as_bytes.inputs, view)
    np.testing.assert_array_equal(as_floats.inputs, view)
    assert as_bytes.raw is raw


@given(values=arrays.arrays(np.float32, (2, 2, 3), elements=st.floats(0, 1, width=32)))
def test_a_float_becomes_the_nearest_of_256_steps(values: np.ndarray) -> None:
    view = INTERFACE.decode(request(values, "FP32", raw=True)).inputs
    assert np.abs(view / 255 - values).max() <= 0.5 / 255 + 1e-6


@given(raw=st.booleans(), mode=st.sampled_from(list(AnswerMode)))
def test_answers_come_as_the_request_came_and_carry_nothing_else(raw: bool, mode: AnswerMode) -> None:
    interface = Interface(MODEL, mode, most_rows=10, most_bytes=1 << 20)
    message = request(np.zeros((2, 2, 3), dtype=np.uint8), "UINT8", raw)
    message.id = "seven"
    answers = np.array([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]], dtype=np.float32)
    response = interface.encode(message, interface.decode(message), answers)
    output = response.outputs[0]
    label = mode is AnswerMode.LABEL
    dtype = "<i8" if label else "<f4"
    typed = output.contents.int64_contents if label else output.contents.fp32_contents
    values = np.frombuffer(response.raw_output_contents[0], dtype) if raw else np.array(typed)
    expected = answers.argmax(axis=1) if label else answers.ravel()
    np.testing.assert_array_equal(values, expected)
    assert (response.id, response.model_name, response.model_version) == ("seven", "m", "1")
    assert list(output.shape) == ([2] if label else [2, 3])
    assert output.datatype == ("INT64" if label else "FP32")
    assert not response.parameters
    assert not output.parameters
