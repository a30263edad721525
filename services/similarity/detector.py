"""Similar pairs (TR 2021-126, section VI-A); steepness, the honest reference and traces of crafting beside them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from services.similarity.encoder import PerturbationClassifier, ReferenceEncoder, SimilarityEncoder, both
from services.similarity.rarity import Rarity
from shared.bundle import Bundle, BundleError, ModelSection, SimilaritySection
from shared.detection import Detector, Features, Memory, Rule, Statistic, check_inputs, check_logits
from shared.evidence import EvidenceModel
from shared.neighbours import NeighbourIndex, ReferenceIndex
from shared.networks import bundle_network, image_shape, images, in_fixed_batches
from shared.novelty import thumbnails
from shared.rows import Rows, RowsLayout
from shared.softmax import tmsp

STATISTICS = (
    # A film has as many similar pairs as an attack; whether one of a pair is perturbed tells them apart.
    Statistic("pair_distance", suspicious_when_high=False, heard=False),
    Statistic("steepness", suspicious_when_high=True),
    Statistic("steepness_where_close", suspicious_when_high=True),
    Statistic("perturbed", suspicious_when_high=True),
    Statistic("reference_distance", suspicious_when_high=True),
    Statistic("crafted", suspicious_when_high=True),
    Statistic("crafted_and_unsure", suspicious_when_high=True),
)
STATELESS = tuple(statistic.name for statistic in STATISTICS[4:])
"""Statistics of a query alone."""
COARSE = 14
"""Cells a side of the thumbnails by which the nearest earlier input is sought: whatever the size of an input, a search
costs the same."""
FEWEST_INPUTS = 64
"""Of an account that are kept, however large they are."""


def coarse(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[n, cells], what the nearest earlier one of [n, ...] inputs is sought by."""
    return thumbnails(inputs, COARSE).astype(np.float32)


@cache
def _cells(shape: tuple[int, ...]) -> int:
    """How many cells `coarse` makes of an input of that shape; every new account asks."""
    return int(coarse(np.zeros((1, *shape), dtype=np.uint8)).shape[1])


