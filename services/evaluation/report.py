"""What a study finds: tables, pictures and figures, written as Markdown and JSON."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from services.evaluation.figures import Finding

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        title: with the paper's number where it has one.
        columns: names; the paper's own numbers stand beside ours in columns of their own.
        rows: cells, as many as columns each; None where there is nothing to say.
        note: how to read it, and what falls short.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def markdown(self) -> str:
        """The table in Markdown, numbers right-aligned."""
        numeric = [any(isinstance(row[i], int | float) for row in self.rows) for i in range(len(self.columns))]
        lines = [
            f"### {self.title}\n",
            _line(self.columns),
            _line(["---:" if right else "---" for right in numeric]),
            *(_line([_text(cell) for cell in row]) for row in self.rows),
        ]
        return "\n".join(lines) + "\n" + (f"\n{self.note}\n" if self.note else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: a PNG that the study has drawn into the results' folder."""

    file: str
    caption: str


@dataclass(frozen=True, slots=True)
class Study:
    """What one study found."""

    name: str
    title: str
    text: str
    """What was done, in a few sentences: data, sizes, seeds."""
    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()
    findings: Sequence[Finding] = ()
    data: dict[str, Any] = field(default_factory=dict)
    """Whatever else a reader of the JSON may want."""


def machine() -> str:
    """What made the numbers, for people."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists() and (found := re.search(r"model name\s*:\s*(.+)", information.read_text())):
        processor = found[1].strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return f"{processor}, {device}, torch {torch.__version__}"


def write(study: Study, folder: Path, command: str) -> None:
    """`<name>.md` and `<name>.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = f"Made by `{command}` on {machine()}."
    pictures = [f"![{picture.caption}]({picture.file})\n\n*{picture.caption}*\n" for picture in study.pictures]
    parts = [f"# {study.title}\n", f"{study.text}\n", f"{made}\n", *pictures]
    parts += [table.markdown() for table in study.tables]
    (folder / f"{study.name}.md").write_text("\n".join(parts))
    document = {"command": command, "machine": machine(), **asdict(study)}
    (folder / f"{study.name}.json").write_text(json.dumps(document, indent=1, default=float) + "\n")
