"""Any data in a usual format is read as it was published, and cut into parts that share no image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.datasets import Dataset, DatasetError, Source, Splits, cut, load_source, load_splits, read_source
from shared.datasets.splits import digests
from tests.support.idx import write_idx


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """[count, *shape] random uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int = 3) -> np.ndarray:
    return np.arange(count) % classes


def parts(splits: Splits) -> list[Dataset]:
    return [splits.train, splits.calibration, splits.holdout, splits.test]


def shared_images(splits: Splits) -> int:
    """Images that occur in more than one part, by content."""
    rows = [set(digests(part.images).tolist()) for part in parts(splits)]
    return sum(map(len, rows)) - len(set.union(*rows))


# ---- formats ----


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((16, 17), (1, 16, 17)), ((16, 17, 3), (3, 16, 17)), ((3, 16, 17), (3, 16, 17)), ((16, 17, 1), (1, 16, 17))],
)
def test_an_archive_holds_images_with_channels_anywhere(
    tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    images = pictures(9, *shape)
    np.savez(tmp_path / "my set.npz", images=images, labels=labels(9) + 1)
    source = read_source(tmp_path / "my set.npz")
    assert source.train.images.shape == (9, *expected)
    assert source.train.images[4].sum() == images[4].sum()
    # Labels may begin anywhere; classes are called after them where nothing names them.
    assert (source.train.labels.tolist(), source.classes) == (labels(9).tolist(), ("1", "2", "3"))
    assert (source.name, source.test, source.mirror) == ("my-set", None, False)


@pytest.mark.parametrize(
    "spelling", ["images_{0} labels_{0}", "{0}_images {0}_labels", "x_{0} y_{0}"], ids=["ours", "MedMNIST", "Keras"]
)
def test_an_archive_may_have_a_test_set_and_class_names(tmp_path: Path, spelling: str) -> None:
    arrays = {"classes": np.array(["cat", "dog", "owl"])}
    for part, count in (("train", 9), ("test", 3)):
        images, targets = spelling.format(part).split()
        arrays |= {images: pictures(count, 16, 16), targets: labels(count)[:, None]}
    np.savez(tmp_path / "set.npz", **arrays)
    source = read_source(tmp_path / "set.npz")
    assert source.classes == ("cat", "dog", "owl")
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (9, 3)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_mnist_familys_files_are_read(tmp_path: Path, suffix: str) -> None:
    for part, count in (("train", 12), ("t10k", 3)):
        for name, array in ((f"{part}-images-idx3", pictures(count, 16, 16)), (f"{part}-labels-idx1", labels(count))):
            write_idx(tmp_path / f"{name}-ubyte{suffix}", array, compressed=bool(suffix))
    source = read_source(tmp_path)
    assert source.train.images.shape == (12, 1, 16, 16)
    assert (source.train.images[:, 0] == pictures(12, 16, 16)).all()
    assert source.test is not None
    assert source.test.labels.tolist() == [0, 1, 2]


def test_cifars_binary_version_is_read_and_may_be_mirrored(tmp_path: Path) -> None:
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        records = np.concatenate([labels(6)[:, None].astype(np.uint8), pictures(6, 3072)], axis=1)
        records.tofile(tmp_path / name)
    source = read_source(tmp_path)
    assert source.train.images.shape == (12, 3, 32, 32)
    assert (source.train.images[0].reshape(-1) == pictures(6, 3072)[0]).all()
    assert source.classes == ("airplane", "automobile", "bird")
    assert source.mirror


def save_images(folder: Path, count: int, size: tuple[int, int] = (20, 18), mode: str = "RGB", seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(pictures(count, *size, 3, seed=seed)):
        Image.fromarray(image).convert(mode).save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("1", 1), ("P", 3)])
def test_a_folder_of_images_has_a_subfolder_a_class(tmp_path: Path, mode: str, channels: int) -> None:
    for name in ("rose", "lily"):
        (tmp_path / name).mkdir()
        Image.fromarray(pictures(1, 20, 18, 3)[0]).convert(mode).save(tmp_path / name / "a.png")
        (tmp_path / name / "notes.txt").write_text("not an image")
    source = read_source(tmp_path)
    assert source.classes == ("lily", "rose")
    assert source.train.images.shape == (2, channels, 20, 18)


def test_grey_and_colour_images_mix_as_colour(tmp_path: Path) -> None:
    save_images(tmp_path / "rose", 2)
    save_images(tmp_path / "lily", 2, mode="L")
    assert read_source(tmp_path).train.images.shape == (4, 3, 20, 18)


def test_validation_images_are_the_test_set_where_there_is_no_other(tmp_path: Path) -> None:
    for seed, name in enumerate(("rose", "lily")):
        save_images(tmp_path / "train" / name, 4, seed=seed)
        save_images(tmp_path / "val" / name, 2, seed=seed + 2)
    source = read_source(tmp_path)
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (8, 4)
    for seed, name in enumerate(("rose", "lily")):
        save_images(tmp_path / "test" / name, 1, seed=seed + 4)
    source = read_source(tmp_path)
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (12, 2)


def test_images_of_different_sizes_need_a_side(tmp_path: Path) -> None:
    save_images(tmp_path / "rose", 2, (20, 30))
    save_images(tmp_path / "lily", 2, (40, 18))
    with pytest.raises(DatasetError, match=r"differ in size \(40x18 and 20x30 pixels, .*--side"):
        read_source(tmp_path)
    assert read_source(tmp_path, side=16).train.images.shape == (4, 3, 16, 16)


