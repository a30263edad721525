"""Temperature-scaled maximum softmax probability (AMAO, section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.bundle import Bundle, TmspSection
from shared.detection import Detector, Features, Memory, Rule, Statistic, check_logits
from shared.evidence import EvidenceModel
from shared.rows import Rows, RowsLayout
from shared.softmax import tmsp


class TmspMemory(Memory):
    """Counts of one account."""

    def __init__(self) -> None:
        self.queries = 0
        self.flagged = 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The two counts."""
        return {"counts": np.array([self.queries, self.flagged], dtype=np.int64)}

    def rows(self) -> dict[str, Rows]:
        """None: the state does not grow."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]], rows: Mapping[str, Rows]) -> None:
        """Take the counts back."""
        self.queries, self.flagged = (int(count) for count in arrays["counts"])


class TmspDetector(Detector[TmspMemory]):
    """Detect(x) = [TMSP(x, T) <= lambda] (eq. 9), suspicion S = mean Detect (eq. 10) once N > 50."""

    name: ClassVar[str] = "tmsp"
    statistics: ClassVar[tuple[Statistic, ...]] = (Statistic("tmsp", suspicious_when_high=False),)

    def __init__(self, section: TmspSection, classes: int, evidence: EvidenceModel, fingerprint: str) -> None:
        super().__init__(evidence, fingerprint)
        self.section = section
        self.classes = classes

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> TmspDetector:
        """The detector that the bundle was calibrated for."""
        evidence = cls.calibrated_evidence(bundle)
        return cls(bundle.manifest.tmsp, len(bundle.manifest.model.classes), evidence, bundle.fingerprint)

    def score(self, inputs: NDArray[np.uint8], logits: NDArray[np.float32]) -> Features:
        """TMSP of each query; the input itself is not looked at.

        Raises:
            ValueError: logits are not [n, classes] or not finite.
        """
        check_logits(logits, len(inputs), self.classes)
        return {"tmsp": tmsp(logits, self.section.temperature)}

    def initial_memory(self) -> TmspMemory:
        """Nothing counted."""
        return TmspMemory()

    def layouts(self) -> Mapping[str, RowsLayout]:
        """None: the state does not grow."""
        return {}

    def observe(self, memory: TmspMemory, features: Features, row: int) -> tuple[float, ...]:
        """Count the query and whether it is flagged (eq. 9)."""
        value = float(features["tmsp"][row])
        memory.queries += 1
        memory.flagged += value <= self.section.lambda_
        return (value,)

    def observe_all(self, memory: TmspMemory, features: Features, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """The same of many."""
        values = features["tmsp"][rows].astype(np.float64)
        memory.queries += len(values)
        memory.flagged += int((values <= self.section.lambda_).sum())
        return values[:, None]

    def rule(self, memory: TmspMemory) -> Rule:
        """Suspicion S above its threshold, once N > 50 (eq. 10 and its footnote)."""
        suspicion = memory.flagged / memory.queries if memory.queries else float("nan")
        warm = memory.queries > self.section.warm_up
        return Rule(
            statistic=suspicion,
            threshold=self.section.suspicion,
            flagged=warm and suspicion > self.section.suspicion,
            details={"flagged_queries": float(memory.flagged)},
        )
