"""`python -m services.training`: one bundle from one dataset."""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from services.training.bundling import QUICK, BundleMaker, Plan
from shared.bundle import BundleError
from shared.datasets import DEFAULT_FOLDER, DatasetError, load_splits
from shared.settings import REPOSITORY_BUNDLE


def main() -> int:
    """Train, calibrate, write, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m services.training",
        description="Train the victim and the detectors' networks on Fashion-MNIST, calibrate every threshold on "
        "honest accounts, and write the bundle. Networks that were trained before are taken from the work folder, so "
        "that an interrupted run goes on.",
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY_BUNDLE, help="folder of the bundle (%(default)s)")
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="folder of the data (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="trained networks (%(default)s)")
    parser.add_argument("--seed", type=int, default=Plan().seed, help="of everything that is drawn (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="minutes instead of an hour, and weak detectors")
    arguments = parser.parse_args()
    plan = replace(QUICK if arguments.quick else Plan(), seed=arguments.seed)
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    try:
        splits = load_splits(arguments.data)
        console.print(
            f"training on {'a GPU' if torch.cuda.is_available() else f'{torch.get_num_threads()} CPU threads'}"
        )
        with Progress(*columns, console=console) as progress:
            bundle = BundleMaker(splits, plan, arguments.work, progress).make(arguments.output)
    except (DatasetError, BundleError) as error:
        print(error, file=sys.stderr)
        return 1
    model, evidence = bundle.manifest.model, bundle.manifest.evidence
    minutes = (time.monotonic() - started) / 60
    console.print(
        f"{bundle.folder}: {model.name} {model.version}, accuracy {model.test_accuracy:.1%}, {minutes:.0f} min"
    )
    power = evidence.log_threshold / math.log(10)
    console.print(
        f"evidence: threshold 10^{power:.1f}; {evidence.alarmed} of {evidence.accounts} "
        f"honest accounts of up to {evidence.queries_an_account:,} queries reach it (95% confidence: at most "
        f"{evidence.alarm_rate_upper:.1%})"
    )
    for rule, rate in bundle.manifest.false_positive_rates.items():
        console.print(f"false positives, {rule}: {rate:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
