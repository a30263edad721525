"""`portcullis override`: a person's word on an account, which outranks every rule."""

from __future__ import annotations

import uuid
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from services.cli.output import AsJson, CommandError, moment, say
from services.cli.streams import publish
from services.decision.policy import refusal
from services.decision.rules import FOREVER, Duration
from shared.bundle import Bundle
from shared.clock import SystemClock
from shared.codec import encode_override
from shared.events import Action, Override, OverrideKind
from shared.settings import ServiceSettings
from shared.topics import OVERRIDES

app = typer.Typer(
    no_args_is_help=True, help="People's decisions on an account; they outrank every rule and are audited."
)


class ActionName(StrEnum):
    """What an account can be pinned at."""

    ALLOW = "allow"
    OBSERVE = "observe"
    PERTURB = "perturb"
    THROTTLE = "throttle"
    BAN = "ban"


Account = Annotated[str, typer.Argument(help="Name of the account.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit record.")]
Author = Annotated[str, typer.Option(envvar="PORTCULLIS_AUTHOR", help="Who decides; kept in the audit record.")]
Model = Annotated[str, typer.Option(help="Name of the model; the bundle's where it is not given.")]
Span = Annotated[str, typer.Option("--for", help="How long: 90s, 30m, 6h, 7d or forever.")]


@app.command()
def pardon(account: Account, reason: Reason, author: Author, model: Model = "", as_json: AsJson = False) -> None:
    """Forget what is held against an account, and any pin; the rules apply again to what is new."""
    _publish(account, OverrideKind.PARDON, Action.ALLOW, reason, author, model, "forever", as_json)


@app.command()
def pin(
    account: Account,
    action: Annotated[ActionName, typer.Option(help="What to hold the account at.")],
    reason: Reason,
    author: Author,
    span: Span = "forever",
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """Hold an account at an action, whatever the rules say; `--action allow` exempts it."""
    _publish(account, OverrideKind.PIN, Action[action.name], reason, author, model, span, as_json)


@app.command()
def ban(
    account: Account, reason: Reason, author: Author, span: Span = "forever", model: Model = "", as_json: AsJson = False
) -> None:
    """Refuse an account's queries: `pin --action ban`."""
    _publish(account, OverrideKind.PIN, Action.BAN, reason, author, model, span, as_json)


@app.command()
def clear(account: Account, reason: Reason, author: Author, model: Model = "", as_json: AsJson = False) -> None:
    """Take a pin back: the account is where the rules would have it by now."""
    _publish(account, OverrideKind.CLEAR, Action.ALLOW, reason, author, model, "forever", as_json)


def _publish(
    account: str, kind: OverrideKind, action: Action, reason: str, author: str, model: str, span: str, as_json: bool
) -> None:
    settings = ServiceSettings()
    now = SystemClock().now()
    lasts = _duration(span)
    override = Override(
        override_id=uuid.uuid4().hex,
        account=account,
        model_name=model or Bundle.load(settings.bundle).manifest.model.name,
        kind=kind,
        action=action,
        author=author,
        reason=reason,
        issued_at=now,
        expires_at=0 if lasts == FOREVER else now + lasts,
    )
    if fault := refusal(override, profiles=0):
        raise CommandError(f"decision would refuse this: {fault}")
    partition, offset = publish(settings, OVERRIDES, account, encode_override(override))
    document = {
        "override_id": override.override_id,
        "account": account,
        "model": override.model_name,
        "kind": kind.name.lower(),
        "action": action.name.lower(),
        "expires_at": moment(override.expires_at),
        "partition": partition,
        "offset": offset,
    }
    until = f" until {moment(override.expires_at)}" if override.expires_at else ""
    what = f"pin at {action.name.lower()}{until}" if kind is OverrideKind.PIN else kind.name.lower()
    say(document, as_json, f"{account}: {what} is on its way (override {override.override_id})")


def _duration(text: str) -> int:
    try:
        return int(TypeAdapter(Duration).validate_python(text))
    except ValidationError as error:
        raise CommandError(f"--for: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
