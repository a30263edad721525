"""Training as a command: from a data set's name or path to a bundle, with progress."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from services.training.bundling import BundleMaker, Plan
from services.training.networks import shape_of
from services.training.response_making import ResponseMaker, ResponsePlan, Served
from services.training.workshop import Workshop
from shared.bundle import Bundle, with_files
from shared.datasets import DEFAULT_FOLDER, DatasetError, Splits, load_source
from shared.networks import image_shape

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
    splits = _read(dataset, data, side, mirror, console)
    shape = "x".join(map(str, splits.train.images.shape[1:]))
    where = "a GPU" if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    console.print(
        f"training {plan.architecture} on {len(splits.train):,} images of {shape} in {len(splits.classes)} classes, "
        f"with {where}"
    )
    with bars(console) as progress:
        return BundleMaker(splits, plan, work, progress).make(output or BUNDLES / splits.name)


def add_responses(
    to: Path, dataset: str, plan: ResponsePlan, seed: int, work: Path, output: Path | None, console: Console,
    data: Path = DEFAULT_FOLDER, side: int | None = None, mirror: bool | None = None,
) -> Bundle:  # fmt: skip
    """Train the networks that only spoil answers for the model of a bundle, and write them into it.

    Nothing else in it changes: neither the model nor a detector or a threshold.

    Args:
        to: folder of the bundle.
        dataset: that its model was trained on; see `train_bundle`.
        plan: which networks, and how much work.
        seed: of everything that is drawn.
        work: see `train_bundle`.
        output: folder of the new bundle; `to` itself where it is None.
        console: shows progress.
        data: see `train_bundle`.
        side: see `train_bundle`.
        mirror: see `train_bundle`.

    Raises:
        DatasetError: the data is missing, malformed or not what the bundle's model takes.
        BundleError: the bundle cannot be used.
    """
    bundle = Bundle.load(to)
    model = bundle.manifest.model
    splits = _read(dataset, data, side, mirror, console)
    if shape_of(splits.train) != image_shape(bundle) or tuple(splits.classes) != tuple(model.classes):
        raise DatasetError(
            f"{dataset}: images of {shape_of(splits.train)} in classes {', '.join(splits.classes)}; the model of {to} "
            f"takes {image_shape(bundle)} and knows {', '.join(model.classes)}"
        )
    served = Served.of_bundle(bundle)
    with bars(console) as progress:
        files = ResponseMaker(served, splits, plan, Workshop.of(splits, work, seed, progress)).make()
    return with_files(bundle, output or to, files)


def _read(dataset: str, data: Path, side: int | None, mirror: bool | None, console: Console) -> Splits:
    console.print(f"reading {dataset}")
    splits = load_source(dataset, data, side, mirror)
    _require_enough(splits)
    return splits


def bars(console: Console, quiet: bool = False) -> Progress:
    """Bars of long work, with how much of it is done and how long the rest will take."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=quiet)


def _require_enough(splits: Splits) -> None:
    for name in ("calibration", "holdout", "test"):
        if (found := len(getattr(splits, name))) < ENOUGH:
            raise DatasetError(
                f"{splits.name}: only {found} images are left for {name}; at least {ENOUGH} are needed, a seventh of "
                "all where there is no test set of its own"
            )