def test_named_data_can_be_scaled_too() -> None:
    splits = load_source("digits", side=32)
    assert splits.train.images.shape[1:] == (1, 32, 32)
    assert (splits.name, splits.mirror) == ("digits", False)
    assert load_source("digits", mirror=True).mirror


# ---- what cannot be used ----


def archive(**arrays: np.ndarray) -> Callable[[Path], object]:
    return lambda folder: np.savez(folder / "set.npz", **arrays)


GOOD = {"images": pictures(6, 16, 16), "labels": labels(6)}
MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda folder: None, "no such data set; expected a folder"),
    "no archive": (lambda folder: (folder / "set.npz").write_text("hello"), "cannot be read .*; expected a folder"),
    "an object array": (archive(images=np.array([{}] * 3), labels=labels(3)), "cannot be read .*allow_pickle"),
    "other names": (archive(pictures=GOOD["images"]), "holds pictures; expected images and labels"),
    "fewer labels": (archive(**GOOD | {"labels": labels(5)}), "6 images and 5 labels do not fit"),
    "floating-point labels": (archive(**GOOD | {"labels": np.ones(6)}), "expected .n. integers"),
    "floating-point images": (archive(**GOOD | {"images": np.ones((6, 16, 16))}), "store them as uint8"),
    "two channels": (archive(**GOOD | {"images": pictures(6, 2, 16, 16)}), "1 or 3 channels first or last"),
    "tiny images": (archive(**GOOD | {"images": pictures(6, 8, 16)}), "8x16 pixels; at least 16 .*--side"),
    "one class": (archive(**GOOD | {"labels": np.zeros(6, dtype=int)}), "all images are of one class"),
    "too few names": (archive(**GOOD, classes=np.array(["a", "b"])), "2 class names, but labels up to 2"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path, mistake: str) -> None:
    write, message = MISTAKES[mistake]
    write(tmp_path)
    with pytest.raises(DatasetError, match=message):
        read_source(tmp_path / "set.npz")


FOLDER_MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda folder: None, "no images; expected a folder"),
    "labels missing": (
        lambda folder: write_idx(folder / "train-images-idx3-ubyte", GOOD["images"], compressed=False),
        "the train set needs one file of images and one of labels",
    ),
    "cut short": (lambda folder: (folder / "data_batch_1.bin").write_bytes(b"123"), "3 bytes are no whole records"),
    "no image": (
        lambda folder: ((folder / "rose").mkdir(), (folder / "rose" / "a.png").write_text("hello")),
        r"a\.png: no readable image",
    ),
}


@pytest.mark.parametrize("mistake", FOLDER_MISTAKES)
def test_folders_that_cannot_be_used_are_refused_with_what_to_do(tmp_path: Path, mistake: str) -> None:
    write, message = FOLDER_MISTAKES[mistake]
    write(tmp_path)
    with pytest.raises(DatasetError, match=message):
        read_source(tmp_path)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"mnist: neither fashion-mnist nor digits nor a path"):
        load_source("mnist")
    with pytest.raises(DatasetError, match="8 pixels is too small"):
        load_source("digits", side=8)


# ---- cutting ----


def source(copies: int = 2, test: Dataset | None = None) -> Source:
    """210 different images of 3 classes, each `copies` times."""
    data = Dataset(np.tile(pictures(210, 1, 16, 16), (copies, 1, 1, 1)), np.tile(labels(210), copies))
    return Source("made-up", ("a", "b", "c"), data, test, mirror=False)


def test_copies_of_an_image_stay_together_and_every_class_is_everywhere() -> None:
    splits = cut(source())
    assert shared_images(splits) == 0
    assert [len(part) for part in parts(splits)] == [240, 60, 60, 60]
    for part in parts(splits):
        assert (np.bincount(part.labels) == len(part) / 3).all()


def test_what_the_official_test_set_holds_too_is_taken_from_the_rest() -> None:
    data = source().train
    official = Dataset(np.concatenate([data.images[:30], pictures(30, 1, 16, 16, seed=9)]), labels(60))
    splits = cut(source(test=official))
    assert splits.test is official
    assert shared_images(splits) == 0
    assert [len(part) for part in parts(splits)] == [240, 60, 60, 60]


def test_a_cut_is_the_same_every_time() -> None:
    one, other = cut(source()), cut(source())
    assert all((a.images == b.images).all() for a, b in zip(parts(one), parts(other), strict=True))


def test_a_class_with_too_few_images_is_named() -> None:
    few = source(copies=1).train[np.arange(20)]
    with pytest.raises(DatasetError, match="class 'c' has 6 different images; every class needs at least 7"):
        cut(Source("few", ("a", "b", "c"), few, None, mirror=False))


@pytest.mark.parametrize("name", ["fashion-mnist", "digits"])
def test_the_named_sources_share_no_image_between_parts(name: str) -> None:
    splits = load_source(name)
    assert shared_images(splits) == 0
    assert len(splits.classes) == 10
    assert splits.name == name


def test_fashion_mnist_by_name_is_cut_as_ever() -> None:
    by_name, ever = load_source("fashion-mnist"), load_splits()
    assert [len(part) for part in parts(by_name)] == [40_000, 10_000, 10_000, 10_000]
    assert (by_name.holdout.labels == ever.holdout.labels).all()
