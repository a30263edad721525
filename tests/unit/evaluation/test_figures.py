"""The file of figures: what was found goes into its row, and falls short or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.evaluation.figures import FIGURES, Figure, FiguresError, Finding, read_figures, record


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "recall", "what": "caught, %", "target": 99, "better": "higher", **changes}


@pytest.mark.parametrize(
    ("better", "value", "reached"),
    [
        ("higher", 99, True),
        ("higher", 98.9, False),
        ("lower", 99, True),
        ("lower", 99.1, False),
        ("lower", None, False),
    ],
)
def test_a_figure_is_reached_on_the_good_side_of_its_target(better: str, value: float | None, reached: bool) -> None:
    assert Figure.model_validate(row(better=better, value=value)).reached is reached


def test_a_finding_goes_into_its_row_and_leaves_the_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps([row(), row(id="false", value=0.5)]))
    record([Finding("recall", 97.123456, "of 40")], "portcullis evaluate", "a machine", path)
    first, second = read_figures(path)
    assert (first.value, first.spread, first.command, first.machine) == (
        97.1235, "of 40", "portcullis evaluate", "a machine",
    )  # fmt: skip
    record([Finding("false", 4.8e-87, "")], "portcullis evaluate", "a machine", path)
    assert read_figures(path)[1].value == 4.8e-87
    assert second == Figure.model_validate(row(id="false", value=0.5))


def test_a_finding_without_a_row_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps([row()]))
    with pytest.raises(FiguresError, match="no row 'unheard'"):
        record([Finding("unheard", 1.0, "")], "", "", path)


@pytest.mark.parametrize("text", ["", "{}", '[{"id": "recall"}]', "[3]"])
def test_a_malformed_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text)
    with pytest.raises(FiguresError):
        read_figures(path)
    with pytest.raises(FiguresError):
        read_figures(tmp_path / "missing.json")


def test_the_repositorys_figures_have_names_of_their_own_and_say_who_measured_what() -> None:
    figures = read_figures(FIGURES)
    assert len({figure.id for figure in figures}) == len(figures) >= 16
    for figure in figures:
        assert figure.what
        assert (figure.value is None) == (figure.command == "") == (figure.machine == "")
