"""What every section needs: spreads, the machine, the bundle and the images."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from deploy.local import REPOSITORY
from services.evaluation.figures import Finding
from shared.bundle import MANIFEST, Bundle
from shared.datasets import load_fashion_mnist
from shared.settings import ServiceSettings
from tests.support.detectors import detector_bundle

Report = Callable[[str], None]
"""Told, in a line, what is being measured."""


class SectionError(RuntimeError):
    """A section cannot be measured here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.

    Attributes:
        quick: smaller sizes, for a look.
        seed: of every draw.
        folder: for logs and data of the processes that are started.
        report: told what is being measured.
    """

    quick: bool
    seed: int
    folder: Path
    report: Report

    def size(self, full: int, quick: int) -> int:
        """The one or the other."""
        return quick if self.quick else full


def spread(values: Sequence[float]) -> dict[str, float]:
    """Of several repeats: the smallest, the median and the largest."""
    return {
        "min": float(np.min(values)),
        "median": float(np.median(values)),
        "max": float(np.max(values)),
        "repeats": len(values),
    }


def in_words(name: str, of: dict[str, float]) -> Finding:
    """The median of a `spread`, as a row of docs/results/figures.json."""
    return Finding(name, of["median"], f"{of['min']:.3g} to {of['max']:.3g} over {of['repeats']} repeats")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    packages = ("numpy", "torch", "faiss-cpu", "faust-streaming", "kafka-python", "grpcio", "protobuf")
    return {
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "load_at_start": os.getloadavg()[0],
    }


def trained_bundle() -> Path:
    """The bundle that PORTCULLIS_BUNDLE names, or the repository's.

    Raises:
        SectionError: there is none.
    """
    folder = REPOSITORY / ServiceSettings().bundle
    if not (folder / MANIFEST).exists():
        raise SectionError(f"{folder} holds no bundle: run `make train`")
    return folder


def some_bundle() -> tuple[Bundle, bool]:
    """The repository's bundle and True, or one with random weights, which costs as much to run, and False."""
    try:
        return Bundle.load(trained_bundle()), True
    except SectionError:
        return detector_bundle(Path(tempfile.mkdtemp()), small=False), False


def photographs(count: int, seed: int) -> np.ndarray:
    """[count, 1, 28, 28] images of Fashion-MNIST, in an order that is a function of `seed`, and all different: where
    there are no more, the mirrored ones follow.
    """
    images = load_fashion_mnist("train").images
    order = np.random.default_rng(seed).permutation(len(images))
    return np.concatenate([images[order], images[order][..., ::-1]])[:count]
