"""Who asks what, and when: thousands of honest accounts of every kind, one of them heavy, and attackers among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.evaluation.attackers import Jacobian, Knockoff, Seeded, seeds_of
from services.inference.model import Model, softmax
from services.redteam.attack import Attack
from services.redteam.jacobian import Cloudleak, JbaPgd, JbdaTr, JbTop3
from shared.bundle import Bundle
from shared.datasets import load_digits, load_splits
from shared.population import draw_account

HEAVY = 100
"""Times the median account's rate, of one account."""
ATTACK_QUERIES = 600
ATTACK_RATE = 4.0
"""Queries a second of each attacker."""
SEEDS = 100
MOST_IMAGES = 6_400
"""Of an honest account; it begins anew with them when it has sent them all."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """A load, ready to be sent.

    Attributes:
        accounts: names.
        attackers: how many of them, the last ones.
        images: [m, channels, height, width] uint8, of all accounts.
        at: [n] float64, seconds from the start, ascending.
        account: [n] int64, who asks.
        image: [n] int64, what.
    """

    accounts: Sequence[str]
    attackers: int
    images: NDArray[np.uint8]
    at: NDArray[np.float64]
    account: NDArray[np.int64]
    image: NDArray[np.int64]

    @property
    def honest(self) -> int:
        """Accounts that attack nothing."""
        return len(self.accounts) - self.attackers


def draw_traffic(
    bundle: Bundle, honest: int, attackers: int, rate: float, seconds: float, seed: int, report: Callable[[str], None]
) -> Traffic:
    """Honest accounts ask at random moments (a Poisson process), each at a rate of its own; attackers at `ATTACK_RATE`,
    each from a moment in the first half on.

    What attackers ask was crafted from what the model truly says of it: verdicts come while they go on asking.

    Args:
        bundle: of the model that is asked.
        honest: accounts.
        attackers: accounts.
        rate: queries a second, of all honest accounts together.
        seconds: how long.
        seed: of every draw.
        report: told how far it is.
    """
    random = np.random.default_rng(seed)
    weights = random.lognormal(0.0, 1.0, honest)
    weights[0] = HEAVY * np.median(weights)
    weights /= weights.sum()
    asked = random.poisson(rate * seconds)
    at = np.sort(random.random(asked) * seconds)
    account = random.choice(honest, asked, p=weights)
    images: list[NDArray[np.uint8]] = []
    image = np.empty(asked, dtype=np.int64)
    splits, end = load_splits(), 0
    counts = np.bincount(account, minlength=honest)
    for number in np.flatnonzero(counts).tolist():
        if number % 200 == 0:
            report(f"drawing honest account {number} of {honest}")
        own = draw_account(splits.test, number, int(min(counts[number], MOST_IMAGES)), seed).images
        image[account == number] = end + np.arange(counts[number]) % len(own)
        images.append(own)
        end += len(own)
    parts = [(at, account, image)]
    for number in range(attackers):
        report(f"drawing attacker {number + 1} of {attackers}")
        own = _attack(bundle, seed, number)
        begin = random.random() * seconds / 2
        moments = begin + np.cumsum(random.exponential(1 / ATTACK_RATE, len(own)))
        moments = moments[moments < seconds]
        parts.append((moments, np.full(len(moments), honest + number), end + np.arange(len(moments))))
        images.append(own[: len(moments)])
        end += len(moments)
    at, account, image = (np.concatenate(of) for of in zip(*parts, strict=True))
    order = np.argsort(at, kind="stable")
    names = [f"shop-{number}" for number in range(honest)] + [f"thief-{number}" for number in range(attackers)]
    return Traffic(names, attackers, np.concatenate(images), at[order], account[order], image[order])


def _attack(bundle: Bundle, seed: int, number: int) -> NDArray[np.uint8]:
    """[n, ...], the questions of one attack, of another kind for each number."""
    splits, model = load_splits(), Model(bundle)
    natural = seeds_of(splits.test, SEEDS, seed * 1_000 + number).images
    builders: Sequence[Callable[[np.random.Generator], Attack]] = (
        Jacobian(JbdaTr, natural, 0.1), Jacobian(JbTop3, natural, 0.1), Jacobian(JbaPgd, natural, 0.03),
        Seeded(Cloudleak, natural), Knockoff(load_digits().images),
    )  # fmt: skip
    random = np.random.default_rng([seed, number])
    asked: list[NDArray[np.uint8]] = []

    def ask(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        asked.append(images)
        return softmax(model.logits(images))

    builders[number % len(builders)](random).run(ask, ATTACK_QUERIES, random)
    return np.concatenate(asked)
