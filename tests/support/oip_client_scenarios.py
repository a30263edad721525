"""What the red team's client does against endpoints that answer, throttle, vanish and ban: run as `SCRIPT SCENARIO`.

A program of its own, since tritonclient's stubs and ours cannot be imported into one process. The endpoints are real
gRPC servers made of tritonclient's own stubs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from services.redteam.attack import Banned
from services.redteam.campaign import Campaign, recovering
from services.redteam.client import EndpointError, VictimClient
from services.redteam.honest import Pace
from services.redteam.plan import CampaignPlan, ClientPlan
from services.redteam.pool import RandomSelection
from services.redteam.recovery import Recovering
from shared.datasets import load_fashion_mnist

IMAGES = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 1, 28, 28)
KEY = "pk_of_nobody"


class Endpoint(rpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers a model of ten classes; `before` may refuse a request, told how many came before it."""

    def __init__(self, before: Callable[[int, Any], None], labels: bool) -> None:
        self.before = before
        self.labels = labels
        self.requests: list[Any] = []
        self.keys: set[str] = set()

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        response = pb.ModelMetadataResponse(name="clothes")
        response.inputs.add(name="image", datatype="FP32", shape=[-1, 1, 28, 28])
        shape = [-1] if self.labels else [-1, 10]
        response.outputs.add(name="answer", datatype="INT64" if self.labels else "FP32", shape=shape)
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.requests.append(request)
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        self.before(len(self.requests) - 1, context)
        rows = request.inputs[0].shape[0]
        sums = np.frombuffer(request.raw_input_contents[0], dtype=np.uint8).reshape(rows, -1).sum(axis=1) % 10
        array = sums.astype(np.int64) if self.labels else np.eye(10, dtype=np.float32)[sums] * 0.9 + 0.01
        response = pb.ModelInferResponse(model_name="clothes", raw_output_contents=[array.tobytes()])
        datatype = "INT64" if self.labels else "FP32"
        response.outputs.add(name="answer", datatype=datatype, shape=list(array.shape))
        return response


@contextmanager
def serving(
    before: Callable[[int, Any], None] = lambda n, context: None, labels: bool = False
) -> Iterator[tuple[Endpoint, str]]:
    """An endpoint on a free port."""
    server = grpc.server(ThreadPoolExecutor(4))
    endpoint = Endpoint(before, labels)
    rpc.add_GRPCInferenceServiceServicer_to_server(endpoint, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield endpoint, f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def expected() -> Any:
    """The class that the endpoint tells of each of IMAGES."""
    return IMAGES.reshape(3, -1).sum(axis=1) % 10


def probabilities_come_as_they_are() -> None:
    """And images go as bytes, under the account's key."""
    with serving() as (endpoint, address), VictimClient(address, KEY, "clothes") as client:
        answer = client.query(IMAGES)
        assert answer.shape == (3, 10)
        assert answer.dtype == np.float32
        assert (answer.argmax(axis=1) == expected()).all()
        assert abs(answer.max() - 0.91) < 1e-6
        assert endpoint.keys == {f"Bearer {KEY}"}
        assert endpoint.requests[0].inputs[0].datatype == "UINT8"
        assert endpoint.requests[0].raw_input_contents[0] == IMAGES.tobytes()


def labels_come_as_one_hot_rows() -> None:
    """Of as many classes as the client was told."""
    with serving(labels=True) as (_, address), VictimClient(address, KEY, "clothes", classes=12) as client:
        answer = client.query(IMAGES)
        assert answer.shape == (3, 12)
        assert (answer.sum(axis=1) == 1).all()
        assert (answer.argmax(axis=1) == expected()).all()


def a_ban_is_told_as_such() -> None:
    """At once, without asking again."""

    def ban(request: int, context: Any) -> None:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "permission denied")

    with serving(ban) as (endpoint, address), VictimClient(address, KEY, "clothes") as client:
        with pytest.raises(Banned):
            client.query(IMAGES)
        assert len(endpoint.requests) == 1


