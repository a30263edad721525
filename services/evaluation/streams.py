"""Attackers' streams: recorded once against the undefended victim, kept, and replayed as often as one likes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.numpy import load, save

from services.inference.model import Model
from services.redteam.attack import Attack
from services.redteam.substitute import Images, Probabilities, Yardstick
from services.training.tracing import Recording, make_missing
from shared.bundle import Bundle
from shared.files import write_whole


@dataclass(frozen=True, slots=True)
class Attacker:
    """One attacker's account.

    Attributes:
        attack: name, as tables show it.
        strength: in words, such as "step 0.1".
        seeds: natural images that it starts from; 0 where it needs none.
        budget: most queries.
        seed: of everything that it draws.
        build: the attack, from its randomness.
        scheme: how it adapts, in words; empty where it does not.
    """

    attack: str
    strength: str
    seeds: int
    budget: int
    seed: int
    build: Callable[[np.random.Generator], Attack]
    scheme: str = ""

    @property
    def key(self) -> str:
        """Names the attacker by everything that tells it from others."""
        text = f"{self.attack} {self.strength} {self.seeds} {self.budget} {self.seed} {self.scheme}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Stream:
    """What an attacker's account sent.

    Attributes:
        attacker: whose.
        recording: inputs and true logits.
        attacking: [n] bool, queries that count as attack: neither the natural seeds nor honest ones mixed in.
        copies: [rounds, 3] float64: after so many queries, the copy's agreement with the victim and its accuracy, both
            in [0, 1]; no rows where nobody measured.
    """

    attacker: Attacker
    recording: Recording
    attacking: NDArray[np.bool_]
    copies: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))

    def __len__(self) -> int:
        return len(self.attacking)

    def until(self, query: int) -> Stream:
        """Its first queries only; of copies, those that were trained by then."""
        inputs, logits = self.recording.inputs[:query], self.recording.logits[:query]
        copies = self.copies[self.copies[:, 0] <= query]
        return replace(self, recording=Recording(inputs, logits), attacking=self.attacking[:query], copies=copies)


class Recorder:
    """An undefended victim that tells hard labels and remembers what it was asked."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._inputs: list[Images] = []
        self._logits: list[NDArray[np.float32]] = []

    def __call__(self, inputs: Images) -> Probabilities:
        """One-hot answers [n, classes]."""
        logits = self._model.logits(inputs)
        self._inputs.append(inputs.copy())
        self._logits.append(logits)
        answers: Probabilities = np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(axis=1)]
        return answers

    @property
    def recording(self) -> Recording:
        """Everything asked so far."""
        return Recording(np.concatenate(self._inputs), np.concatenate(self._logits))


class _Worker:
    """What each process holds."""

    model: ClassVar[Model | None] = None
    yardstick: ClassVar[Yardstick | None] = None

    @classmethod
    def load(cls, folder: Path, yardstick: Yardstick | None) -> None:
        cls.model, cls.yardstick = Model(Bundle.load(folder)), yardstick

    @classmethod
    def record(cls, attacker: Attacker, path: Path) -> None:
        assert cls.model is not None
        recorder = Recorder(cls.model)
        random = np.random.default_rng([attacker.seed, int(attacker.key[:8], 16)])
        report = attacker.build(random).run(recorder, attacker.budget, random, cls.yardstick)
        recording = recorder.recording
        copies = [
            (milestone.queries, milestone.similarity.agreement, milestone.similarity.accuracy)
            for milestone in report.milestones
            if milestone.similarity
        ]
        arrays: dict[str, NDArray[Any]] = {
            "inputs": recording.inputs,
            "logits": recording.logits,
            "copies": np.array(copies, dtype=np.float64).reshape(-1, 3),
        }
        write_whole(path, save(arrays))


def record(
    attackers: Sequence[Attacker],
    bundle: Bundle,
    cache: Path,
    progress: Progress,
    label: str,
    processes: int | None = None,
    yardstick: Yardstick | None = None,
) -> list[Stream]:
    """The attackers' streams; taken from `cache` where they were recorded against this very model before.

    Args:
        attackers: who attacks; each is sent to another process, so it must be picklable.
        bundle: of the victim.
        cache: folder of streams of any models.
        progress: shows a bar.
        label: of the bar.
        processes: 1 for this one; a process a core where None.
        yardstick: measures the copies after every round; streams from `cache` have what was measured then.
    """
    folder = cache / bundle.manifest.model.version
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{attacker.key}.safetensors" for attacker in attackers]
    work = {path: (attacker,) for attacker, path in zip(attackers, paths, strict=True)}
    start = partial(_Worker.load, bundle.folder, yardstick)
    make_missing(_Worker.record, work, start, progress, label, processes)
    return [_stream(attacker, path) for attacker, path in zip(attackers, paths, strict=True)]


def _stream(attacker: Attacker, path: Path) -> Stream:
    arrays = load(path.read_bytes())
    attacking = np.arange(len(arrays["inputs"])) >= attacker.seeds
    copies = arrays.get("copies", np.empty((0, 3)))
    return Stream(attacker, Recording(arrays["inputs"], arrays["logits"]), attacking, copies)


def mixed(stream: Stream, honest: Recording, share: float, random: np.random.Generator) -> Stream:
    """The stream with honest queries among those of the attack.

    Args:
        stream: of an attacker.
        honest: queries to mix in, at least `share / (1 - share)` for each of the stream's.
        share: of honest queries in what comes out.
        random: of the order.

    Raises:
        ValueError: too few honest queries.
    """
    needed = round(len(stream) * share / (1 - share))
    if len(honest.inputs) < needed:
        raise ValueError(f"{needed:,} honest queries are needed, there are {len(honest.inputs):,}")
    own = random.permutation(np.repeat([True, False], [len(stream), needed]))

    def merged(attack: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.generic]:
        result = np.empty((len(own), *attack.shape[1:]), dtype=attack.dtype)
        result[own], result[~own] = attack, other[:needed]
        return result

    recording = Recording(
        merged(stream.recording.inputs, honest.inputs),  # type: ignore[arg-type]
        merged(stream.recording.logits, honest.logits),  # type: ignore[arg-type]
    )
    attacking = np.zeros(len(own), dtype=np.bool_)
    attacking[own] = stream.attacking
    attacker = replace(stream.attacker, scheme=f"{share:.1%} honest queries mixed in")
    return Stream(attacker, recording, attacking)
