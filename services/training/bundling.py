"""One bundle from one dataset: networks, then calibration, then the last word on accounts that nothing has seen."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.numpy import save

from services.inference.network import ARCHITECTURES
from services.likelihood.vqvae import VectorQuantisedAutoencoder
from services.similarity import rarity
from services.similarity.encoder import PerturbationClassifier, ReferenceEncoder, SimilarityEncoder
from services.similarity.rarity import Rarity
from services.training import calibration, networks, papers
from services.training.calibrator import SMALLEST_THRESHOLD, Calibrator, Rates
from services.training.malicious import crafted_images
from services.training.pairs import Pairs, crafted_pairs, honest_pairs
from services.training.prediction import accuracy, logits_of
from services.training.recipes import RECIPES
from services.training.response_making import ResponseMaker, ResponsePlan, Served
from services.training.tracing import DEFAULT_TRACES, DETECTORS, Tracer, populations
from services.training.workshop import Workshop
from shared.bundle import Bundle, CalibrationSection, SimilaritySection, write_bundle
from shared.cameras import Images
from shared.datasets import Splits
from shared.networks import in_fixed_batches, network_tensors
from shared.population import draw_accounts
from shared.softmax import tmsp

MALICIOUS_SAMPLES = 100
"""For the validation of T and lambda (AMAO, section 5.3)."""
EARLY_QUERIES = 300
"""Honest ones of each account, for what the detectors' statistics themselves depend on."""

