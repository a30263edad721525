"""How the command speaks: tables for people, one JSON document for programs, one line for an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from shared.validation import printable

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

FAILED = 1
"""Exit status of a command that could not do what it was asked; wrong usage has 2."""
PIPE_COLUMNS = 200
"""Width of a table that nobody watches: a pipe has none of its own, and wants whole columns."""


class CommandError(Exception):
    """The command cannot do what it was asked; the message says why and what to do."""


def say(document: Any, as_json: bool, sentence: str) -> None:
    """Print the document, or the sentence that tells a person the same."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else sentence)


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, when_empty: str) -> None:
    """Print rows as a JSON list, or as a table of these columns."""
    if as_json:
        say(list(rows), True, "")
        return
    if not rows:
        typer.echo(when_empty)
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        # As text: an account's name may look like markup.
        table.add_row(*(_plain(row[column]) for column in columns))
    console = Console(markup=False, highlight=False)
    console.print(table, width=console.width if console.is_terminal else PIPE_COLUMNS)


def moment(microseconds: int) -> str:
    """Microseconds since the Unix epoch as people and programs read it; empty for 0, which means never."""
    if not microseconds:
        return ""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> str:
    # A name or a reason comes from somebody else.
    return printable(f"{value:.3g}" if isinstance(value, float) else str(value))
