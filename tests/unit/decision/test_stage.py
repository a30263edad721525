"""Decision as a stage: what it reads, refuses and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.decision.record import Record
from services.decision.stage import DecisionStage
from shared.codec import (
    CodecError,
    decode_signals,
    decode_verdict,
    encode_override,
    encode_signals,
)
from shared.detection import StateError
from shared.events import Action, Override, OverrideKind, Signal, SignalBatch, Verdict
from shared.stage import Output, StageError
from shared.stage import Record as SourceRecord
from shared.topics import ALERTS, OVERRIDES, SIGNALS, VERDICTS, Topic, partition_of
from tests.support.decisions import HOUR, SECOND, START, default_policy, manifest, override, sighting

PARTITIONS = 4
HOME = partition_of("mallory", PARTITIONS)
ELSEWHERE = next(f"user-{n}" for n in range(100) if partition_of(f"user-{n}", PARTITIONS) != HOME)
NEIGHBOUR = next(f"user-{n}" for n in range(100) if partition_of(f"user-{n}", PARTITIONS) == HOME)


@pytest.fixture
def stage() -> DecisionStage:
    return DecisionStage(default_policy(), manifest(), "bundle", PARTITIONS)


def signal_of(account: str, r: float, queries: int = 100) -> Signal:
    return replace(sighting(queries - 1, r).signal, account=account)


def signals(*of: Signal, detector: str = "tmsp", offset: int = 7, **changes: object) -> SignalBatch:
    batch = SignalBatch(detector, "fashion", "1", offset.to_bytes(16, "big"), HOME, offset, of)
    return replace(batch, **changes)  # type: ignore[arg-type]


def record(
    topic: Topic, value: bytes, *, key: bytes | None = None, at: int = START, partition: int = HOME
) -> SourceRecord:
    return SourceRecord(topic, partition, 3, at, value, key)


def record_of(event: SignalBatch | Override, **fields: object) -> SourceRecord:
    if isinstance(event, Override):
        return record(OVERRIDES, encode_override(event), **{"key": event.account.encode(), **fields})  # type: ignore[arg-type]
    return record(SIGNALS, encode_signals(event), **fields)  # type: ignore[arg-type]


def run(stage: DecisionStage, *events: SignalBatch | Override) -> list[Output]:
    """All outputs, with every record cut and restored between two events."""
    heads: dict[str, bytes] = {}
    sent: list[Output] = []
    for number, event in enumerate(events):
        batch = stage.decode(record_of(event, at=START + number * SECOND))
        (prepared,) = stage.prepare([batch])
        results = {}
        for key in batch.rows:
            state = stage.restore(key, heads[key], {}) if key in heads else stage.initial(key)
            state, results[key] = stage.step(state, batch, prepared, key)
            heads[key] = stage.encode(state).head
        sent += stage.outputs(batch, results)
    return sent


def verdicts_in(sent: Sequence[Output]) -> list[Verdict]:
    return [decode_verdict(output.value) for output in sent if output.topic == VERDICTS]


def test_evidence_becomes_a_verdict_and_an_alert_under_the_accounts_key(stage: DecisionStage) -> None:
    sent = run(stage, signals(signal_of("mallory", 1e8)))
    assert [(output.topic, output.key) for output in sent] == [(VERDICTS, b"mallory"), (ALERTS, b"mallory")]
    (verdict,) = verdicts_in(sent)
    assert (verdict.account, verdict.model_name, verdict.action) == ("mallory", "fashion", Action.PERTURB)
    assert verdict.issued_at == START


def test_accounts_of_one_record_are_judged_apart(stage: DecisionStage) -> None:
    sent = run(stage, signals(signal_of("mallory", 1e8), signal_of(NEIGHBOUR, 1.0)))
    assert [verdict.account for verdict in verdicts_in(sent)] == ["mallory"]


def test_an_override_outranks_what_the_detectors_go_on_to_say(stage: DecisionStage) -> None:
    pin = override(OverrideKind.PIN, Action.ALLOW)
    later = signals(signal_of("mallory", 1e12, 900), offset=8)
    sent = run(stage, signals(signal_of("mallory", 1e8)), pin, later)
    assert [verdict.action for verdict in verdicts_in(sent)] == [Action.PERTURB, Action.ALLOW]


def test_the_same_batch_has_one_identity_for_each_detector(stage: DecisionStage) -> None:
    one = stage.decode(record_of(signals(signal_of("mallory", 1.0)))).identity
    again = stage.decode(record_of(signals(signal_of("mallory", 2.0), source_offset=9))).identity
    other = stage.decode(record_of(signals(signal_of("mallory", 1.0), detector="prada"))).identity
    assert one is not None
    assert len(one) == 16
    assert one == again
    assert one != other


def test_one_absurd_signal_is_set_aside_and_the_others_of_its_record_are_used(stage: DecisionStage) -> None:
    absurd = signal_of(NEIGHBOUR, 1e9)
    absurd = replace(absurd, log_evidence=absurd.log_evidence.repeat(2))
    batch = stage.decode(record_of(signals(absurd, signal_of("mallory", 1e8))))
    assert list(batch.rows) == ["fashion/mallory"]
    assert isinstance(batch.content, SignalBatch)
    assert [signal.account for signal in batch.content.signals] == ["mallory"]
    (rejection,) = batch.rejected
    assert rejection.error.reason == "signal"
    assert [signal.account for signal in decode_signals(rejection.value).signals] == [NEIGHBOUR]


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (signals(signal_of("mallory", 1.0), model_name="shoes"), "version"),
        (signals(signal_of("mallory", 1.0), model_version="2"), "version"),
        (signals(signal_of(ELSEWHERE, 1.0)), "signal"),
        (signals(replace(signal_of("mallory", 1.0), queries=0)), "signal"),
    ],
)
def test_signals_that_are_not_of_this_bundle_or_place_are_refused(
    stage: DecisionStage, batch: SignalBatch, reason: str
) -> None:
    with pytest.raises(StageError) as refused:
        stage.decode(record_of(batch))
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("change", "fields", "reason"),
    [
        ({"model_name": "shoes"}, {}, "version"),
        ({}, {"key": b"somebody"}, "override"),
        ({}, {"key": None}, "override"),
        ({}, {"partition": (HOME + 1) % PARTITIONS}, "override"),
        ({"issued_at": START + HOUR}, {}, "override"),
        ({"author": ""}, {}, "override"),
        ({"reason": "  "}, {}, "override"),
        ({"kind": OverrideKind.PARDON, "action": Action.BAN}, {}, "override"),
    ],
)
def test_a_forged_or_careless_override_is_refused(
    stage: DecisionStage, change: dict[str, object], fields: dict[str, object], reason: str
) -> None:
    pin = override(OverrideKind.PIN, Action.ALLOW)
    stage.decode(record_of(pin))
    with pytest.raises(StageError) as refused:
        stage.decode(record_of(replace(pin, **change), **fields))  # type: ignore[arg-type]
    assert refused.value.reason == reason


@pytest.mark.parametrize("topic", [SIGNALS, OVERRIDES])
@pytest.mark.parametrize("value", [b"", b"\xff\xff", b"{}"])
def test_bytes_that_are_no_event_are_refused(stage: DecisionStage, topic: Topic, value: bytes) -> None:
    with pytest.raises(CodecError):
        stage.decode(record(topic, value))


def test_a_record_that_is_no_record_is_said_to_be_none(stage: DecisionStage) -> None:
    with pytest.raises(StateError):
        stage.readable(b"\x00")
    with pytest.raises(StateError):
        stage.restore("fashion/mallory", b'{"format": 1}', {})
    assert not stage.readable(b'{"format": 99}')


def test_under_a_new_bundle_a_ban_is_not_forgotten(stage: DecisionStage) -> None:
    batch = stage.decode(record_of(override(OverrideKind.PIN, Action.BAN)))
    state, _ = stage.step(stage.initial("fashion/mallory"), batch, None, "fashion/mallory")
    state, _ = stage.step(state, stage.decode(record_of(signals(signal_of("mallory", 1e8)))), None, "fashion/mallory")
    head = stage.encode(state).head
    new = DecisionStage(default_policy(), manifest(), "another", PARTITIONS)
    restored = new.restore("fashion/mallory", head, {})
    assert restored.action is Action.BAN
    assert restored.standing.action is Action.PERTURB
    assert not restored.latest


def test_an_accounts_name_may_hold_a_slash(stage: DecisionStage) -> None:
    assert stage.initial("fashion/team/robot") == Record(account="team/robot", model_name="fashion")


def test_a_record_stays_small(stage: DecisionStage) -> None:
    key, state = "fashion/mallory", stage.initial("fashion/mallory")
    for offset in range(8, 400):
        batch = stage.decode(record_of(signals(signal_of("mallory", 1e8, offset), offset=offset)))
        state, _ = stage.step(state, batch, None, key)
        said = stage.decode(record_of(override(OverrideKind.CLEAR)))
        state, _ = stage.step(state, said, None, key)
    assert len(stage.encode(state).head) < 4096


# ---- alerts ----


def test_an_alert_is_an_ocsf_detection_finding_in_a_cloudevents_envelope(stage: DecisionStage) -> None:
    sent = run(stage, signals(signal_of("mallory", 1e8)))
    (alert,) = [output for output in sent if output.topic == ALERTS]
    headers = dict(alert.headers)
    assert headers["ce_specversion"] == b"1.0"
    assert headers["content-type"] == b"application/json"
    assert headers["ce_source"] == b"/portcullis/decision"
    assert headers["ce_time"] == b"2023-11-14T22:13:20.000+00:00"
    assert headers["ce_type"] == b"portcullis.detection_finding.create"
    finding = json.loads(alert.value)
    assert headers["ce_id"].decode() == finding["metadata"]["uid"]
    assert (finding["class_uid"], finding["category_uid"], finding["type_uid"]) == (2004, 2, 200401)
    assert (finding["severity_id"], finding["status_id"], finding["is_alert"]) == (4, 1, True)
    assert finding["time"] == START // 1000
    (attack,) = finding["finding_info"]["attacks"]
    assert attack["sub_technique"] == {"uid": "AML.T0024.002", "name": "Extract AI Model"}
    seen = finding["unmapped"]["detectors"]["tmsp"]
    assert (seen["statistic"], seen["threshold"], seen["query_id"]) == (0.7, 0.5, "query-100")
    assert finding["unmapped"]["query_id"] == "query-100"


def test_a_statistic_that_is_not_there_yet_is_null_and_the_json_is_strict(stage: DecisionStage) -> None:
    young = replace(signal_of("mallory", 1e8), statistic=float("nan"))
    (alert,) = [output for output in run(stage, signals(young)) if output.topic == ALERTS]
    finding = json.loads(alert.value, parse_constant=pytest.fail)
    assert finding["unmapped"]["detectors"]["tmsp"]["statistic"] is None


def test_a_persons_decision_names_them_in_the_finding(stage: DecisionStage) -> None:
    (alert,) = [out for out in run(stage, override(OverrideKind.PIN, Action.BAN)) if out.topic == ALERTS]
    finding = json.loads(alert.value)
    assert finding["unmapped"]["author"] == "ada"
    assert "known customer" in finding["message"]
    assert (finding["action_id"], finding["severity"]) == (2, "Critical")
