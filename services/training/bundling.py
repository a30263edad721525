"""One bundle from one dataset: networks, then calibration, then the last word on accounts that nothing has seen."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.numpy import load, save
from torch import nn

from services.inference.network import ARCHITECTURES
from services.likelihood.detector import LikelihoodDetector
from services.likelihood.vqvae import VectorQuantisedAutoencoder
from services.prada.detector import PradaDetector
from services.similarity.detector import SimilarityDetector
from services.similarity.encoder import ReferenceEncoder, SimilarityEncoder
from services.tmsp.detector import TmspDetector
from services.training import calibration, networks
from services.training.malicious import crafted
from services.training.recipes import RECIPES
from shared.bundle import Bundle, LikelihoodSection, PradaSection, SimilaritySection, TmspSection, write_bundle
from shared.datasets import Splits
from shared.detection import Detector
from shared.networks import in_fixed_batches, load_network, network_tensors
from shared.population import KINDS, HonestAccount, draw_accounts

SMALLEST_THRESHOLD = float(np.log(1e6))
"""The e-detectors' own promise: a million honest queries between false alarms, on average."""


Positives = Literal["transformations", "adversarial"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much work goes into a bundle. The defaults made the bundle in this repository."""

    seed: int = 1
    architecture: str = "convnet"
    """Of the victim: a name of `services.inference.network`."""
    victim_epochs: int | None = None
    """None stands for those of the architecture's recipe."""
    reference_epochs: int = 5
    similarity_epochs: int = 1
    contrastive_epochs: int = 2
    positives: Positives = "transformations"
    """What the similarity encoder learns to place close to an image: transformations of it, as in TR 2021-126, or
    adversarial perturbations against the victim, as in SEAT."""
    likelihood_epochs: int = 4
    calibration_accounts: int = 56
    holdout_accounts: int = 70
    queries: int = 2_000
    """Of each account."""
    honest_reference: int = 8_000
    """Honest images that queries are compared with; half of them varied."""
    query_rate: float = 0.05
    """Share of honest queries that TMSP may flag."""
    pair_rate: float = 0.005
    """Share of honest queries that may find a similar earlier one: 50 pairs an alarm make 0.01% alarms a query, the
    rate that TR 2021-126 tunes for."""
    account_rate: float = 0.05
    """Share of calibration accounts that each paper's rule may condemn."""
    evidence_rate: float = 0.01
    """Share of holdout accounts that may ever reach the evidence's threshold."""


QUICK = Plan(
    victim_epochs=1, reference_epochs=1, similarity_epochs=1, contrastive_epochs=1, likelihood_epochs=1,
    calibration_accounts=32, holdout_accounts=16, queries=300, honest_reference=1_000,
)  # fmt: skip
"""A bundle in minutes, to try the command; its detectors are weak."""

DETECTORS: tuple[type[TmspDetector | PradaDetector | SimilarityDetector | LikelihoodDetector], ...] = (
    TmspDetector, PradaDetector, SimilarityDetector, LikelihoodDetector,
)  # fmt: skip

NetworkType = TypeVar("NetworkType", bound=nn.Module)


class Tracer:
    """Replays accounts through the detectors of a bundle, in processes of one thread each."""

    _detectors: ClassVar[list[Detector[Any]]] = []

    @classmethod
    def load(cls, folder: Path) -> None:
        """Prepare this process."""
        torch.set_num_threads(1)
        bundle = Bundle.load(folder)
        cls._detectors = [kind.from_bundle(bundle) for kind in DETECTORS]

    @classmethod
    def trace(cls, recording: calibration.Recording) -> calibration.Traces:
        """One account in the eyes of every detector."""
        return {detector.name: calibration.trace(detector, recording) for detector in cls._detectors}


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start inside do not hear Ctrl-C: a pool whose workers die of it would wait for them for ever."""
    hearing = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, hearing)


def _fingerprint(splits: Splits) -> str:
    """Of all that the networks learn from: a path's data may change while its name stays."""
    data = splits.train
    about = f"{data.images.shape} {splits.classes} {splits.mirror}".encode()
    return hashlib.sha256(about + data.images.tobytes() + data.labels.tobytes()).hexdigest()[:8]


class BundleMaker:
    """Makes a bundle step by step; what was trained before, by the same plan on the same data, is taken from `work`."""

    def __init__(self, splits: Splits, plan: Plan, work: Path, progress: Progress) -> None:
        self.splits, self.plan, self.progress = splits, plan, progress
        self.work = work / f"{splits.name}-{_fingerprint(splits)}"
        self.shape = networks.shape_of(splits.train)
        self.classes = len(splits.classes)
        self.work.mkdir(parents=True, exist_ok=True)

    def make(self, output: Path) -> Bundle:
        """Train what is missing, calibrate, and write the bundle."""
        files = self.train()
        manifest, evidence = self._calibrate(self._draft(files), files)
        return write_bundle(output, manifest, files | evidence)

    # ---- networks ----

    def _trained(
        self, name: str, key: tuple[object, ...], empty: NetworkType, train: Callable[[Path], nn.Module]
    ) -> NetworkType:
        path = self.work / f"{name}-{'-'.join(map(str, (self.plan.seed, *key)))}.safetensors"
        checkpoints = path.with_suffix(".checkpoints")
        if path.exists():
            self.progress.console.print(f"{name}: found in {path}")
            return load_network(empty, load(path.read_bytes()))
        network = train(checkpoints)
        partial = path.with_suffix(".partial")
        partial.write_bytes(save(network_tensors(network)))
        partial.rename(path)
        shutil.rmtree(checkpoints)
        return load_network(empty, network_tensors(network))

    def train(self) -> dict[str, Mapping[str, NDArray[Any]]]:
        """The tensors of every network that the bundle holds, by file; what is missing is trained."""
        plan, data, progress = self.plan, self.splits.train, self.progress
        shape, classes, seed = self.shape, self.classes, self.plan.seed
        recipe = RECIPES[plan.architecture]
        recipe = replace(recipe, epochs=plan.victim_epochs or recipe.epochs)
        victim_key = (plan.architecture, recipe.epochs)
        self.victim = victim = self._trained(
            "victim", victim_key, ARCHITECTURES[plan.architecture](shape, classes),
            lambda checkpoints: networks.train_victim(
                data, plan.architecture, classes, recipe, self.splits.mirror, seed, progress, checkpoints
            ),
        )  # fmt: skip
        reference = self._trained(
            "reference", (plan.reference_epochs,), ReferenceEncoder(shape, classes),
            lambda checkpoints: networks.train_reference(
                data, classes, plan.reference_epochs, seed + 1, progress, checkpoints
            ),
        )  # fmt: skip
        likelihood = self._trained(
            "likelihood", (plan.likelihood_epochs,), VectorQuantisedAutoencoder(shape[0]),
            lambda checkpoints: networks.train_likelihood(
                data, plan.likelihood_epochs, seed + 3, progress, checkpoints
            ),
        )  # fmt: skip
        against = victim if plan.positives == "adversarial" else None
        similarity = self._trained(
            "similarity",
            (plan.similarity_epochs, plan.contrastive_epochs, plan.positives, *(victim_key if against else ())),
            SimilarityEncoder(shape, classes),
            lambda checkpoints: networks.train_similarity(
                data, classes, plan.similarity_epochs, plan.contrastive_epochs, seed + 2, progress, checkpoints, against
            ),
        )
        return {
            "victim": network_tensors(victim),
            "reference": network_tensors(reference),
            "likelihood": network_tensors(likelihood),
            "similarity": network_tensors(similarity),
            "honest": {"features": self._honest_features(reference)},
        }

    def _honest_features(self, reference: ReferenceEncoder) -> NDArray[np.float16]:
        """Features of honest images, half of them as varied cameras would have taken them."""
        half = self.plan.honest_reference // 2
        varied = draw_accounts(self.splits.train, 32, half // 32, self.plan.seed + 10)
        inputs = np.concatenate([self.splits.train.images[:half], *(account.images for account in varied)])
        return in_fixed_batches(reference, inputs).astype(np.float16)

    # ---- calibration ----

    def _draft(self, files: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
        """A manifest whose thresholds mean nothing yet."""
        weights = save({name: np.ascontiguousarray(array) for name, array in files["victim"].items()})
        return {
            "model": {
                "name": self.splits.name,
                "architecture": self.plan.architecture,
                "version": hashlib.sha256(weights).hexdigest()[:12],
                "classes": self.splits.classes,
                "input_shape": self.splits.train.images.shape[1:],
                "test_accuracy": networks.accuracy(self.victim, self.splits.test),
            },
            "profiles": 1,
            "tmsp": {"temperature": 1.0, "lambda": 0.5, "suspicion": 0.5},
            "prada": {"delta": 0.9},
            "similarity": {"delta": 1.0},
            "likelihood": {
                "benign_mean": 0.0,
                "beta": 1.0,
                "data_variance": networks.data_variance(self.splits.train),
            },
            "evidence": {
                "log_threshold": SMALLEST_THRESHOLD,
                "accounts": 1,
                "alarmed": 0,
                "alarm_rate_upper": 1.0,
                "queries_an_account": 1,
            },
            "data": {},
            "false_positive_rates": {},
            "seed": self.plan.seed,
        }

    @staticmethod
    def _silent() -> dict[str, Mapping[str, NDArray[Any]]]:
        return {f"evidence-{kind.name}": calibration.silent_evidence(kind.statistics).tensors() for kind in DETECTORS}

    def _record(self, accounts: list[HonestAccount], name: str) -> list[calibration.Recording]:
        task = self.progress.add_task(name, total=len(accounts))
        recordings = []
        for account in accounts:
            logits = networks.logits_of(self.victim, account.images)
            recordings.append(calibration.Recording(account.images, logits))
            self.progress.advance(task)
        return recordings

    def _trace(self, draft: Bundle, recordings: list[calibration.Recording], name: str) -> list[calibration.Traces]:
        """The accounts in the eyes of the draft's detectors; taken from `work` if they were traced before."""
        images = hashlib.sha256(b"".join(recording.inputs.tobytes() for recording in recordings)).hexdigest()[:16]
        path = self.work / f"traces-{draft.fingerprint}-{images}.safetensors"
        if path.exists():
            self.progress.console.print(f"{name}: traces found in {path}")
            return calibration.load_traces(path)
        task = self.progress.add_task(f"{name}: detectors", total=len(recordings))
        traces: list[calibration.Traces] = []
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), context, initializer=Tracer.load, initargs=(draft.folder,)) as pool:
            with _deaf_children():
                results = pool.map(Tracer.trace, recordings)
            for found in results:
                traces.append(found)
                self.progress.advance(task)
        calibration.save_traces(path, traces)
        return traces

    def _calibrate(
        self, draft: dict[str, Any], files: dict[str, Mapping[str, NDArray[Any]]]
    ) -> tuple[dict[str, Any], dict[str, Mapping[str, NDArray[Any]]]]:
        plan = self.plan
        accounts = draw_accounts(self.splits.calibration, plan.calibration_accounts, plan.queries, plan.seed + 20)
        recordings = self._record(accounts, "calibration accounts: answers")
        honest = np.concatenate([recording.logits for recording in recordings])
        manifest = draft | {"tmsp": self._temperature(honest), "profiles": calibration.PROFILES}
        # TMSP's values depend on T, which is known only now; those of the others on nothing that is calibrated.
        bundle = write_bundle(self.work / "draft", manifest | {"profiles": 1}, files | self._silent())
        detectors: list[Detector[Any]] = [kind.from_bundle(bundle) for kind in DETECTORS]
        traces = self._trace(bundle, recordings, "calibration accounts")
        manifest["tmsp"]["suspicion"] = self._suspicion(manifest["tmsp"], traces)
        manifest["prada"] = {"delta": self._quantile([self._smallest_w(t) for t in traces], high=False)}
        manifest["similarity"] = {"delta": self._pair_delta(traces)}
        manifest["likelihood"] = self._calibrate_likelihood(traces, draft["likelihood"]["data_variance"])
        models = calibration.evidence_models(detectors, traces, plan.seed + 30)
        self._report_discounts(models)

        held = draw_accounts(self.splits.holdout, plan.holdout_accounts, plan.queries, plan.seed + 40, KINDS)
        held_traces = self._trace(bundle, self._record(held, "holdout accounts: answers"), "holdout accounts")
        manifest["evidence"] = self._last_word(detectors, models, held, held_traces)
        manifest["false_positive_rates"] = self._false_positives(manifest, held_traces)
        manifest["data"] = {
            "train": f"{len(self.splits.train):,} images of {self.splits.name}",
            "calibration": f"{len(accounts)} accounts of up to {plan.queries:,} queries on "
            f"{len(self.splits.calibration):,} other images",
            "holdout": f"{len(held)} accounts of up to {plan.queries:,} queries on {len(self.splits.holdout):,} "
            "images of their own",
        }
        return manifest, {f"evidence-{name}": model.tensors() for name, model in models.items()}

    def _quantile(self, values: list[float], high: bool) -> float:
        return calibration.quantile_over_accounts(values, self.plan.account_rate, high)

    def _temperature(self, honest: NDArray[np.float32]) -> dict[str, Any]:
        malicious = networks.logits_of(self.victim, crafted(self.victim, self.splits.calibration, 100, self.plan.seed))
        temperature, threshold, caught = calibration.choose_temperature(honest, malicious, self.plan.query_rate)
        self.progress.console.print(
            f"T = {temperature:.2f}, lambda = {threshold:.3f}: flags {caught:.0%} of crafted queries"
        )
        return {"temperature": temperature, "lambda": threshold, "suspicion": 1.0}

    def _suspicion(self, tmsp: Mapping[str, Any], traces: list[calibration.Traces]) -> float:
        warm_up = TmspSection.model_fields["warm_up"].default
        largest = [calibration.largest_suspicion(t["tmsp"].values[:, 0], tmsp["lambda"], warm_up) for t in traces]
        return self._quantile(largest, high=True)

    @staticmethod
    def _smallest_w(traces: calibration.Traces) -> float:
        values = traces["prada"].values[:, 0]
        return calibration.smallest_w(values[np.isfinite(values)], PradaSection(delta=0.0))

    def _pair_delta(self, traces: list[calibration.Traces]) -> float:
        nearest = np.concatenate([account["similarity"].values[:, 0] for account in traces])
        return float(np.quantile(nearest[np.isfinite(nearest)], self.plan.pair_rate))

    def _calibrate_likelihood(self, traces: list[calibration.Traces], variance: float) -> dict[str, Any]:
        benign_mean = float(np.concatenate([account["likelihood"].values[:, 0] for account in traces]).mean())
        warm_up = LikelihoodSection.model_fields["warm_up"].default
        needed = [calibration.needed_beta(a["likelihood"].values[:, 0], benign_mean, warm_up) for a in traces]
        beta = max(self._quantile(needed, high=True), 1e-6)
        return {"benign_mean": benign_mean, "beta": beta, "data_variance": variance}

    def _report_discounts(self, models: Mapping[str, Any]) -> None:
        for name, model in models.items():
            pairs = zip(model.statistics, model.discount, strict=True)
            self.progress.console.print(f"discounts, {name}: " + ", ".join(f"{s} {d:.2f}" for s, d in pairs))

    def _last_word(
        self,
        detectors: list[Detector[Any]],
        models: Mapping[str, Any],
        accounts: list[HonestAccount],
        traces: list[calibration.Traces],
    ) -> dict[str, Any]:
        task = self.progress.add_task("holdout accounts: evidence", total=len(traces))
        largest = []
        for account, seen in zip(accounts, traces, strict=True):
            evidence = calibration.account_evidence(detectors, models, seen)
            largest.append(float(evidence.max(initial=0.0)))
            if largest[-1] > np.log(1e4):
                self.progress.console.print(
                    f"an honest account ({account.kind}) reached 10^{largest[-1] / np.log(10):.1f}"
                )
            self.progress.advance(task)
        threshold, alarmed = calibration.account_threshold(
            np.array(largest), SMALLEST_THRESHOLD, self.plan.evidence_rate
        )
        return {
            "log_threshold": threshold,
            "accounts": len(accounts),
            "alarmed": alarmed,
            "alarm_rate_upper": calibration.upper_limit(alarmed, len(accounts)),
            "queries_an_account": max(len(account.images) for account in accounts),
        }

    def _false_positives(self, manifest: Mapping[str, Any], traces: list[calibration.Traces]) -> dict[str, float]:
        """Shares on the holdout: of queries for TMSP's flag and similar pairs, of accounts for each paper's rule."""
        tmsp_section = TmspSection.model_validate(manifest["tmsp"])
        likelihood_section = LikelihoodSection.model_validate(manifest["likelihood"])
        similarity_section = SimilaritySection.model_validate(manifest["similarity"])
        flags = np.concatenate([t["tmsp"].values[:, 0] for t in traces]) <= tmsp_section.lambda_
        pairs = [t["similarity"].values[:, 0] < similarity_section.delta for t in traces]
        suspicious = [
            calibration.largest_suspicion(t["tmsp"].values[:, 0], tmsp_section.lambda_, tmsp_section.warm_up)
            > tmsp_section.suspicion
            for t in traces
        ]
        unlikely = [calibration.flags_anyone(likelihood_section, t["likelihood"].values[:, 0]) for t in traces]
        return {
            "tmsp, queries": float(flags.mean()),
            "tmsp, accounts": float(np.mean(suspicious)),
            "prada, accounts": float(np.mean([self._smallest_w(t) < manifest["prada"]["delta"] for t in traces])),
            "similarity, pairs a query": float(np.concatenate(pairs).mean()),
            "similarity, accounts": float(np.mean([p.sum() >= similarity_section.pairs for p in pairs])),
            "likelihood, accounts": float(np.mean(unlikely)),
            "evidence, accounts": manifest["evidence"]["alarmed"] / manifest["evidence"]["accounts"],
        }
