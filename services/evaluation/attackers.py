"""Who attacks: every attack, at every strength, from few seeds and from many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.evaluation.streams import Attacker
from services.redteam.attack import Attack
from services.redteam.jacobian import JbaPgd, JbdaTr, JbTop3
from services.redteam.knockoff import KnockoffNets
from services.redteam.substitute import Images
from shared.datasets import Dataset

RADII = (4 / 255, 0.03, 0.1, 0.2, 0.3)
"""L-infinity norm of the perturbation, pixels in [0, 1]."""
SEED_COUNTS = (50, 150, 500)
CRAFTED = 600
"""Queries after the seeds: twice what an attacker may send before the verdict."""
REQUEST_ROWS = 64


@dataclass(frozen=True, slots=True)
class Jacobian:
    """Builds a Jacobian attack whose step keeps its paper's ratio to the radius."""

    kind: type[JbdaTr] | type[JbaPgd] | type[JbTop3]
    seeds: Images
    radius: float

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack."""
        standard = self.kind(self.seeds[:1])
        step = standard.step * self.radius / standard.radius
        return self.kind(self.seeds, radius=self.radius, step=step, request_rows=REQUEST_ROWS)


@dataclass(frozen=True, slots=True)
class Knockoff:
    """Builds KnockoffNets on foreign natural images."""

    foreign: Images

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack."""
        return KnockoffNets(self.foreign, request_rows=REQUEST_ROWS)


def natural_seeds(data: Dataset, count: int, seed: int) -> Images:
    """`count` different natural images for the attacker of that seed."""
    return data.images[np.random.default_rng([seed, count]).choice(len(data), count, replace=False)]


def attackers(
    data: Dataset, foreign: Dataset, seeds: Sequence[int], radii: Sequence[float], counts: Sequence[int], crafted: int
) -> list[Attacker]:
    """Every attack at every strength.

    Args:
        data: natural images of the victim's kind, to start from.
        foreign: natural images of another kind.
        seeds: of randomness; each makes attackers of its own.
        radii: of the Jacobian attacks.
        counts: natural seeds of the Jacobian attacks.
        crafted: queries after the natural seeds.
    """
    found = []
    for seed in seeds:
        for count in counts:
            for radius in radii:
                for kind in (JbdaTr, JbaPgd, JbTop3):
                    strength = f"radius {radius:.3g}"
                    build = Jacobian(kind, natural_seeds(data, count, seed), radius)
                    found.append(Attacker(kind.name, strength, count, count + crafted, seed, build))
        found.append(
            Attacker(KnockoffNets.name, "digits", 0, crafted, seed, Knockoff(natural_seeds(foreign, crafted, seed)))
        )
    return found
