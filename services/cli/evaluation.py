"""`portcullis evaluate` and `portcullis figures`: the numbers that the defence stands on, made again by anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from services.cli.output import FAILED, AsJson, CommandError, say, show_table
from services.evaluation.figures import FIGURES, Figure, read_figures
from shared.datasets import DEFAULT_FOLDER
from shared.settings import ServiceSettings


def evaluate(
    study: Annotated[
        list[str] | None, typer.Option("--study", help="Only this study; may be given again. All where not given.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle's folder; PORTCULLIS_BUNDLE if not given.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = DEFAULT_FOLDER,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    cache: Annotated[Path, typer.Option(help="Folder of recorded streams and traces; a cut run goes on.")] = Path(
        "build"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Minutes instead of hours; the numbers say little.")] = False,
    as_json: AsJson = False,
) -> None:
    """Replay recorded attackers and honest accounts through the detectors, and write tables, pictures and figures.

    With --quick nothing of docs/results/figures.json changes.
    """
    # Torch takes seconds to load; `portcullis --help` should not wait for it.
    from services.evaluation.run import UnknownStudyError
    from services.evaluation.run import evaluate as run

    try:
        figures = run(study, bundle or ServiceSettings().bundle, data, output, cache, quick, quiet=as_json)
    except UnknownStudyError as error:
        raise CommandError(str(error)) from error
    _show(figures, as_json)


def show_figures(
    file: Annotated[Path, typer.Argument(help="The file of figures.")] = FIGURES,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where a figure falls short or is missing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every figure beside its target and the paper's number, and what falls short."""
    figures = read_figures(file)
    _show(figures, as_json)
    if strict and not all(figure.reached for figure in figures):
        raise typer.Exit(FAILED)


def _show(figures: list[Figure], as_json: bool) -> None:
    if as_json:
        say([json.loads(figure.model_dump_json()) | {"reached": figure.reached} for figure in figures], True, "")
        return
    rows = [
        {
            "id": figure.id,
            "value": "not measured" if figure.value is None else f"{figure.value:g}",
            "target": f"{'at least' if figure.better == 'higher' else 'at most'} {figure.target:g}",
            "paper": "" if figure.paper is None else f"{figure.paper:g}",
            "": "reached" if figure.reached else "" if figure.value is None else "falls short",
            "spread": figure.spread,
        }
        for figure in figures
    ]
    show_table(rows, ("id", "value", "target", "paper", "", "spread"), False, "No figures.")
    short = sum(figure.value is not None and not figure.reached for figure in figures)
    missing = sum(figure.value is None for figure in figures)
    typer.echo(f"{len(figures) - short - missing} reached, {short} fall short, {missing} not measured")
