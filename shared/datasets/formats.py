"""Reading the formats in which images with labels are published; none of them can run code.

| what | recognised by | test set |
| --- | --- | --- |
| a folder of images | one subfolder a class, PNG or JPEG inside | `test/` or `val/` beside `train/` |
| NumPy's archive | `.npz` with `images` and `labels` | `images_test` beside `images_train`, or Keras's `x_test` |
| IDX, the MNIST family's | `*images*idx*` and `*labels*idx*`, gzipped or not | names with `t10k` or `test` |
| CIFAR-10's binary version | `data_batch_*.bin` | `test_batch.bin` |
"""

from __future__ import annotations

import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.datasets.dataset import Dataset, DatasetError, Source

SMALLEST_SIDE = 16
"""Pixels; below, the detectors' convolutions find nothing left."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
EXPECTED = (
    "expected a folder with one subfolder of PNG or JPEG images a class, an .npz file with images and labels, a folder "
    "of IDX files, or one of CIFAR-10's data_batch_*.bin"
)
_UNREADABLE = (OSError, EOFError, ValueError, IndexError, KeyError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class _Raw:
    """Images [n, h, w], [n, h, w, c] or [n, c, h, w] and labels [n], nothing checked yet."""

    images: NDArray[Any]
    labels: NDArray[Any]


def read_source(path: Path, side: int | None = None) -> Source:
    """A data set on disk, in whichever of the formats above it is.

    Args:
        path: of the folder or of the `.npz` file.
        side: scale each image so that its shorter side has so many pixels, and crop it to a square around its centre.

    Raises:
        DatasetError: nothing readable is there, images differ in size and no side was given, or are too small.
    """
    if not path.exists():
        raise DatasetError(f"{path}: no such data set; {EXPECTED}")
    try:
        train, test, classes, mirror = _read(path, side)
    except _UNREADABLE as error:
        raise DatasetError(f"{path}: cannot be read ({error!r}); {EXPECTED}") from error
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem if path.is_file() else path.resolve().name)[:64]
    return _checked(name or "dataset", path, train, test, classes, mirror, side)


def _read(path: Path, side: int | None) -> tuple[_Raw, _Raw | None, Sequence[str] | None, bool]:
    """Training images, test images, class names by label, whether a mirror image keeps its class."""
    if path.is_file():
        return *_read_npz(path), False
    if list(path.glob("data_batch_*.bin")):
        return *_read_cifar(path), True
    if list(path.glob("*idx*")):
        return *_read_idx_folder(path), None, False
    return *_read_image_folder(path, side), False


def _checked(
    name: str, path: Path, train: _Raw, test: _Raw | None, classes: Sequence[str] | None, mirror: bool, side: int | None
) -> Source:
    values = np.unique(train.labels)
    if test is not None and (foreign := np.setdiff1d(test.labels, values)).size:
        raise DatasetError(f"{path}: the test set has labels that training has not: {foreign[:5].tolist()}")
    if len(values) < 2:
        raise DatasetError(f"{path}: all images are of one class; a classifier needs at least two")
    if classes is not None and not set(values.tolist()) <= set(range(len(classes))):
        raise DatasetError(f"{path}: {len(classes)} class names, but labels up to {values.max()}")
    names = tuple(str(value) if classes is None else classes[value] for value in values)
    parts = [_dataset(path, part, values, side) for part in (train, test) if part is not None]
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DatasetError(f"{path}: training and test images have different shapes, {shapes}; give a side (--side)")
    return Source(name, names, parts[0], parts[1] if test is not None else None, mirror)


def _dataset(path: Path, raw: _Raw, values: NDArray[Any], side: int | None) -> Dataset:
    if raw.images.dtype != np.uint8:
        raise DatasetError(f"{path}: images are {raw.images.dtype}; store them as uint8, 0 to 255")
    if len(raw.images) != len(raw.labels):
        raise DatasetError(f"{path}: {len(raw.images):,} images and {len(raw.labels):,} labels do not fit")
    images = _channels_first(path, raw.images)
    if side is not None:
        images = resized(images, side)
    if min(images.shape[2:]) < SMALLEST_SIDE:
        raise DatasetError(
            f"{path}: images of {images.shape[2]}x{images.shape[3]} pixels; at least {SMALLEST_SIDE} are needed on "
            "each side: give a larger one (--side)"
        )
    return Dataset(images, np.searchsorted(values, raw.labels).astype(np.int64))


def _channels_first(path: Path, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return np.ascontiguousarray(images)
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise DatasetError(f"{path}: images of shape {images.shape}; expected [n, h, w], or 1 or 3 channels first or last")


def resized(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """[n, channels, height, width] uint8 to [n, channels, side, side]: scaled, then cropped around the centre."""
    if images.shape[2:] == (side, side):
        return images
    # Pillow is no dependency of the services that only read this package's types.
    from PIL import Image

    result = np.empty((*images.shape[:2], side, side), dtype=np.uint8)
    for row, image in enumerate(images):
        for channel, plane in enumerate(image):
            result[row, channel] = np.asarray(_fitted(Image.fromarray(plane), side))
    return result


def _fitted(image: Any, side: int) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


# ---- NumPy's archive ----

_SPELLINGS = ("images_{}", "{}_images", "x_{}"), ("labels_{}", "{}_labels", "y_{}")
"""Our own names, MedMNIST's and Keras's."""


def _read_npz(path: Path) -> tuple[_Raw, _Raw | None, Sequence[str] | None]:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise DatasetError(f"{path}: a single array; {EXPECTED}")
    with loaded as archive:
        classes = [str(name) for name in archive["classes"]] if "classes" in archive else None
        if "images" in archive and "labels" in archive:
            return _labelled(path, archive["images"], archive["labels"]), None, classes
        found = {}
        for part in ("train", "test"):
            images, labels = ([n.format(part) for n in names if n.format(part) in archive] for names in _SPELLINGS)
            if images and labels:
                found[part] = _labelled(path, archive[images[0]], archive[labels[0]])
        if "train" not in found:
            raise DatasetError(f"{path}: holds {', '.join(archive) or 'nothing'}; expected images and labels")
        return found["train"], found.get("test"), classes


def _labelled(path: Path, images: NDArray[Any], labels: NDArray[Any]) -> _Raw:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DatasetError(f"{path}: labels of shape {labels.shape} and type {labels.dtype}; expected [n] integers")
    return _Raw(images, labels)


# ---- IDX ----


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One IDX file of bytes, gzipped or not.

    Raises:
        OSError, EOFError, ValueError, IndexError, zlib.error: it cannot be read, or holds something else.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is no IDX file of bytes")
    dimensions = data[3]
    shape = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=dimensions, offset=4))
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _read_idx_folder(path: Path) -> tuple[_Raw, _Raw | None]:
    files = sorted(file for file in path.glob("*idx*") if file.is_file())
    found: dict[tuple[str, str], Path] = {}
    for file in files:
        part = "test" if "t10k" in file.name or "test" in file.name else "train"
        what = "labels" if "labels" in file.name else "images"
        if (part, what) in found:
            raise DatasetError(
                f"{path}: two files of {part} {what}, {found[part, what].name} and {file.name}; keep one pair in the "
                "folder, and one more for the test set"
            )
        found[part, what] = file
    for part in ("train", "test"):
        if ((part, "images") in found) != ((part, "labels") in found):
            raise DatasetError(f"{path}: the {part} set needs one file of images and one of labels")
    if ("train", "images") not in found:
        raise DatasetError(f"{path}: no training images; expected train-images-idx3-ubyte and train-labels-idx1-ubyte")
    parts = {
        part: _labelled(path, read_idx(found[part, "images"]), read_idx(found[part, "labels"])) for part, _ in found
    }
    return parts["train"], parts.get("test")


# ---- CIFAR-10's binary version ----


def _read_cifar(path: Path) -> tuple[_Raw, _Raw | None, Sequence[str]]:
    names = path / "batches.meta.txt"
    classes = names.read_text().split() if names.exists() else CIFAR_CLASSES
    batches = sorted(path.glob("data_batch_*.bin"))
    test = path / "test_batch.bin"
    return _read_batches(path, batches), _read_batches(path, [test]) if test.exists() else None, classes


def _read_batches(path: Path, batches: Sequence[Path]) -> _Raw:
    # A record is a label's byte, then 32x32 red, green and blue ones.
    length = 1 + 3 * 32 * 32
    records = []
    for batch in batches:
        data = np.fromfile(batch, dtype=np.uint8)
        if not len(data) or len(data) % length:
            raise DatasetError(f"{batch}: {len(data):,} bytes are no whole records of {length}; fetch it again")
        records.append(data.reshape(-1, length))
    everything = np.concatenate(records)
    return _Raw(everything[:, 1:].reshape(-1, 3, 32, 32), everything[:, 0].astype(np.int64))


# ---- folders of images ----


def _read_image_folder(path: Path, side: int | None) -> tuple[_Raw, _Raw | None, Sequence[str]]:
    parts = [path / name for name in ("train", "val", "test") if (path / name).is_dir()]
    if path / "train" not in parts:
        classes = _classes(path)
        return _read_images(path, [path], classes, side), None, classes
    classes = _classes(path / "train")
    if unknown := sorted({name for part in parts for name in _classes(part)} - set(classes)):
        raise DatasetError(f"{path}: classes that {path / 'train'} has not: {', '.join(unknown[:5])}")
    # With a test set there, the validation set is images like the others.
    train, test = (parts[:-1], parts[-1:]) if len(parts) > 1 else (parts, [])
    return (
        _read_images(path, train, classes, side),
        _read_images(path, test, classes, side) if test else None,
        classes,
    )


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and any(_image_files(entry)))


def _image_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


def _read_images(path: Path, folders: Sequence[Path], classes: Sequence[str], side: int | None) -> _Raw:
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for file in (file for folder in folders for file in sorted(_image_files(folder / name))):
            images.append(_read_image(file, side))
            labels.append(label)
            if images[-1].shape[:2] != images[0].shape[:2]:
                sizes = " and ".join("x".join(map(str, image.shape[:2])) for image in (images[0], images[-1]))
                raise DatasetError(
                    f"{path}: images differ in size ({sizes} pixels, {file}); give a side (--side) to scale and crop "
                    "them all to squares of it"
                )
    if not images:
        raise DatasetError(f"{path}: no images; {EXPECTED}")
    if len({image.shape[2] for image in images}) > 1:
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    return _Raw(np.stack(images), np.array(labels))


def _read_image(file: Path, side: int | None) -> NDArray[np.uint8]:
    """[height, width, 1 or 3] uint8."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise DatasetError(f"{file}: more than 8 bits a channel; convert the images to 8 bits")
            if side is not None:
                # JPEG decodes at a fraction of its size much faster; twice the side leaves the scaling its quality.
                image.draft(image.mode, (2 * side, 2 * side))
            plain = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
            pixels = np.asarray(plain if side is None else _fitted(plain, side))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{file}: no readable image ({error}); remove it or mend it") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]
