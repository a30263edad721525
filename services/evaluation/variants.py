"""Further bundles that the papers' tables ask for: one of digits, and one whose encoder learnt from other positives."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from services.evaluation.context import Context
from services.inference.network import ARCHITECTURES
from services.training.bundling import BundleMaker
from services.training.networks import shape_of, train_similarity
from shared.bundle import MANIFEST, Bundle, with_files
from shared.datasets import DEFAULT_FOLDER, load_fashion_mnist, load_source
from shared.networks import bundle_network, network_tensors


def of_digits(context: Context, data: Path = DEFAULT_FOLDER) -> Context:
    """The same evaluation of a model of digits, to which clothes are foreign.

    The bundle is made as `portcullis train --dataset digits` makes it; what an earlier run trained is taken from the
    cache.

    Raises:
        DatasetError: the data is missing.
    """
    splits = load_source("digits", data)
    maker = BundleMaker(splits, context.sizes.digits, context.cache / "training", context.progress, context.trace_cache)
    bundle = maker.make(context.cache / "bundles" / splits.name)
    return replace(context, bundle=bundle, splits=splits, foreign=load_fashion_mnist("test", data))


def with_adversarial_positives(context: Context) -> Bundle:
    """The bundle, but for a similarity encoder whose positives are adversarial perturbations, as in SEAT."""
    bundle = context.bundle
    folder = context.cache / "bundles" / f"{bundle.manifest.model.name}-{bundle.fingerprint[:12]}-adversarial"
    if (folder / MANIFEST).exists():
        return Bundle.load(folder)
    data, model = context.splits.train, bundle.manifest.model
    shape, classes = shape_of(data), len(model.classes)
    victim = bundle_network(bundle, "victim", ARCHITECTURES[model.architecture](shape, classes))
    epochs, contrastive = context.sizes.encoder_epochs
    checkpoints = folder.with_suffix(".checkpoints")
    encoder = train_similarity(
        data, classes, epochs, contrastive, bundle.manifest.seed + 2, context.progress, checkpoints, victim
    )
    made = with_files(bundle, folder, {"similarity": network_tensors(encoder)})
    shutil.rmtree(checkpoints)
    return made
