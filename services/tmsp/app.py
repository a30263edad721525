"""The tmsp detector as a process: `queries` in, `signals` out."""

from __future__ import annotations

from services.tmsp.detector import TmspDetector
from shared.worker import run_detector


def main() -> None:
    """Run until told to stop."""
    run_detector(TmspDetector.from_bundle)
