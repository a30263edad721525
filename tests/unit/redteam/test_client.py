"""The red team's client and campaigns, in a process of their own: see tests/support/oip_client_scenarios.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "tests" / "support" / "oip_client_scenarios.py"
SCENARIOS = re.findall(r"^def ([a-z]\w+)\(\) -> None:", SCRIPT.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def outcome() -> subprocess.CompletedProcess[str]:
    """All scenarios in one process: importing torch and gRPC takes longer than any of them."""
    return subprocess.run(
        [sys.executable, "-m", "tests.support.oip_client_scenarios", *SCENARIOS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_scenarios_were_found() -> None:
    assert len(SCENARIOS) >= 11


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_client(scenario: str, outcome: subprocess.CompletedProcess[str]) -> None:
    assert f"{scenario}: passed" in outcome.stdout, outcome.stderr
