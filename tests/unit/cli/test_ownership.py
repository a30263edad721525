"""`portcullis verify` and `portcullis evidence`, from the registry to the exit status."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.cli.ownership import CLAIM
from services.ownership.registry import Registry, SourceRecord
from shared.bundle import write_bundle
from shared.codec import encode_perturbed
from shared.networks import network_tensors
from tests.support.bundles import untrained_bundle, untrained_manifest
from tests.support.command import Command
from tests.support.inference import InferenceProcess
from tests.support.thieves import saved, spoiled_answers, trained

MARKS = 64
RANDOM = np.random.default_rng(0)
PICTURES: NDArray[np.uint8] = RANDOM.integers(0, 256, (2 * MARKS, 1, 28, 28), dtype=np.uint8)
LOGITS: NDArray[np.float32] = RANDOM.normal(size=(2 * MARKS, 10)).astype(np.float32)
"""What the marked model said: of noise, anything."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, a registry of two accounts, a thief's copy of the first one's answers, and an innocent model."""
    folder = tmp_path_factory.mktemp("files")
    section = untrained_bundle(folder / "bundle").manifest.model
    registry = Registry.create(f"sqlite:///{folder}/registry.db")
    spoiled = spoiled_answers(LOGITS[:MARKS], PICTURES[:MARKS], "mallory", section)
    spoiled += spoiled_answers(LOGITS[MARKS:], PICTURES[MARKS:], "oscar", section)
    registry.append([SourceRecord("t", 0, n, encode_perturbed(answer)) for n, answer in enumerate(spoiled)])
    registry.close()
    told, true = LOGITS[:MARKS].argmin(axis=1), LOGITS[:MARKS].argmax(axis=1)
    thief = trained(PICTURES[:MARKS], told, seed=1, epochs=150)
    saved(thief, folder / "thief.safetensors")
    saved(trained(PICTURES[:MARKS], true, seed=2, epochs=150), folder / "innocent.safetensors")
    served = untrained_manifest()
    served["model"] = served["model"] | {"architecture": "lenet5"}
    write_bundle(folder / "served" / "bundle", served, {"victim": network_tensors(thief)})
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, files: Path) -> Command:
    monkeypatch.setenv("PORTCULLIS_BUNDLE", str(files / "bundle"))
    monkeypatch.setenv("PORTCULLIS_REGISTRY", f"sqlite:///{files}/registry.db")
    return Command(capsys)


def test_a_thiefs_file_ends_with_a_claim_and_names_the_account(command: Command, files: Path) -> None:
    pair = (f"{files}/thief.safetensors", "--innocent", f"{files}/innocent.safetensors")
    document = command.json("verify", *pair, status=CLAIM)
    mallory, oscar = document["accounts"]
    assert document["claim"]
    assert (document["base"], document["records"], document["changed"]) == ("innocent models", 2 * MARKS, 0)
    assert (mallory["account"], mallory["claim"], mallory["paper_rule"]) == ("mallory", True, True)
    assert mallory["ratio"] > 0.9
    assert mallory["p_holm"] < 1e-20
    assert not oscar["claim"]


def test_an_innocent_file_ends_with_nothing_shown(command: Command, files: Path) -> None:
    said = command.run("verify", f"{files}/innocent.safetensors")
    assert "nothing shows that" in said
    assert "no --innocent model was given" in said
    document = command.json("verify", f"{files}/innocent.safetensors", "--account", "mallory")
    assert not document["claim"]
    assert [of["account"] for of in document["accounts"]] == ["mallory"]
    assert document["accounts"][0]["agreements"] > 0.9 * MARKS


def test_a_thiefs_endpoint_is_proved_like_its_file(command: Command, files: Path) -> None:
    process = InferenceProcess(files / "served", defence=False)
    process.key("alice")
    with process:
        url, key = f"grpc://{process.address}/fashion", process.key("alice")
        document = command.json("verify", url, "--key", key, status=CLAIM)
    assert document["accounts"][0]["claim"]
    assert document["asked_twice"] == 64


def test_people_read_a_table_and_a_sentence(command: Command, files: Path) -> None:
    pair = (f"{files}/thief.safetensors", "--innocent", f"{files}/innocent.safetensors")
    printed = command.run("verify", *pair, status=CLAIM)
    assert f"{files}/thief.safetensors learnt from the answers told to mallory" in printed
    assert "stolen" in printed


def test_what_cannot_be_asked_is_an_error_and_no_verdict(command: Command, files: Path) -> None:
    said = command.run("verify", "grpc://127.0.0.1:1/fashion", "--patience", "1", status=1)
    assert "did not answer within 1 s" in said
    assert "cannot be read" in command.run("verify", f"{files}/nothing.onnx", status=1)
    said = command.run("verify", f"{files}/thief.safetensors", "--class-map", "0,1,2", status=1)
    assert "3 classes" in said
    assert "no class" in command.run("verify", f"{files}/thief.safetensors", "--class-map", "hat", status=1)


def test_evidence_that_is_not_there_is_an_error_with_what_to_do(command: Command, files: Path) -> None:
    thief = f"{files}/thief.safetensors"
    said = command.run("verify", thief, "--account", "nobody", status=1)
    assert "no answer of fashion to nobody was spoiled" in said
    assert "there is no registry at" in command.run("verify", thief, "--registry", "sqlite:///none.db", status=1)
    assert "is no URL" in command.run("evidence", "list", "--registry", "none.db", status=1)


def test_evidence_is_listed_exported_checked_and_enough_for_a_verification(
    command: Command, files: Path, tmp_path: Path
) -> None:
    listed = command.json("evidence", "list")
    assert [(row["account"], row["records"]) for row in listed] == [("mallory", MARKS), ("oscar", MARKS)]
    assert "mallory" in command.run("evidence", "list")
    file = tmp_path / "mallory.jsonl"
    exported = command.json("evidence", "export", "--account", "mallory", "--output", str(file))
    assert exported["head"] == listed[0]["head"]
    assert command.json("evidence", "check", str(file))["records"] == MARKS
    assert command.json("evidence", "check", str(file), "--head", exported["head"])["known"] == MARKS
    document = command.json("verify", f"{files}/thief.safetensors", "--evidence", str(file), status=CLAIM)
    assert [of["account"] for of in document["accounts"]] == ["mallory"]
    said = command.run("verify", f"{files}/thief.safetensors", *2 * ("--evidence", str(file)), status=1)
    assert "one file of each account; these are of mallory, mallory" in said
    file.write_text(file.read_text().replace('"told":', '"told":1', 1))
    assert "record 0" in command.run("evidence", "check", str(file), status=1)


@pytest.mark.parametrize(
    "arguments",
    [("verify",), ("evidence",), *[("evidence", name) for name in ("list", "export", "check")]],
    ids=" ".join,
)
def test_every_command_helps(command: Command, arguments: tuple[str, ...]) -> None:
    assert "Usage: portcullis" in command.run(*arguments, "--help")
