"""The stock Triton client, in a process of its own: two stub sets of package `inference` cannot share one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.inference.network import Classifier
from shared.bundle import Bundle
from shared.networks import images, load_network
from tests.support.inference import InferenceProcess

PROGRAM = """
import json, sys
import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

address, key, output = sys.argv[1:]
client = grpcclient.InferenceServerClient(address)
headers = {"authorization": f"Bearer {key}"}
rows = (np.arange(2 * 784) % 256).astype(np.uint8).reshape(2, 1, 28, 28)

def ask(array, datatype, **options):
    tensor = grpcclient.InferInput("image", array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return client.infer("fashion", [tensor], **{"headers": headers, **options})

answer = ask((rows / 255.0).astype(np.float32), "FP32", request_id="seven")
named = ask(rows, "UINT8", outputs=[grpcclient.InferRequestedOutput(output)], model_version="1")
try:
    ask(rows, "UINT8", headers={})
    refused = ""
except InferenceServerException as error:
    refused = error.status()
metadata = client.get_model_metadata("fashion", as_json=True)
print(json.dumps({
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready("fashion"),
    "server": client.get_server_metadata(as_json=True)["name"],
    "metadata": metadata,
    "id": answer.get_response().id,
    "parameters": len(answer.get_response().parameters) + len(answer.get_response().outputs[0].parameters),
    "from_float": answer.as_numpy(output).tolist(),
    "from_bytes": named.as_numpy(output).tolist(),
    "refused": refused,
}))
"""


def ask_with_tritonclient(server: InferenceProcess, output: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, server.address, server.key("alice"), output],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def expected_probabilities(folder: Path) -> np.ndarray[Any, Any]:
    rows = (np.arange(2 * 784) % 256).astype(np.uint8).reshape(2, 1, 28, 28)
    network = load_network(Classifier((1, 28, 28), 10), Bundle.load(folder / "bundle").tensors("victim"))
    probabilities: np.ndarray[Any, Any] = network(images(rows)).softmax(dim=1).cpu().numpy()
    return probabilities


def test_tritonclient_gets_the_models_probabilities(server: InferenceProcess) -> None:
    report = ask_with_tritonclient(server, "probabilities")
    np.testing.assert_allclose(report["from_float"], expected_probabilities(server.folder), atol=1e-5)
    np.testing.assert_allclose(report["from_bytes"], report["from_float"], atol=1e-6)
    assert report["id"] == "seven"
    assert report["parameters"] == 0
    assert report["refused"] == "StatusCode.UNAUTHENTICATED"


def test_tritonclient_sees_a_live_ready_server_and_the_models_tensors(server: InferenceProcess) -> None:
    report = ask_with_tritonclient(server, "probabilities")
    assert report["live"]
    assert report["ready"]
    assert report["model_ready"]
    assert report["server"] == "portcullis"
    assert report["metadata"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": ["-1", "1", "28", "28"]}]
    assert report["metadata"]["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": ["-1", "10"]}]


@pytest.mark.timeout(180)
def test_in_label_mode_tritonclient_gets_labels_and_no_probabilities(tmp_path: Path) -> None:
    server = InferenceProcess(tmp_path, defence=False, answer_mode="label")
    server.key("alice")
    with server:
        report = ask_with_tritonclient(server, "label")
    assert report["from_float"] == expected_probabilities(tmp_path).argmax(axis=1).tolist()
    assert report["metadata"]["outputs"] == [{"name": "label", "datatype": "INT64", "shape": ["-1"]}]