Positives = Literal["transformations", "adversarial"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much work goes into a bundle. The defaults made the bundle in this repository."""

    seed: int = 1
    architecture: str = "convnet"
    """Of the victim: a name of `services.inference.network`."""
    victim_epochs: int | None = None
    """None stands for those of the architecture's recipe."""
    reference_epochs: int = 6
    crafted: int = 60_000
    """Malicious images that victim and reference encoder learn from."""
    pairs: int = 80_000
    """Honest and as many crafted ones that the classifier of perturbations learns from."""
    perturbation_epochs: int = 6
    similarity_epochs: int = 1
    contrastive_epochs: int = 2
    positives: Positives = "transformations"
    """What the similarity encoder learns to place close to an image: transformations of it, as in TR 2021-126, or
    adversarial perturbations against the victim, as in SEAT."""
    likelihood_epochs: int = 4
    responses: ResponsePlan = field(default_factory=ResponsePlan)
    calibration_accounts: int = 336
    holdout_accounts: int = 168
    queries: int = 1_500
    """Of each calibration account."""
    holdout_queries: int = 3_000
    """Of each holdout account."""
    honest_reference: int = 8_000
    """Honest images that queries are compared with; half of them varied."""
    rates: Rates = field(default_factory=Rates)


QUICK = Plan(
    victim_epochs=1, reference_epochs=1, crafted=4_000, pairs=3_000, perturbation_epochs=2,
    similarity_epochs=1, contrastive_epochs=1, likelihood_epochs=1, responses=ResponsePlan(files=()),
    calibration_accounts=42, holdout_accounts=14, queries=300, holdout_queries=300, honest_reference=1_000,
)  # fmt: skip
"""A bundle in minutes, to try the command; its detectors are weak."""


class BundleMaker:
    """Makes a bundle step by step; what was trained before, by the same plan on the same data, is taken from `work`."""

    def __init__(
        self, splits: Splits, plan: Plan, work: Path, progress: Progress, traces: Path = DEFAULT_TRACES
    ) -> None:
        self.splits, self.plan, self.progress, self.traces = splits, plan, progress, traces
        self.workshop = Workshop.of(splits, work, plan.seed, progress)
        self.shape = networks.shape_of(splits.train)
        self.classes = len(splits.classes)

    def make(self, output: Path) -> Bundle:
        """Train what is missing, calibrate, and write the bundle."""
        trained = self.train()
        manifest, files = self._calibrate(self._draft(trained), trained)
        return write_bundle(output, manifest, files)

    # ---- networks ----

    def train(self) -> dict[str, Mapping[str, NDArray[Any]]]:
        """The tensors of every network that the bundle holds, by file; what is missing is trained."""
        plan, data, progress = self.plan, self.splits.train, self.progress
        shape, classes, seed = self.shape, self.classes, self.plan.seed
        recipe = RECIPES[plan.architecture]
        recipe = replace(recipe, epochs=plan.victim_epochs or recipe.epochs)
        victim_key = (plan.architecture, recipe.epochs, plan.crafted)
        crafted = functools.cache(self._crafted)
        self.victim = victim = self.workshop.trained(
            "victim", victim_key, ARCHITECTURES[plan.architecture](shape, classes),
            lambda checkpoints: networks.train_victim(
                data, plan.architecture, classes, recipe, self.splits.mirror, seed, progress, checkpoints, crafted()
            ),
        )  # fmt: skip
        self.reference = reference = self.workshop.trained(
            "reference", (plan.reference_epochs, plan.crafted), ReferenceEncoder(shape, classes),
            lambda checkpoints: networks.train_reference(
                data, classes, plan.reference_epochs, seed + 1, progress, checkpoints, crafted()
            ),
        )  # fmt: skip
        perturbation = self.workshop.trained(
            "perturbation", (plan.perturbation_epochs, plan.pairs), PerturbationClassifier(shape),
            lambda checkpoints: networks.train_perturbation(
                *self._pairs(), plan.perturbation_epochs, seed + 5, progress, checkpoints
            ),
        )  # fmt: skip
        likelihood = self.workshop.trained(
            "likelihood", (plan.likelihood_epochs,), VectorQuantisedAutoencoder(shape[0]),
            lambda checkpoints: networks.train_likelihood(
                data, plan.likelihood_epochs, seed + 3, progress, checkpoints
            ),
        )  # fmt: skip
        against = victim if plan.positives == "adversarial" else None
        similarity = self.workshop.trained(
            "similarity",
            (plan.similarity_epochs, plan.contrastive_epochs, plan.positives, *(victim_key if against else ())),
            SimilarityEncoder(shape, classes),
            lambda checkpoints: networks.train_similarity(
                data, classes, plan.similarity_epochs, plan.contrastive_epochs, seed + 2, progress, checkpoints, against
            ),
        )
        maker = ResponseMaker(Served(victim, plan.architecture, victim_key), self.splits, plan.responses, self.workshop)
        return maker.make() | {
            "victim": network_tensors(victim),
            "reference": network_tensors(reference),
            "perturbation": network_tensors(perturbation),
            "likelihood": network_tensors(likelihood),
            "similarity": network_tensors(similarity),
            "honest": {"features": self._honest_features(reference)},
        }

    def _crafted(self) -> Images:
        """Malicious images; made once, for victim and reference encoder."""
        return self.workshop.made(
            f"crafted-{self.plan.seed}-{self.plan.crafted}",
            lambda: {"images": crafted_images(self.splits.train, self.plan.crafted, self.plan.seed + 4, self.progress)},
        )["images"]

    def _pairs(self) -> tuple[Pairs, Pairs]:
        """Honest and crafted ones."""
        data, plan, progress = self.splits.train, self.plan, self.progress
        close: float = SimilaritySection.model_fields["close"].default
        made = self.workshop.made(
            f"pairs-{plan.seed}-{plan.pairs}-{close:g}",
            lambda: {
                "honest": honest_pairs(data, plan.pairs, close, plan.seed + 6, progress),
                "crafted": crafted_pairs(data, plan.pairs, close, plan.seed + 7, progress),
            },
        )
        return made["honest"], made["crafted"]

    def _honest_features(self, reference: ReferenceEncoder) -> NDArray[np.float16]:
        """Features of honest images, half of them as varied cameras would have taken them."""
        half = self.plan.honest_reference // 2
        varied = draw_accounts(self.splits.train, 32, half // 32, self.plan.seed + 10)
        inputs = np.concatenate([self.splits.train.images[:half], *(account.images for account in varied)])
        return in_fixed_batches(reference, inputs)[:, : ReferenceEncoder.DIMENSIONS].astype(np.float16)

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
                "test_accuracy": accuracy(self.victim, self.splits.test),
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
            "calibration": {
                "accounts": self.plan.calibration_accounts,
                "queries": self.plan.queries,
                "seed": self.plan.seed + 20,
                "holdout_accounts": self.plan.holdout_accounts,
                "holdout_queries": self.plan.holdout_queries,
                "holdout_seed": self.plan.seed + 40,
            },
            "data": {},
            "false_positive_rates": {},
            "seed": self.plan.seed,
        }

    @staticmethod
    def _silent() -> dict[str, Mapping[str, NDArray[Any]]]:
        return {f"evidence-{kind.name}": calibration.silent_evidence(kind.statistics).tensors() for kind in DETECTORS}

    def _calibrate(
        self, draft: dict[str, Any], files: dict[str, Mapping[str, NDArray[Any]]]
    ) -> tuple[dict[str, Any], dict[str, Mapping[str, NDArray[Any]]]]:
        plan, console = self.plan, self.progress.console
        accounts, held = populations(CalibrationSection.model_validate(draft["calibration"]), self.splits)
        # A few queries of each account do: it is the share over all of them that lambda and rarities hold.
        images = np.concatenate([account.account().images[:EARLY_QUERIES] for account in accounts])
        logits = logits_of(self.victim, images)
        found_tmsp = self._temperature(logits)
        files = files | {"rarity": self._rarity(images, logits, found_tmsp["temperature"])}
        # Two statistics depend on T and rarities, which are known only now; the others on nothing that is calibrated.
        bundle = write_bundle(
            self.workshop.folder / "draft", draft | {"tmsp": {**found_tmsp, "suspicion": 1.0}}, files | self._silent()
        )
        tracer = Tracer(bundle, self.traces, self.progress)
        traces = tracer.trace(accounts, "calibration accounts")
        held_traces = tracer.trace(held, "holdout accounts")
        variance = draft["likelihood"]["data_variance"]
        calibrator = Calibrator(plan.rates, found_tmsp, variance, plan.seed + 30, console.print)
        found = calibrator.calibrate(traces, held_traces)
        for account, largest in zip(held, found.largest, strict=True):
            if largest > np.log(1e4):
                console.print(f"an honest account ({account.kind}) reached 10^{largest / np.log(10):.1f}")
        data = {
            "train": f"{len(self.splits.train):,} images of {self.splits.name}",
            "calibration": f"{len(accounts)} accounts of {plan.queries:,} queries on "
            f"{len(self.splits.calibration):,} other images",
            "holdout": f"{len(held)} accounts of {plan.holdout_queries:,} queries on {len(self.splits.holdout):,} "
            "images of their own",
        }
        evidence: dict[str, Mapping[str, NDArray[Any]]] = {
            f"evidence-{name}": model.tensors() for name, model in found.models.items()
        }
        return draft | dict(found.sections) | {"data": data}, files | evidence

    def _rarity(
        self, images: Images, logits: NDArray[np.float32], temperature: float
    ) -> Mapping[str, NDArray[np.float64]]:
        crafted = in_fixed_batches(self.reference, images)[:, ReferenceEncoder.DIMENSIONS]
        return rarity.tensors(unsure=Rarity.of(-tmsp(logits, temperature)), crafted=Rarity.of(crafted))

    def _temperature(self, logits: NDArray[np.float32]) -> dict[str, float]:
        """Fields `temperature` and `lambda`, from logits of honest queries."""
        samples = crafted_images(self.splits.calibration, MALICIOUS_SAMPLES, self.plan.seed + 50)
        temperature, threshold, caught = papers.choose_temperature(
            logits, logits_of(self.victim, samples), self.plan.rates.query
        )
        self.progress.console.print(
            f"T = {temperature:.2f}, lambda = {threshold:.3f}: flags {caught:.0%} of malicious samples"
        )
        return {"temperature": temperature, "lambda": threshold}
