"""Training as a command: from a data set's name or path to a bundle, with progress."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from services.training.bundling import BundleMaker, Plan
from shared.bundle import Bundle
from shared.datasets import DEFAULT_FOLDER, DatasetError, Splits, load_source

ENOUGH = 100
"""Images that calibration, holdout and test need each: crafted queries start from so many."""
BUNDLES = Path("build/bundles")


def train_bundle(
    dataset: str, plan: Plan, work: Path, output: Path | None, console: Console, data: Path = DEFAULT_FOLDER,
    side: int | None = None, mirror: bool | None = None,
) -> Bundle:  # fmt: skip
    """Train what is missing, calibrate, and write the bundle.

    Args:
        dataset: name or path, for `shared.datasets.load_source`.
        plan: how much work goes into it.
        work: folder of trained networks and checkpoints; an interrupted run goes on from them.
        output: folder of the bundle; one in `BUNDLES`, called after the data set, where it is None.
        console: shows progress.
        data: folder of the data sets that have a name.
        side: scale and crop images to squares of so many pixels.
        mirror: whether mirror images are of the same class; the data set's own word where it is None.

    Raises:
        DatasetError: the data is missing, malformed or too little.
        BundleError: the bundle that was written cannot be used.
    """
    console.print(f"reading {dataset}")
    splits = load_source(dataset, data, side, mirror)
    _require_enough(splits)
    shape = "x".join(map(str, splits.train.images.shape[1:]))
    where = "a GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    console.print(
        f"training {plan.architecture} on {len(splits.train):,} images of {shape} in {len(splits.classes)} classes, "
        f"with {where}"
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        return BundleMaker(splits, plan, work, progress).make(output or BUNDLES / splits.name)


def _require_enough(splits: Splits) -> None:
    for name in ("calibration", "holdout", "test"):
        if (found := len(getattr(splits, name))) < ENOUGH:
            raise DatasetError(
                f"{splits.name}: only {found} images are left for {name}; at least {ENOUGH} are needed, a seventh of "
                "all where there is no test set of its own"
            )
