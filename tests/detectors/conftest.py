"""One bundle for all tests of detectors, and one detector of each kind over it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shared.bundle import Bundle
from shared.detection import Detector
from tests.support.detectors import CASES, detector_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Random networks, evidence from made-up honest accounts, small bounds."""
    torch.set_num_threads(1)
    return detector_bundle(tmp_path_factory.mktemp("detectors"))


@pytest.fixture(scope="session")
def detectors(bundle: Bundle) -> dict[str, Detector[Any]]:
    """Every detector by its name; they keep nothing, so tests share them."""
    return {name: case.make(bundle) for name, case in CASES.items()}
