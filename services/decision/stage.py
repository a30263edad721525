"""Decision as a stage of the stream: signals and overrides in, verdicts and alerts out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from services.decision.findings import encode_finding, finding_headers, severity
from services.decision.policy import Alert, Sighting, decide, refusal
from services.decision.record import FORMAT, Record, decode, encode, format_of
from services.decision.rules import Policy
from shared.bundle import Manifest
from shared.codec import decode_override, decode_signals, encode_signals, encode_verdict
from shared.detection import EncodedState
from shared.events import Override, Signal, SignalBatch, Verdict
from shared.metrics import ALERTS_ISSUED, VERDICTS_ISSUED
from shared.stage import Batch, Output, Rejection, Stage, StageError, own_batch_id, rows_by_key
from shared.stage import Record as SourceRecord
from shared.topics import ALERTS, OVERRIDES, SIGNALS, VERDICTS, partition_of

Content: TypeAlias = SignalBatch | Override
Decisions: TypeAlias = list[tuple[Verdict | None, Alert | None]]

LARGEST_CLOCK_ERROR = 5 * 60 * 1_000_000
"""Microseconds by which a person's clock may be ahead of the record's."""


class DecisionStage(Stage[Content, None, Record, Decisions]):
    """The policy over all accounts of one model."""

    name = "decision"
    sources = (SIGNALS, OVERRIDES)
    sinks = (VERDICTS, ALERTS)

    def __init__(self, policy: Policy, manifest: Manifest, fingerprint: str, partitions: int) -> None:
        """
        Args:
            policy: bound to the bundle's threshold.
            manifest: the bundle's; signals of another model, version or number of profiles are rejected.
            fingerprint: the bundle's; under another one the detectors' words are forgotten, decisions are not.
            partitions: of both sources; what lies in a partition where its account does not belong is rejected.
        """
        self._policy = policy
        self._model = manifest.model
        self._profiles = manifest.profiles
        self._fingerprint = fingerprint
        self._partitions = partitions

    def decode(self, record: SourceRecord) -> Batch[Content]:
        """Signals of the bundle's model and version without the absurd ones, or an override of that model.

        Raises:
            CodecError: the bytes are no signals, or no override.
            StageError: they are, of another model or version, in the wrong place, or absurd.
        """
        return self._decode_override(record) if record.topic == OVERRIDES else self._decode_signals(record)

    def _decode_override(self, record: SourceRecord) -> Batch[Content]:
        override = decode_override(record.value)
        if override.model_name != self._model.name:
            raise StageError("version", f"the override is for model {override.model_name!r}, not {self._model.name!r}")
        if fault := self._misplaced(override.account, record) or refusal(override, self._profiles):
            raise StageError("override", fault)
        if record.key != override.account.encode():
            raise StageError("override", f"the record's key is {record.key!r}, the account {override.account!r}")
        if override.issued_at > record.timestamp + LARGEST_CLOCK_ERROR:
            raise StageError("override", "issued_at is in the future")
        return Batch(record, override, rows_by_key([self._key(override.account)]))

    def _decode_signals(self, record: SourceRecord) -> Batch[Content]:
        batch = decode_signals(record.value)
        got, expected = (batch.model_name, batch.model_version), (self._model.name, self._model.version)
        if got != expected:
            raise StageError("version", f"the signals are of model {got}, this decision's bundle is of {expected}")
        faults = [self._misplaced(s.account, record) or self._absurd(batch, s) for s in batch.signals]
        if faults and all(faults):
            raise StageError("signal", f"{batch.detector}: {faults[0]}")
        rejected = tuple(
            Rejection(_only(batch, number), StageError("signal", f"{batch.detector}: {fault}"))
            for number, fault in enumerate(faults)
            if fault
        )
        good = tuple(signal for signal, fault in zip(batch.signals, faults, strict=True) if not fault)
        content = replace(batch, signals=good)
        rows = rows_by_key([self._key(signal.account) for signal in good])
        return Batch(record, content, rows, _identity(batch), rejected)

    def _misplaced(self, account: str, record: SourceRecord) -> str | None:
        place = partition_of(account, self._partitions)
        return None if place == record.partition else f"belongs to partition {place}, not {record.partition}"

    def _absurd(self, batch: SignalBatch, signal: Signal) -> str | None:
        return refusal(_sighting(batch, signal), self._profiles)

    def _key(self, account: str) -> str:
        return f"{self._model.name}/{account}"

    def prepare(self, batches: Sequence[Batch[Content]]) -> Sequence[None]:
        """Nothing."""
        return [None] * len(batches)

    def initial(self, key: str) -> Record:
        """An account of which nothing is known."""
        model_name, account = key.split("/", 1)
        return Record(account=account, model_name=model_name)

    def readable(self, head: bytes) -> bool:
        """Whether the record is of this format."""
        return bool(format_of(head) == FORMAT)

    def needed_chunks(self, head: bytes) -> Sequence[str]:
        """None: a record is small and written whole."""
        return ()

    def restore(self, key: str, head: bytes, chunks: Mapping[str, bytes]) -> Record:
        """The record; see `services.decision.record.decode`."""
        return decode(head, self._fingerprint)

    def encode(self, state: Record) -> EncodedState:
        """The record, whole."""
        return EncodedState(head=encode(state, self._fingerprint), chunks={}, deleted=())

    def step(self, state: Record, batch: Batch[Content], prepared: None, key: str) -> tuple[Record, Decisions]:
        """Decide on the account's events of one record; the moment is the record's own, as Kafka keeps it."""
        content, decisions = batch.content, Decisions()
        for row in batch.rows[key].tolist():
            event = content if isinstance(content, Override) else _sighting(content, content.signals[row])
            state, verdict, alert = decide(state, event, self._policy, batch.record.timestamp)
            decisions.append((verdict, alert))
        return state, decisions

    def outputs(self, batch: Batch[Content], results: Mapping[str, Decisions]) -> Sequence[Output]:
        """Verdicts and alerts, keyed by account."""
        outputs: list[Output] = []
        for decisions in results.values():
            for verdict, alert in decisions:
                if verdict is not None:
                    VERDICTS_ISSUED.labels(verdict.action.name.lower()).inc()
                    outputs.append(Output(VERDICTS, encode_verdict(verdict), verdict.account.encode()))
                if alert is not None:
                    ALERTS_ISSUED.labels(severity(alert).lower()).inc()
                    key, headers = alert.account.encode(), finding_headers(alert)
                    outputs.append(Output(ALERTS, encode_finding(alert), key, headers=headers))
        return outputs

    def accepted_at(self, batch: Batch[Content]) -> NDArray[np.int64] | None:
        """Of the signals' queries."""
        if isinstance(batch.content, Override):
            return None
        return np.array([signal.accepted_at for signal in batch.content.signals], dtype=np.int64)


def _sighting(batch: SignalBatch, signal: Signal) -> Sighting:
    return Sighting(batch.detector, batch.batch_id, batch.source_partition, batch.source_offset, signal)


def _identity(batch: SignalBatch) -> bytes:
    # All detectors speak of the same batch of queries under its id.
    return hashlib.blake2b(batch.detector.encode() + b"/" + batch.batch_id, digest_size=16).digest()


def _only(batch: SignalBatch, number: int) -> bytes:
    alone = replace(batch, batch_id=own_batch_id(batch.batch_id, number), signals=(batch.signals[number],))
    return encode_signals(alone)
