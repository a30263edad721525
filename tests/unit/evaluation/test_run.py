"""`portcullis evaluate --quick` on the repository's bundle, small, with real attacks and detectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.cli.__main__ import main
from services.evaluation.figures import FIGURES
from shared.settings import REPOSITORY_BUNDLE

STUDIES = ("recall", "patient", "guarantee", "lives")
"""The papers' own have tests of their own; their attacks take minutes even when small, and pictures prove little."""


def test_a_quick_evaluation_writes_its_pages_and_leaves_the_published_figures_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = FIGURES.read_text()
    options = ["--bundle", str(REPOSITORY_BUNDLE), "--output", str(tmp_path / "pages"), "--cache", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--quick", "--json", *options, *(f"--study={name}" for name in STUDIES)])
    assert ended.value.code in (0, None)
    figures = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert figures["decision-recall"]["value"] > 50
    assert figures["decision-false"]["spread"].startswith("0 of 14")
    for name in STUDIES:
        page = (tmp_path / "pages" / f"{name}.md").read_text()
        document = json.loads((tmp_path / "pages" / f"{name}.json").read_text())
        assert document["title"] in page
        assert all((tmp_path / "pages" / picture["file"]).stat().st_size > 1000 for picture in document["pictures"])
    assert FIGURES.read_text() == published


def test_an_unknown_study_is_refused_with_the_names_of_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--study", "astrology"])
    assert ended.value.code == 1
    assert "no study astrology; there are recall" in capsys.readouterr().err
