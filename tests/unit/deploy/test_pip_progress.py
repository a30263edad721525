"""pip's many lines become one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deploy.pip_progress import states


def test_each_stage_is_shown_with_how_far_it_is() -> None:
    lines = [
        "Obtaining file:///somewhere\n",
        "Requirement already satisfied: numpy>=2.1 in ./lib\n",
        "Collecting torch>=2.6 (from portcullis==0.1.0)\n",
        "  Downloading torch-2.9.0-cp311-cp311-manylinux_2_28_x86_64.whl (900.1 MB)\n",
        "Progress 45 of 90\n",
        "Installing collected packages: mpmath, sympy, torch\n",
    ]
    assert list(states(iter(lines))) == [
        "resolving, 1 packages so far: numpy",
        "resolving, 2 packages so far: torch",
        "downloading torch (900.1 MB)",
        "downloading torch (900.1 MB) 50%",
        "unpacking 3 packages",
    ]


def test_where_pip_fails_its_own_words_and_status_come_through(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.pip_progress", "--no-index", str(tmp_path / "no-such-project")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no-such-project" in done.stderr
    assert "s: failed" in done.stderr
