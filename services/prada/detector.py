"""PRADA's Shapiro-Wilk test (Juuti, Szyller, Marchal, Asokan 2019; AMAO eq. 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import shapiro

from shared.bundle import Bundle, PradaSection
from shared.detection import Detector, Features, Memory, Rule, Statistic, check_inputs, check_logits, pixels
from shared.evidence import EvidenceModel
from shared.neighbours import NeighbourIndex
from shared.rows import Rows, RowsLayout


def shapiro_wilk(distances: NDArray[np.float64], warm_up: int) -> float:
    """W of the distances that lie within three standard deviations of their mean (PRADA, section 4.2).

    Args:
        distances: [n].
        warm_up: how many must be left, at least, for a test.

    Returns:
        W in (0, 1]: near 1 where the distances are normal. NaN where too few are left or all are equal.
    """
    spread = distances.std() if len(distances) else 0.0
    kept = distances[np.abs(distances - distances.mean()) < 3 * spread] if spread else distances[:0]
    if len(kept) <= warm_up or kept.min() == kept.max():
        return float("nan")
    return float(shapiro(kept).statistic)


class PradaMemory(Memory):
    """The growing set and the distances of one account.

    Attributes:
        members: the growing set over all classes, each row the class followed by the pixels.
        distances: of every query that had an earlier one of its class, with its class in the second column.
        admission: [classes, 4]: count, mean, sum of squared deviations of the distances of admitted queries, threshold.
        w: of the latest test; NaN before the first.
        untested: distances since then.
    """

    def __init__(self, members: RowsLayout, distances: RowsLayout, classes: int) -> None:
        self.members = Rows(members)
        self.distances = Rows(distances)
        self.admission = np.zeros((classes, 4))
        self.w = float("nan")
        self.untested = 0
        self.indexes: dict[int, NeighbourIndex] = {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that does not grow."""
        return {"admission": self.admission, "test": np.array([self.w, self.untested])}

    def rows(self) -> dict[str, Rows]:
        """The growing set and the distances."""
        return {"members": self.members, "distances": self.distances}

    def restore(self, arrays: Mapping[str, NDArray[Any]], rows: Mapping[str, Rows]) -> None:
        """Take everything back and rebuild the indexes."""
        self.admission = arrays["admission"]
        self.w, self.untested = float(arrays["test"][0]), int(arrays["test"][1])
        self.members, self.distances = rows["members"], rows["distances"]
        members = self.members.array
        for label in np.unique(members[:, 0]).tolist():
            self.index_of(label).add(pixels(members[members[:, 0] == label][:, 1:]))

    def index_of(self, label: int) -> NeighbourIndex:
        """The neighbours of one class."""
        if label not in self.indexes:
            self.indexes[label] = NeighbourIndex(self.members.layout.shape[0] - 1)
        return self.indexes[label]

    def admit(self, label: int, image: NDArray[np.uint8]) -> None:
        """Put a query into the growing set; the oldest chunk may fall out of it."""
        evicted = self.members.append(np.concatenate([np.array([label], dtype=np.uint8), image]))
        for gone, count in zip(*np.unique(evicted[:, 0], return_counts=True), strict=True):
            self.index_of(int(gone)).drop_oldest(int(count))
        self.index_of(label).add(pixels(image))


class PradaDetector(Detector[PradaMemory]):
    """Flags an account whose distances to its own earlier queries are not normally distributed.

    As in the authors' code a query enters its class's growing set only where its distance exceeds mean minus standard
    deviation of the distances of those that did (the zero of the first counted in), and W is compared, not its p-value.
    Unlike it, W is of the latest `window` distances: long honest use cannot dilute an attack, and memory is bounded.
    """

    name: ClassVar[str] = "prada"
    statistics: ClassVar[tuple[Statistic, ...]] = (Statistic("class_distance", suspicious_when_high=False),)

    def __init__(
        self,
        section: PradaSection,
        input_shape: tuple[int, ...],
        classes: int,
        evidence: EvidenceModel,
        fingerprint: str,
    ) -> None:
        super().__init__(evidence, fingerprint)
        if classes > 256:
            raise ValueError(f"{classes} classes do not fit the growing set's one byte")
        self.section = section
        self.input_shape = input_shape
        self.classes = classes

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> PradaDetector:
        """The detector that the bundle was calibrated for."""
        evidence = cls.calibrated_evidence(bundle)
        model = bundle.manifest.model
        return cls(bundle.manifest.prada, model.input_shape, len(model.classes), evidence, bundle.fingerprint)

    def score(self, inputs: NDArray[np.uint8], logits: NDArray[np.float32]) -> Features:
        """The predicted class and the pixels.

        Raises:
            ValueError: inputs or logits have other shapes than the bundle's, or logits are not finite.
        """
        check_inputs(inputs, self.input_shape)
        check_logits(logits, len(inputs), self.classes)
        return {"label": logits.argmax(axis=1), "image": inputs.reshape(len(inputs), -1)}

    def initial_memory(self) -> PradaMemory:
        """An empty growing set."""
        layouts = self.layouts()
        return PradaMemory(layouts["members"], layouts["distances"], self.classes)

    def layouts(self) -> Mapping[str, RowsLayout]:
        """The growing set (a byte a pixel) and the window of distances."""
        size = int(np.prod(self.input_shape))
        return {
            "members": RowsLayout((1 + size,), np.uint8, self.section.capacity),
            "distances": RowsLayout((2,), np.float64, self.section.window, 256),
        }

    def observe(self, memory: PradaMemory, features: Features, row: int) -> tuple[float, ...]:
        """Measure the distance, let the growing set decide, test every `test_every` distances."""
        label, image = int(features["label"][row]), features["image"][row]
        distance, _ = memory.index_of(label).nearest(pixels(image))
        count, mean, squares, threshold = memory.admission[label]
        if np.isinf(distance):
            # The first of its class: admitted, with the zero that the authors' list of distances begins with.
            memory.admission[label] = (max(count, 1), mean, squares, threshold)
            memory.admit(label, image)
            return (float("nan"),)
        memory.distances.append(np.array([distance, label]))
        memory.untested += 1
        if distance > threshold:
            # Welford's running moments of the admitted distances.
            count += 1
            change = distance - mean
            mean += change / count
            squares += change * (distance - mean)
            threshold = max(threshold, mean - np.sqrt(squares / count))
            memory.admission[label] = (count, mean, squares, threshold)
            memory.admit(label, image)
        if memory.untested >= self.section.test_every:
            self._test(memory)
        return (distance,)

    def _test(self, memory: PradaMemory) -> None:
        memory.untested = 0
        latest = memory.distances.array[-self.section.window :]
        labels = latest[:, 1].astype(np.int64)
        # A class with fewer than ten distances says nothing of their distribution.
        enough = np.bincount(labels, minlength=self.classes)[labels] >= 10
        memory.w = shapiro_wilk(latest[enough, 0], self.section.warm_up)

    def rule(self, memory: PradaMemory) -> Rule:
        """W below delta, at the latest test."""
        return Rule(
            statistic=memory.w,
            threshold=self.section.delta,
            flagged=memory.w < self.section.delta,
            details={"distances": float(memory.distances.end), "growing_set": float(len(memory.members))},
        )
