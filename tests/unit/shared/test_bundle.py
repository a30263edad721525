"""A bundle is whole or it is refused: by the file and the field that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.bundle import Bundle, BundleError, write_bundle
from tests.support.bundles import untrained_manifest

TENSORS = {"weights": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "other": {"b": np.zeros(2, dtype=np.int64)}}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", untrained_manifest(), TENSORS)


def change(bundle: Bundle, alter: Callable[[dict[str, Any]], object]) -> None:
    """Alter the manifest on disk."""
    path = bundle.folder / "bundle.json"
    document = json.loads(path.read_text())
    alter(document)
    path.write_text(json.dumps(document))


def test_what_was_written_is_read(bundle: Bundle) -> None:
    again = Bundle.load(bundle.folder)
    assert again.manifest == bundle.manifest
    assert again.manifest.tmsp.lambda_ == 0.5
    assert again.fingerprint == bundle.fingerprint
    np.testing.assert_array_equal(again.tensors("weights")["a"], TENSORS["weights"]["a"])


def test_equal_bundles_have_equal_fingerprints_and_others_have_others(tmp_path: Path, bundle: Bundle) -> None:
    assert write_bundle(tmp_path / "again", untrained_manifest(), TENSORS).fingerprint == bundle.fingerprint
    other = TENSORS | {"other": {"b": np.ones(2, dtype=np.int64)}}
    assert write_bundle(tmp_path / "other", untrained_manifest(), other).fingerprint != bundle.fingerprint
    seeded = untrained_manifest() | {"seed": 2}
    assert write_bundle(tmp_path / "seed", seeded, TENSORS).fingerprint != bundle.fingerprint


def test_no_file_is_pickled(bundle: Bundle) -> None:
    assert {path.suffix for path in bundle.folder.iterdir()} == {".json", ".safetensors"}


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json: cannot be read .*make train"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_manifest_that_is_not_json_is_refused(bundle: Bundle, text: bytes) -> None:
    (bundle.folder / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"bundle\.json: not JSON"):
        Bundle.load(bundle.folder)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"bundle"'])
def test_a_manifest_that_is_no_object_is_refused(bundle: Bundle, text: str) -> None:
    (bundle.folder / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json: field \(top level\)"):
        Bundle.load(bundle.folder)


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda d: d.update(format=2), "field format"),
    "no model": (lambda d: d.pop("model"), "field model"),
    "a name with a space": (lambda d: d["model"].update(name="my model"), "field model.name"),
    "one class": (lambda d: d["model"].update(classes=["a"]), "field model.classes"),
    "no input shape": (lambda d: d["model"].update(input_shape=[]), "field model.input_shape"),
    "a shape of zero": (lambda d: d["model"].update(input_shape=[1, 0, 28]), "field model.input_shape.1"),
    "an accuracy over one": (lambda d: d["model"].update(test_accuracy=1.1), "field model.test_accuracy"),
    "a field nobody knows": (lambda d: d["prada"].update(detla=0.9), "field prada.detla"),
    "a cold temperature": (lambda d: d["tmsp"].update(temperature=0.0), "field tmsp.temperature"),
    "no lambda": (lambda d: d["tmsp"].pop("lambda"), "field tmsp.lambda"),
    "a delta of NaN": (lambda d: d["prada"].update(delta=float("nan")), "field prada.delta"),
    "an infinite delta": (lambda d: d["similarity"].update(delta=float("inf")), "field similarity.delta"),
    "text for a number": (lambda d: d["likelihood"].update(beta="two"), "field likelihood.beta"),
    "no profiles": (lambda d: d.update(profiles=0), "field profiles"),
    "fewer than no alarms": (lambda d: d["evidence"].update(alarmed=-1), "field evidence.alarmed"),
    "a rate over one": (lambda d: d["false_positive_rates"].update(prada=2), "field false_positive_rates.prada"),
    "a file elsewhere": (lambda d: d["files"].update({"../secret.safetensors": "0"}), r"field files\.\.\./secret"),
    "a file of another kind": (lambda d: d["files"].update({"weights.pkl": "0"}), r"field files\.weights\.pkl"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_in_the_manifest_is_refused_by_its_field(bundle: Bundle, mistake: str) -> None:
    alter, said = MISTAKES[mistake]
    change(bundle, alter)
    with pytest.raises(BundleError, match=rf"bundle\.json: {said}"):
        Bundle.load(bundle.folder)


def test_an_altered_file_is_refused_by_its_name(bundle: Bundle) -> None:
    path = bundle.folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.safetensors: its SHA-256 is .* field files\.weights\.safetensors"):
        Bundle.load(bundle.folder)


def test_a_missing_file_is_refused_by_its_name(bundle: Bundle) -> None:
    (bundle.folder / "other.safetensors").unlink()
    with pytest.raises(BundleError, match=r"other\.safetensors: cannot be read"):
        Bundle.load(bundle.folder)


def test_a_file_that_the_manifest_does_not_list_is_not_read(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"field files has no third\.safetensors"):
        bundle.tensors("third")


def test_a_file_that_is_no_safetensors_is_refused_by_its_name(bundle: Bundle) -> None:
    (bundle.folder / "weights.safetensors").write_bytes(b"not tensors")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        bundle.tensors("weights")


def test_a_bundle_whose_writing_was_cut_short_is_none(bundle: Bundle) -> None:
    (bundle.folder / "bundle.json").unlink()
    with pytest.raises(BundleError):
        Bundle.load(bundle.folder)


def test_writing_a_malformed_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="field seed"):
        write_bundle(tmp_path, untrained_manifest() | {"seed": "one"}, {})
