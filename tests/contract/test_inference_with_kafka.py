"""The service against a real Kafka: what it publishes, which verdicts it obeys, and what a client notices of either."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deploy.kafka.broker import Broker, LocalBroker
from services.inference.image_hash import ImageHash
from services.inference.model import Outputs
from services.inference.perceptual_hash import perceptual_hashes
from services.inference.responses.amao import Amao
from services.inference.responses.interface import AnswerMode
from services.inference.responses.looking import look
from services.inference.responses.memory import PerturbedMemory, Promises
from shared.events import Action
from shared.pb.open_inference import open_inference_grpc_pb2 as pb
from shared.responses import AmaoResponse, response_text
from shared.topics import QUERIES, partition_of
from tests.contract.conftest import RawClient
from tests.support.deployment import PARTITIONS, Deployment
from tests.support.inference import InferenceProcess

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def deployment(broker: Broker, topic_prefix: str) -> Deployment:
    made = Deployment(broker, topic_prefix)
    made.create_topics()
    return made


def pictures(rows: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size=(rows, 1, 28, 28), dtype=np.uint8)


def ask(client: RawClient, images: np.ndarray[Any, Any], request_id: str = "") -> np.ndarray[Any, Any]:
    request = pb.ModelInferRequest(model_name="fashion", id=request_id)
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    return np.frombuffer(client.infer(request).raw_output_contents[0], dtype="<f4").reshape(len(images), 10)


def as_account(server: InferenceProcess, account: str, channel: grpc.Channel) -> RawClient:
    return RawClient(channel, server.key(account))


@pytest.fixture
def channel_to() -> Iterator[Any]:
    channels: list[grpc.Channel] = []

    def connect(server: InferenceProcess) -> grpc.Channel:
        channels.append(grpc.insecure_channel(server.address))
        return channels[-1]

    yield connect
    for channel in channels:
        channel.close()


def test_every_answered_query_is_published_as_the_model_saw_it(
    deployment: Deployment, tmp_path: Path, channel_to: Any
) -> None:
    server = deployment.inference(tmp_path, "alice", "bob")
    with server:
        server.wait_for("ready")
        channel = channel_to(server)
        asked: dict[str, np.ndarray[Any, Any]] = {}
        told: dict[str, np.ndarray[Any, Any]] = {}
        for number, (account, rows) in enumerate([("alice", 1), ("bob", 32), ("alice", 3), ("bob", 1)]):
            asked[f"r{number}"] = pictures(rows, number)
            told[f"r{number}"] = ask(as_account(server, account, channel), asked[f"r{number}"], f"r{number}")
    batches = deployment.queries()
    for request in asked:
        rows = [(batch, row) for batch in batches for row, of in enumerate(batch.request_ids) if of == request]
        np.testing.assert_array_equal(np.stack([batch.inputs[row] for batch, row in rows]), asked[request])
        np.testing.assert_array_equal(np.stack([batch.answers[row] for batch, row in rows]), told[request])
        exponentials = np.exp(np.stack([batch.logits[row] for batch, row in rows]))
        np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), told[request], atol=1e-5)
        assert not any(batch.perturbed[row] for batch, row in rows)
    ids = [query_id for batch in batches for query_id in batch.query_ids]
    assert len(ids) == len(set(ids)) == 37
    for record, batch in zip(deployment.records(QUERIES), batches, strict=True):
        assert {partition_of(account, PARTITIONS) for account in batch.accounts} == {record.partition}


def test_a_banned_account_is_told_nothing_but_permission_denied_and_others_notice_nothing(
    deployment: Deployment, tmp_path: Path, channel_to: Any
) -> None:
    server = deployment.inference(tmp_path, "mallory", "alice")
    with server:
        server.wait_for("ready")
        channel = channel_to(server)
        ask(as_account(server, "mallory", channel), pictures(1, 0))
        deployment.issue("mallory", Action.BAN)
        enforced = server.wait_for("verdict enforced", timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            ask(as_account(server, "mallory", channel), pictures(1, 1))
        error: Any = caught.value
        ask(as_account(server, "alice", channel), pictures(1, 2))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == "access denied"
    assert [key for key, _ in error.trailing_metadata() or () if key not in ("grpc-message", "date")] == []
    assert (enforced["account"], enforced["action"], enforced["at_query"]) == ("mallory", "ban", 5)
    assert 0 < enforced["latency_seconds"] < 10


def test_no_ban_is_forgotten_by_a_restart(deployment: Deployment, tmp_path: Path, channel_to: Any) -> None:
    deployment.issue("mallory", Action.BAN)
    server = deployment.inference(tmp_path, "mallory")
    with server:
        server.wait_for("ready")
        with pytest.raises(grpc.RpcError) as caught:
            ask(as_account(server, "mallory", channel_to(server)), pictures(1, 1))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not any(line["event"] == "verdict enforced" for line in server.lines)


def test_a_throttled_account_is_told_when_to_come_back(deployment: Deployment, tmp_path: Path, channel_to: Any) -> None:
    deployment.issue("hasty", Action.THROTTLE, queries_per_second=2.0)
    server = deployment.inference(tmp_path, "hasty")
    with server:
        server.wait_for("ready")
        client = as_account(server, "hasty", channel_to(server))
        ask(client, pictures(4, 0))
        with pytest.raises(grpc.RpcError) as caught:
            ask(client, pictures(1, 1))
        error: Any = caught.value
        wait = float(dict(error.trailing_metadata())["retry-after"])
        time.sleep(wait)
        ask(client, pictures(1, 1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1.0 < wait <= 1.5


def test_a_perturbed_account_gets_one_wrong_answer_in_16_and_every_replica_repeats_it(
    deployment: Deployment, tmp_path: Path, channel_to: Any
) -> None:
    deployment.issue("mallory", Action.PERTURB)
    asked = pictures(32, 7)
    first = deployment.inference(tmp_path / "first", "mallory", similar_bits=2)
    with first:
        first.wait_for("ready")
        told = np.concatenate(
            [ask(as_account(first, "mallory", channel_to(first)), asked[start : start + 8]) for start in (0, 8, 16, 24)]
        )
    spoiled = deployment.perturbed()
    batches = deployment.queries()
    flags = np.concatenate([batch.perturbed for batch in batches])
    assert flags.sum() == len(spoiled) == 2
    assert all((batch.actions == Action.PERTURB).all() for batch in batches)
    truth = np.exp(np.concatenate([batch.logits for batch in batches]))
    truth /= truth.sum(axis=1, keepdims=True)
    wrong = np.flatnonzero(told.argmax(axis=1) != truth.argmax(axis=1))
    assert wrong.tolist() == np.flatnonzero(flags).tolist()
    assert (told[wrong].argmax(axis=1) == truth[wrong].argmin(axis=1)).all()
    assert {answer.perceptual_hash for answer in spoiled} == {int(h) for h in perceptual_hashes(asked[wrong])}

    second = deployment.inference(tmp_path / "second", "mallory", similar_bits=2)
    with second:
        second.wait_for("ready")
        again = ask(as_account(second, "mallory", channel_to(second)), asked[wrong])
    np.testing.assert_array_equal(again, told[wrong])
    assert len(deployment.perturbed()) == 2


def test_who_asks_two_replicas_at_once_may_see_two_answers_once_and_then_one(
    deployment: Deployment, tmp_path: Path, channel_to: Any
) -> None:
    deployment.issue("mallory", Action.PERTURB, response=response_text(AmaoResponse(group=2)))
    asked = pictures(1, 12)
    # What one replica tells reaches the other a second later, or a slow machine might ask the second too late.
    slowly = {"similar_bits": 0, "publish_linger_ms": 1_000}
    replicas = [deployment.inference(tmp_path / name, "mallory", **slowly) for name in ("first", "second")]
    with replicas[0], replicas[1]:
        for replica in replicas:
            replica.wait_for("ready")
        clients = [as_account(replica, "mallory", channel_to(replica)) for replica in replicas]
        # Of two answers the first is wrong: the second replica's next one, and not the first replica's.
        ask(clients[1], pictures(2, 13))
        ask(clients[0], pictures(1, 14))

        def both() -> list[Any]:
            with ThreadPoolExecutor(2) as threads:
                return list(threads.map(lambda client: ask(client, asked), clients))

        told = both()
        assert not np.array_equal(*told)
        until = time.monotonic() + 20
        while not np.array_equal(*both()):
            assert time.monotonic() < until, "the replicas still contradict each other"
        for _ in range(5):
            for again in both():
                np.testing.assert_array_equal(again, told[1])
    spoiled = [answer.perceptual_hash for answer in deployment.perturbed()]
    assert spoiled.count(int(perceptual_hashes(asked)[0])) == 1
    assert len(spoiled) == 3


def test_a_group_goes_on_where_a_killed_process_left_it(
    deployment: Deployment, tmp_path: Path, channel_to: Any
) -> None:
    deployment.issue("mallory", Action.PERTURB, response=response_text(AmaoResponse(group=7)))
    asked = pictures(50, 11)
    told = []
    for life, start, end in (("first", 0, 19), ("second", 19, 50)):
        server = deployment.inference(tmp_path / life, "mallory", similar_bits=0)
        with server:
            server.wait_for("ready")
            client = as_account(server, "mallory", channel_to(server))
            told += [ask(client, asked[number : number + 1]) for number in range(start, end)]
            while sum(map(len, deployment.queries())) < end:
                time.sleep(0.05)
            server.kill()
    undisturbed = Amao(AnswerMode.PROBABILITIES, 7, PerturbedMemory(100, 0), Promises(100, 100))
    batches = deployment.queries()
    logits = np.concatenate([batch.logits for batch in batches])
    ids = [query_id for batch in batches for query_id in batch.query_ids]
    outputs = Outputs(np.zeros((len(asked), 1), dtype=np.float32), logits)  # amao looks at no features
    phash = ImageHash("phash", perceptual_hashes, 0)
    expected = undisturbed.answer(*look(undisturbed, phash, "mallory", ids, asked, outputs))
    np.testing.assert_allclose(np.concatenate(told), expected.answers, atol=1e-6)
    assert len(deployment.perturbed()) == len(expected.spoiled) == 7


def test_a_broker_that_is_not_there_at_the_start_is_waited_for(tmp_path: Path, channel_to: Any) -> None:
    broker = LocalBroker(tmp_path / "kafka")
    deployment = Deployment(broker, "")
    server = deployment.inference(tmp_path, "alice")
    try:
        with server:
            server.wait_for("kafka is away, events go to the spool")
            broker.start()
            time.sleep(1.0)
            assert not any(line["event"] == "ready" for line in server.lines)
            deployment.create_topics()
            server.wait_for("ready")
            ask(as_account(server, "alice", channel_to(server)), pictures(1, 0))
        assert len(deployment.queries()) == 1
    finally:
        broker.stop()


def test_queries_go_on_while_the_broker_is_stopped_and_each_arrives_once_in_order(
    tmp_path: Path, channel_to: Any
) -> None:
    broker = LocalBroker(tmp_path / "kafka")
    deployment = Deployment(broker, "")
    broker.start()
    try:
        deployment.create_topics()
        server = deployment.inference(tmp_path, "alice", "bob")
        with server:
            server.wait_for("ready")
            server.wait_for("kafka is there")
            stop = threading.Event()
            answered: dict[str, int] = {"alice": 0, "bob": 0}

            def keep_asking(account: str) -> None:
                client = as_account(server, account, channel_to(server))
                while not stop.is_set():
                    ask(client, pictures(1, answered[account]), f"{account}-{answered[account]}")
                    answered[account] += 1
                    time.sleep(0.005)

            threads = [threading.Thread(target=keep_asking, args=(account,), daemon=True) for account in answered]
            for thread in threads:
                thread.start()
            time.sleep(1.0)
            broker.kill()
            server.wait_for("kafka is away, events go to the spool")
            before = dict(answered)
            time.sleep(30.0)
            assert all(answered[account] > before[account] + 50 for account in answered)
            lines = len(server.lines)
            broker.start()
            server.wait_for("spool is empty again", after=lines)
            time.sleep(1.0)
            stop.set()
            for thread in threads:
                thread.join()
        unique = {batch.batch_id: batch for batch in deployment.queries()}
        for account, count in answered.items():
            arrived = [
                request
                for batch in unique.values()
                for request, of in zip(batch.request_ids, batch.accounts, strict=True)
                if of == account
            ]
            assert arrived == [f"{account}-{number}" for number in range(count)]
    finally:
        broker.stop()
