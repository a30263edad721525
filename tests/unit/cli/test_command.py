"""The command `portcullis`, apart from Kafka; `tests/integration/test_decision.py` has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.decision.policy_file import DEFAULT_POLICY
from shared.keys import KeyFile
from tests.support.bundles import untrained_bundle
from tests.support.command import Command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    untrained_bundle(tmp_path / "bundle")
    monkeypatch.setenv("PORTCULLIS_BUNDLE", str(tmp_path / "bundle"))
    monkeypatch.setenv("PORTCULLIS_KEYS", str(tmp_path / "keys.yaml"))
    monkeypatch.setenv("PORTCULLIS_KAFKA", "127.0.0.1:1")
    return Command(capsys)


def who(folder: Path, key: str) -> str | None:
    return KeyFile.load(folder / "keys.yaml").authenticate(f"Bearer {key}")


def test_an_added_key_opens_its_account_and_is_stored_nowhere(command: Command, tmp_path: Path) -> None:
    added = command.json("keys", "add", "shop")
    assert who(tmp_path, added["key"]) == "shop"
    assert added["key"] not in (tmp_path / "keys.yaml").read_text()
    assert [row["account"] for row in command.json("keys", "list")] == ["shop"]
    assert added["id"] in command.run("keys", "list")


def test_after_a_rotation_old_and_new_key_open_the_account_until_the_old_is_revoked(
    command: Command, tmp_path: Path
) -> None:
    old = command.json("keys", "add", "shop")
    new = command.json("keys", "rotate", "shop")
    assert new["old"] == [old["id"]]
    assert who(tmp_path, old["key"]) == who(tmp_path, new["key"]) == "shop"
    command.run("keys", "revoke", old["id"])
    assert who(tmp_path, old["key"]) is None
    assert who(tmp_path, new["key"]) == "shop"


def test_a_rotation_can_revoke_the_old_key_at_once(command: Command, tmp_path: Path) -> None:
    old = command.json("keys", "add", "shop")
    new = command.json("keys", "rotate", "shop", "--revoke-old")
    assert who(tmp_path, old["key"]) is None
    assert who(tmp_path, new["key"]) == "shop"


def test_keys_of_unknown_accounts_and_ids_are_refused_with_what_to_do(command: Command) -> None:
    assert "portcullis keys add nobody" in command.run("keys", "rotate", "nobody", status=1)
    assert "portcullis keys list" in command.run("keys", "revoke", "abcdefghijkl", status=1)
    assert "does not match" in command.run("keys", "add", "two words", status=1)


def test_a_broken_file_of_keys_is_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("accounts: 7\n")
    assert "keys.yaml: field accounts" in command.run("keys", "add", "shop", status=1)


def test_the_default_policy_is_sound_under_the_bundle(command: Command) -> None:
    assert "policy default is sound" in command.run("policy", "check")
    checked = command.json("policy", "check", str(DEFAULT_POLICY))
    assert [rule["rule"] for rule in checked["rules"]][:5] == [
        "suspicious",
        "extraction",
        "evident-extraction",
        "flagrant-extraction",
        "relentless-extraction",
    ]


def test_a_policys_mistake_is_one_line_with_file_line_and_field(command: Command, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(DEFAULT_POLICY.read_text().replace("action: ban", "action: bann"))
    line = next(n for n, text in enumerate(wrong.read_text().splitlines(), 1) if "action: bann" in text)
    said = command.run("policy", "check", str(wrong), status=1)
    assert said.startswith(f"portcullis: {wrong}:{line}: field rules.4.action: 'bann' is no action")
    assert said.count("\n") == 1


def test_a_bundle_is_shown_whole(command: Command) -> None:
    assert command.json("bundle", "show")["evidence"]["log_threshold"] == 13.8
    assert "evidence.log_threshold" in command.run("bundle", "show")


def test_a_bundle_that_is_not_there_is_named(command: Command, tmp_path: Path) -> None:
    assert f"{tmp_path}/none/bundle.json" in command.run("bundle", "show", str(tmp_path / "none"), status=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("override", "ban", "mallory", "--reason", "theft", "--author", " "), "author is empty"),
        (("override", "pardon", "mallory", "--reason", "", "--author", "ada"), "reason is empty"),
        (
            ("override", "ban", "mallory", "--reason", "theft", "--author", "ada", "--for", "soon"),
            "'soon' is no duration",
        ),
        (
            ("override", "ban", "mallory", "--reason", "theft", "--author", "ada"),
            "Kafka does not answer at 127.0.0.1:1",
        ),
    ],
)
def test_an_override_that_cannot_be_published_says_why(command: Command, arguments: tuple[str, ...], said: str) -> None:
    assert said in command.run(*arguments, status=1)


@pytest.mark.parametrize(
    "arguments", [("override", "ban", "mallory"), ("override", "pin", "m", "--action", "x"), ("no",)]
)
def test_wrong_usage_has_its_own_status(command: Command, arguments: tuple[str, ...]) -> None:
    command.run(*arguments, status=2)


def test_a_setting_that_cannot_be_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTCULLIS_PARTITIONS", "many")
    assert "setting PORTCULLIS_PARTITIONS" in command.run("bundle", "show", status=1)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        *[(group,) for group in ("keys", "override", "policy", "bundle", "topics", "alerts", "verdicts")],
        *[("keys", name) for name in ("add", "rotate", "revoke", "list")],
        *[("override", name) for name in ("pardon", "pin", "ban", "clear")],
        ("policy", "check"),
        ("bundle", "show"),
        ("topics", "create"),
        ("alerts", "tail"),
    ],
    ids=" ".join,
)
def test_every_command_helps(command: Command, arguments: tuple[str, ...]) -> None:
    assert "Usage: portcullis" in command.run(*arguments, "--help")
