"""What it costs to spoil an answer, on the inference path: the hash, what the response looks at, and its answer.

One query at a time, as an account under perturbation sends them, each an image of its own; the answers of `REMEMBERED`
earlier queries are in memory, more than an attacker gets before he is banned. Time by the clock, in one thread. The
baseline is what imagehash's own interface offers: a hash of one picture, compared with one record after another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import imagehash
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from services.evaluation.figures import Finding
from services.inference.image_hash import IMAGE_HASH, HashNetwork, ImageHash, image_hash_tensors
from services.inference.model import Model, softmax
from services.inference.network import ARCHITECTURES
from services.inference.perceptual_hash import perceptual_hashes
from services.inference.response_networks import (
    MECO,
    MISLEADING,
    QUEEN,
    MecoModel,
    ResponseNetworks,
    SensitivityMap,
    ShadowModels,
    queen_tensors,
)
from services.inference.responses.catalogue import Catalogue
from services.inference.responses.interface import AnswerMode, ResponsePolicy, Told, truth
from services.inference.responses.looking import looked
from services.inference.responses.memory import PerturbedMemory, Promises
from services.inference.responses.queen import Atlas
from services.training.responses import SHADOWS
from shared.bundle import Bundle, with_files
from shared.networks import image_shape, network_tensors
from shared.responses import Response, response_text
from tests.bench.measure import Plan, in_words, photographs, spread, trained_bundle

REMEMBERED = 5_000
MODE = AnswerMode.PROBABILITIES
KINDS = get_args(get_args(Response)[0])


def measure(plan: Plan) -> dict[str, Any]:
    """Milliseconds a query, of each part, for each response; of an account that nobody suspects; of the baseline."""
    queries, repeats = plan.size(1_000, 100), plan.size(5, 2)
    bundle = _with_networks(Bundle.load(trained_bundle()), plan.folder / "bundle")
    model, image_hash = Model(bundle), ImageHash.of_bundle(bundle)
    images = photographs(queries * repeats, plan.seed)
    result: dict[str, Any] = {"queries": queries, "remembered": REMEMBERED, "hash": image_hash.kind, "responses": {}}
    for kind in KINDS:
        response = kind()
        plan.report(response.policy)
        found: dict[str, list[float]] = {name: [] for name in ("look", "answer", "together")}
        for repeat in range(repeats):
            policy = _catalogue(bundle, model, image_hash, plan.seed).of(response_text(response)).policy
            own = images[repeat * queries : (repeat + 1) * queries]
            for name, value in _of_policy(policy, model, image_hash, own).items():
                found[name].append(value)
        result["responses"][response.policy] = {name: spread(values) for name, values in found.items()}
    logits = model.logits(images[:queries])
    result["allowed"] = spread([_median(_allowed, logits) for _ in range(repeats)])
    plan.report("hashes")
    some = images[:queries]
    result["hashes"] = {
        "learned, one picture": spread([_median(image_hash.hashes, some) for _ in range(repeats)]),
        "pHash, one picture": spread([_median(perceptual_hashes, some) for _ in range(repeats)]),
        "imagehash, one picture": spread([_median(_by_imagehash, some) for _ in range(repeats)]),
        f"among {REMEMBERED:,} records": spread([_recall(some, plan.seed) for _ in range(repeats)]),
        f"imagehash, among {REMEMBERED:,} records": spread(
            [_recall_by_imagehash(some[:10], plan.seed) for _ in range(repeats)]
        ),
    }
    return result


def _with_networks(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle, with random weights for what responses need and it has not: they cost as much to run."""
    model, shape = bundle.manifest.model, image_shape(bundle)
    classes = len(model.classes)
    torch.manual_seed(0)
    served = Model(bundle)
    features = served.head.in_features

    def untrained() -> torch.nn.Module:
        return ARCHITECTURES[model.architecture](shape, classes)

    atlas = Atlas(
        np.zeros((classes, 2), np.float32), np.ones(classes, np.float32),
        np.random.default_rng(0).random((classes, features), np.float32),
    )  # fmt: skip
    makers: dict[str, Callable[[], dict[str, NDArray[Any]]]] = {
        IMAGE_HASH: lambda: image_hash_tensors(HashNetwork(shape), 8),
        MISLEADING: lambda: network_tensors(untrained()),
        MECO: lambda: network_tensors(MecoModel(untrained(), shape[0])),
        QUEEN: lambda: queen_tensors(SensitivityMap(features), atlas, ShadowModels(shape, classes, SHADOWS)),
    }
    missing = [file for file in makers if not bundle.holds(file)]
    return with_files(bundle, folder, {file: makers[file]() for file in missing})


