"""Whether a query is known again that is like an earlier one: AMAO, section 5.6.2, table 12."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.evaluation.attackers import Build, Jacobian, Seeded, seeds_of
from services.evaluation.context import Context
from services.evaluation.drawing import mean_and_spread
from services.evaluation.figures import Finding
from services.evaluation.report import Cell, Study, Table
from services.evaluation.streams import Recorder
from services.inference.image_hash import ImageHash
from services.inference.perceptual_hash import HASH_BITS, perceptual_hashes
from services.redteam.attack import Account, Questions, Reply
from services.redteam.jacobian import Cloudleak, JbdaTr
from services.redteam.substitute import Images
from services.training.augment import transformed, uniform
from services.training.hashing import distances_between, most_bits
from services.training.malicious import quantised
from shared.networks import images
from shared.responses import PHASH, SIMILAR_BITS

SEEDS = 100
RADIUS = 0.1
CRAFTED = 700
"""Queries of each attack after its seeds: three rounds of augmentation."""
PAPER = 83.83
"""Identification accuracy on F-MNIST (table 12)."""


TRANSFORMATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "rotation, 15 degrees": lambda x: transformed(x, degrees=15),
        "shift, 5%": lambda x: transformed(x, shift=0.05),
        "shift, 10%": lambda x: transformed(x, shift=0.1),
        "scale, 17%": lambda x: transformed(x, scale=0.17),
        "brightness, 0.2": lambda x: x + uniform(len(x), -0.2, 0.2),
        "contrast, 55%": lambda x: (x - 0.5) * uniform(len(x), 0.45, 1.55) + 0.5,
        "Gaussian noise, 0.095": lambda x: x + 0.095 * torch.randn_like(x),
    }
)
"""Drawn anew for each image, up to the amount; amounts are those of TR 2021-126 where it has any."""
TRANSFORMED = "transformed"

Pairs = tuple[Images, Images]
"""Recorded queries, and what was made of each."""
Hash = Callable[[NDArray[np.uint8]], NDArray[np.uint64]]


class _Overheard(Account):
    """An account that keeps what it is asked to send."""

    def __init__(self, ask: Recorder) -> None:
        super().__init__(ask)
        self.sent: list[Questions] = []

    def send(self, questions: Questions, limit: int) -> Reply:
        self.sent.append(questions)
        return super().send(questions, limit)


def crafted_pairs(context: Context, build: Build, budget: int, seed: int) -> Pairs:
    """Every query that an attack crafts within a budget, beside the one that it was crafted from."""
    account, random = _Overheard(Recorder(context.model)), np.random.default_rng([seed, SEEDS])
    build(random).run(account, budget, random)
    sent = np.concatenate([asked.images for asked in account.sent])
    numbers = np.concatenate([asked.numbers for asked in account.sent])
    origins = np.concatenate([asked.origins for asked in account.sent])
    made = np.flatnonzero(origins >= 0)
    row_of = {number: row for row, number in enumerate(numbers.tolist())}
    return sent[[row_of[origin] for origin in origins[made].tolist()]], sent[made]


def _kinds(context: Context, seed: int) -> dict[str, Pairs]:
    some = seeds_of(context.natural, min(context.sizes.samples // 2, len(context.natural)), seed).images
    found: dict[str, Pairs] = {}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for name, transformation in TRANSFORMATIONS.items():
            found[name] = some, quantised(transformation(images(some).cpu()).clamp(0.0, 1.0))
    natural = seeds_of(context.natural, min(SEEDS, len(context.natural)), seed).images
    budget = len(natural) + min(CRAFTED, context.sizes.crafted)
    found[JbdaTr.name] = crafted_pairs(context, Jacobian(JbdaTr, natural, RADIUS), budget, seed)
    found[Cloudleak.name] = crafted_pairs(context, Seeded(Cloudleak, natural), budget, seed)
    return found


def recall(hashes: Hash, bits: int, pairs: Pairs) -> float:
    """Share of pairs whose hashes differ in no more bits."""
    first, second = pairs
    return float((np.bitwise_count(hashes(first) ^ hashes(second)) <= bits).mean())


def study(context: Context) -> Study:
    """Recall of similar queries by kind, at a rate of unrelated ones, of the bundle's hash and of pHash."""
    learned = ImageHash.of_bundle(context.bundle)
    unrelated = context.clean.images
    kinds = [_kinds(context, seed) for seed in context.sizes.seeds]
    hashes: list[tuple[str, Hash, int]] = [(f"pHash, {SIMILAR_BITS} bits", perceptual_hashes, SIMILAR_BITS)]
    # As many bits as keep the rate that is asked for: the two hashes side by side, at like rates.
    fewer = most_bits(distances_between(perceptual_hashes(unrelated)))
    hashes.append((f"pHash, {fewer} bits", perceptual_hashes, fewer))
    if learned.kind != PHASH:
        hashes.append((f"the bundle's, {learned.similar_bits} bits", learned.hashes, learned.similar_bits))
    rows: list[list[Cell]] = []
    recalled: list[list[float]] = []
    false = 0.0
    for name, hash_of, bits in hashes:
        counts = distances_between(hash_of(unrelated))
        false = 100 * float(counts[: bits + 1].sum() / counts.sum())
        by_kind = {kind: [100 * recall(hash_of, bits, of[kind]) for of in kinds] for kind in kinds[0]}
        by_kind[TRANSFORMED] = [
            float(np.mean([by_kind[kind][row] for kind in TRANSFORMATIONS])) for row in range(len(kinds))
        ]
        groups = (TRANSFORMED, JbdaTr.name, Cloudleak.name)
        recalled.append([float(np.mean([by_kind[kind][row] for kind in groups])) for row in range(len(kinds))])
        rows.append(
            [name, *(mean_and_spread(values) for values in by_kind.values()), mean_and_spread(recalled[-1]), false]
        )
    columns = ["hash", *kinds[0], TRANSFORMED, "mean of the three", "unrelated pairs, %"]
    transformed_images = len(kinds[0]["shift, 5%"][0])
    return Study(
        name="hashes",
        title="Which queries are known again",
        text=f"Of {HASH_BITS} bits each: how many queries of each kind have a hash near that of the query that they "
        f"were made of, in %. Transformations of {transformed_images:,} images, drawn anew for each; JBDA-TR "
        f"(radius {RADIUS}) and Cloudleak from {SEEDS} seeds, each query beside the one that it was crafted from, "
        f"which may be crafted itself. Unrelated pairs are all pairs of {len(unrelated):,} other images of the same "
        f"classes. The mean is over transformed, JBDA-TR and Cloudleak, as AMAO's {PAPER}% (table 12, which does not "
        f"say how many unrelated ones it takes for similar). Seeds {', '.join(map(str, context.sizes.seeds))}.",
        tables=[Table("Table 12: similar queries known again, %", columns, rows)],
        findings=[
            Finding("phash-recall", float(np.mean(recalled[-1])), f"{hashes[-1][0]}, {mean_and_spread(recalled[-1])}"),
            Finding("phash-false", false, f"of {len(unrelated) * (len(unrelated) - 1) // 2:,} pairs"),
        ],
    )
