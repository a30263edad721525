"""What a query costs each detector, by the length of the account's history; and what an account costs in bytes.

The account sends images of Fashion-MNIST, all different. Networks score the first 2,048; from there on their features
come round again beside new pixels, since an index's cost depends on how many vectors there are and not on their values.
Processor time, in one thread: what other processes do on the machine hardly shows in it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from services.evaluation.figures import Finding
from services.inference.model import Model
from services.likelihood.detector import LikelihoodDetector
from services.prada.detector import PradaDetector
from services.similarity.detector import SimilarityDetector
from services.tmsp.detector import TmspDetector
from shared.detection import Detector, Features, State
from tests.bench.measure import Plan, in_words, photographs, some_bundle, spread
from tests.support.store import Store

DETECTORS: tuple[Any, ...] = (TmspDetector, PradaDetector, SimilarityDetector, LikelihoodDetector)
SCORED = 2048
TAKE = 32
"""Rows of one account in one call of `step`."""
REPEATS = 7


def measure(plan: Plan) -> dict[str, Any]:
    """Microseconds a query and bytes an account."""
    torch.set_num_threads(1)
    bundle, trained = some_bundle()
    histories = [1_000, 5_000] if plan.quick else [1_000, 10_000, 100_000]
    inputs = photographs(histories[-1] + REPEATS * TAKE, plan.seed)
    logits = _logits(Model(bundle), inputs)
    result: dict[str, Any] = {"trained_bundle": trained, "take_rows": TAKE, "scored_rows": SCORED, "detectors": {}}
    for detector in (factory.from_bundle(bundle) for factory in DETECTORS):
        plan.report(f"{detector.name}: score")
        entry = {
            "score_us_a_query": {str(rows): _score(detector, inputs, logits, rows) for rows in (1, 32, 64, 256)},
            "largest_state_bytes": detector.largest_state_bytes(),
            "histories": _histories(plan, detector, _features(detector, inputs, logits), histories),
        }
        result["detectors"][detector.name] = entry
    return result


def findings(results: dict[str, Any]) -> list[Finding]:
    """Rows of docs/results/figures.json."""
    detectors = results["detectors"]

    def step(name: str, history: str) -> dict[str, float]:
        found: dict[str, float] = detectors[name]["histories"][history]["step_us_a_query"]
        return found

    measured = {
        **{f"step-{name}-us": step(name, "10000") for name in detectors},
        "encoder-us": detectors["similarity"]["score_us_a_query"]["64"],
        "vqvae-us": detectors["likelihood"]["score_us_a_query"]["64"],
    }
    growth = {name: step(name, "100000")["median"] / step(name, "1000")["median"] for name in detectors}
    sizes = {
        name: max(history["state_bytes"] for history in of["histories"].values()) / 2**20
        for name, of in detectors.items()
    }
    slowest, largest = max(growth, key=lambda name: growth[name]), max(sizes, key=lambda name: sizes[name])
    return [
        *(in_words(name, of) for name, of in measured.items()),
        Finding("growth", growth[slowest], slowest),
        Finding("state-mib", sizes[largest], f"{largest}, at histories up to 100,000"),
    ]


def _logits(model: Model, inputs: np.ndarray) -> np.ndarray:
    return np.concatenate([model.logits(inputs[i : i + 256]) for i in range(0, len(inputs), 256)])


def _score(detector: Detector[Any], inputs: np.ndarray, logits: np.ndarray, rows: int) -> dict[str, float]:
    """Microseconds a query of `features`, `rows` at once."""
    took = []
    for repeat in range(REPEATS + 1):
        part = slice(repeat * rows, (repeat + 1) * rows)
        started = time.process_time()
        detector.features(inputs[part], logits[part])
        took.append((time.process_time() - started) / rows * 1e6)
    return spread(took[1:])


def _features(detector: Detector[Any], inputs: np.ndarray, logits: np.ndarray) -> Features:
    """Of all inputs; columns that a network made come round again after `SCORED` rows."""
    scored = detector.features(inputs[:SCORED], logits[:SCORED])
    turns = np.arange(len(inputs)) % SCORED
    features = {name: column[turns] for name, column in scored.items()}
    if "image" in features:
        features["image"] = inputs.reshape(len(inputs), -1)
    if "label" in features:
        features["label"] = logits.argmax(axis=1)
    features["digest"] = np.arange(len(inputs), dtype=np.uint64)
    return features


def _histories(plan: Plan, detector: Detector[Any], features: Features, histories: list[int]) -> dict[str, Any]:
    state, store, sent, result = detector.initial(), Store(), 0, {}
    for history in histories:
        plan.report(f"{detector.name}: a history of {history:,} queries")
        detector.replay(state, features, np.arange(sent, history))
        store.save(detector.encode(state))
        steps, encodes = [], []
        for repeat in range(REPEATS):
            rows = np.arange(history + repeat * TAKE, history + (repeat + 1) * TAKE)
            state, took = _step(detector, state, features, rows)
            started = time.process_time()
            store.save(detector.encode(state))
            steps.append(took / TAKE * 1e6)
            encodes.append((time.process_time() - started) * 1e6)
        sent = history + REPEATS * TAKE
        assert store.head is not None
        result[str(history)] = {
            "step_us_a_query": spread(steps),
            "encode_us_a_take": spread(encodes),
            "state_bytes": store.size + len(store.head),
        }
    return result


def _step(detector: Detector[Any], state: State[Any], features: Features, rows: np.ndarray) -> tuple[State[Any], float]:
    started = time.process_time()
    state, _ = detector.step(state, features, rows)
    return state, time.process_time() - started
