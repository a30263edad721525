"""What the system looks like while it is under load: memory, lag, accounts, sampled from outside."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import SERVICES, LocalSystem
from tests.bench.system import metric

WORKERS = ("tmsp", "prada", "similarity", "likelihood")
PAGE_BYTES = 4096


@dataclass(slots=True)
class Samples:
    """Columns of equal length.

    Attributes:
        seconds: since the start.
        resident: bytes, by service.
        lag: query rows that a detector has not judged yet, by detector.
        accounts: that a detector holds, by detector.
        answered: query rows that inference has answered.
        published: of these, those that Kafka has acknowledged.
    """

    seconds: list[float] = field(default_factory=list)
    resident: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in SERVICES})
    lag: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in WORKERS})
    accounts: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in WORKERS})
    answered: list[float] = field(default_factory=list)
    published: list[float] = field(default_factory=list)


class Watch:
    """`with Watch(system, period) as watch:` samples in a thread of its own."""

    def __init__(self, system: LocalSystem, period: float) -> None:
        """
        Args:
            system: that runs.
            period: seconds between two samples.
        """
        self.samples = Samples()
        self._system, self._period = system, period
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._begin = time.monotonic()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._period):
            self.sample()

    def sample(self) -> None:
        """One more row."""
        system, samples = self._system, self.samples
        inference = system.metrics_url("inference")
        samples.seconds.append(time.monotonic() - self._begin)
        samples.answered.append(metric(inference, r"portcullis_inference_queries_total\{"))
        samples.published.append(metric(inference, r"portcullis_events_published_total\b"))
        for name in SERVICES:
            samples.resident[name].append(resident(system.process(name).pid))
        for name in WORKERS:
            url = system.metrics_url(name)
            # What was published since the first line was read makes the lag a little larger, never smaller.
            judged = metric(url, rf'portcullis_worker_queries_total\{{worker="{name}"')
            samples.lag[name].append(max(samples.published[-1] - judged, 0.0))
            samples.accounts[name].append(metric(url, rf'portcullis_worker_accounts\{{worker="{name}"'))


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
