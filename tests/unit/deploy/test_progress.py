"""One line tells how far something is."""

from __future__ import annotations

import pytest

from deploy.progress import ProgressLine


def test_the_last_line_says_that_it_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("fetching") as line:
        line.state = "half-way"
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("fetching, ")
    assert shown[-1].endswith("s: done")


def test_where_it_fails_the_last_line_says_so_and_the_error_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="no space left"), ProgressLine("fetching"):
        raise OSError("no space left")
    assert capsys.readouterr().err.endswith("s: failed\n")


def test_on_a_terminal_the_line_is_drawn_over_itself_while_the_work_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with ProgressLine("fetching") as line:
        line.state = "half-way"
        shown = ""
        while "half-way" not in shown:
            shown += capsys.readouterr().err
    assert "\n" not in shown
    assert shown.startswith("\rfetching, ")
