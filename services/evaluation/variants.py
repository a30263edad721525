"""Further bundles that the papers' tables ask for: one of digits, and one whose encoder learnt from other positives."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.evaluation.context import Context
from services.inference.model import served_network
from services.inference.network import ARCHITECTURES
from services.inference.response_networks import MISLEADING
from services.training.bundling import BundleMaker
from services.training.networks import shape_of, train, train_similarity
from services.training.recipes import RECIPES
from services.training.response_making import ResponseMaker, ResponsePlan, Served
from services.training.workshop import Workshop
from shared.bundle import MANIFEST, Bundle, with_files
from shared.datasets import DEFAULT_FOLDER, load_fashion_mnist, load_source
from shared.networks import network_tensors


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


def with_misleading_model(context: Context) -> Bundle:
    """The bundle, with the network that adaptive misinformation answers by, where it has none of its own."""
    bundle = context.bundle
    if bundle.holds(MISLEADING):
        return bundle
    folder = context.cache / "bundles" / f"{bundle.manifest.model.name}-{bundle.fingerprint[:12]}-misleading"
    if (folder / MANIFEST).exists():
        return Bundle.load(folder)
    workshop = Workshop.of(context.splits, context.cache / "training", bundle.manifest.seed, context.progress)
    plan = ResponsePlan(files=(MISLEADING,))
    return with_files(bundle, folder, ResponseMaker(Served.of_bundle(bundle), context.splits, plan, workshop).make())


def plain_model(context: Context) -> nn.Module:
    """The served architecture, trained by its recipe on clean images alone: nothing in it is for or against thieves."""
    model, data = context.bundle.manifest.model, context.splits.train
    recipe = RECIPES[model.architecture]
    recipe = replace(recipe, epochs=context.sizes.plain_epochs or recipe.epochs)
    workshop = Workshop.of(context.splits, context.cache / "training", context.bundle.manifest.seed, context.progress)

    def empty() -> nn.Module:
        torch.manual_seed(context.bundle.manifest.seed)
        return ARCHITECTURES[model.architecture](shape_of(data), len(model.classes))

    def train_plainly(checkpoints: Path) -> nn.Module:
        network = empty()

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return functional.cross_entropy(network(x), y)

        seed, path = context.bundle.manifest.seed, checkpoints / "plain.safetensors"
        return train(network, "plain model", data, loss, recipe, seed, context.progress, path)

    return workshop.trained("plain", (model.architecture, recipe.epochs), empty(), train_plainly)


def with_adversarial_positives(context: Context) -> Bundle:
    """The bundle, but for a similarity encoder whose positives are adversarial perturbations, as in SEAT."""
    bundle = context.bundle
    folder = context.cache / "bundles" / f"{bundle.manifest.model.name}-{bundle.fingerprint[:12]}-adversarial"
    if (folder / MANIFEST).exists():
        return Bundle.load(folder)
    data, classes, victim = context.splits.train, len(bundle.manifest.model.classes), served_network(bundle)
    epochs, contrastive = context.sizes.encoder_epochs
    checkpoints = folder.with_suffix(".checkpoints")
    encoder = train_similarity(
        data, classes, epochs, contrastive, bundle.manifest.seed + 2, context.progress, checkpoints, victim
    )
    made = with_files(bundle, folder, {"similarity": network_tensors(encoder)})
    shutil.rmtree(checkpoints)
    return made
