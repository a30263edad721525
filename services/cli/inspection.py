"""`portcullis policy`, `bundle`, `topics`, `verdicts` and `alerts`: what is set, and what has been decided."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.output import AsJson, CommandError, moment, say, show_table
from services.cli.streams import follow, read_verdicts
from services.decision.policy_file import DEFAULT_POLICY, load_policy
from shared.bundle import Bundle
from shared.events import Action, Verdict
from shared.settings import ServiceSettings
from shared.topics import ALERTS
from shared.topics_admin import create_topics
from shared.validation import printable

policy = typer.Typer(no_args_is_help=True, help="Policies: what follows from the detectors' signals.")
bundle = typer.Typer(no_args_is_help=True, help="The bundle: everything trained or calibrated.")
topics = typer.Typer(no_args_is_help=True, help="Kafka's topics.")
alerts = typer.Typer(no_args_is_help=True, help="What the security team is told.")


@policy.command("check")
def check_policy(
    file: Annotated[Path, typer.Argument(help="The policy's YAML file.")] = DEFAULT_POLICY, as_json: AsJson = False
) -> None:
    """Say whether decision would start with a policy under the bundle at hand; name the line of a mistake."""
    manifest = Bundle.load(ServiceSettings().bundle).manifest
    checked = load_policy(file, manifest.evidence.log_threshold)
    rows = [
        {
            "rule": rule.name,
            "action": rule.action.name.lower(),
            "for_queries": rule.for_queries,
            "description": rule.description,
        }
        for rule in checked.document.rules
    ]
    if as_json:
        document = {"policy": checked.document.name, "fingerprint": checked.fingerprint, "rules": rows}
        say(document, True, "")
        return
    typer.echo(f"{file}: policy {checked.document.name} is sound; {checked.document.threat_model}")
    show_table(rows, ("rule", "action", "for_queries", "description"), False, "")


@bundle.command("show")
def show_bundle(
    folder: Annotated[Path | None, typer.Argument(help="The bundle's folder; PORTCULLIS_BUNDLE if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a bundle was made for, its thresholds, and the false alarms it was measured to give."""
    loaded = Bundle.load(folder or ServiceSettings().bundle)
    document = {"fingerprint": loaded.fingerprint, **loaded.manifest.model_dump(mode="json", by_alias=True)}
    if as_json:
        say(document, True, "")
        return
    rows = [{"field": path, "value": value} for path, value in _leaves(document)]
    show_table(rows, ("field", "value"), False, "")


def _leaves(document: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in document.items():
        leaves += _leaves(value, f"{path}{name}.") if isinstance(value, dict) else [(f"{path}{name}", value)]
    return leaves


@topics.command("create")
def create(as_json: AsJson = False) -> None:
    """Create every topic that is not there; those that are stay as they are."""
    settings = ServiceSettings()
    created = create_topics(settings)
    say({"kafka": settings.kafka, "created": created}, as_json, ", ".join(created) or "every topic was there already")


def show_verdicts(
    account: Annotated[str, typer.Option(help="Of this account only.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Accounts that are allowed, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the verdict in force on each account."""
    latest: dict[str, Verdict] = {}
    for name, verdict in read_verdicts(ServiceSettings()):
        if verdict is None:
            latest.pop(name, None)
        else:
            latest[name] = verdict
    shown = [
        _verdict_row(verdict)
        for name, verdict in sorted(latest.items())
        if account in ("", name) and (every or account or verdict.action is not Action.ALLOW)
    ]
    columns = ("account", "action", "rule", "since", "expires", "at_query", "log_evidence", "reason")
    show_table(shown, columns, as_json, "no account is held; --all shows those that were released")


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "account": verdict.account,
        "model": verdict.model_name,
        "action": verdict.action.name.lower(),
        "rule": verdict.rule,
        "since": moment(verdict.issued_at),
        "expires": moment(verdict.expires_at),
        "at_query": verdict.at_query,
        "log_evidence": verdict.log_evidence,
        "reason": verdict.reason,
        "verdict_id": verdict.verdict_id,
    }


@alerts.command("tail")
def tail(
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Those already there first.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print alerts as they come, until Ctrl-C; with --json the whole finding, one a line."""
    for record in islice(follow(ServiceSettings(), ALERTS, from_beginning), count):
        try:
            finding = json.loads(record.value or b"")
            line = f"{moment(finding['time'] * 1000)}  {finding['severity']:<13}  {finding['message']}"
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(
                f"{record.topic} at {record.partition}:{record.offset} is no finding: {error!r}"
            ) from error
        shown = json.dumps(finding) if as_json else printable(line)
        typer.echo(shown)
