"""A system on a Kafka of three brokers, whose parts can be killed, cut off, filled and put back, under load."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from deploy.kafka.broker import LocalCluster
from deploy.local import EVERY_SERVICE, LocalSystem, LocalSystemError, service_command
from services.ownership.registry import Registry
from shared.bundle import DETECTORS
from shared.topics import OVERRIDES, QUERIES, SIGNALS, Topic
from tests.faults.invariants import Asked
from tests.faults.network import HOME, Cables, can_cut
from tests.load.generator import request_id
from tests.load.traffic import Traffic

CUT = ("prada", "decision", "inference")
"""Services at the end of a cable."""
SPARES = ("prada-1", "tmsp-1")
ON_DISK = "likelihood"
"""The worker whose states lie on a disk, which is small."""
DISK_MIB, SPOOL_MIB = 64, 8
SETTLE_SECONDS = 300.0
REVIVE_SECONDS = 1.0
REGISTER_SECONDS = 60.0
READS = {**dict.fromkeys(DETECTORS, (QUERIES,)), "decision": (SIGNALS, OVERRIDES)}
"""What each stateful stage reads."""


class TrialError(RuntimeError):
    """The trial cannot go on; the message says why."""


@dataclass(slots=True)
class Struck:
    """One fault.

    Attributes:
        name: of the fault.
        began: seconds since the trial's first query.
        seconds: until it was over.
        settled: seconds from then until everything that had been published was judged.
    """

    name: str
    began: float
    seconds: float
    settled: float


class SmallDisk:
    """A file system of its own, of a few MiB; where it cannot be mounted, an ordinary folder that is never full."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder = folder
        self._size = mebibytes
        self._mounted = False

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        if can_cut():
            mount = ["mount", "-t", "tmpfs", "-o", f"size={self._size}m", "portcullis", str(self.folder)]
            self._mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        return self

    def __exit__(self, *error: object) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)

    @property
    def small(self) -> bool:
        """Whether it can be filled."""
        return self._mounted

    @property
    def ballast(self) -> Path:
        """A file that fills it."""
        return self.folder / "ballast"


