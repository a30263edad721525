"""`portcullis train`: a bundle from a data set."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from services.cli.output import AsJson, CommandError, say
from shared.bundle import Manifest
from shared.datasets import DEFAULT_FOLDER, SOURCES

# Written out, since the zoo's own list takes torch's seconds to import; a test compares them.
Architecture = Literal["convnet", "lenet5", "alexnet", "resnet18", "resnet34", "vgg16-bn"]
Positives = Literal["transformations", "adversarial"]


class ResponseFile(StrEnum):
    """Networks that only spoil answers, by the ends of their files' names."""

    IMAGE_HASH = "image-hash"
    MISINFORMATION = "misinformation"
    MECO = "meco"
    QUEEN = "queen"


INTERRUPTED = 130
"""Exit status after Ctrl-C, as of a shell."""


def train(
    dataset: Annotated[
        str,
        typer.Option(
            help=f"{' or '.join(SOURCES)}, or a path: a folder with a subfolder of images a class (also under train/ "
            "and test/ or val/), an .npz file with images and labels, a folder of IDX files or of CIFAR-10's binary "
            "version."
        ),
    ] = "fashion-mnist",
    side: Annotated[
        int | None, typer.Option(help="Scale images, and crop them to squares of so many pixels.", show_default=False)
    ] = None,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror",
            help="Whether mirror images are of the same class; else Fashion-MNIST's and CIFAR-10's alone.",
            show_default=False,
        ),
    ] = None,
    architecture: Annotated[Architecture, typer.Option(help="Of the served model.")] = "convnet",
    positives: Annotated[
        Positives, typer.Option(help="What the similarity encoder learns to place close to an image.")
    ] = "transformations",
    responses: Annotated[
        bool,
        typer.Option(
            "--responses/--no-responses",
            help="Also train the networks that only spoil answers: the hash by which images are known again, MeCo's, "
            "QUEEN's, and the one of adaptive misinformation.",
        ),
    ] = True,
    response: Annotated[
        list[ResponseFile] | None,
        typer.Option(help="Of those, only this one; may be given again.", show_default=False),
    ] = None,
    add_responses_to: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Train only those, for the model of this bundle, and write them into it, or to --output. Neither the "
            "model nor a threshold changes.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the bundle; build/bundles/<data set> if not given.", show_default=False),
    ] = None,
    data: Annotated[Path, typer.Option(help="Where `make data` put the data sets that have a name.")] = DEFAULT_FOLDER,
    work: Annotated[Path, typer.Option(help="Trained networks and checkpoints, to go on from.")] = Path(
        "build/training"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes instead of an hour, and weak detectors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model and its detectors' networks, calibrate every threshold on honest accounts, write the bundle.

    An interrupted run goes on where it was when it is started again in the same way.
    """
    try:
        from services.training.bundling import QUICK, Plan
        from services.training.command import add_responses, train_bundle
        from services.training.response_making import ResponsePlan
    except ImportError as error:
        raise CommandError(f"training needs more packages ({error}): pip install 'portcullis[training]'") from error
    plan = replace(QUICK if quick else Plan(), seed=seed, architecture=architecture, positives=positives)
    if response or not responses:
        files = tuple(f"response-{name}" for name in response or ())
        plan = replace(plan, responses=replace(plan.responses, files=files))
    started, console = time.monotonic(), Console(stderr=True)
    try:
        if add_responses_to:
            spoiling = plan.responses if plan.responses.files else ResponsePlan()
            bundle = add_responses(add_responses_to, dataset, spoiling, seed, work, output, console, data, side, mirror)
        else:
            bundle = train_bundle(dataset, plan, work, output, console, data, side, mirror)
    except KeyboardInterrupt:
        typer.echo(
            f"portcullis: interrupted; what was trained so far is in {work}: the same command goes on from there",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    minutes = (time.monotonic() - started) / 60
    manifest = bundle.manifest
    document = {
        "bundle": str(bundle.folder),
        "fingerprint": bundle.fingerprint,
        "minutes": round(minutes, 1),
        **manifest.model_dump(mode="json", include={"model", "evidence", "false_positive_rates", "data", "seed"}),
    }
    say(document, as_json, _summary(document, manifest))


def _summary(document: dict[str, Any], manifest: Manifest) -> str:
    model, evidence = manifest.model, manifest.evidence
    lines = [
        f"{document['bundle']}: {model.name} {model.version}, {model.architecture}, accuracy "
        f"{model.test_accuracy:.1%}, {document['minutes']:.0f} min",
        f"evidence: threshold 10^{evidence.log_threshold / math.log(10):.1f}; {evidence.alarmed} of "
        f"{evidence.accounts} honest accounts of up to {evidence.queries_an_account:,} queries reach it "
        f"(95% confidence: at most {evidence.alarm_rate_upper:.1%})",
        *(
            f"false positives, {rule}: {rate.share:.2%} ({rate.lower:.2%} to {rate.upper:.2%})"
            for rule, rate in manifest.false_positive_rates.items()
        ),
        f"serve it with PORTCULLIS_BUNDLE={document['bundle']}",
    ]
    return "\n".join(lines)
