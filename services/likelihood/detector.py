"""Log-likelihood under a VQ-VAE with a credibility interval (TR 2021-126, section VI-B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from services.likelihood.vqvae import VectorQuantisedAutoencoder
from shared.bundle import Bundle, LikelihoodSection, ModelSection
from shared.detection import Detector, Features, Memory, Rule, Statistic, check_inputs, check_logits
from shared.evidence import EvidenceModel
from shared.networks import bundle_network, image_shape, in_fixed_batches
from shared.rows import Rows, RowsLayout


class LikelihoodMemory(Memory):
    """Running moments of one account.

    Attributes:
        count: queries.
        mean: running mean of the log-likelihood.
        means: count, mean and sum of squared deviations of the sequence of running means.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.means = np.zeros(3)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it."""
        return {"moments": np.array([self.count, self.mean, *self.means])}

    def rows(self) -> dict[str, Rows]:
        """None: the state does not grow."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]], rows: Mapping[str, Rows]) -> None:
        """Take everything back."""
        moments = arrays["moments"]
        self.count, self.mean, self.means = int(moments[0]), float(moments[1]), moments[2:].copy()

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the sequence of running means."""
        count, _, squares = self.means
        return float(np.sqrt(squares / (count - 1))) if count > 1 else 0.0

    def add(self, log_likelihood: float, warm_up: int) -> None:
        """Take in one query; Welford's running moments."""
        self.count += 1
        self.mean += (log_likelihood - self.mean) / self.count
        if self.count > warm_up:
            count, mean, squares = self.means
            change = self.mean - mean
            mean += change / (count + 1)
            self.means = np.array([count + 1, mean, squares + change * (self.mean - mean)])


class LikelihoodDetector(Detector[LikelihoodMemory]):
    """Flags an account whose mean log-likelihood is credibly below that of honest queries.

    The credibility interval is the running mean plus and minus beta standard deviations of the sequence of running
    means, after a warm-up of 50 queries in which it fluctuates. As in the paper only its upper end is compared: natural
    images often lie above.
    """

    name: ClassVar[str] = "likelihood"
    statistics: ClassVar[tuple[Statistic, ...]] = (Statistic("log_likelihood", suspicious_when_high=False),)

    def __init__(
        self,
        section: LikelihoodSection,
        model: ModelSection,
        network: VectorQuantisedAutoencoder,
        evidence: EvidenceModel,
        fingerprint: str,
    ) -> None:
        super().__init__(evidence, fingerprint)
        self.section, self.model, self.network = section, model, network

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> LikelihoodDetector:
        """The detector that the bundle was calibrated for.

        Raises:
            BundleError: a file does not hold the network that it should.
        """
        model = bundle.manifest.model
        network = bundle_network(bundle, "likelihood", VectorQuantisedAutoencoder(image_shape(bundle)[0]))
        return cls(bundle.manifest.likelihood, model, network, cls.calibrated_evidence(bundle), bundle.fingerprint)

    def score(self, inputs: NDArray[np.uint8], logits: NDArray[np.float32]) -> Features:
        """Log-likelihood of each query, up to a constant.

        Raises:
            ValueError: inputs have another shape than the bundle's, or logits are not finite.
        """
        check_inputs(inputs, self.model.input_shape)
        check_logits(logits, len(inputs), len(self.model.classes))
        variance = self.section.data_variance
        return {
            "log_likelihood": in_fixed_batches(lambda x: self.network.log_likelihood(x, variance), inputs),
        }

    def initial_memory(self) -> LikelihoodMemory:
        """No queries."""
        return LikelihoodMemory()

    def layouts(self) -> Mapping[str, RowsLayout]:
        """None: the state does not grow."""
        return {}

    def observe(self, memory: LikelihoodMemory, features: Features, row: int) -> tuple[float, ...]:
        """Move the running mean."""
        value = float(features["log_likelihood"][row])
        memory.add(value, self.section.warm_up)
        return (value,)

    def rule(self, memory: LikelihoodMemory) -> Rule:
        """The interval's upper end below the honest mean."""
        half = self.section.beta * memory.deviation
        upper = memory.mean + half
        warm = memory.means[0] > 1
        return Rule(
            statistic=upper if warm else float("nan"),
            threshold=self.section.benign_mean,
            flagged=bool(warm and upper < self.section.benign_mean),
            details={"mean": memory.mean, "lower": memory.mean - half, "upper": upper},
        )
