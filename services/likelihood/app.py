"""The likelihood detector as a process: `queries` in, `signals` out."""

from __future__ import annotations

from services.likelihood.detector import LikelihoodDetector
from shared.worker import run_detector


def main() -> None:
    """Run until told to stop."""
    run_detector(LikelihoodDetector.from_bundle)
