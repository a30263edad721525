"""The smallest detector that shows every part of one: accounts whose latest queries are brighter than honest ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.bundle import Bundle
from shared.detection import Detector, Features, Memory, Rule, Statistic
from shared.evidence import EvidenceModel
from shared.rows import Rows, RowsLayout


class BrightnessMemory(Memory):
    """What is remembered of one account: how many queries were bright, and the latest brightnesses."""

    def __init__(self, layout: RowsLayout) -> None:
        self.bright = 0
        self.latest = Rows(layout)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The count: small, stored whole with every batch."""
        return {"bright": np.array([self.bright], dtype=np.int64)}

    def rows(self) -> dict[str, Rows]:
        """The brightnesses: they grow, so only new chunks are stored."""
        return {"latest": self.latest}

    def restore(self, arrays: Mapping[str, NDArray[Any]], rows: Mapping[str, Rows]) -> None:
        """Take both back."""
        self.bright = int(arrays["bright"][0])
        self.latest = rows["latest"]


class BrightnessDetector(Detector[BrightnessMemory]):
    """Condemns an account whose latest `WINDOW` queries are, on average, brighter than `threshold`."""

    name: ClassVar[str] = "brightness"
    statistics: ClassVar[tuple[Statistic, ...]] = (Statistic("brightness", suspicious_when_high=True),)

    WINDOW = 100

    def __init__(
        self, threshold: float, input_shape: tuple[int, ...], evidence: EvidenceModel, fingerprint: str
    ) -> None:
        super().__init__(evidence, fingerprint)
        self.threshold = threshold
        self.input_shape = input_shape

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> BrightnessDetector:
        """The detector that the bundle was calibrated for; its one constant is a tensor of its own file."""
        evidence = cls.calibrated_evidence(bundle)
        threshold = float(bundle.tensors("brightness")["threshold"][0])
        return cls(threshold, bundle.manifest.model.input_shape, evidence, bundle.fingerprint)

    def score(self, inputs: NDArray[np.uint8], logits: NDArray[np.float32]) -> Features:
        """Mean pixel of each query, in [0, 1]; no account in sight.

        Raises:
            ValueError: inputs have another shape than the bundle's, or logits are not finite rows beside them.
        """
        if inputs.shape[1:] != self.input_shape:
            raise ValueError(f"inputs of shape {inputs.shape} are not [n, {self.input_shape}]")
        if len(logits) != len(inputs) or not np.isfinite(logits).all():
            raise ValueError(f"logits of shape {logits.shape} are not finite rows for {len(inputs)} inputs")
        # Sums of integers are exact: the same bits whatever the batch.
        sums = inputs.reshape(len(inputs), -1).sum(axis=1, dtype=np.int64)
        return {"brightness": sums / (255.0 * np.prod(self.input_shape))}

    def initial_memory(self) -> BrightnessMemory:
        """No queries."""
        return BrightnessMemory(self.layouts()["latest"])

    def layouts(self) -> Mapping[str, RowsLayout]:
        """The bound of the state's size."""
        return {"latest": RowsLayout(shape=(), dtype=np.float64, capacity=self.WINDOW)}

    def observe(self, memory: BrightnessMemory, features: Features, row: int) -> tuple[float, ...]:
        """Take one query in; its brightness is its one statistic."""
        value = features["brightness"][row]
        memory.bright += int(value > self.threshold)
        memory.latest.append(value)
        return (float(value),)

    def rule(self, memory: BrightnessMemory) -> Rule:
        """The mean of the window, once it is full."""
        window = memory.latest.array[-self.WINDOW :]
        mean = float(window.mean()) if len(window) == self.WINDOW else float("nan")
        return Rule(
            statistic=mean,
            threshold=self.threshold,
            flagged=mean > self.threshold,
            details={"bright_queries": float(memory.bright)},
        )
