"""The page that shows how to write a detector shows the very file that the suite runs."""

from __future__ import annotations

import re
from pathlib import Path

from services.tmsp import app
from tests.detectors import brightness

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-detector.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_shows_the_detector_line_for_line() -> None:
    assert python_blocks()[0] == Path(brightness.__file__).read_text()


def test_the_page_shows_an_app_like_those_that_ship() -> None:
    shipped = Path(app.__file__).read_text()
    assert python_blocks()[1] == shipped.replace("tmsp", "brightness").replace("Tmsp", "Brightness")


def test_every_file_that_the_page_names_is_there() -> None:
    named = re.findall(r"`((?:shared|tests|services/training|deploy)/[a-z_/]+\.py)`", PAGE.read_text())
    assert named
    assert [name for name in named if not (PAGE.parents[1] / name).exists()] == []
