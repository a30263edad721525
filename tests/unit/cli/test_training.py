"""`portcullis train`: what it is told, what it says, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from services.cli import training as cli
from services.inference.image_hash import ImageHash
from services.inference.network import ARCHITECTURES
from services.training import bundling, command, malicious
from services.training.bundling import QUICK, Plan
from services.training.response_making import RESPONSES, ResponsePlan
from shared.bundle import Bundle
from tests.support.bundles import untrained_bundle
from tests.support.command import Command


@pytest.fixture
def portcullis(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Arguments with which a bundle was asked for; none is trained."""
    asked: list[tuple[Any, ...]] = []

    def train_bundle(*arguments: Any) -> Bundle:
        asked.append(arguments)
        return untrained_bundle(tmp_path / "bundle")

    monkeypatch.setattr(command, "train_bundle", train_bundle)
    return asked


def test_the_command_knows_the_zoo_and_the_plan() -> None:
    assert get_args(cli.Architecture) == tuple(ARCHITECTURES)
    assert tuple(f"response-{name}" for name in cli.ResponseFile) == RESPONSES
    assert cli.Positives == bundling.Positives


def test_without_options_the_plan_is_the_repositorys(portcullis: Command, calls: list[tuple[Any, ...]]) -> None:
    said = portcullis.run("train")
    dataset, plan, work, output, _, data, side, mirror = calls[0]
    assert (dataset, plan, output, side, mirror) == ("fashion-mnist", Plan(), None, None, None)
    assert (work, data) == (Path("build/training"), Path("data"))
    assert "convnet, accuracy 10.0%" in said
    assert "PORTCULLIS_BUNDLE=" in said


def test_options_reach_the_plan_and_programs_get_json(portcullis: Command, calls: list[tuple[Any, ...]]) -> None:
    options = "--dataset d --side 32 --mirror --architecture resnet18 --positives adversarial --output o --work w"
    document = portcullis.json("train", *options.split(), "--seed", "7", "--quick")
    dataset, plan, work, output, _, _, side, mirror = calls[0]
    assert (dataset, work, output, side, mirror) == ("d", Path("w"), Path("o"), 32, True)
    assert (plan.seed, plan.architecture, plan.positives) == (7, "resnet18", "adversarial")
    assert plan.holdout_accounts == QUICK.holdout_accounts
    assert document["model"]["architecture"] == "convnet"
    assert document["evidence"]["accounts"] == 1


def test_data_that_is_not_there_is_an_error_with_what_to_do(portcullis: Command, tmp_path: Path) -> None:
    said = portcullis.run("train", "--dataset", str(tmp_path / "nowhere"), status=1)
    assert "neither fashion-mnist nor digits nor a path that exists; expected a folder" in said
    assert "run `make data`" in portcullis.run("train", "--data", str(tmp_path), status=1)


def test_too_little_data_is_an_error_with_how_much_is_needed(portcullis: Command, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (90, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", images=images, labels=np.arange(90) % 2)
    said = portcullis.run("train", "--dataset", str(tmp_path / "small.npz"), status=1)
    assert "only 14 images are left for calibration; at least 100 are needed" in said


def test_an_architecture_that_is_not_there_is_wrong_usage(portcullis: Command) -> None:
    assert "resnet18" in portcullis.run("train", "--architecture", "resnet19", status=2)


def test_who_interrupts_is_told_how_to_go_on(portcullis: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Bundle:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "train_bundle", interrupted)
    said = portcullis.run("train", "--work", "here", status=130)
    assert "interrupted; what was trained so far is in here: the same command goes on from there" in said


def test_without_the_packages_of_training_the_command_names_them(
    portcullis: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "services.training.bundling", None)
    assert "pip install 'portcullis[training]'" in portcullis.run("train", status=1)


def test_help_waits_for_no_heavy_import() -> None:
    code = "import sys, services.cli.__main__; print([m for m in ('torch', 'PIL', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are bright above or below: an .npz file with enough of them for every part."""
    random = np.random.default_rng(0)
    images = random.integers(0, 100, (1_400, 16, 16), dtype=np.uint8)
    labels = np.arange(len(images)) % 2
    images[labels == 0, :8] += 100
    images[labels == 1, 8:] += 100
    path = tmp_path_factory.mktemp("data") / "halves.npz"
    np.savez(path, images=images, labels=labels)
    return path


def test_networks_that_spoil_answers_are_added_to_a_bundle_and_nothing_else_changes(
    portcullis: Command, tmp_path: Path, two_classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(malicious, "COPY_STEPS", 2)
    before = untrained_bundle(tmp_path / "bundle", classes=("0", "1"), shape=(1, 16, 16))
    options = ("--dataset", str(two_classes), "--work", str(tmp_path / "work"))
    portcullis.run("train", "--add-responses-to", str(before.folder), "--response", "image-hash", *options)
    after = Bundle.load(before.folder)
    assert set(after.manifest.files) - set(before.manifest.files) == {"response-image-hash.safetensors"}
    assert after.manifest.model == before.manifest.model
    for name, digest in before.manifest.files.items():
        assert after.manifest.files[name] == digest
    assert ImageHash.of_bundle(before).kind == "phash"
    assert ImageHash.of_bundle(after).kind.startswith("learned-")


def test_networks_that_spoil_answers_are_not_trained_on_other_data_than_the_model(
    portcullis: Command, tmp_path: Path, two_classes: Path
) -> None:
    untrained_bundle(tmp_path / "bundle")
    options = ("--dataset", str(two_classes), "--add-responses-to", str(tmp_path / "bundle"))
    said = portcullis.run("train", *options, "--work", str(tmp_path / "work"), status=1)
    assert "takes (1, 28, 28) and knows" in said


def test_single_networks_that_spoil_answers_can_be_chosen(portcullis: Command, calls: list[tuple[Any, ...]]) -> None:
    portcullis.run("train", "--response", "queen", "--response", "meco")
    portcullis.run("train", "--no-responses")
    assert calls[0][1].responses == ResponsePlan(files=("response-queen", "response-meco"))
    assert calls[1][1].responses == ResponsePlan(files=())
