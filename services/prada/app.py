"""The prada detector as a process: `queries` in, `signals` out."""

from __future__ import annotations

from services.prada.detector import PradaDetector
from shared.worker import run_detector


def main() -> None:
    """Run until told to stop."""
    run_detector(PradaDetector.from_bundle)