def distances(inputs: NDArray[np.uint8], earlier: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[n], L2 distance of each of [n, ...] inputs to its earlier one, pixels in [0, 1]."""
    change = (inputs.astype(np.int32) - earlier).reshape(len(inputs), -1)
    lengths: NDArray[np.float64] = np.sqrt(np.square(change).sum(axis=1)) / 255.0
    return lengths


def farthest(close: float, size: int) -> float:
    """The L2 distance of two inputs of `size` values whose root mean square difference is `close`."""
    return close * float(np.sqrt(size))


class SimilarityMemory(Memory):
    """Feature vectors, and the latest inputs with their answers, of one account.

    Attributes:
        pairs: similar pairs so far.
        vectors: of the similarity encoder, float16.
        inputs: the latest inputs, uint8.
        logits: their centred logits, float32.
        latest: values of the statistics of the latest query, in their order.
    """

    def __init__(self, layouts: Mapping[str, RowsLayout], shape: tuple[int, ...]) -> None:
        self.pairs = 0
        self._shape = shape
        self.latest = np.full(len(STATISTICS), np.nan)
        self.vectors = Rows(layouts["vectors"])
        self.inputs = Rows(layouts["inputs"])
        self.logits = Rows(layouts["logits"])
        self.vector_index = NeighbourIndex(layouts["vectors"].shape[0])
        self.input_index = NeighbourIndex(_cells(shape))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The count and the latest values."""
        return {"pairs": np.array([self.pairs, *self.latest])}

    def rows(self) -> dict[str, Rows]:
        """All that grows."""
        return {"vectors": self.vectors, "inputs": self.inputs, "logits": self.logits}

    def restore(self, arrays: Mapping[str, NDArray[Any]], rows: Mapping[str, Rows]) -> None:
        """Take everything back and rebuild the indexes."""
        self.pairs, self.latest = int(arrays["pairs"][0]), arrays["pairs"][1:].copy()
        self.vectors, self.inputs, self.logits = rows["vectors"], rows["inputs"], rows["logits"]
        if len(self.vectors):
            self.vector_index.add(self.vectors.array.astype(np.float32))
        if len(self.inputs):
            kept: NDArray[np.uint8] = self.inputs.array.astype(np.uint8, copy=False)
            self.input_index.add(coarse(kept.reshape(-1, *self._shape)))

    def remember(self, features: Features, row: int) -> None:
        """Add one query; the oldest chunks may fall out."""
        vector = features["vector"][row]
        if evicted := len(self.vectors.append(vector)):
            self.vector_index.drop_oldest(evicted)
        self.vector_index.add(vector.astype(np.float32))
        if evicted := len(self.inputs.append(features["image"][row])):
            self.input_index.drop_oldest(evicted)
        self.input_index.add(features["coarse"][row])
        self.logits.append(features["logits"][row])


class SimilarityDetector(Detector[SimilarityMemory]):
    """Counts similar pairs; 50 condemn an account.

    A pair is a query and its nearest earlier one of the account, closer than delta in the encoder's space. Beside it,
    as evidence: *steepness*, the change of the centred logits over the change of the input from the nearest earlier
    input of the latest `window` (crafted queries follow the gradient, photographs do not), once over all and once where
    that input is close; where it is close, the log-odds that the query is a *perturbed* copy of it and not another
    photograph; the distance to the honest reference, the k-th nearest of a fixed set of honest images in the reference
    encoder's space; that encoder's log-odds of a crafted image; and how rare these are and the model's own doubt
    (TMSP), added: an honest image may look crafted, or be hard to recognise, and is hardly ever both.
    """

    name: ClassVar[str] = "similarity"
    statistics: ClassVar[tuple[Statistic, ...]] = STATISTICS

    def __init__(
        self,
        section: SimilaritySection,
        model: ModelSection,
        similarity: SimilarityEncoder,
        reference: ReferenceEncoder,
        perturbation: PerturbationClassifier,
        honest: NDArray[np.float32],
        temperature: float,
        unsure: Rarity,
        crafted: Rarity,
        evidence: EvidenceModel,
        fingerprint: str,
    ) -> None:
        """
        Args:
            section: thresholds and bounds.
            model: shapes of inputs and logits.
            similarity: trained, in evaluation mode.
            reference: trained, in evaluation mode.
            perturbation: trained, in evaluation mode.
            honest: [m, 128] features of honest images under `reference`.
            temperature: T of TMSP.
            unsure: rarity of minus TMSP.
            crafted: rarity of the log-odds of a crafted image.
            evidence: calibrated for the statistics.
            fingerprint: identity of all of this.
        """
        super().__init__(evidence, fingerprint)
        self.section, self.model = section, model
        self.similarity, self.reference, self.perturbation = similarity, reference, perturbation
        self.honest = ReferenceIndex(honest)
        self.temperature, self.unsure, self.crafted = temperature, unsure, crafted

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> SimilarityDetector:
        """The detector that the bundle was calibrated for.

        Raises:
            BundleError: a file does not hold the network that it should.
        """
        model = bundle.manifest.model
        shape, classes = image_shape(bundle), len(model.classes)
        similarity = bundle_network(bundle, "similarity", SimilarityEncoder(shape, classes))
        reference = bundle_network(bundle, "reference", ReferenceEncoder(shape, classes))
        honest = bundle.tensors("honest")["features"].astype(np.float32)
        return cls(
            section=bundle.manifest.similarity,
            model=model,
            similarity=similarity,
            reference=reference,
            perturbation=bundle_network(bundle, "perturbation", PerturbationClassifier(shape)),
            honest=honest,
            temperature=bundle.manifest.tmsp.temperature,
            unsure=_rarity(bundle, "unsure"),
            crafted=_rarity(bundle, "crafted"),
            evidence=cls.calibrated_evidence(bundle),
            fingerprint=bundle.fingerprint,
        )

    def score(self, inputs: NDArray[np.uint8], logits: NDArray[np.float32]) -> Features:
        """Feature vectors, the statistics of a query alone, and centred logits.

        Raises:
            ValueError: inputs or logits have other shapes than the bundle's, or logits are not finite.
        """
        check_inputs(inputs, self.model.input_shape)
        check_logits(logits, len(inputs), len(self.model.classes))
        features = in_fixed_batches(lambda x: both(self.similarity, self.reference, x), inputs)
        ends = np.cumsum([SimilarityEncoder.DIMENSIONS, ReferenceEncoder.DIMENSIONS])
        vectors, reference, crafted = np.split(features, ends, axis=1)
        return {
            # Half precision halves the state; rounding here makes the index and the stored rows agree.
            "vector": vectors.astype(np.float16),
            "reference_distance": self.honest.distances(reference, self.section.reference_neighbour),
            "crafted": crafted[:, 0],
            "crafted_and_unsure": self.crafted(crafted[:, 0]) + self.unsure(-tmsp(logits, self.temperature)),
            "image": inputs.reshape(len(inputs), -1),
            "coarse": coarse(inputs),
            "logits": logits - logits.mean(axis=1, keepdims=True),
        }

    def initial_memory(self) -> SimilarityMemory:
        """No queries."""
        return SimilarityMemory(self.layouts(), self.model.input_shape)

    def layouts(self) -> Mapping[str, RowsLayout]:
        """Feature vectors for `capacity` queries; inputs and logits for the latest `window`."""
        size = int(np.prod(self.model.input_shape))
        window = min(self.section.window, max(self.section.window_bytes // size, FEWEST_INPUTS))
        return {
            "vectors": RowsLayout((SimilarityEncoder.DIMENSIONS,), np.float16, self.section.capacity),
            "inputs": RowsLayout((size,), np.uint8, window),
            "logits": RowsLayout((len(self.model.classes),), np.float32, window),
        }

    def observe(self, memory: SimilarityMemory, features: Features, row: int) -> tuple[float, ...]:
        """Find the nearest earlier query in both spaces, count a pair, remember the query."""
        pair_distance, _ = memory.vector_index.nearest(features["vector"][row].astype(np.float32))
        nearest = pair_distance if np.isfinite(pair_distance) else float("nan")
        memory.pairs += nearest < self.section.delta
        change = self._change(memory, features, row)
        memory.remember(features, row)
        values = (nearest, *change, *(float(features[name][row]) for name in STATELESS))
        memory.latest = np.array(values)
        return values

    def _change(self, memory: SimilarityMemory, features: Features, row: int) -> tuple[float, float, float]:
        """Steepness, the same where close, and the log-odds of a perturbation; NaN where there is no such thing."""
        nothing = float("nan")
        _, neighbour = memory.input_index.nearest(features["coarse"][row])
        if neighbour < 0:
            return nothing, nothing, nothing
        image, earlier = features["image"][row], memory.inputs.array[neighbour]
        distance = float(distances(image[None], earlier[None])[0])
        if not distance:  # an exact repeat that is remembered for longer than its digest
            return nothing, nothing, nothing
        rise = np.linalg.norm((features["logits"][row] - memory.logits.array[neighbour]).astype(np.float64))
        steepness = float(rise) / distance
        if distance >= farthest(self.section.close, len(image)):
            return steepness, nothing, nothing
        return steepness, steepness, self._perturbed(image, earlier)

    def _perturbed(self, image: NDArray[np.uint8], earlier: NDArray[np.uint8]) -> float:
        # One pair at a time: which is the earlier one is known only when all before it have been taken in.
        channels, *rest = self.model.input_shape
        with torch.inference_mode():
            return float(self.perturbation(images(np.concatenate([image, earlier]).reshape(1, 2 * channels, *rest))))

    def rule(self, memory: SimilarityMemory) -> Rule:
        """`pairs` similar pairs or more."""
        return Rule(
            statistic=float(memory.pairs),
            threshold=float(self.section.pairs),
            flagged=memory.pairs >= self.section.pairs,
            details={
                "delta": self.section.delta,
                **{s.name: float(value) for s, value in zip(self.statistics, memory.latest, strict=True)},
            },
        )


def _rarity(bundle: Bundle, name: str) -> Rarity:
    """
    Raises:
        BundleError: the bundle holds none.
    """
    try:
        return Rarity(bundle.tensors("rarity")[name])
    except BundleError:
        raise
    except (KeyError, ValueError) as error:
        raise BundleError(f"{bundle.folder / 'rarity'}.safetensors: {name}: {error}") from error
