"""Further bundles that the papers' tables ask for: one of digits, and one whose encoder learnt from other positives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.evaluation.context import Context
from services.inference.model import TENSORS, served_network
from services.inference.network import ARCHITECTURES
from services.training.bundling import BundleMaker
from services.training.networks import shape_of, train, train_similarity
from services.training.recipes import RECIPES, Recipe
from services.training.response_making import ResponseMaker, Served
from services.training.responses import train_adversarially
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


def with_responses(context: Context, *files: str) -> Bundle:
    """The bundle, with those of these files of `services.training.response_making` that it has not itself."""
    bundle = context.bundle
    missing = tuple(file for file in files if not bundle.holds(file))
    if not missing:
        return bundle
    folder = _folder(context, "-".join(file.removeprefix("response-") for file in missing))
    if (folder / MANIFEST).exists():
        return Bundle.load(folder)
    plan = replace(context.sizes.responses, files=missing)
    return with_files(
        bundle, folder, ResponseMaker(Served.of_bundle(bundle), context.splits, plan, _workshop(context)).make()
    )


def with_model(context: Context, network: nn.Module, name: str) -> Bundle:
    """The bundle, but for another served model of the same architecture, which nothing in it was made for.

    Args:
        context: of the evaluation.
        network: the model.
        name: tells it from others.
    """
    folder = _folder(context, name)
    if (folder / MANIFEST).exists():
        return Bundle.load(folder)
    return with_files(context.bundle, folder, {TENSORS: network_tensors(network)})


def _folder(context: Context, name: str) -> Path:
    bundle = context.bundle
    return context.cache / "bundles" / f"{bundle.manifest.model.name}-{bundle.fingerprint[:12]}-{name}"


def _workshop(context: Context) -> Workshop:
    return Workshop.of(context.splits, context.cache / "training", context.bundle.manifest.seed, context.progress)


def plain_model(context: Context) -> nn.Module:
    """The served architecture, trained by its recipe on clean images alone: nothing in it is for or against thieves."""

    def train_plainly(empty: nn.Module, recipe: Recipe, checkpoints: Path) -> nn.Module:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            return functional.cross_entropy(empty(x), y)

        seed, path = context.bundle.manifest.seed, checkpoints / "plain.safetensors"
        return train(empty, "plain model", context.splits.train, loss, recipe, seed, context.progress, path)

    return _other_model(context, "plain", train_plainly)


def adversarial_model(context: Context) -> nn.Module:
    """The served architecture, trained on adversarial images (AMAO, section 4.2), and on no varied photographs."""

    def train_it(empty: nn.Module, recipe: Recipe, checkpoints: Path) -> nn.Module:
        seed = context.bundle.manifest.seed
        return train_adversarially(empty, context.splits.train, recipe, seed, context.progress, checkpoints)

    return _other_model(context, "adversarial", train_it)


def _other_model(context: Context, name: str, train_it: Callable[[nn.Module, Recipe, Path], nn.Module]) -> nn.Module:
    model = context.bundle.manifest.model
    recipe = RECIPES[model.architecture]
    recipe = replace(recipe, epochs=context.sizes.plain_epochs or recipe.epochs)

    def empty() -> nn.Module:
        torch.manual_seed(context.bundle.manifest.seed)
        return ARCHITECTURES[model.architecture](shape_of(context.splits.train), len(model.classes))

    def trained(checkpoints: Path) -> nn.Module:
        return train_it(empty(), recipe, checkpoints)

    return _workshop(context).trained(name, (model.architecture, recipe.epochs), empty(), trained)


def with_adversarial_positives(context: Context) -> Bundle:
    """The bundle, but for a similarity encoder whose positives are adversarial perturbations, as in SEAT."""
    bundle = context.bundle
    folder = _folder(context, "adversarial-positives")
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
