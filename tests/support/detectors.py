"""Every detector over one bundle that nothing was trained for: random networks, evidence from made-up honest accounts.

A new detector is one entry of `CASES` (and its files in `detector_files`), and the whole contract suite runs over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.likelihood.detector import LikelihoodDetector
from services.likelihood.vqvae import VectorQuantisedAutoencoder
from services.prada.detector import PradaDetector
from services.similarity import rarity
from services.similarity.detector import SimilarityDetector
from services.similarity.encoder import PerturbationClassifier, ReferenceEncoder, SimilarityEncoder
from services.similarity.rarity import Rarity
from services.tmsp.detector import TmspDetector
from shared.bundle import Bundle, write_bundle
from shared.detection import Detector, orient
from shared.evidence import BETS, EvidenceModel
from shared.networks import network_tensors
from shared.softmax import tmsp
from tests.detectors.brightness import BrightnessDetector
from tests.support.accounts import CLASSES, SHAPE, Stream, crafted, honest, noise
from tests.support.bundles import untrained_files, untrained_manifest

Files = dict[str, Mapping[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Case:
    """A detector, how it is made, and a gross attack that it must tell from honest accounts."""

    make: Callable[[Bundle], Detector[Any]]
    statistics: tuple[str, ...]
    attack: Callable[[int, int], Stream]


def _case(detector: Any, attack: Callable[[int, int], Stream]) -> Case:
    return Case(detector.from_bundle, tuple(statistic.name for statistic in detector.statistics), attack)


CASES: Mapping[str, Case] = {
    "tmsp": _case(TmspDetector, noise),
    "prada": _case(PradaDetector, crafted),
    "similarity": _case(SimilarityDetector, crafted),
    "likelihood": _case(LikelihoodDetector, noise),
    "brightness": _case(BrightnessDetector, noise),
}

SMALL: Mapping[str, Mapping[str, float]] = {
    "tmsp": {"temperature": 5.0, "lambda": 0.2},
    "prada": {"capacity": 256, "window": 200},
    "similarity": {"capacity": 256, "window": 128},
}
"""Bounds that a test reaches soon, and a temperature that suits the made-up logits."""

TAILS = np.geomspace(1.0, 0.004, 24)
HISTORY_EDGES = np.array([32, 128])
PROFILES = 3


def silent(statistics: Sequence[str]) -> EvidenceModel:
    """Evidence that no score moves."""
    thresholds = np.full((PROFILES, len(statistics), len(HISTORY_EDGES) + 1, len(TAILS)), np.inf, dtype=np.float32)
    return EvidenceModel(tuple(statistics), HISTORY_EDGES, TAILS, thresholds, np.ones((len(statistics), len(BETS))))


def calibrated(detector: Detector[Any], accounts: Sequence[Stream]) -> EvidenceModel:
    """Evidence from honest accounts, dealt out to the profiles in turn."""
    model = silent([statistic.name for statistic in detector.statistics])
    thresholds = model.thresholds.copy()
    for profile in range(PROFILES):
        values, history = zip(*(_replay(detector, account) for account in accounts[profile::PROFILES]), strict=True)
        scores = orient(detector.statistics, np.concatenate(values))
        sizes = np.searchsorted(HISTORY_EDGES, np.concatenate(history), "right")
        for statistic in range(scores.shape[1]):
            for size in range(len(HISTORY_EDGES) + 1):
                mine = scores[(sizes == size) & np.isfinite(scores[:, statistic]), statistic]
                if len(mine) >= 2 / TAILS[-1]:
                    thresholds[profile, statistic, size] = np.quantile(mine, 1 - TAILS)
                elif size:
                    thresholds[profile, statistic, size] = thresholds[profile, statistic, size - 1]
    # Thresholds are float32: rounding up never makes an honest score rarer than it is.
    thresholds = np.nextafter(thresholds, np.float32(np.inf))
    return EvidenceModel(model.statistics, HISTORY_EDGES, TAILS, thresholds, model.discount)


def _replay(detector: Detector[Any], account: Stream) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    features = detector.features(account.inputs, account.logits)
    values, history, news = detector.replay(detector.initial(), features, np.arange(len(account)))
    return np.where(news, values, np.nan), history


def detector_files(evidence: Mapping[str, EvidenceModel], seed: int = 7) -> Files:
    """What the detectors read from a bundle: random networks, and `evidence` by the detector's name."""
    torch.manual_seed(seed)
    reference = ReferenceEncoder(SHAPE, CLASSES).eval()
    with torch.inference_mode():
        stream = honest(99, 200)
        pixels = torch.from_numpy(stream.inputs).float() / 255.0
        features, crafted = np.split(reference(pixels).numpy(), [ReferenceEncoder.DIMENSIONS], axis=1)
    files: Files = {
        **untrained_files(seed),
        "similarity": network_tensors(SimilarityEncoder(SHAPE, CLASSES)),
        "reference": network_tensors(reference),
        "perturbation": network_tensors(PerturbationClassifier(SHAPE)),
        "honest": {"features": features},
        "rarity": rarity.tensors(
            unsure=Rarity.of(-tmsp(stream.logits, SMALL["tmsp"]["temperature"])), crafted=Rarity.of(crafted[:, 0])
        ),
        "likelihood": network_tensors(VectorQuantisedAutoencoder(SHAPE[0])),
        "brightness": {"threshold": np.array([0.4])},
    }
    return files | {f"evidence-{name}": model.tensors() for name, model in evidence.items()}


def detector_bundle(folder: Path, accounts: int = 6, queries: int = 400, small: bool = True) -> Bundle:
    """A bundle for all detectors of `CASES`, calibrated on made-up honest accounts; with bounds `SMALL` or real."""
    document = untrained_manifest()
    for section, values in SMALL.items() if small else ():
        document[section] |= values
    document["profiles"] = PROFILES
    quiet = {name: silent(case.statistics) for name, case in CASES.items()}
    first = write_bundle(folder / "uncalibrated", document, detector_files(quiet))
    streams = [honest(seed, queries) for seed in range(accounts)]
    evidence = {name: calibrated(case.make(first), streams) for name, case in CASES.items()}
    return write_bundle(folder / "bundle", document, detector_files(evidence))
