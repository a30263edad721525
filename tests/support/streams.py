"""A fifth detector, small and exact, and what tests need to drive it as a real process on a real Kafka.

`python -m tests.support.streams` runs the detector as a worker.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from numpy.typing import NDArray

from deploy.processes import end, free_port, send_signal, spawn, tail
from shared.bundle import ModelSection
from shared.codec import decode_signals, encode_queries
from shared.detection import Detector, Features, Memory, Observation, Rule, State, Statistic
from shared.events import Action, QueryBatch, Signal, SignalBatch
from shared.evidence import BETS, EvidenceModel
from shared.rows import Rows, RowsLayout
from shared.stage import Batch, DetectorStage
from shared.topics import partition_of
from shared.worker import WorkerSettings, run_worker

MODEL = ModelSection(name="toy", version="1", classes=("a", "b", "c"), input_shape=(1, 2, 2), test_accuracy=1.0)
PARTITIONS = 4

SEEN = RowsLayout(shape=(2,), dtype=np.float64, capacity=20, chunk_rows=4)
"""Small, so that chunks are evicted all the time."""

_MODULUS = 1_000_003


class BrightnessMemory(Memory):
    """The sum over all queries, a number that depends on their order, and the latest values."""

    def __init__(self) -> None:
        self.sums = np.zeros(2)
        self.seen = Rows(SEEN)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"sums": self.sums}

    def rows(self) -> dict[str, Rows]:
        return {"seen": self.seen}

    def restore(self, arrays: Mapping[str, NDArray[Any]], rows: Mapping[str, Rows]) -> None:
        self.sums, self.seen = arrays["sums"], rows["seen"]


class BrightnessDetector(Detector[BrightnessMemory]):
    """Mean brightness over an account's history; every digit depends on every query and on their order."""

    name = "brightness"
    statistics = (Statistic("brightness", suspicious_when_high=True),)

    def __init__(self, fingerprint: str = "one") -> None:
        super().__init__(
            EvidenceModel(
                statistics=("brightness",),
                history_edges=np.array([10]),
                tails=np.array([1.0, 0.5, 0.1]),
                thresholds=np.array(
                    [[0, 100, 200], [0, 120, 180], [0, 60, 250], [0, 70, 220]], dtype=np.float32
                ).reshape(2, 1, 2, 3),
                discount=np.ones((1, len(BETS))),
            ),
            fingerprint,
        )

    def score(self, inputs: NDArray[np.uint8], logits: NDArray[np.float32]) -> Features:
        return {"brightness": inputs.reshape(len(inputs), -1).mean(axis=1)}

    def initial_memory(self) -> BrightnessMemory:
        return BrightnessMemory()

    def layouts(self) -> Mapping[str, RowsLayout]:
        return {"seen": SEEN}

    def observe(self, memory: BrightnessMemory, features: Features, row: int) -> tuple[float, ...]:
        value = float(features["brightness"][row])
        order = (memory.sums[1] * 31 + value * 4) % _MODULUS
        memory.sums = np.array([memory.sums[0] + value, order])
        memory.seen.append(np.array([value, order]))
        return (value,)

    def rule(self, memory: BrightnessMemory) -> Rule:
        latest = memory.seen.array
        statistic = float(latest[:, 0].mean()) if len(latest) else float("nan")
        details = {"sum": float(memory.sums[0]), "order": float(memory.sums[1]), "oldest": float(latest[:1, 1].sum())}
        return Rule(statistic, 130.0, bool(statistic > 130.0), details)


def brightness_stage(partitions: int = PARTITIONS, fingerprint: str = "one") -> DetectorStage:
    """The detector as a stage."""
    return DetectorStage(BrightnessDetector(fingerprint), MODEL, partitions)


def accounts_of(partition: int, count: int, partitions: int = PARTITIONS) -> list[str]:
    """`count` names that belong to a partition."""
    names = (f"account-{number}" for number in itertools.count())
    return list(itertools.islice((name for name in names if partition_of(name, partitions) == partition), count))


