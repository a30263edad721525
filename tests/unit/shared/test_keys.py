"""API keys and the file that holds their hashes."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest
import yaml

from shared.keys import KeyFile, KeyFileError, issue_key


def file_with(path: Path, *accounts: str) -> tuple[KeyFile, list[str]]:
    keys = KeyFile(path, {})
    issued = []
    for account in accounts:
        key, record = issue_key(account)
        keys = keys.add(account, record)
        issued.append(key)
    return keys, issued


def test_a_key_proves_its_account_and_no_other(tmp_path: Path) -> None:
    keys, (alice, bob) = file_with(tmp_path / "keys.yaml", "alice", "bob")
    assert keys.authenticate(f"Bearer {alice}") == "alice"
    assert keys.authenticate(f"bearer {bob}") == "bob"


def test_an_account_may_have_several_keys_and_lose_one(tmp_path: Path) -> None:
    keys, (old, new) = file_with(tmp_path / "keys.yaml", "alice", "alice")
    rotated = keys.revoke(keys.accounts["alice"][0].id)
    assert rotated.authenticate(f"Bearer {old}") is None
    assert rotated.authenticate(f"Bearer {new}") == "alice"
    assert keys.authenticate(f"Bearer {old}") == "alice"


def test_an_account_without_a_key_is_gone(tmp_path: Path) -> None:
    keys, _ = file_with(tmp_path / "keys.yaml", "alice")
    assert keys.revoke(keys.accounts["alice"][0].id).accounts == {}


def test_the_file_holds_only_hashes_and_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.yaml"
    keys, (key,) = file_with(path, "team:alice@example.org")
    keys.save()
    # The secret is the rest: it may hold underscores of its own.
    assert key.split("_", 2)[2] not in path.read_text()
    assert KeyFile.load(path).accounts == keys.accounts
    assert KeyFile.load(path).authenticate(f"Bearer {key}") == "team:alice@example.org"
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.yaml"]


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic x", "Bearer pk_a_b", "Bearer  {key}", "{key}"])
def test_any_other_header_proves_nothing(tmp_path: Path, header: str) -> None:
    keys, (key,) = file_with(tmp_path / "keys.yaml", "alice")
    assert keys.authenticate(header.replace("{key}", key)) is None


def test_an_unknown_id_is_compared_as_long_as_a_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, (key,) = file_with(tmp_path / "keys.yaml", "alice")
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def observed(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr("shared.keys.hmac.compare_digest", observed)
    stranger, _ = issue_key("alice")
    assert keys.authenticate(f"Bearer {stranger}") is None
    assert keys.authenticate(f"Bearer {key}") == "alice"
    assert compared == [(64, 64), (64, 64)]


@pytest.mark.parametrize("name", ["", "with space", "x" * 129, "ö"])
def test_no_key_is_issued_for_an_impossible_account(name: str) -> None:
    with pytest.raises(ValueError, match="does not match"):
        issue_key(name)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ("[]", "(top level)"),
        ("accounts: 3", "accounts"),
        (
            "accounts: {alice: [{id: abcdefghijkl, sha256: x, created: 2026-01-01T00:00:00Z}]}",
            "accounts.alice.0.sha256",
        ),
        ("accounts: {'a b': []}", "accounts.a b"),
        ("accounts: {}\nextra: 1", "extra"),
        ("{", "not YAML"),
    ],
)
def test_a_malformed_file_is_refused_by_file_and_field(tmp_path: Path, document: str, field: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(document)
    with pytest.raises(KeyFileError) as caught:
        KeyFile.load(path)
    assert str(path) in str(caught.value)
    assert field in str(caught.value)


def test_one_id_in_two_accounts_is_refused(tmp_path: Path) -> None:
    keys, _ = file_with(tmp_path / "keys.yaml", "alice")
    keys.save()
    document = yaml.safe_load(keys.path.read_text())
    document["accounts"]["bob"] = document["accounts"]["alice"]
    keys.path.write_text(yaml.safe_dump(document))
    with pytest.raises(KeyFileError, match=r"accounts\.bob\.0\.id"):
        KeyFile.load(keys.path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"absent\.yaml: cannot be read"):
        KeyFile.load(tmp_path / "absent.yaml")
