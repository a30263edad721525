"""The attackers of the two papers, plain and adaptive, as they are recorded: picklable, each from its randomness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from services.evaluation.attackers import Build, DataFree, Seeded, seeds_of
from services.evaluation.streams import Attacker
from services.redteam.adaptive import Filtered, SubstituteDetector, train_encoder
from services.redteam.attack import Account, Ask, Attack, AttackReport, Loot, Progress, Questions, Route
from services.redteam.blinding import AUTO_ENCODER, BLINDINGS, Blinded, Strength, blinding
from services.redteam.dfme import Dfme
from services.redteam.jacobian import Cloudleak, JacobianAttack, JbaBs, JbaCw, JbaPgd, JbdaTr, JbTop3
from services.redteam.substitute import Substitute, Yardstick, shape_of
from shared.datasets import Dataset

Scheme = Callable[[Route, np.random.Generator], Route]
"""How an attacker disguises what he asks: from the route of an account, the route that his questions take."""

PLAIN = ""
"""Name of the scheme that disguises nothing."""
FILTERED = "query filtering"
ON_SEEDS, ON_OTHERS = f"{FILTERED}, encoder trained on the seeds", f"{FILTERED}, encoder trained on other images"
BLINDED = "query blinding"
OTHER_IMAGES = 5_000
"""Of the victim's kind, which an attacker may have beside his seeds."""
ENCODER_EFFORT = 4
"""Images shown to the attacker's own encoder in each stage of its training, for each query that he crafts."""


class Disguised(Attack):
    """An attack whose questions take a route of its own."""

    name = "disguised"

    def __init__(self, attack: Attack, scheme: Scheme) -> None:
        """
        Args:
            attack: what is asked.
            scheme: how it is disguised.
        """
        super().__init__(attack.request_rows)
        self._attack = attack
        self._scheme = scheme

    def run(
        self,
        victim: Ask | Route,
        budget: int,
        random: np.random.Generator,
        yardstick: Yardstick | None = None,
        progress: Progress = lambda report: None,
    ) -> AttackReport:
        """As the attack itself, through the scheme."""
        account = victim if isinstance(victim, Route) else Account(victim)
        return self._attack.run(self._scheme(account, random), budget, random, yardstick, progress)

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """The attack's own."""
        return self._attack.questions(loot, substitute)

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """As the attack itself."""
        self._attack.learn(loot, substitute)


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Builds a disguised attack."""

    attack: Build
    scheme: Scheme

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack."""
        return Disguised(self.attack(random), self.scheme)


@dataclass(frozen=True, slots=True)
class Blind:
    """Query blinding (TR 2021-126, VII-A).

    Attributes:
        transformation: one of `BLINDINGS`.
        strength: low is the report's default.
        own: the attacker's images; only the auto-encoder learns from them.
        classes: how many the victim tells apart.
    """

    transformation: str
    strength: Strength
    own: Dataset
    classes: int

    def __call__(self, route: Route, random: np.random.Generator) -> Route:
        """The disguise."""
        answers = np.eye(self.classes, dtype=np.float32)[self.own.labels]
        return Blinded(route, blinding(self.transformation, self.strength, self.own.images, answers, random), random)


@dataclass(frozen=True, slots=True)
class Filter:
    """Query filtering (TR 2021-126, VII-B), by an encoder trained on the attacker's images.

    Attributes:
        own: the attacker's images.
        shown: images shown to the encoder in each stage of its training, `own` again and again.
    """

    own: Dataset
    shown: int

    def __call__(self, route: Route, random: np.random.Generator) -> Route:
        """The disguise."""
        epochs = -(-self.shown // len(self.own))
        encode = train_encoder(self.own, epochs, epochs, int(random.integers(2**31)))
        return Filtered(route, SubstituteDetector.tuned(encode, self.own.images))


# ---- AMAO ----

AMAO_ATTACKS: Mapping[str, type[JacobianAttack]] = MappingProxyType({JbdaTr.name: JbdaTr, Cloudleak.name: Cloudleak})
"""Those that start from natural images; the third, KnockoffNets, sends foreign ones."""


# ---- TR 2021-126 ----

SEEDED: Mapping[str, type[JacobianAttack]] = MappingProxyType(
    {JbTop3.name: JbTop3, JbaPgd.name: JbaPgd, JbaCw.name: JbaCw, JbaBs.name: JbaBs}
)
"""Table VII, in its order."""
ADAPTIVE = (JbTop3.name, JbaPgd.name, Dfme.name)
"""Tables X, XI and XIII."""
NEED_SEEDS = (ON_SEEDS, f"{BLINDED}, {AUTO_ENCODER}")
"""Schemes that learn from natural seeds, which DFME has none of."""


def schemes(seeds: Dataset, others: Dataset, shown: int, classes: int) -> dict[str, Scheme]:
    """Every adaptive scheme of tables X and XI, by name.

    Args:
        seeds: the attacker's.
        others: further images of the victim's kind that he has.
        shown: images shown to his encoder, see `Filter`.
        classes: how many the victim tells apart.
    """
    blind = {f"{BLINDED}, {name}": Blind(name, "low", seeds, classes) for name in BLINDINGS}
    return {ON_OTHERS: Filter(others, shown), ON_SEEDS: Filter(seeds, shown), **blind}


def report_attackers(
    natural: Dataset, others: Dataset, randomness: Sequence[int], crafted: int, classes: int
) -> list[Attacker]:
    """The attackers of TR 2021-126, section VIII-A, plain and adaptive; a tenth of a budget are seeds, as there.

    Args:
        natural: images to start from.
        others: further images of the victim's kind that an attacker may have.
        randomness: seeds; each makes attackers of its own.
        crafted: queries after the natural seeds.
        classes: how many the victim tells apart.
    """
    count = min(max(crafted // 9, 1), len(natural))
    budget = count + crafted
    found = []
    for seed in randomness:
        seeds = seeds_of(natural, count, seed)
        elsewhere = seeds_of(others, min(OTHER_IMAGES, len(others)), seed)
        data_free = DataFree(shape_of(natural.images))
        builds: dict[str, Build] = {name: Seeded(kind, seeds.images) for name, kind in SEEDED.items()}
        for name, build in (builds | {Dfme.name: data_free}).items():
            own = 0 if name == Dfme.name else count
            found.append(Attacker(name, "the report's", own, budget, seed, build, PLAIN))
            if name in ADAPTIVE:
                found += [
                    Attacker(name, "the report's", own, budget, seed, Adaptive(build, scheme), disguise)
                    for disguise, scheme in schemes(seeds, elsewhere, ENCODER_EFFORT * crafted, classes).items()
                    if own or disguise not in NEED_SEEDS
                ]
    return found
