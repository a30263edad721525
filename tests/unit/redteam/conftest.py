"""One victim for all tests of a process."""

from __future__ import annotations

import pytest
import torch

from services.redteam.substitute import Images, Yardstick
from tests.support.undefended import Victim, splits

SEEDS = 40


@pytest.fixture(scope="session")
def trained() -> Victim:
    torch.set_num_threads(1)
    return Victim()


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that hardly learn, where only what is asked matters."""
    monkeypatch.setattr("services.redteam.substitute.LEAST_STEPS", 1)


@pytest.fixture
def victim(trained: Victim) -> Victim:
    trained.asked = []
    return trained


@pytest.fixture(scope="session")
def yardstick(trained: Victim) -> Yardstick:
    clean = splits().test[:2000]
    return Yardstick(clean.images, trained.network.labels(clean.images), clean.labels)


@pytest.fixture(scope="session")
def seeds() -> Images:
    return splits().test.images[5000 : 5000 + SEEDS]