def query_batch(accounts: Sequence[str], seed: int, version: str = MODEL.version) -> QueryBatch:
    """A batch of the toy model, a row for each of `accounts`; equal for equal arguments."""
    rng = np.random.default_rng([seed, len(accounts)])
    n = len(accounts)
    identity = hashlib.blake2b(f"{seed}/{'/'.join(accounts)}".encode(), digest_size=16).digest()
    logits = rng.standard_normal((n, len(MODEL.classes))).astype(np.float32)
    return QueryBatch(
        batch_id=identity,
        model_name=MODEL.name,
        model_version=version,
        query_ids=tuple(f"q{seed}-{row}" for row in range(n)),
        accounts=tuple(accounts),
        request_ids=tuple(f"r{seed}-{row}" for row in range(n)),
        accepted_at=np.arange(n, dtype=np.int64) + 1_700_000_000_000_000 + seed * 1000,
        inputs=rng.integers(0, 256, (n, *MODEL.input_shape), dtype=np.uint8),
        logits=logits,
        answers=logits,
        actions=np.full(n, Action.ALLOW, dtype=np.uint8),
        perturbed=np.zeros(n, dtype=np.bool_),
    )


def query_stream(
    seed: int, batches: int, rows: int = 8, accounts: int = 12, partitions: int = PARTITIONS
) -> Iterator[tuple[int, QueryBatch]]:
    """Partition and batch, one after another; `accounts` in each partition, some rows repeated exactly."""
    rng = np.random.default_rng(seed)
    names = [accounts_of(partition, accounts, partitions) for partition in range(partitions)]
    for number in range(batches):
        partition = int(rng.integers(partitions))
        yield partition, query_batch(rng.choice(names[partition], rows).tolist(), seed * 1_000_000 + number)


def identity_of(signals: SignalBatch, said: Signal) -> tuple[str, int, int, str]:
    """Who says a signal, and what it is about: two of one identity must be equal."""
    return signals.detector, signals.source_partition, signals.source_offset, said.account


Signals = dict[tuple[str, int, int, str], Signal]


def by_identity(values: Iterable[bytes], found: Signals | None = None) -> Signals:
    """The signals of many records of `signals`, added to those of `found`.

    Raises:
        AssertionError: two of one identity differ.
    """
    found = {} if found is None else found
    for value in values:
        signals = decode_signals(value)
        for said in signals.signals:
            identity = identity_of(signals, said)
            known = found.setdefault(identity, said)
            assert same_signal(known, said), f"{identity} was said twice, and differently"
    return found


def same_signal(one: Signal, other: Signal) -> bool:
    """Whether two signals are equal bit for bit."""
    return _comparable(one) == _comparable(other)


def _comparable(said: Signal) -> tuple[Any, ...]:
    plain = dataclasses.replace(said, log_evidence=np.zeros(0, dtype=np.float32), details={})
    return repr(plain), said.log_evidence.tobytes(), repr(sorted(said.details.items()))


# ---- on Kafka ----


def produce(address: str, topic: str, records: Iterable[tuple[int, bytes]]) -> None:
    """Send values to partitions, in order, and wait until Kafka has them."""
    producer = KafkaProducer(bootstrap_servers=address, linger_ms=5, max_request_size=9 * 1024 * 1024)
    try:
        sent = [producer.send(topic, value, partition=partition) for partition, value in records]
        for future in sent:
            future.get(timeout=60)
    finally:
        producer.close()


def produce_queries(address: str, prefix: str, batches: Iterable[tuple[int, QueryBatch]]) -> None:
    """Send batches to `queries`."""
    produce(address, f"{prefix}queries", ((partition, encode_queries(batch)) for partition, batch in batches))


