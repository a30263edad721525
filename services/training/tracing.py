"""Accounts in the eyes of the detectors: replayed once, by the very classes that the services run, and kept.

What calibration and evaluation ask of an account is the values of the detectors' statistics, query by query. They
depend on nothing that is calibrated later, so one replay serves every threshold that is tried.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, TypeVarTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.numpy import load, save

from services.inference.model import Model
from services.likelihood.detector import LikelihoodDetector
from services.prada.detector import PradaDetector
from services.similarity.detector import SimilarityDetector
from services.tmsp.detector import TmspDetector
from shared.bundle import Bundle, CalibrationSection
from shared.datasets import Dataset, Splits
from shared.detection import Detector, Statistic, orient
from shared.files import write_whole
from shared.population import KINDS, HonestAccount, Kind, draw_account

DEFAULT_TRACES = Path("build/traces")
TRACE_FORMAT = 5
"""Changes with what the detectors' classes make of the same networks."""

DETECTORS: tuple[type[TmspDetector | PradaDetector | SimilarityDetector | LikelihoodDetector], ...] = (
    TmspDetector, PradaDetector, SimilarityDetector, LikelihoodDetector,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recording:
    """What one account sent and how the victim answered.

    Attributes:
        inputs: [n, ...] uint8.
        logits: [n, classes] float32.
    """

    inputs: NDArray[np.uint8]
    logits: NDArray[np.float32]

    @property
    def key(self) -> str:
        """Names the recording by what is in it."""
        return hashlib.sha256(self.inputs.tobytes() + self.logits.tobytes()).hexdigest()[:24]

    def record(self, logits_of: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Recording:
        """Itself."""
        return self


@dataclass(frozen=True, slots=True)
class HonestPlan:
    """An honest account of `shared.population` that is drawn where it is replayed: thousands fit no memory.

    Attributes:
        data: images to draw from.
        digest: of the data, for the name.
        index: which account of the draw.
        queries: of it.
        seed: of the draw.
        kinds: of the draw.
    """

    data: Dataset
    digest: str
    index: int
    queries: int
    seed: int
    kinds: tuple[Kind, ...] = KINDS

    @property
    def kind(self) -> str:
        """Name of the account's kind."""
        return self.kinds[self.index % len(self.kinds)].__name__

    @property
    def key(self) -> str:
        """Names the account by all that it depends on."""
        kinds = "-".join(kind.__name__ for kind in self.kinds)
        text = f"{self.digest} {self.index} {self.queries} {self.seed} {kinds}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def account(self) -> HonestAccount:
        """What it sends."""
        return draw_account(self.data, self.index, self.queries, self.seed, self.kinds)

    def record(self, logits_of: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Recording:
        """What it sends and is told."""
        images = self.account().images
        return Recording(images, logits_of(images))


def honest_plans(
    data: Dataset, accounts: int, queries: int, seed: int, kinds: tuple[Kind, ...] = KINDS
) -> list[HonestPlan]:
    """`accounts` accounts, the kinds in turn."""
    digest = hashlib.sha256(data.images.tobytes()).hexdigest()[:16]
    return [HonestPlan(data, digest, index, queries, seed, kinds) for index in range(accounts)]


def populations(section: CalibrationSection, splits: Splits) -> tuple[list[HonestPlan], list[HonestPlan]]:
    """The calibration and the holdout accounts of a bundle."""
    return (
        honest_plans(splits.calibration, section.accounts, section.queries, section.seed),
        honest_plans(splits.holdout, section.holdout_accounts, section.holdout_queries, section.holdout_seed),
    )


class Recordable(Protocol):
    """An account that can be replayed."""

    @property
    def key(self) -> str:
        """The same for the same queries and answers."""

    def record(self, logits_of: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Recording:
        """What it sends and is told, given the victim."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One account in the eyes of one detector.

    Attributes:
        values: [m, S] float32 of the statistics, NaN where a query has none; exact repeats are left out.
        rows: [m] int64, which of the account's queries they are of.
        news: [m, S] bool, whether evidence listens to them.
    """

    values: NDArray[np.float32]
    rows: NDArray[np.int64]
    news: NDArray[np.bool_]

    @property
    def history(self) -> NDArray[np.int64]:
        """[m], queries that counted before each."""
        return np.arange(len(self.rows))

    def until(self, query: int) -> Trace:
        """Of the account's first queries only."""
        end = int(np.searchsorted(self.rows, query))
        return Trace(self.values[:end], self.rows[:end], self.news[:end])

    def scores(self, statistics: Sequence[Statistic]) -> NDArray[np.float64]:
        """[m, S], what evidence reads: larger is more suspicious, NaN where there is nothing new."""
        return np.where(self.news, orient(statistics, self.values.astype(np.float64)), np.nan)


Traces = Mapping[str, Trace]
"""One account in the eyes of every detector, by the detector's name."""


def trace(detector: Detector[Any], recording: Recording) -> Trace:
    """Replay an account through the very detector that the service runs."""
    features, state = detector.features(recording.inputs, recording.logits), detector.initial()
    values: list[NDArray[np.float64]] = []
    rows: list[int] = []
    news: list[NDArray[np.bool_]] = []
    for row in range(len(recording.inputs)):
        found, _, fresh = detector.replay(state, features, np.array([row]))
        if len(found):
            values.append(found[0])
            rows.append(row)
            news.append(fresh[0])
    shape = (len(rows), len(detector.statistics))
    return Trace(
        np.array(values, dtype=np.float32).reshape(shape),
        np.array(rows, dtype=np.int64),
        np.array(news, dtype=np.bool_).reshape(shape),
    )


def _file(traces: Traces) -> bytes:
    values = {f"{name}/values": np.ascontiguousarray(seen.values) for name, seen in traces.items()}
    news = {f"{name}/news": np.ascontiguousarray(seen.news) for name, seen in traces.items()}
    return save(values | news | {f"{name}/rows": seen.rows for name, seen in traces.items()})


def read_traces(path: Path) -> Traces:
    """What `Tracer` kept of one account."""
    arrays = load(path.read_bytes())
    names = {key.split("/")[0] for key in arrays}
    parts = ("values", "rows", "news")
    return {name: Trace(*(arrays[f"{name}/{part}"] for part in parts)) for name in sorted(names)}


class _Worker:
    """What each process holds."""

    detectors: ClassVar[list[Detector[Any]]] = []
    model: ClassVar[Model | None] = None

    @classmethod
    def load(cls, folder: Path) -> None:
        bundle = Bundle.load(folder)
        cls.detectors = [kind.from_bundle(bundle) for kind in DETECTORS]
        cls.model = Model(bundle)

    @classmethod
    def answers(cls, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert cls.model is not None
        return np.concatenate([cls.model.logits(inputs[start : start + 256]) for start in range(0, len(inputs), 256)])

    @classmethod
    def trace(cls, account: Recordable, path: Path) -> None:
        recording = account.record(cls.answers)
        write_whole(path, _file({detector.name: trace(detector, recording) for detector in cls.detectors}))


Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[*Arguments], Result],
    work: Sequence[tuple[*Arguments]],
    start: Callable[[], None],
    processes: int | None = None,
) -> Iterator[Result]:
    """Call a function with each of many arguments, in processes of one thread each; yields results as they come, in
    order.

    Args:
        function: picklable, as are its arguments and what it returns.
        work: arguments of each call.
        start: called once in each process before.
        processes: 1 for this one; a process a core where None.
    """
    workers = min(processes or len(os.sched_getaffinity(0)), len(work))
    if workers == 1:
        _begin(start)
        for arguments in work:
            yield function(*arguments)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (start,)) as pool:
        with _deaf_children():
            results = pool.map(function, *zip(*work, strict=True))
        yield from results


def make_missing(
    make: Callable[[*Arguments, Path], None],
    work: Mapping[Path, tuple[*Arguments]],
    start: Callable[[], None],
    progress: Progress,
    label: str,
    processes: int | None = None,
) -> None:
    """Make the files that are not there yet, in processes as `in_processes` has them; a cut run goes on with the rest.

    Args:
        make: writes one file whole (`shared.files.write_whole`), from its arguments and its path.
        work: arguments by path.
        start: see `in_processes`.
        progress: shows a bar.
        label: of the bar.
        processes: see `in_processes`.
    """
    missing = [(*arguments, path) for path, arguments in work.items() if not path.exists()]
    if missing:
        task = progress.add_task(label, total=len(missing))
        for _ in in_processes(make, missing, start, processes):
            progress.advance(task)


def _begin(start: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    start()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start inside do not hear Ctrl-C: a pool whose workers die of it would wait for them for ever."""
    hearing = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, hearing)


def traced_by(bundle: Bundle) -> str:
    """Names everything in a bundle that a trace depends on: the networks, T, and what bounds a memory."""
    manifest = bundle.manifest
    unseen = ("evidence-", "response-")
    networks = {name: digest for name, digest in manifest.files.items() if not name.startswith(unseen)}
    prada, similarity = manifest.prada.model_dump(), manifest.similarity.model_dump()
    bounds = [sorted((prada | {"delta": 0}).items()), sorted((similarity | {"delta": 0, "pairs": 0}).items())]
    numbers = f"{manifest.tmsp.temperature!r} {manifest.likelihood.data_variance!r}"
    text = f"{TRACE_FORMAT} {sorted(networks.items())} {numbers} {bounds}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Tracer:
    """Replays accounts in processes of one thread each, and keeps what it found: an interrupted run goes on."""

    def __init__(self, bundle: Bundle, cache: Path, progress: Progress, processes: int | None = None) -> None:
        """
        Args:
            bundle: its networks; its thresholds and evidence matter nothing.
            cache: folder of traces of any bundles.
            progress: shows a bar.
            processes: 1 for this one, which spares small work the start of others; a process a core where None.
        """
        self._processes = processes
        self._bundle = bundle
        self._folder = cache / traced_by(bundle)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._progress = progress

    def trace(self, accounts: Sequence[Recordable], label: str) -> list[Traces]:
        """The accounts in the eyes of every detector, in their order."""
        return [read_traces(file) for file in self.files(accounts, label)]

    def files(self, accounts: Sequence[Recordable], label: str) -> list[Path]:
        """As `trace`, but where `read_traces` finds each: many long accounts fit no memory."""
        paths = [self._folder / f"{account.key}.safetensors" for account in accounts]
        work = {path: (account,) for account, path in zip(accounts, paths, strict=True)}
        start = partial(_Worker.load, self._bundle.folder)
        make_missing(_Worker.trace, work, start, self._progress, label, self._processes)
        return paths
