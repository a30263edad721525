"""Who sends a request."""

from __future__ import annotations

from pathlib import Path

from services.inference.auth import Authenticator
from shared.clock import ManualClock
from shared.keys import KeyFile, issue_key


def saved(path: Path, account: str) -> str:
    key, record = issue_key(account)
    KeyFile(path, {}).add(account, record).save()
    return key


def test_a_changed_file_is_read_again_within_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.yaml", ManualClock()
    old = saved(path, "alice")
    authenticator = Authenticator(path, clock)
    new = saved(path, "bob")
    assert authenticator.account([("authorization", f"Bearer {old}")]) == "alice"
    clock.advance(1.0)
    assert authenticator.account([("authorization", f"Bearer {old}")]) is None
    assert authenticator.account([("authorization", f"Bearer {new}")]) == "bob"


def test_a_file_that_breaks_leaves_the_keys_that_were_read(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.yaml", ManualClock()
    key = saved(path, "alice")
    authenticator = Authenticator(path, clock)
    path.write_text("accounts: 3")
    clock.advance(1.0)
    assert authenticator.account([("authorization", f"Bearer {key}")]) == "alice"


def test_two_authorization_entries_prove_nothing(tmp_path: Path) -> None:
    key = saved(tmp_path / "keys.yaml", "alice")
    authenticator = Authenticator(tmp_path / "keys.yaml", ManualClock())
    assert authenticator.account([("authorization", f"Bearer {key}")] * 2) is None
    assert authenticator.account(None) is None