def patience(seconds: float) -> float:
    """What is `seconds` on a machine that is not overloaded."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Reader:
    """Reads a topic from its beginning, all partitions."""

    def __init__(self, address: str, topic: str, partitions: int = PARTITIONS) -> None:
        self.records: list[Any] = []
        self._consumer = KafkaConsumer(
            bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False
        )
        self._consumer.assign([TopicPartition(topic, partition) for partition in range(partitions)])

    @property
    def values(self) -> list[bytes]:
        """The values of all records read so far."""
        return [record.value for record in self.records]

    def poll(self, timeout: float = 0.2) -> None:
        """Read what is there."""
        for records in self._consumer.poll(int(timeout * 1000)).values():
            self.records += records

    def until(self, enough: Callable[[], bool], timeout: float) -> None:
        """Read until `enough()` is true.

        Raises:
            AssertionError: it is not within `timeout` seconds, or as many more as this machine is overloaded.
        """
        started_at = time.monotonic()
        while not enough():
            waited = time.monotonic() - started_at
            assert waited < patience(timeout), f"after {waited:.0f} s only {len(self.records)} records"
            self.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._consumer.close()


class SignalReader(Reader):
    """Reads `signals`."""

    def __init__(self, address: str, prefix: str) -> None:
        super().__init__(address, f"{prefix}signals")
        self.found: Signals = {}
        """Every signal so far; one that was said twice was said equally."""

    def poll(self, timeout: float = 0.2) -> None:
        """Read what is there."""
        before = len(self.records)
        super().poll(timeout)
        by_identity((record.value for record in self.records[before:]), self.found)

    def until_found(self, count: int, timeout: float) -> None:
        """Read until there are `count` signals.

        Raises:
            AssertionError: there are not within `timeout` seconds.
        """
        self.until(lambda: len(self.found) >= count, timeout)


class WorkerProcess:
    """A worker as a process of its own: this module's, or the one of a service."""

    def __init__(
        self, address: str, prefix: str, folder: Path, module: str = "tests.support.streams", **settings: str
    ) -> None:
        self._module = module
        self.log = folder / f"{module}-{settings.get('instance', '0')}.log"
        self._environment = {
            "PORTCULLIS_KAFKA": address,
            "PORTCULLIS_TOPIC_PREFIX": prefix,
            "PORTCULLIS_PARTITIONS": str(PARTITIONS),
            "OMP_NUM_THREADS": "1",
            **{f"PORTCULLIS_{name.upper()}": value for name, value in settings.items()},
        }
        self.start()

    def start(self) -> None:
        """Start it, again or for the first time."""
        self.port = free_port()
        environment = {**self._environment, "PORTCULLIS_METRICS_PORT": str(self.port)}
        self._process = spawn([sys.executable, "-m", self._module], self.log, environment)

    def kill(self) -> None:
        """SIGKILL."""
        send_signal(self._process, signal.SIGKILL)
        self._process.wait()

    def stop(self, grace: float = 20.0) -> int:
        """SIGTERM, and the exit status."""
        end(self._process, grace)
        return int(self._process.returncode)

    def wait(self, timeout: float) -> int:
        """The exit status of a process that ends by itself."""
        return int(self._process.wait(patience(timeout)))

    def healthy(self, what: str) -> bool:
        """Whether /health/`what` answers 200."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/{what}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self) -> str:
        """The page of metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until it says that it is ready.

        Raises:
            AssertionError: it does not, or has ended.
        """
        started_at = time.monotonic()
        while not self.healthy("ready"):
            waited = time.monotonic() - started_at
            assert self._process.poll() is None, f"the worker ended:\n{tail(self.log, 40)}"
            assert waited < patience(timeout), f"not ready after {waited:.0f} s:\n{tail(self.log, 40)}"
            time.sleep(0.1)

    def wait_logged(self, text: str, timeout: float = 30.0) -> None:
        """Wait until its log holds `text`.

        Raises:
            AssertionError: it does not.
        """
        started_at = time.monotonic()
        while text not in self.log.read_text():
            waited = time.monotonic() - started_at
            assert waited < patience(timeout), f"not logged after {waited:.0f} s:\n{tail(self.log, 40)}"
            time.sleep(0.1)


@contextmanager
def running_worker(
    address: str, prefix: str, folder: Path, module: str = "tests.support.streams", **settings: str
) -> Iterator[WorkerProcess]:
    """A worker that is gone at the end."""
    worker = WorkerProcess(address, prefix, folder, module, **settings)
    try:
        yield worker
    finally:
        worker.stop()


class CursedStage(DetectorStage):
    """Has a bug that one account brings out."""

    def step(
        self, state: State[Any], batch: Batch[QueryBatch], prepared: Features, key: str
    ) -> tuple[State[Any], Observation]:
        if key.endswith("/cursed"):
            raise ZeroDivisionError("a bug")
        return super().step(state, batch, prepared, key)


class TestSettings(WorkerSettings):
    """A worker's settings, and what is wrong with it."""

    __test__ = False
    cursed: bool = False


def build_stage(settings: TestSettings) -> DetectorStage:
    """The detector as a stage, with its bug where the settings ask for it."""
    stage_class = CursedStage if settings.cursed else DetectorStage
    return stage_class(BrightnessDetector(), MODEL, settings.partitions)


if __name__ == "__main__":
    run_worker(build_stage, TestSettings)
