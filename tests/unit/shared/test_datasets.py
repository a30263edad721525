"""Data is read as it was published, cut without overlap, and where it is missing the message says what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.datasets import DatasetError, fetch, fetching, load_digits, load_fashion_mnist, load_splits
from tests.support.idx import write_idx


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """50 images that carry their number in their first two pixels; 10 to test."""
    for name, count in (("train", 50), ("t10k", 10)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(count)
        home = tmp_path / "fashion-mnist"
        write_idx(home / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(home / f"{name}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return tmp_path


def test_images_keep_their_order_and_labels(folder: Path) -> None:
    data = load_fashion_mnist("train", folder)
    assert data.images.shape == (50, 1, 28, 28)
    assert data.images.dtype == np.uint8
    assert data.images[:, 0, 0, 0].tolist() == list(range(50))
    assert data.labels.tolist() == [number % 10 for number in range(50)]


def test_the_splits_are_shuffled_alike_every_time(folder: Path) -> None:
    one, other = load_splits(folder), load_splits(folder)
    numbers = one.train.images[:, 0, 0, 0].tolist()
    assert numbers == other.train.images[:, 0, 0, 0].tolist()
    assert sorted(numbers) == list(range(50))
    assert numbers != list(range(50))
    assert (one.train.labels == np.array(numbers) % 10).all()


def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"fashion-mnist .*make data"):
        load_fashion_mnist("train", tmp_path)
    with pytest.raises(DatasetError, match=r"digits\.npz .*make data"):
        load_digits(tmp_path)


def test_a_file_that_was_cut_short_is_refused(folder: Path) -> None:
    path = folder / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match="Fashion-MNIST is not usable"):
        load_fashion_mnist("train", folder)


def test_images_and_labels_of_different_numbers_are_refused(folder: Path) -> None:
    write_idx(folder / "fashion-mnist" / "train-labels-idx1-ubyte.gz", np.zeros(49))
    with pytest.raises(DatasetError, match="do not fit"):
        load_fashion_mnist("train", folder)


def test_what_cannot_be_used_is_fetched_again_and_what_can_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []
    monkeypatch.setattr(fetching, "_fetch_fashion_mnist", fetched.append)
    monkeypatch.setattr(fetching, "_fetch_digits", fetched.append)
    fetch(folder)
    assert fetched == [folder / "digits"]
    path = folder / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    fetch(folder)
    assert fetched[1:] == [folder / "fashion-mnist", folder / "digits"]
