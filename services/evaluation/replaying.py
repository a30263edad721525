"""Accounts that a stream costs under a rule which closes the account: replayed by the detectors, in many processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from services.evaluation.verdicts import LEAST_QUERIES
from services.inference.model import Model
from services.likelihood.detector import LikelihoodDetector
from services.similarity.detector import SimilarityDetector
from services.training.tracing import DETECTORS, Recordable, Recording, make_missing, traced_by
from shared.bundle import Bundle
from shared.detection import Detector, Features
from shared.evidence import combine
from shared.files import write_whole

PER = 50_000
"""Queries that accounts are counted for (TR 2021-126, VIII)."""


@dataclass(frozen=True, slots=True)
class Burned:
    """What a stream cost.

    Attributes:
        queries: sent.
        alarms: numbers of the queries, from 0, at which an account was closed.
    """

    queries: int
    alarms: tuple[int, ...]

    @property
    def accounts(self) -> int:
        """That sent anything: one more than were closed, unless the last query closed one."""
        return len(self.alarms) + (not self.alarms or self.alarms[-1] + 1 < self.queries)

    @property
    def rate(self) -> float:
        """Alarms a query."""
        return len(self.alarms) / self.queries

    def accounts_for(self, queries: int = PER) -> float:
        """Accounts for so many queries, were the stream to go on as it did; 1 where nothing alarms."""
        return 1.0 + self.rate * queries


def burned(detector: Detector[Any], features: Features, enough: int | None = None) -> Burned:
    """Replay a stream row by row, with a fresh state, a new account, whenever the detector's rule condemns.

    Args:
        detector: of the service.
        features: of `detector.features`, of the whole stream: no row's depends on an account.
        enough: alarms after which the rest of the stream does not matter.
    """
    queries, state = len(features["digest"]), detector.initial()
    alarms = []
    for row in range(queries):
        # What `step` does, but for the evidence, which no paper's rule asks.
        detector.replay(state, features, np.array([row]))
        if detector.rule(state.memory).flagged:
            alarms.append(row)
            state = detector.initial()
            if len(alarms) == enough:
                break
    return Burned(queries, tuple(alarms))


def accounts_needed(detector: Detector[Any], recording: Recording) -> Burned:
    """As `burned`, from a recording."""
    return burned(detector, detector.features(recording.inputs, recording.logits))


def accounts_needed_together(detectors: Sequence[Detector[Any]], log_threshold: float, recording: Recording) -> Burned:
    """The same where the evidence of all detectors together closes accounts, as the decision does.

    Args:
        detectors: all that there are.
        log_threshold: natural logarithm of R at which an account of `LEAST_QUERIES` is closed.
        recording: of the stream.
    """
    features = [detector.features(recording.inputs, recording.logits) for detector in detectors]
    states = [detector.initial() for detector in detectors]
    alarms = []
    for row in range(len(recording.inputs)):
        spoken = []
        for number, detector in enumerate(detectors):
            states[number], observation = detector.step(states[number], features[number], np.array([row]))
            spoken.append(observation.log_evidence)
        if states[0].queries >= LEAST_QUERIES and combine(spoken, len(detectors)) >= log_threshold:
            alarms.append(row)
            states = [detector.initial() for detector in detectors]
    return Burned(len(recording.inputs), tuple(alarms))


# ---- thresholds ----

TOLERANCE = 0.005
"""Of a threshold that bisection finds, relative."""


def with_sections(bundle: Bundle, **sections: Any) -> Bundle:
    """The same files under a manifest with other sections."""
    return Bundle(bundle.folder, bundle.manifest.model_copy(update=sections), bundle.fingerprint)


def similarity_of(bundle: Bundle, delta: float) -> SimilarityDetector:
    """The bundle's similarity detector with another delta."""
    section = bundle.manifest.similarity.model_copy(update={"delta": delta})
    return SimilarityDetector.from_bundle(with_sections(bundle, similarity=section))


def likelihood_of(bundle: Bundle, benign_mean: float, beta: float) -> LikelihoodDetector:
    """The bundle's likelihood detector with another alpha and beta."""
    section = bundle.manifest.likelihood.model_copy(update={"benign_mean": benign_mean, "beta": beta})
    return LikelihoodDetector.from_bundle(with_sections(bundle, likelihood=section))


def bisected(alarming: Callable[[float], bool], low: float, high: float) -> float:
    """The threshold next to which alarms become too many, to `TOLERANCE`, from the side where they are not.

    Args:
        alarming: whether there are too many alarms.
        low: a positive threshold at one side.
        high: a larger one at the other.

    Raises:
        ValueError: both are at the same side.
    """
    too_many_above = alarming(high)
    if alarming(low) == too_many_above:
        raise ValueError(f"there are {'too many' if too_many_above else 'few'} alarms at both {low:.3g} and {high:.3g}")
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        if alarming(middle) == too_many_above:
            high = middle
        else:
            low = middle
    return low if too_many_above else high


