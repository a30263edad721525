"""Honest clients: the accounts of `shared.population`, driven at a pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from services.redteam.attack import Ask
from services.redteam.substitute import Images, Probabilities
from shared.cameras import Camera
from shared.datasets import SHOES, Dataset
from shared.population import (
    HonestAccount,
    Kind,
    anything,
    augmenting,
    burst,
    changing,
    few_classes,
    frames,
    retrying,
    shared_key,
    skewed,
    steady,
    styled,
)

BATCH_ROWS = 32


def shoes(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop that sells only shoes."""
    return few_classes(data, queries, random, SHOES)


def dark(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop whose photographs are all darker and noisier."""
    return styled(data, queries, random, Camera(gain=random.uniform(0.6, 0.7), noise=0.04))


def batches(data: Dataset, queries: int, random: np.random.Generator) -> HonestAccount:
    """A shop that sends 32 photographs a request."""
    return HonestAccount("batches", steady(data, queries, random).images, BATCH_ROWS)


DIGITS = "digits"
"""An honest kind that sends digits to whatever model is served: natural images of another kind. A policy that takes
those for malicious (AMAO's view, the default policy) hurts it, and says so."""
HONEST_KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "steady": steady,
        "skewed": skewed,
        "shoes": shoes,
        "dark": dark,
        "styled": styled,
        "burst": burst,
        "frames": frames,
        "augmenting": augmenting,
        "retrying": retrying,
        "batches": batches,
        "shared-key": shared_key,
        "changing": changing,
        "anything": anything,
        DIGITS: steady,
    }
)
"""From images, how many queries, and randomness to the account."""


CATCH_UP_SECONDS = 1.0


class Pace:
    """Holds a client to so many queries a second. One that fell behind catches up by a second's worth, no more."""

    def __init__(self, queries_per_second: float | None) -> None:
        """
        Args:
            queries_per_second: None for as fast as the endpoint answers.
        """
        self._rate = queries_per_second
        self._next = time.monotonic()

    def wait(self, rows: int) -> None:
        """Return when it is time for the next `rows` queries."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._next = max(self._next, now - CATCH_UP_SECONDS)
        time.sleep(max(0.0, self._next - now))
        self._next += rows / self._rate

    def pacing(self, ask: Ask) -> Ask:
        """The same endpoint at this pace."""

        def paced(images: Images) -> Probabilities:
            self.wait(len(images))
            return ask(images)

        return paced


def drive(ask: Ask, account: HonestAccount, progress: Callable[[int], None] = lambda answered: None) -> int:
    """Send an account's requests in order.

    Args:
        ask: the endpoint.
        account: who asks what.
        progress: told of the queries answered so far.

    Returns:
        Queries answered.

    Raises:
        Banned: the endpoint answers the account no more.
    """
    answered = 0
    for request in account.requests():
        answered += len(ask(request))
        progress(answered)
    return answered
