"""The command `portcullis` in a test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.cli.__main__ import main
from services.cli.ownership import CLAIM


class Command:
    """Runs the command as a shell would, without a process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def run(self, *arguments: str, status: int = 0) -> str:
        """What it prints on standard output; on standard error where it fails. Theft is no failure."""
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = self._capture.readouterr()
        assert (ended.value.code or 0) == status, printed.err
        return printed.out if status in (0, CLAIM) else printed.err

    def json(self, *arguments: str, status: int = 0) -> Any:
        """The document that it prints with --json."""
        return json.loads(self.run(*arguments, "--json", status=status))