def throttling_is_waited_out_as_told() -> None:
    """The endpoint's own delay, longer than the client's first."""

    def throttle(request: int, context: Any) -> None:
        if request == 0:
            context.set_trailing_metadata((("retry-after", "1"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down")

    with serving(throttle) as (endpoint, address), VictimClient(address, KEY, "clothes") as client:
        started = time.monotonic()
        client.query(IMAGES)
        assert 0.9 < time.monotonic() - started < 5
        assert len(endpoint.requests) == 2


def an_endpoint_that_is_away_is_asked_again() -> None:
    """With growing pauses."""
    times: list[float] = []

    def away(request: int, context: Any) -> None:
        times.append(time.monotonic())
        if request < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")

    with serving(away) as (_, address), VictimClient(address, KEY, "clothes") as client:
        client.query(IMAGES)
        pauses = np.diff(times)
        assert len(pauses) == 3
        assert pauses[2] > 1.5 * pauses[0]


def patience_ends() -> None:
    """With the endpoint's own words."""

    def away(request: int, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone fishing")

    with (
        serving(away) as (_, address),
        VictimClient(address, KEY, "clothes", patience=0.5) as client,
        pytest.raises(EndpointError, match="gone fishing"),
    ):
        client.query(IMAGES)


def a_refusal_that_waiting_will_not_mend_is_an_error_at_once() -> None:
    """A wrong key, for one."""

    def refuse(request: int, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")

    with serving(refuse) as (endpoint, address), VictimClient(address, KEY, "clothes") as client:
        with pytest.raises(EndpointError, match="who are you"):
            client.query(IMAGES)
        assert len(endpoint.requests) == 1


def a_pace_is_kept() -> None:
    """Twenty queries at 40 a second take half a second less the first."""
    pace = Pace(40.0)
    started = time.monotonic()
    for _ in range(21):
        pace.wait(1)
    assert 0.45 < time.monotonic() - started < 1.5


def a_client_that_fell_behind_catches_up_by_a_second_at_most() -> None:
    """A pause of two seconds gives back one second's worth of queries at once, and no more."""
    pace = Pace(10.0)
    pace.wait(1)
    time.sleep(2.2)
    started = time.monotonic()
    for _ in range(10):
        pace.wait(1)
    assert time.monotonic() - started < 0.5
    for _ in range(5):
        pace.wait(1)
    assert time.monotonic() - started > 0.3


def _plan(address: str, report: Path, *clients: ClientPlan) -> CampaignPlan:
    return CampaignPlan(address=address, model="clothes", clients=clients, report=report)


def a_campaign_drives_every_account_and_reports() -> None:
    """Each under its own key, each as many queries as planned; a banned one as far as it came."""

    def ban_one(request: int, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        if metadata["authorization"] == "Bearer thief" and request > 40:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "permission denied")

    clients = (
        ClientPlan(account="shop", key="shop", role="honest", kind="shoes", queries=70),
        ClientPlan(account="crates", key="crates", role="honest", kind="batches", queries=64),
        ClientPlan(account="thief", key="thief", role="attack", kind="knockoff-digits", queries=900),
    )
    with serving(ban_one) as (endpoint, address), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        report = Campaign(_plan(address, path, *clients)).run()
        written = json.loads(path.read_text())["accounts"]
    assert endpoint.keys == {"Bearer shop", "Bearer crates", "Bearer thief"}
    assert {name: one["state"] for name, one in written.items()} == {
        "shop": "done",
        "crates": "done",
        "thief": "banned",
    }
    assert (written["shop"]["queries"], written["crates"]["queries"]) == (70, 64)
    assert written["thief"]["queries"] < 900
    assert report.over
    sizes = {request.inputs[0].shape[0] for request in endpoint.requests}
    assert sizes == {1, 32}


def a_campaign_tells_which_account_failed_and_why() -> None:
    """And the others go on."""

    def refuse_one(request: int, context: Any) -> None:
        if dict(context.invocation_metadata())["authorization"] == "Bearer wrong":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")

    clients = (
        ClientPlan(account="right", key="right", role="honest", kind="steady", queries=20),
        ClientPlan(account="wrong", key="wrong", role="honest", kind="steady", queries=20),
    )
    with serving(refuse_one) as (_, address), tempfile.TemporaryDirectory() as folder:
        report = Campaign(_plan(address, Path(folder) / "report.json", *clients)).run()
    assert report.accounts["right"].state == "done"
    assert report.accounts["wrong"].state == "failed"
    assert "who are you" in report.accounts["wrong"].error


def an_adaptive_attacker_sends_what_its_plan_says() -> None:
    """Seven honest images to each of its own, and its own blinded."""
    client = ClientPlan(
        account="thief",
        key="thief",
        role="attack",
        kind="random-natural",
        queries=64,
        blinding="contrast",
        blinding_strength="high",
        mix=0.875,
    )
    with serving() as (endpoint, address), tempfile.TemporaryDirectory() as folder:
        report = Campaign(_plan(address, Path(folder) / "report.json", client)).run()
    natural = {image.tobytes() for image in load_fashion_mnist("test").images}
    blinded = sum(request.raw_input_contents[0] not in natural for request in endpoint.requests)
    assert (len(endpoint.requests), report.accounts["thief"].queries) == (64, 64)
    assert 6 <= blinded <= 8


def attackers_without_data_send_what_they_invent() -> None:
    """Under their names in a plan, and as many as they may."""
    clients = [
        ClientPlan(account=kind, key=kind, role="attack", kind=kind, queries=300, request_rows=60)
        for kind in ("dfms-hl", "maze")
    ]
    with serving(labels=True) as (endpoint, address), tempfile.TemporaryDirectory() as folder:
        report = Campaign(_plan(address, Path(folder) / "report.json", *clients)).run()
    assert {account: (one.state, one.queries) for account, one in report.accounts.items()} == {
        "dfms-hl": ("done", 300),
        "maze": ("done", 300),
    }
    natural = {image.tobytes() for image in load_fashion_mnist("test").images}
    for request in endpoint.requests:
        sent = np.frombuffer(request.raw_input_contents[0], dtype=np.uint8).reshape(-1, 28 * 28)
        assert not natural & {image.tobytes() for image in sent}


def a_plan_says_whether_an_attacker_mends_its_answers() -> None:
    """By the attack that it wraps, or not."""
    data = load_fashion_mnist("test")[:20]
    attack = RandomSelection(data.images)
    for mending in (False, True):
        client = ClientPlan(
            account="thief", key="", role="attack", kind="random-natural", queries=1, recovering=mending
        )
        found = recovering(client, attack, data, np.random.default_rng(0))
        assert (found is attack) is not mending
        assert isinstance(found, Recovering) is mending


SCENARIOS: dict[str, Callable[[], None]] = {
    scenario.__name__: scenario
    for scenario in (
        probabilities_come_as_they_are,
        labels_come_as_one_hot_rows,
        a_ban_is_told_as_such,
        throttling_is_waited_out_as_told,
        an_endpoint_that_is_away_is_asked_again,
        patience_ends,
        a_refusal_that_waiting_will_not_mend_is_an_error_at_once,
        a_pace_is_kept,
        a_client_that_fell_behind_catches_up_by_a_second_at_most,
        a_campaign_drives_every_account_and_reports,
        a_campaign_tells_which_account_failed_and_why,
        an_adaptive_attacker_sends_what_its_plan_says,
        attackers_without_data_send_what_they_invent,
        a_plan_says_whether_an_attacker_mends_its_answers,
    )
}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            SCENARIOS[name]()
        except (AssertionError, pytest.fail.Exception):
            traceback.print_exc()
        else:
            print(f"{name}: passed")
