"""Thefts: attacks that learn from what the whole system tells them, each run once and kept."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors import safe_open
from safetensors.numpy import save
from torch import nn

from services.decision.policy_file import load_policy
from services.evaluation.defended import DefendedVictim, RespondingVictim, Served
from services.inference.image_hash import ImageHash
from services.inference.model import Model, softmax
from services.inference.responses.interface import AnswerMode, truth
from services.ownership.verification import Marks, MarkSelector, marks_of
from services.redteam.adaptive import Repeating
from services.redteam.attack import Account, Ask, Attack, AttackReport
from services.redteam.recovery import Recovering
from services.redteam.substitute import VictimsOwn, Yardstick
from services.training.tracing import make_missing
from shared.bundle import Bundle, ModelSection
from shared.datasets import Dataset
from shared.events import Action, PerturbedAnswer
from shared.files import write_whole
from shared.networks import load_network, network_tensors
from shared.responses import Response, response_text

THIEF = "mallory"
"""The one account of every thief."""


@dataclass(frozen=True, slots=True)
class Defence:
    """What stands between a thief and the model.

    Attributes:
        name: as tables show it.
        policy: file of the policy of the whole system; None where nobody judges.
        response: by which every query is answered where nobody judges; None for the plain truth.
    """

    name: str
    policy: Path | None = None
    response: Response | None = None

    @property
    def key(self) -> str:
        """Names it by everything that tells it from others."""
        policy = hashlib.sha256(self.policy.read_bytes()).hexdigest() if self.policy else ""
        return f"{policy} {response_text(self.response) if self.response else ''}"


@dataclass(frozen=True, slots=True)
class Thief:
    """One theft.

    Attributes:
        attack: name, as tables show it.
        defence: that he meets.
        mode: what the model answers.
        budget: most queries.
        seed: of everything that he draws.
        build: the attack, from its randomness.
        architecture: of his copy.
        own: images with labels for an adaptive thief who mends answers (D-DAE); None for one who takes them as told.
        repeats: how often he asks everything, to believe the mean.
        measured_every: least number of queries between two measurements of his copy.
    """

    attack: str
    defence: Defence
    mode: AnswerMode
    budget: int
    seed: int
    build: Callable[[np.random.Generator], Attack]
    architecture: VictimsOwn
    own: Dataset | None = None
    repeats: int = 1
    measured_every: int = 0

    @property
    def key(self) -> str:
        """Names the theft by everything that tells it from others."""
        text = (
            f"{self.attack} {self.defence.key} {self.mode} {self.budget} {self.seed} {self.architecture.name} "
            f"{self.own is not None} {self.repeats}"
        )
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def attacking(self) -> tuple[Attack, np.random.Generator]:
        """The attack, and its randomness: the same whatever the defence is."""
        random = np.random.default_rng([self.seed, int(hashlib.sha256(self.attack.encode()).hexdigest()[:8], 16)])
        mending = np.random.default_rng([self.seed, 1])
        attack = self.build(random)
        attack.architecture, attack.measured_every = self.architecture, self.measured_every
        return (Recovering(attack, self.own, mending) if self.own else attack), random


@dataclass(frozen=True, slots=True)
class Theft:
    """What a thief got.

    Attributes:
        thief: who.
        queries: answered.
        perturbed: of these, answered otherwise than by the model alone.
        spoiled_from: queries that the decision had seen when answers began to be spoiled; None where it never was.
        banned_at: the same for a ban.
        milestones: [rounds, 3] float64: after so many queries, the copy's agreement and its accuracy, in [0, 1].
        copy: the last copy, ready to infer.
        marks: what the registry would hold against a copy: inputs [m, ...], true logits and answers [m, classes].
    """

    thief: Thief
    queries: int
    perturbed: int
    spoiled_from: int | None
    banned_at: int | None
    milestones: NDArray[np.float64]
    copy: nn.Module
    marks: Sequence[PerturbedAnswer]

    @property
    def accuracy(self) -> float:
        """Of the last copy, in [0, 1]."""
        return float(self.milestones[-1, 2])


@dataclass(frozen=True, slots=True)
class Thefts:
    """Several, to be asked for."""

    found: Sequence[Theft]

    def under(self, defence: Defence) -> list[Theft]:
        """Of thieves who met a defence and took its answers as they were."""
        return [theft for theft in self.found if theft.thief.defence == defence and theft.thief.own is None]

    def of(
        self, attack: str, mode: AnswerMode, defence: Defence, mended: bool = False, repeats: int = 1,
        architecture: str | None = None,
    ) -> list[Theft]:  # fmt: skip
        """Of one kind, by seed; see `Thief`.

        Args:
            attack: name.
            mode: what the model answers.
            defence: that the thieves meet.
            mended: whether they mend answers.
            repeats: how often they ask everything.
            architecture: of the copies; any where None.
        """
        return [
            theft
            for theft in self.found
            if (theft.thief.attack, theft.thief.mode, theft.thief.defence, theft.thief.repeats)
            == (attack, mode, defence, repeats)
            and (theft.thief.own is not None) == mended
            and architecture in (None, theft.thief.architecture.name)
        ]


def independent(theft: Theft) -> tuple[Marks, list[PerturbedAnswer]]:
    """The marks that count against a copy (services.ownership), and the answers that they are."""
    selector = MarkSelector()
    admitted = [answer for answer in theft.marks if selector.admits(answer)]
    return marks_of(THIEF, admitted), admitted


class _Worker:
    """What each process holds."""

    bundle: ClassVar[Bundle | None] = None
    yardstick: ClassVar[Yardstick | None] = None

    @classmethod
    def load(cls, folder: Path, yardstick: Yardstick) -> None:
        cls.bundle, cls.yardstick = Bundle.load(folder), yardstick

    @classmethod
    def steal(cls, thief: Thief, path: Path) -> None:
        assert cls.bundle is not None
        attack, random = thief.attacking()
        ask, served = _victim(thief, cls.bundle)
        route = Repeating(Account(ask), thief.repeats) if thief.repeats > 1 else Account(ask)
        report = attack.run(route, thief.budget, random, cls.yardstick)
        _keep(path, report, served(), cls.bundle)


def _victim(thief: Thief, bundle: Bundle) -> tuple[Ask, Callable[[], Served]]:
    defence = thief.defence
    if defence.policy:
        policy = load_policy(defence.policy, bundle.manifest.evidence.log_threshold)
        defended = DefendedVictim(bundle, policy, thief.mode)
        return partial(defended.ask, THIEF), partial(defended.served, THIEF)
    if defence.response:
        responding = RespondingVictim(bundle, defence.response, thief.mode)
        return partial(responding.ask, THIEF), partial(responding.served, THIEF)
    model = Model(bundle)
    return lambda inputs: truth(softmax(model.logits(inputs)), thief.mode), Served


def _keep(path: Path, report: AttackReport, served: Served, bundle: Bundle) -> None:
    assert report.copy is not None
    model, marked = bundle.manifest.model, sorted(served.marks)
    milestones = [
        (milestone.queries, milestone.similarity.agreement, milestone.similarity.accuracy)
        for milestone in report.milestones
        if milestone.similarity
    ]
    arrays: dict[str, NDArray[Any]] = {
        "milestones": np.array(milestones, dtype=np.float64).reshape(-1, 3),
        "inputs": np.array([served.inputs[n] for n in marked], dtype=np.uint8).reshape(-1, *model.input_shape),
        "logits": np.array([served.logits[n] for n in marked], dtype=np.float32).reshape(-1, len(model.classes)),
        "answers": np.array([served.marks[n] for n in marked], dtype=np.float32).reshape(-1, len(model.classes)),
        "hashes": np.array([served.hashes[n] for n in marked], dtype=np.uint64),
        **{f"copy/{name}": array for name, array in network_tensors(report.copy.network).items()},
    }
    counts = {
        "queries": report.queries,
        "perturbed": served.perturbed,
        "spoiled_from": served.first(Action.PERTURB),
        "banned_at": served.first(Action.BAN),
    }
    write_whole(path, save(arrays, {"counts": json.dumps(counts)}))


def steal(
    thieves: Sequence[Thief],
    bundle: Bundle,
    yardstick: Yardstick,
    cache: Path,
    progress: Progress,
    label: str,
    processes: int | None = None,
) -> list[Theft]:
    """What the thieves get; taken from `cache` where they met this very bundle before.

    Args:
        thieves: each is sent to another process, so it must be picklable.
        bundle: of the victim.
        yardstick: measures the copies after every round.
        cache: folder of thefts from any bundles.
        progress: shows a bar.
        label: of the bar.
        processes: 1 for this one; a process a core where None.
    """
    folder = cache / bundle.fingerprint[:16]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{thief.key}.safetensors" for thief in thieves]
    work = {path: (thief,) for thief, path in zip(thieves, paths, strict=True)}
    start = partial(_Worker.load, bundle.folder, yardstick)
    make_missing(_Worker.steal, work, start, progress, label, processes)
    image_hash = ImageHash.of_bundle(bundle)
    return [_theft(thief, path, bundle, image_hash) for thief, path in zip(thieves, paths, strict=True)]


def _theft(thief: Thief, path: Path, bundle: Bundle, image_hash: ImageHash) -> Theft:
    with safe_open(path, "numpy") as file:
        counts: Mapping[str, Any] = json.loads(file.metadata()["counts"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    model = bundle.manifest.model
    channels, height, width = model.input_shape
    empty = thief.architecture((channels, height, width), len(model.classes))
    weights = {name.removeprefix("copy/"): array for name, array in arrays.items() if name.startswith("copy/")}
    marks = [
        _mark(thief, model, image_hash, number, *of)
        for number, of in enumerate(
            zip(arrays["inputs"], arrays["logits"], arrays["answers"], arrays["hashes"].tolist(), strict=True)
        )
    ]
    return Theft(
        thief, counts["queries"], counts["perturbed"], counts["spoiled_from"], counts["banned_at"],
        arrays["milestones"], load_network(empty, weights), marks,
    )  # fmt: skip


def _mark(
    thief: Thief, model: ModelSection, image_hash: ImageHash, number: int, inputs: NDArray[np.uint8],
    logits: NDArray[np.float32], answer: NDArray[np.float32], perceptual_hash: int,
) -> PerturbedAnswer:  # fmt: skip
    return PerturbedAnswer(
        query_id=f"{THIEF}-{number}",
        account=THIEF,
        model_name=model.name,
        model_version=model.version,
        answered_at=0,
        response=thief.defence.name,
        perceptual_hash=perceptual_hash,
        hash_kind=image_hash.kind,
        similar_bits=image_hash.similar_bits,
        input=inputs,
        logits=logits,
        answer=answer,
    )


def pruned(network: nn.Module, share: float) -> nn.Module:
    """A copy of a network without the smallest of its weights (AMAO, 5.6.3; Zhu and Gupta 2017): they become zero.

    Args:
        network: whose weights are kept as they are.
        share: of all weights of linear and convolutional layers, in [0, 1).
    """
    tensors = {name: torch.from_numpy(array.copy()) for name, array in network_tensors(network).items()}
    layers = [f"{n}.weight" for n, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    sizes = torch.cat([tensors[name].abs().flatten() for name in layers])
    cut = int(share * len(sizes))
    if cut:
        least = sizes.kthvalue(cut).values
        for name in layers:
            tensors[name][tensors[name].abs() <= least] = 0.0
    smaller = copy.deepcopy(network)
    smaller.load_state_dict(tensors)
    return smaller