def _catalogue(bundle: Bundle, model: Model, image_hash: ImageHash, seed: int) -> Catalogue:
    classes = len(bundle.manifest.model.classes)
    memory = _memory(image_hash.similar_bits, classes, seed)
    promises = Promises(500_000, 20_000)
    return Catalogue(MODE, classes, b"key", memory, promises, ResponseNetworks(bundle, model))


def _memory(similar_bits: int, classes: int, seed: int) -> PerturbedMemory:
    random = np.random.default_rng(seed)
    memory = PerturbedMemory(50_000, similar_bits)
    for number, value in enumerate(random.integers(0, 2**64, REMEMBERED, dtype=np.uint64).tolist()):
        memory.record(f"earlier-{number}", value, np.full(classes, 1 / classes, np.float32))
    return memory


def _of_policy(
    policy: ResponsePolicy, model: Model, image_hash: ImageHash, images: NDArray[np.uint8]
) -> dict[str, float]:
    """Medians over the queries, in milliseconds."""
    taken: dict[str, list[float]] = {"look": [], "answer": [], "together": []}
    outputs = model.outputs(images)

    async def all_of_them() -> None:
        for number in range(len(images)):
            row = slice(number, number + 1)
            start = time.perf_counter()
            queries, seen = await looked(policy, image_hash, "mallory", [f"query-{number}"], images[row], outputs[row])
            seen_at = time.perf_counter()
            policy.answer(queries, seen)
            end = time.perf_counter()
            for name, value in (("look", seen_at - start), ("answer", end - seen_at), ("together", end - start)):
                taken[name].append(value)

    asyncio.run(all_of_them())
    return {name: 1e3 * float(np.median(values)) for name, values in taken.items()}


def _allowed(logits: NDArray[np.float32]) -> Told:
    return Told(truth(softmax(logits), MODE), np.zeros(len(logits), dtype=np.bool_))


def findings(results: dict[str, Any]) -> list[Finding]:
    """Rows of docs/results/figures.json."""
    responses = results["responses"]
    measured = {
        "response-perturbed-ms": responses["amao"]["together"],
        "response-allowed-ms": results["allowed"],
        "queen-ms": responses["queen"]["together"],
    }
    return [in_words(name, of) for name, of in measured.items()]


def _median(function: Callable[[Any], Any], rows: NDArray[Any]) -> float:
    """Of the function of one row at a time, in milliseconds."""
    taken = []
    for number in range(len(rows)):
        one = rows[number : number + 1]
        start = time.perf_counter()
        function(one)
        taken.append(time.perf_counter() - start)
    return 1e3 * float(np.median(taken))


def _by_imagehash(picture: NDArray[np.uint8]) -> imagehash.ImageHash:
    return imagehash.phash(Image.fromarray(picture[0, 0]))


def _recall(images: NDArray[np.uint8], seed: int) -> float:
    memory = _memory(8, 10, seed)
    return _median(lambda value: memory.recall(int(value[0])), perceptual_hashes(images))


def _recall_by_imagehash(images: NDArray[np.uint8], seed: int) -> float:
    random = np.random.default_rng(seed)
    records = [imagehash.ImageHash(bits) for bits in random.random((REMEMBERED, 8, 8)) < 0.5]
    own = [_by_imagehash(images[number : number + 1]) for number in range(len(images))]
    return _median(lambda one: min(record - own[int(one[0])] for record in records), np.arange(len(own)))
