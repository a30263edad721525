"""`portcullis keys`: who may ask the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.output import AsJson, CommandError, say, show_table
from shared.keys import DEFAULT_KEYS, KeyFile, issue_key

app = typer.Typer(
    no_args_is_help=True, help="API keys. The file holds only hashes; inference reads it when it changes."
)

KeysPath = Annotated[
    Path, typer.Option("--keys", envvar="PORTCULLIS_KEYS", help="File of the keys.", show_default=True)
]
Account = Annotated[str, typer.Argument(help="Name of the account.")]


def open_keys(path: Path) -> KeyFile:
    """The file's keys; none where there is no file yet."""
    return KeyFile.load(path) if path.exists() else KeyFile(path, {})


def _add(file: KeyFile, account: str) -> tuple[KeyFile, dict[str, str]]:
    try:
        key, record = issue_key(account)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return file.add(account, record), {"account": account, "id": record.id, "key": key}


def _shown_once(added: dict[str, str]) -> str:
    return f"{added['key']}\n\nThis is the only time that the key of {added['account']} is shown."


@app.command()
def add(account: Account, keys: KeysPath = DEFAULT_KEYS, as_json: AsJson = False) -> None:
    """Issue one more key to an account, new or known; it is printed once and stored nowhere."""
    file, added = _add(open_keys(keys), account)
    file.save()
    say(added, as_json, _shown_once(added))


@app.command()
def rotate(
    account: Account,
    revoke_old: Annotated[bool, typer.Option("--revoke-old", help="Revoke the account's other keys at once.")] = False,
    keys: KeysPath = DEFAULT_KEYS,
    as_json: AsJson = False,
) -> None:
    """Issue a new key to a known account; the old ones stay valid until they are revoked."""
    file = open_keys(keys)
    old = file.accounts.get(account)
    if not old:
        raise CommandError(f"{keys}: no account {account!r}; `portcullis keys add {account}` makes one")
    file, added = _add(file, account)
    if revoke_old:
        for record in old:
            file = file.revoke(record.id)
    file.save()
    names = [record.id for record in old]
    told = "Revoked" if revoke_old else "Still valid, revoke when the new one is in use"
    say({**added, "old": names, "revoked": revoke_old}, as_json, f"{_shown_once(added)}\n{told}: {', '.join(names)}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key: the part between the underscores.")],
    keys: KeysPath = DEFAULT_KEYS,
    as_json: AsJson = False,
) -> None:
    """Revoke one key; an account without keys is gone."""
    try:
        file = open_keys(keys).revoke(key_id)
    except KeyError:
        raise CommandError(f"{keys}: no key {key_id!r}; `portcullis keys list` shows them") from None
    file.save()
    say({"revoked": key_id}, as_json, f"revoked {key_id}")


@app.command("list")
def list_keys(keys: KeysPath = DEFAULT_KEYS, as_json: AsJson = False) -> None:
    """Show accounts and the ids of their keys."""
    rows = [
        {"account": account, "id": record.id, "created": record.created.isoformat()}
        for account, records in sorted(open_keys(keys).accounts.items())
        for record in records
    ]
    show_table(rows, ("account", "id", "created"), as_json, f"{keys}: no keys; `portcullis keys add ACCOUNT` makes one")