class Trial:
    """`with Trial(folder, settings, say) as trial:` everything runs and can be struck."""

    def __init__(self, folder: Path, settings: dict[str, str], say: Callable[[str], None]) -> None:
        """
        Args:
            folder: for all that is written.
            settings: of the services, beside those of the brokers.
            say: told what happens.
        """
        self.folder, self.say = folder, say
        self.struck: list[Struck] = []
        self.killed_at: list[float] = []
        """When inference was killed, seconds since the Unix epoch."""
        self.cables = Cables(CUT if can_cut() else ())
        self.spool, self.disk = SmallDisk(folder / "spool", SPOOL_MIB), SmallDisk(folder / "states", DISK_MIB)
        self.cluster = LocalCluster(folder / "kafka", host=HOME if can_cut() else "127.0.0.1")
        self._registry = f"sqlite:///{folder / 'registry.sqlite'}"
        own = {
            "PORTCULLIS_KAFKA": self.cluster.address,
            "PORTCULLIS_REPLICATION": str(self.cluster.copies),
            "PORTCULLIS_SPOOL": str(self.spool.folder),
            "PORTCULLIS_SPOOL_BYTES": str(SPOOL_MIB << 20),
            "PORTCULLIS_REGISTRY": self._registry,
        }
        self.system = LocalSystem(
            folder / "system", settings | own, EVERY_SERVICE, command=self._command, spares=SPARES,
            hosts=self.cables.hosts() if can_cut() else {}, progress=lambda name, state: None,
        )  # fmt: skip
        self._stack = contextlib.ExitStack()
        self._over = threading.Event()
        self._failure = ""
        self._began = 0.0

    def _command(self, name: str) -> Sequence[str]:
        command = service_command(name)
        if name == ON_DISK:
            states = ["PORTCULLIS_STORE=rocksdb", f"PORTCULLIS_DATA_FOLDER={self.disk.folder}"]
            command = ["env", *states, *command]
        return self.cables.within(name, command)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for part in (self.cables, self.spool, self.disk, self.cluster, self.system):
                self.say(f"starting {type(part).__name__}")
                stack.enter_context(part)
            self._stack = stack.pop_all()
        threading.Thread(target=self._revive, name="revive", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._stack.close()

    def _revive(self) -> None:
        """What a cluster's scheduler does: start again what ended by itself."""
        while not self._over.wait(REVIVE_SECONDS):
            try:
                self.system.revive()
            except LocalSystemError as error:
                self._failure = str(error)
                return

    # ---- what can be done to it ----

    def strike(self, name: str, fault: Callable[[Trial], None]) -> None:
        """Let a fault happen, and wait until all that was published before its end is judged.

        Raises:
            TrialError: it is not, within five minutes; or a service refuses to start.
        """
        self.say(name)
        began = time.monotonic()
        fault(self)
        ended = time.monotonic()
        self.settle()
        self.struck.append(Struck(name, began - self._began, ended - began, time.monotonic() - ended))

    def settle(self) -> None:
        """Wait until every service is ready and every stage has judged what is in its topics now.

        Raises:
            TrialError: see `strike`.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                self.system.wait_ready(timeout=max(deadline - time.monotonic(), 1.0))
                break
            except LocalSystemError as error:
                if self._failure or time.monotonic() > deadline:
                    raise TrialError(self._failure or str(error)) from error
                time.sleep(REVIVE_SECONDS)
        # The detectors first: what they say is the decision's to judge.
        for stages in (DETECTORS, ("decision",)):
            goals = {stage: self._ends(READS[stage]) for stage in stages}
            while not all(self._reached(stage, goal) for stage, goal in goals.items()):
                if self._failure or time.monotonic() > deadline:
                    raise TrialError(self._failure or f"not judged within {SETTLE_SECONDS:.0f} s: {goals}")
                time.sleep(0.3)

    def _ends(self, topics: Sequence[Topic]) -> dict[TopicPartition, int]:
        settings = self.system.settings
        consumer = KafkaConsumer(bootstrap_servers=self._brokers)
        try:
            return dict(
                consumer.end_offsets(
                    [TopicPartition(settings.topic(t), p) for t in topics for p in range(settings.partitions)]
                )
            )
        finally:
            consumer.close()

    def _reached(self, stage: str, goal: dict[TopicPartition, int]) -> bool:
        group = self.system.settings.topic_prefix + stage
        try:
            client = KafkaAdminClient(bootstrap_servers=self._brokers)
            try:
                committed = client.list_group_offsets({group: list(goal)})[group]
            finally:
                client.close()
        except KafkaError:
            return False  # the group's broker has just gone
        return all(committed[place].offset >= end for place, end in goal.items() if end)

    @property
    def _brokers(self) -> list[str]:
        return self.cluster.address.split(",")

    # ---- what it says ----

    def keep_logs(self, folder: Path) -> None:
        """Copy what every process printed, brokers included: of a trial that went wrong, they tell how."""
        folder.mkdir(parents=True, exist_ok=True)
        logs = [*(self.folder / "system" / "logs").glob("*.log"), *self.folder.glob("kafka/*/broker.log")]
        for log in logs:
            name = log.name if log.name != "broker.log" else f"{log.parent.name}.log"
            shutil.copyfile(log, folder / name)

    def _enforced(self) -> Iterator[tuple[str, str, float]]:
        """Account, action and time (seconds since the Unix epoch) of every verdict that inference has taken up."""
        for line in self.system.log("inference").read_text().splitlines():
            if '"verdict enforced"' in line:
                entry = json.loads(line)
                yield entry["account"], entry["action"], datetime.fromisoformat(entry["timestamp"]).timestamp()

    def banned_at(self) -> dict[str, float]:
        """When each ban was first enforced, by account."""
        found: dict[str, float] = {}
        for account, action, at in self._enforced():
            if action == "ban":
                found.setdefault(account, at)
        return found

    def await_ban(self, account: str) -> None:
        """Wait until an account is refused.

        Raises:
            TrialError: it is not, within five minutes.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while account not in self.banned_at():
            if time.monotonic() > deadline:
                raise TrialError(f"the ban of {account} is not enforced within {SETTLE_SECONDS:.0f} s")
            time.sleep(0.2)

    def registered(self, expected: int) -> int:
        """Spoiled answers in the registry of ownership, as soon as there are as many as expected, or after a minute."""
        deadline = time.monotonic() + REGISTER_SECONDS
        registry = Registry.open(self._registry)
        try:
            while True:
                held = sum(chain.records for chain in registry.chains())
                if held >= expected or time.monotonic() > deadline:
                    return held
                time.sleep(0.5)
        finally:
            registry.close()

    # ---- the load ----

    @contextlib.contextmanager
    def load(self, traffic: Traffic, keys: dict[str, str], model: str) -> Iterator[Callable[[], list[Asked]]]:
        """Traffic until the block ends; what it yields then tells what became of it.

        Raises:
            TrialError: the clients failed.
        """
        folder = self.folder
        np.save(folder / "images.npy", traffic.images)
        np.savez(folder / "traffic.npz", at=traffic.at, account=traffic.account, image=traffic.image)
        (folder / "keys.json").write_text(json.dumps([keys[account] for account in traffic.accounts]))
        command = [
            sys.executable, "-m", "tests.load.generator", str(folder), self.system.grpc_address, model, "open", "0",
        ]  # fmt: skip
        clients = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert clients.stdin
        assert clients.stdout
        try:
            if clients.stdout.readline().strip() != "ready":
                raise TrialError("the clients did not get ready; their error is above")
            clients.stdin.write("go\n")
            clients.stdin.flush()
            self._began = time.monotonic()
            yield lambda: _asked(folder, traffic)
            if clients.poll() is not None:
                raise TrialError("the clients ended before the faults did: ask for more minutes")
            clients.stdin.close()
            if clients.wait(120):
                raise TrialError(f"the clients ended with status {clients.returncode}; their error is above")
        finally:
            clients.kill()


def _asked(folder: Path, traffic: Traffic) -> list[Asked]:
    results: dict[str, Any] = dict(np.load(folder / "results.npz"))
    began = float(results["began_at"])
    return [
        Asked(request_id(number), traffic.accounts[traffic.account[number]], began + at, began + at + latency, status)
        for number, at, latency, status in zip(
            results["number"].tolist(), results["at"].tolist(), results["latency"].tolist(),
            results["outcome"].tolist(), strict=True,
        )
    ]  # fmt: skip
