"""The similarity detector as a process: `queries` in, `signals` out."""

from __future__ import annotations

from services.similarity.detector import SimilarityDetector
from shared.worker import run_detector


def main() -> None:
    """Run until told to stop."""
    run_detector(SimilarityDetector.from_bundle)
