"""Who attacks: every attack, at every strength, from few seeds and from many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from services.evaluation.streams import Attacker
from services.redteam.attack import Attack
from services.redteam.dfme import Dfme
from services.redteam.jacobian import Cloudleak, JacobianAttack, JbaBs, JbaCw, JbaPgd, Jbda, JbdaTr, JbTop3
from services.redteam.pool import KnockoffNets
from services.redteam.substitute import Images, Shape, VictimsOwn, shape_of
from shared.datasets import Dataset

REQUEST_ROWS = 64
DATA_FREE_BATCH = 32
"""An eighth of the authors' own: a stream of a tenth of the report's budget holds as many rounds."""

Build = Callable[[np.random.Generator], Attack]
"""An attack, from its randomness."""
Bounded = type[Jbda] | type[JbdaTr] | type[JbaPgd] | type[JbTop3] | type[JbaBs]
EVERYWHERE: tuple[Bounded, ...] = (JbdaTr, JbaPgd, JbTop3)
"""Sent from few seeds and from many."""
FROM_SOME: tuple[Bounded, ...] = (Jbda, JbaBs)
"""Sent from the middle number of seeds only, as are the attacks that have no radius: crafting for them takes long."""


@dataclass(frozen=True, slots=True)
class Jacobian:
    """Builds a Jacobian attack whose step keeps its paper's ratio to the radius."""

    kind: Bounded
    seeds: Images
    radius: float

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack."""
        if issubclass(self.kind, Jbda):
            return self.kind(self.seeds, step=self.radius, request_rows=REQUEST_ROWS)
        standard = self.kind(self.seeds[:1])
        step = standard.step * self.radius / standard.radius
        return self.kind(self.seeds, radius=self.radius, step=step, request_rows=REQUEST_ROWS)


@dataclass(frozen=True, slots=True)
class Seeded:
    """Builds an attack that starts from natural images; of its own paper's strength where `kind` binds no other."""

    kind: Callable[..., JacobianAttack]
    seeds: Images

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack."""
        return self.kind(self.seeds, request_rows=REQUEST_ROWS)


@dataclass(frozen=True, slots=True)
class DataFree:
    """Builds DFME."""

    shape: Shape

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack; a round is asked in one request."""
        return Dfme(self.shape, batch=DATA_FREE_BATCH, request_rows=REQUEST_ROWS)


@dataclass(frozen=True, slots=True)
class Knockoff:
    """Builds KnockoffNets on foreign natural images."""

    foreign: Images
    round_queries: int = 300

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack."""
        return KnockoffNets(self.foreign, self.round_queries, request_rows=REQUEST_ROWS)


@dataclass(frozen=True, slots=True)
class Insider:
    """Builds another's attack for an attacker who knows the victim's architecture (AMAO, section 5.1.2)."""

    build: Build
    architecture: VictimsOwn

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack."""
        attack = self.build(random)
        attack.architecture = self.architecture
        return attack


def seeds_of(data: Dataset, count: int, seed: int) -> Dataset:
    """`count` different natural images, with labels, for the attacker of that seed."""
    return data[np.random.default_rng([seed, count]).choice(len(data), count, replace=False)]


def middle_of(counts: Sequence[int]) -> int:
    """The number of natural seeds that those start from who are not sent from every number."""
    return counts[len(counts) // 2]


def attackers(
    data: Dataset, foreign: Dataset, seeds: Sequence[int], radii: Sequence[float], weights: Sequence[float],
    counts: Sequence[int], crafted: int,
) -> list[Attacker]:  # fmt: skip
    """Every attack at every strength.

    Args:
        data: natural images of the victim's kind, to start from.
        foreign: natural images of another kind.
        seeds: of randomness; each makes attackers of its own.
        radii: of the attacks that have one.
        weights: of Cloudleak's triplet loss, how far an image may go for another's features.
        counts: natural seeds of the Jacobian attacks.
        crafted: queries after the natural seeds.
    """
    return [attacker for seed in seeds for attacker in _of_seed(data, foreign, seed, radii, weights, counts, crafted)]


def bounded_attackers(
    data: Dataset, seed: int, radii: Sequence[float], count: int, crafted: int, kinds: Sequence[Bounded] = EVERYWHERE
) -> Iterator[Attacker]:
    """Attacks that have a radius, at each of them, from one number of natural seeds; see `attackers`."""
    natural = seeds_of(data, count, seed).images
    for kind in kinds:
        for radius in radii:
            yield Attacker(
                kind.name, f"radius {radius:.3g}", count, count + crafted, seed, Jacobian(kind, natural, radius)
            )


def _of_seed(
    data: Dataset, foreign: Dataset, seed: int, radii: Sequence[float], weights: Sequence[float],
    counts: Sequence[int], crafted: int,
) -> Iterator[Attacker]:  # fmt: skip
    middle = middle_of(counts)
    for count in counts:
        kinds = (*EVERYWHERE, *(FROM_SOME if count == middle else ()))
        yield from bounded_attackers(data, seed, radii, count, crafted, kinds)
    natural = seeds_of(data, middle, seed).images
    for weight in weights:
        cloudleak = Seeded(partial(Cloudleak, weight=weight), natural)
        yield Attacker(Cloudleak.name, f"weight {weight:g}", middle, middle + crafted, seed, cloudleak)
    yield Attacker(JbaCw.name, "smallest that succeeds", middle, middle + crafted, seed, Seeded(JbaCw, natural))
    yield Attacker(Dfme.name, "no data", 0, crafted, seed, DataFree(shape_of(data.images)))
    surrogate = Knockoff(seeds_of(foreign, crafted, seed).images)
    yield Attacker(KnockoffNets.name, "digits", 0, crafted, seed, surrogate)