def tuned_delta(bundle: Bundle, natural: Recording, rate: float) -> float:
    """delta of the similarity detector by bisection, for a rate of alarms on natural images (TR 2021-126, VIII-A 1).

    Args:
        bundle: of the detector.
        natural: one honest stream.
        rate: alarms a query, at most.
    """
    detector = similarity_of(bundle, 1.0)
    features = detector.features(natural.inputs, natural.logits)
    values = detector.replay(detector.initial(), features, np.arange(len(natural.inputs)))[0]
    distances = np.sort(values[np.isfinite(values[:, 0]), 0])
    allowed = int(rate * len(natural.inputs))
    # A memory that is never cleared finds no fewer pairs, so with fewer than this many there are no more alarms.
    fewest = detector.section.pairs * (allowed + 1) - 1
    if fewest >= len(distances):
        return float(distances[-1])
    low = max(float(distances[fewest]), 1e-9)

    def alarming(delta: float) -> bool:
        return len(burned(similarity_of(bundle, delta), features, allowed + 1).alarms) > allowed

    high = 1.25 * low
    while not alarming(high):
        low, high = high, 1.25 * high
        if low > distances[-1]:
            return low
    return bisected(alarming, low, high)


def tuned_likelihood(bundle: Bundle, natural: Recording, rate: float) -> tuple[float, float]:
    """alpha and beta of the likelihood detector: the honest mean, and by bisection a rate of alarms (VIII-B 2).

    Args:
        bundle: of the detector.
        natural: one honest stream.
        rate: alarms a query, at most.
    """
    features = LikelihoodDetector.from_bundle(bundle).features(natural.inputs, natural.logits)
    alpha = float(features["log_likelihood"].mean(dtype=np.float64))
    allowed = int(rate * len(natural.inputs))

    def alarming(beta: float) -> bool:
        return len(burned(likelihood_of(bundle, alpha, beta), features, allowed + 1).alarms) > allowed

    high = 1.0
    while alarming(high):
        high *= 2
    return alpha, bisected(alarming, 1e-6, high) if alarming(1e-6) else 1e-6


# ---- many streams ----

ALL = "all"
"""In place of a detector's name."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What closes accounts: one detector's rule under some constants, or the evidence of all.

    Attributes:
        bundle: folder.
        detector: name of one, or `ALL`.
        constants: of its section, that differ from the bundle's.
    """

    bundle: Path
    detector: str
    constants: Mapping[str, float]

    def replayed(self, recording: Recording) -> Burned:
        """The stream under this rule."""
        bundle = Bundle.load(self.bundle)
        if self.detector == ALL:
            detectors = [kind.from_bundle(bundle) for kind in DETECTORS]
            return accounts_needed_together(detectors, bundle.manifest.evidence.log_threshold, recording)
        section = getattr(bundle.manifest, self.detector).model_copy(update=dict(self.constants))
        (kind,) = (kind for kind in DETECTORS if kind.name == self.detector)
        return accounts_needed(kind.from_bundle(with_sections(bundle, **{self.detector: section})), recording)


class _Worker:
    """What each process holds."""

    model: ClassVar[Model | None] = None

    @classmethod
    def load(cls, folder: Path) -> None:
        cls.model = Model(Bundle.load(folder))

    @classmethod
    def answers(cls, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert cls.model is not None
        return np.concatenate([cls.model.logits(inputs[start : start + 256]) for start in range(0, len(inputs), 256)])

    @classmethod
    def replay(cls, account: Recordable, rule: Rule, path: Path) -> None:
        found = rule.replayed(account.record(cls.answers))
        write_whole(path, json.dumps(asdict(found)).encode())


def replay(
    accounts: Sequence[Recordable],
    rule: Rule,
    victim: Bundle,
    cache: Path,
    progress: Progress,
    label: str,
    processes: int | None,
) -> list[Burned]:
    """Accounts under a rule, in processes of one thread each; taken from `cache` where they were replayed before.

    Args:
        accounts: streams of attackers, or honest accounts.
        rule: what closes accounts.
        victim: answers honest accounts.
        cache: folder of replays under any rules.
        progress: shows a bar.
        label: of the bar.
        processes: 1 for this one; a process a core where None.
    """
    bundle = Bundle.load(rule.bundle)
    of_rule = f"{traced_by(bundle)} {bundle.fingerprint if rule.detector == ALL else ''} {rule.detector} "
    of_rule += json.dumps(bundle.manifest.model_dump(mode="json").get(rule.detector)) + json.dumps(dict(rule.constants))
    folder = cache / hashlib.sha256(of_rule.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{account.key}.json" for account in accounts]
    work = {path: (account, rule) for account, path in zip(accounts, paths, strict=True)}
    make_missing(_Worker.replay, work, partial(_Worker.load, victim.folder), progress, label, processes)
    found = [json.loads(path.read_text()) for path in paths]
    return [Burned(one["queries"], tuple(one["alarms"])) for one in found]
