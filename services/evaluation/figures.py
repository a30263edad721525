"""The figures to reach: one row each in docs/results/figures.json, with the target and the paper's number beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from shared.validation import first_mistake

FIGURES = Path("docs/results/figures.json")


class FiguresError(ValueError):
    """The file of figures cannot be used; the message names the row."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The value of one row of docs/results/figures.json.

    Attributes:
        id: of the row.
        value: found.
        spread: standard deviation over seeds, or the limits of a share, in words.
    """

    id: str
    value: float
    spread: str

    @property
    def rounded(self) -> float:
        """To six digits, however small it is: a chance of 1e-87 is none of 0."""
        return float(f"{self.value:.6g}")


class Figure(BaseModel):
    """One row.

    Attributes:
        id: names it.
        what: it is, with its unit.
        value: measured; None before it was.
        spread: standard deviation over seeds, or the limits of a share, in words.
        target: to reach.
        better: which side of the target is the good one.
        paper: the paper's number; None where it has none.
        command: makes it again.
        machine: that made it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    what: str
    value: float | None = None
    spread: str = ""
    target: float
    better: Literal["higher", "lower"] = "higher"
    paper: float | None = None
    command: str = ""
    machine: str = ""

    @property
    def reached(self) -> bool:
        """Whether it is measured and on the good side of its target."""
        if self.value is None:
            return False
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def read_figures(path: Path = FIGURES) -> list[Figure]:
    """All rows.

    Raises:
        FiguresError: the file is missing or malformed.
    """
    try:
        return TypeAdapter(list[Figure]).validate_json(path.read_text())
    except ValidationError as error:
        raise FiguresError(f"{path}: {first_mistake(error)}") from error
    except OSError as error:
        raise FiguresError(f"{path}: cannot be read ({error.strerror})") from error


def record(findings: Iterable[Finding], command: str, machine: str, path: Path = FIGURES) -> list[Figure]:
    """Write what was found into the rows of the same id, and return all rows.

    Raises:
        FiguresError: the file is missing or malformed, or has no row of that id.
    """
    rows = {row.id: row for row in read_figures(path)}
    for finding in findings:
        if finding.id not in rows:
            raise FiguresError(f"{path}: no row {finding.id!r}; add it with its target first")
        measured = {"value": finding.rounded, "spread": finding.spread, "command": command, "machine": machine}
        rows[finding.id] = rows[finding.id].model_copy(update=measured)
    text = json.dumps([row.model_dump() for row in rows.values()], indent=1)
    path.write_text(text + "\n")
    return list(rows.values())
