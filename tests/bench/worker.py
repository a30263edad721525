"""How fast each worker drains a topic that was filled while it was away: records and queries a second.

Queries are the same for all detectors; the decision drains what the four have said. From Kafka's own timestamps of the
first and the last record of signals, without the first take; the decision's from the time that its takes took.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from deploy.local import LocalSystem
from shared.bundle import DETECTORS, Bundle
from shared.codec import decode_signals
from shared.settings import ServiceSettings
from shared.topics import SIGNALS
from tests.bench.measure import Plan, SectionError, photographs, spread, trained_bundle
from tests.bench.system import issue_keys, metric, system
from tests.support.photographs import photograph_stream
from tests.support.streams import produce_queries

ACCOUNTS = 200
ROWS = 32
"""Of a record."""
PATIENCE_SECONDS = 600.0


def measure(plan: Plan) -> dict[str, Any]:
    """Fill, start one worker, wait, stop it, start the next."""
    records, repeats = plan.size(1_500, 600), plan.size(3, 1)
    bundle = Bundle.load(trained_bundle())
    issue_keys(plan.folder / "keys.yaml", ["nobody"])
    result: dict[str, Any] = {"records": records, "rows_a_record": ROWS, "accounts": ACCOUNTS, "workers": {}}
    found: dict[str, list[dict[str, float]]] = {}
    with system(plan, "broker", plan.folder / "keys.yaml", services=[]) as broker:
        for repeat in range(repeats):
            prefix = f"bench-{repeat}."
            settings = {"PORTCULLIS_KAFKA": broker.kafka, "PORTCULLIS_TOPIC_PREFIX": prefix}
            names = ServiceSettings(kafka=broker.kafka, topic_prefix=prefix)
            with system(plan, f"fill-{repeat}", plan.folder / "keys.yaml", settings, []):
                plan.report("filling the topic")
                _fill(names, bundle, records, plan.seed + repeat)
            for number, name in enumerate(DETECTORS):
                plan.report(f"{name}: draining, {repeat + 1} of {repeats}")
                with system(plan, f"{name}-{repeat}", plan.folder / "keys.yaml", settings, [name]) as worker:
                    drained = _await_signals(worker, names, name, records, number * records)
                found.setdefault(name, []).append(drained)
            plan.report(f"decision: draining, {repeat + 1} of {repeats}")
            with system(plan, f"decision-{repeat}", plan.folder / "keys.yaml", settings, ["decision"]) as worker:
                found.setdefault("decision", []).append(_await_decision(worker, records * len(DETECTORS)))
    for name, drains in found.items():
        result["workers"][name] = {unit: spread([drain[unit] for drain in drains]) for unit in drains[0]}
    return result


def _fill(settings: ServiceSettings, bundle: Bundle, records: int, seed: int) -> None:
    """`records` batches of honest queries, of any accounts of one partition each."""
    images = photographs(min(records * ROWS, 60_000), seed)
    batches = photograph_stream(bundle, images, records, ROWS, ACCOUNTS, settings.partitions, seed)
    produce_queries(settings.kafka, settings.topic_prefix, batches)


def _await_signals(
    worker: LocalSystem, settings: ServiceSettings, name: str, records: int, before: int
) -> dict[str, float]:
    """Wait until the worker has answered every record; `before` records of others lie in front."""
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.split(","), enable_auto_commit=False)
    consumer.assign([TopicPartition(settings.topic(SIGNALS), p) for p in range(settings.partitions)])
    consumer.seek_to_beginning()
    times: list[int] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(times) < records:
        worker.check()
        if time.monotonic() > deadline:
            raise SectionError(f"{name} answered {len(times)} of {records} records (after {before} of others)")
        for found in consumer.poll(timeout_ms=500).values():
            times += [record.timestamp for record in found if decode_signals(record.value).detector == name]
    consumer.close()
    return _rates(np.sort(np.array(times)) / 1e3)


def _rates(seconds: np.ndarray) -> dict[str, float]:
    """Of records with these times; what the first take answered only sets the clock."""
    first = seconds[0] + 0.05
    later = seconds[seconds > first]
    if not len(later):
        raise SectionError("the worker drained everything in one take: measure more records")
    rate = len(later) / (later[-1] - seconds[seconds <= first][-1])
    return {"records_a_second": float(rate), "queries_a_second": float(rate * ROWS)}


def _await_decision(worker: LocalSystem, records: int) -> dict[str, float]:
    url, deadline = worker.metrics_url("decision"), time.monotonic() + PATIENCE_SECONDS
    while (taken := metric(url, r"portcullis_worker_records_total\{")) < records:
        worker.check()
        if time.monotonic() > deadline:
            raise SectionError(f"the decision took {taken:.0f} of {records} records")
        time.sleep(0.2)
    rate = taken / metric(url, r"portcullis_worker_take_seconds_sum\{")
    return {"records_a_second": rate, "queries_a_second": rate * ROWS / len(DETECTORS)}
