"""D-DAE (Chen et al. 2023, Defense-penetrating model extraction attacks): answers that a defence disturbed, mended.

The attacker plays victims himself. He trains shadow models, disturbs their answers as defences would, and learns from
this two things: to tell which defence is at work (disruption detection, by a meta-classifier), and to get the clean
answers back (disruption recovery, by a network). Both see, beside an answer, what a copy that never saw that answer
says of the same query: of a label alone nothing can be told.

What the attack underneath asks, and how it learns, stays its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.redteam.attack import Attack, Loot, Questions
from services.redteam.substitute import Images, Probabilities, Substitute, initialise, said
from shared.datasets import Dataset

Disturb: TypeAlias = Callable[[Probabilities, np.random.Generator], Probabilities]
"""What a defence does to clean answers [n, classes]: disturbed ones [n, classes]."""

SHADOW_EPOCHS = 5
WEIGHT_DECAY = 1e-4
SLOPE = 0.2
"""Of the leaky rectifiers, as in the authors' code."""
HIDDEN = (128, 64)
"""Of the recovery network, as in the authors' code."""
META_FEATURES, META_HIDDEN = 64, 20
META_STEPS = 1000
META_RATE = 3e-3
META_SETS = 16
"""Sets of answers a step."""
META_ANSWERS = 256
"""Answers a set."""
MISINFORMATION_STEEPNESS = 1000.0
"""nu of adaptive misinformation."""
LEAST_PROBABILITY = 1e-6


def _normalised(answers: NDArray[np.float32]) -> Probabilities:
    shares: Probabilities = (answers / np.maximum(answers.sum(axis=1, keepdims=True), LEAST_PROBABILITY)).astype(
        np.float32
    )
    return shares


def flips(random: np.random.Generator) -> Disturb:
    """A share of the answers, 5 to 50%, exchange the largest value with the smallest, or with any other."""
    share, least = random.uniform(0.05, 0.5), random.random() < 0.5

    def disturb(answers: Probabilities, random: np.random.Generator) -> Probabilities:
        flipped = answers.copy()
        rows = np.flatnonzero(random.random(len(answers)) < share)
        largest = answers[rows].argmax(axis=1)
        others = (largest + random.integers(1, answers.shape[1], len(rows))) % answers.shape[1]
        wrong = answers[rows].argmin(axis=1) if least else others
        flipped[rows, largest], flipped[rows, wrong] = answers[rows, wrong], answers[rows, largest]
        return flipped

    return disturb


def reverse_sigmoid(random: np.random.Generator) -> Disturb:
    """y - beta (sigmoid(gamma logit(y)) - 1/2), normalised (Lee et al. 2019)."""
    beta, gamma = random.uniform(0.1, 1.0), random.uniform(0.1, 0.4)

    def disturb(answers: Probabilities, random: np.random.Generator) -> Probabilities:
        inner = answers.clip(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        steered = (inner / (1 - inner)) ** gamma
        return _normalised((answers - beta * (steered / (1 + steered) - 0.5)).clip(0.0))

    return disturb


def noise(random: np.random.Generator) -> Disturb:
    """Normal noise on every value, normalised."""
    deviation = random.uniform(0.02, 0.2)

    def disturb(answers: Probabilities, random: np.random.Generator) -> Probabilities:
        noisy = answers + random.normal(0.0, deviation, answers.shape).astype(np.float32)
        return _normalised(noisy.clip(0.0))

    return disturb


def misinformation(random: np.random.Generator) -> Disturb:
    """Adaptive misinformation (Kariyappa and Qureshi 2020): the answers of which the model is least sure, 5 to 50%, are
    exchanged for those of a wrong model.

    Its own model is trained to be wrong; here it is as wrong as can be, with (1 - y) / (classes - 1).
    """
    share = random.uniform(0.05, 0.5)

    def disturb(answers: Probabilities, random: np.random.Generator) -> Probabilities:
        sure = answers.max(axis=1, keepdims=True)
        distance = MISINFORMATION_STEEPNESS * (sure - np.quantile(sure, share))
        weight = 1 / (1 + np.exp(distance.clip(-50.0, 50.0)))
        wrong = (1 - answers) / (answers.shape[1] - 1)
        mixed: Probabilities = ((1 - weight) * answers + weight * wrong).astype(np.float32)
        return mixed

    return disturb


def rounding(random: np.random.Generator) -> Disturb:
    """To one, two or three decimals."""
    decimals = int(random.integers(1, 4))
    return lambda answers, random: answers.round(decimals)


def top_k(random: np.random.Generator) -> Disturb:
    """All but the largest values are 0, and these normalised; one to five are kept."""
    kept = int(random.integers(1, 6))

    def disturb(answers: Probabilities, random: np.random.Generator) -> Probabilities:
        dropped = np.argsort(-answers, axis=1, kind="stable")[:, kept:]
        truncated = answers.copy()
        np.put_along_axis(truncated, dropped, 0.0, axis=1)
        return _normalised(truncated)

    return disturb


UNDISTURBED = "none"
DEFENCES: Mapping[str, Callable[[np.random.Generator], Disturb]] = MappingProxyType(
    {
        "flips": flips,
        "misinformation": misinformation,
        "noise": noise,
        "reverse sigmoid": reverse_sigmoid,
        "rounding": rounding,
        "top-k": top_k,
    }
)
"""The defences that an attacker expects; each draws its strength anew."""
OF_LABELS = ("flips", "misinformation")
"""Those that change what an endpoint answers which tells labels."""


def defences_of(labels_only: bool) -> tuple[str, ...]:
    """What may be at work behind an endpoint that tells labels, or probabilities; none comes first."""
    return (UNDISTURBED, *(OF_LABELS if labels_only else DEFENCES))


def labels_of(answers: Probabilities) -> Probabilities:
    """[n, classes], one-hot."""
    labels: Probabilities = np.eye(answers.shape[1], dtype=np.float32)[answers.argmax(axis=1)]
    return labels


@dataclass(frozen=True, slots=True)
class Table:
    """Answers whose clean ones are known.

    Attributes:
        disturbed: [n, classes] float32, what a defended shadow model answered.
        views: [n, classes] float32, what a copy says of the query that learned from other answers of that model.
        clean: [n, classes] float32, what the shadow model would have answered.
        defences: [n] int64, which of `defences_of`; 0 is none.
        shadows: [n] int64, which shadow model.
    """

    disturbed: Probabilities
    views: Probabilities
    clean: Probabilities
    defences: NDArray[np.int64]
    shadows: NDArray[np.int64]

    def of(self, defence: int) -> Table:
        """The rows of one defence."""
        rows = self.defences == defence
        return Table(self.disturbed[rows], self.views[rows], self.clean[rows], self.defences[rows], self.shadows[rows])


def _as_it_is(answers: Probabilities, random: np.random.Generator) -> Probabilities:
    return answers


def simulate(
    own: Dataset, classes: int, labels_only: bool, shadows: int, redraws: int, random: np.random.Generator
) -> Table:
    """Play victims and attackers: each shadow model in turn has one of the defences, or none.

    A shadow model learns from half of the images; a copy of it from its disturbed answers to a quarter; the table holds
    its answers to the last quarter.

    Args:
        own: the attacker's labelled images, of the victim's kind.
        classes: how many the victim tells apart.
        labels_only: whether the victim tells labels.
        shadows: models.
        redraws: times that a model's answers are disturbed anew.
        random: of everything that is drawn.

    Raises:
        ValueError: the attacker's labels are not among the victim's.
    """
    if own.labels.max() >= classes:
        raise ValueError(f"shadow models of {classes} classes cannot learn from images of class {own.labels.max()}")
    defences = defences_of(labels_only)
    parts: list[Table] = []
    for shadow in range(shadows):
        which = shadow % len(defences)
        order = random.permutation(len(own))
        first, second, third = (own[rows] for rows in np.split(order, [len(own) // 2, 3 * len(own) // 4]))
        victim = Substitute(classes, random)
        victim.train(first.images, np.eye(classes, dtype=np.float32)[first.labels], SHADOW_EPOCHS)
        disturb = DEFENCES[defences[which]](random) if which else _as_it_is
        tell = labels_of if labels_only else lambda answers: answers
        copy = Substitute(classes, random)
        copy.train(second.images, tell(disturb(said(victim, second.images), random)), SHADOW_EPOCHS)
        clean, views = said(victim, third.images), said(copy, third.images)
        parts += [
            Table(
                tell(disturb(clean, random)), views, tell(clean),
                np.full(len(third), which), np.full(len(third), shadow),
            )
            for _ in range(redraws)
        ]  # fmt: skip
    return Table(
        np.concatenate([part.disturbed for part in parts]),
        np.concatenate([part.views for part in parts]),
        np.concatenate([part.clean for part in parts]),
        np.concatenate([part.defences for part in parts]),
        np.concatenate([part.shadows for part in parts]),
    )


def traces(disturbed: Probabilities, views: Probabilities) -> Tensor:
    """What defences leave behind in each answer, whatever its class: [n, 4 * classes + 4] float32.

    The values from the largest down, their logarithms, the copy's in the same order and from its own largest down; how
    far they are from whole tenths, hundredths and thousandths; and whether the copy says the same.

    Args:
        disturbed: [n, classes].
        views: [n, classes], see `Table`.
    """
    # Of equal values, as all but one of a label's are, the copy's decide the order.
    order = np.lexsort((-views, -disturbed), axis=1)
    values, seen = np.take_along_axis(disturbed, order, axis=1), np.take_along_axis(views, order, axis=1)
    logarithms = np.log(values.clip(LEAST_PROBABILITY)) / -np.log(LEAST_PROBABILITY)
    scaled = values[:, None] * np.array([10.0, 100.0, 1000.0], dtype=np.float32)[:, None]
    remainders = np.abs(scaled - scaled.round()).mean(axis=2)
    agree = disturbed.argmax(axis=1) == views.argmax(axis=1)
    columns = (values, logarithms, seen, -np.sort(-views, axis=1), remainders, agree[:, None])
    return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))


class MetaClassifier(nn.Module):
    """Traces of a set of answers [sets, answers, features] to the logit of each defence, [sets, 1 + defences]."""

    def __init__(self, features: int, defences: int) -> None:
        """
        Args:
            features: of each answer.
            defences: to be told apart, and from none.
        """
        super().__init__()
        self.each = nn.Sequential(nn.Linear(features, META_FEATURES), nn.LeakyReLU(SLOPE))
        self.all = nn.Sequential(nn.Linear(META_FEATURES, META_HIDDEN), nn.ReLU(), nn.Linear(META_HIDDEN, 1 + defences))

    def forward(self, answers: Tensor) -> Tensor:
        """Logits, by the mean over each set."""
        logits: Tensor = self.all(self.each(answers).mean(dim=1))
        return logits


def train_meta_classifier(table: Table, random: np.random.Generator) -> MetaClassifier:
    """Tells which defence is at work, by sets of one shadow model's answers (Adam, cross-entropy)."""
    features = traces(table.disturbed, table.views)
    rows_of = [np.flatnonzero(table.shadows == shadow) for shadow in np.unique(table.shadows)]
    defence_of = torch.from_numpy(np.array([table.defences[rows[0]] for rows in rows_of]))
    network = MetaClassifier(features.shape[1], int(table.defences.max()))
    initialise(network, torch.Generator().manual_seed(int(random.integers(2**62))))
    optimiser = torch.optim.Adam(network.parameters(), lr=META_RATE)
    for _ in range(META_STEPS):
        shadows = random.integers(len(rows_of), size=META_SETS)
        rows = np.stack([random.choice(rows_of[shadow], META_ANSWERS) for shadow in shadows])
        loss = functional.cross_entropy(
            network(features[torch.from_numpy(rows)]), defence_of[torch.from_numpy(shadows)]
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()


class RecoveryNetwork(nn.Module):
    """Disturbed answers beside views [n, 2 * classes] to logits of the clean answers, [n, classes]."""

    def __init__(self, classes: int) -> None:
        """
        Args:
            classes: how many the victim tells apart.
        """
        super().__init__()
        first, second = HIDDEN
        self.layers = nn.Sequential(
            nn.Linear(2 * classes, first), nn.BatchNorm1d(first), nn.LeakyReLU(SLOPE),
            nn.Linear(first, second), nn.BatchNorm1d(second), nn.LeakyReLU(SLOPE),
            nn.Linear(second, classes),
        )  # fmt: skip

    def forward(self, answers: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.layers(answers)
        return logits


def beside(disturbed: Probabilities, views: Probabilities) -> Tensor:
    """What the recovery network takes, [n, 2 * classes]."""
    return torch.from_numpy(np.concatenate([disturbed, views], axis=1))


def train_recovery(table: Table, epochs: int, batch: int, rate: float, random: np.random.Generator) -> RecoveryNetwork:
    """Learns one defence's clean answers from its disturbed ones (Adam, soft cross-entropy).

    Args:
        table: of that defence alone.
        epochs: passes over it.
        batch: answers a step.
        rate: Adam's.
        random: of weights and order.
    """
    inputs, clean = beside(table.disturbed, table.views), torch.from_numpy(table.clean)
    network = RecoveryNetwork(clean.shape[1])
    initialise(network, torch.Generator().manual_seed(int(random.integers(2**62))))
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    for _ in range(epochs):
        for rows in torch.split(torch.from_numpy(random.permutation(len(inputs))), batch):
            # Batch normalisation needs two answers or more.
            if len(rows) > 1:
                optimiser.zero_grad()
                functional.cross_entropy(network(inputs[rows]), clean[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return network.eval()


class _Simulation:
    """What an attacker learnt from playing victims."""

    def __init__(
        self, table: Table, meta: MetaClassifier, labels_only: bool, train: Callable[[Table], RecoveryNetwork]
    ) -> None:
        self._table = table
        self._meta = meta
        self._labels_only = labels_only
        self._train = train
        self._networks: dict[str, RecoveryNetwork | None] = {UNDISTURBED: None}

    def detect(self, told: Probabilities, views: Probabilities) -> str:
        """Which defence the answers [n, classes] seem to come from."""
        with torch.inference_mode():
            return defences_of(self._labels_only)[int(self._meta(traces(told, views)[None]).argmax())]

    def recover(self, defence: str, told: Probabilities, views: Probabilities) -> Probabilities:
        """[n, classes], the clean answers as far as can be told; labels stay labels."""
        if defence not in self._networks:
            self._networks[defence] = self._trained(defence)
        network = self._networks[defence]
        return told if network is None else self._cleaned(network, told, views)

    def _trained(self, defence: str) -> RecoveryNetwork | None:
        """None where the defence does less harm than the network: fine rounding hardly changes an answer."""
        table = self._table.of(defences_of(self._labels_only).index(defence))
        network = self._train(table)
        recovered = self._cleaned(network, table.disturbed, table.views)
        return network if _distance(recovered, table.clean) < _distance(table.disturbed, table.clean) else None

    def _cleaned(self, network: RecoveryNetwork, told: Probabilities, views: Probabilities) -> Probabilities:
        with torch.inference_mode():
            clean: Probabilities = network(beside(told, views)).softmax(dim=1).numpy()
        return labels_of(clean) if self._labels_only else clean


def _distance(answers: Probabilities, clean: Probabilities) -> float:
    """The mean L1 distance of answers [n, classes]."""
    return float(np.abs(answers - clean).sum(axis=1).mean())


class Recovering(Attack):
    """Any attack, learning from mended answers instead of those that it was told.

    Two copies stand in for the attacker's substitute, each trained on half of what was told; an answer is seen beside
    what the copy says that did not learn from it. They are trained anew whenever the answers have grown by half, and
    all answers are mended again.

    Defaults are the paper's: 20 shadow models of 5 epochs, a network of three layers, 200 epochs in batches of 1,024 at
    a rate of 0.01. What differs, and why:

    - A defence of labels is in the family, the flips, and the views are beside the answers: the paper mends
      probabilities, each by itself.
    - The table has thousands of answers where the paper's has a million. Plain descent on the authors' L1 loss got no
      further on 3,000 answers in 200 epochs than to 64-69% right labels, of which 70% had been right; Adam and the
      cross-entropy, as in the attacks on ModelGuard (Tang et al. 2024), get to 77-85%.
    - The meta-classifier sees the answers to whatever the attack asked: one that chose its queries, as the paper's
      does, would ask more than the attack. Faint flips, of one label in ten, it often takes for misinformation.
    - A defence that does less harm than its network would do is left alone.
    """

    name = "D-DAE"

    def __init__(
        self,
        attack: Attack,
        own: Dataset,
        random: np.random.Generator,
        shadows: int = 20,
        redraws: int = 4,
        epochs: int = 200,
        batch: int = 1024,
        rate: float = 0.01,
        least: int = 100,
        growth: float = 1.5,
    ) -> None:
        """
        Args:
            attack: asks and learns.
            own: the attacker's labelled images, of the victim's kind and shape.
            random: of the recovery alone, so that the attack underneath draws what it would without.
            shadows: models that play the victim; each has one of the defences, or none.
            redraws: times that a shadow model's answers are disturbed anew.
            epochs: of the recovery network.
            batch: answers a step of it.
            rate: its learning rate.
            least: answers, before which none is mended.
            growth: factor by which answers must grow before the copies are trained anew.

        Raises:
            ValueError: no images to train shadow models on, too few shadow models for the defences, or no growth.
        """
        super().__init__(attack.request_rows)
        if len(own) < 8:
            raise ValueError(f"shadow models cannot learn from {len(own)} images")
        if shadows < 1 + len(DEFENCES):
            raise ValueError(f"{shadows} shadow models are too few for {len(DEFENCES)} defences and none")
        if growth <= 1:
            raise ValueError(f"copies cannot be trained anew whenever answers grow by a factor of {growth}")
        self.architecture = attack.architecture
        self._attack = attack
        self._own = own
        self._random = random
        self._shadows = shadows
        self._redraws = redraws
        self._epochs = epochs
        self._batch = batch
        self._rate = rate
        self._least = least
        self._growth = growth
        self._begin()

    def _begin(self) -> None:
        self.detected: str | None = None
        """The defence that is believed to be at work; None before there was anything to tell it by."""
        self._simulation: _Simulation | None = None
        self._copies: list[Substitute] = []
        self._learnt = 0
        self._mended: Probabilities | None = None

    def questions(self, loot: Loot, substitute: Substitute | None) -> Questions:
        """The attack's own, from mended answers."""
        if not loot.put:
            self._begin()
        return self._attack.questions(self._seen(loot), substitute)

    def learn(self, loot: Loot, substitute: Substitute) -> None:
        """As the attack itself, from mended answers."""
        self._attack.learn(self._seen(loot), substitute)

    def _seen(self, loot: Loot) -> Loot:
        """The loot as the attack sees it."""
        answered = loot.answered
        if answered < self._least:
            return loot
        if self._mended is None or answered > len(self._mended):
            self._mended = self._mend(loot.images, loot.told)
        return loot.retold(self._mended)

    def _mend(self, images: Images, told: Probabilities) -> Probabilities:
        """[answered, classes], as far as they are not mended already."""
        if self._simulation is None:
            self._simulation = self._simulated(told)
        if self._mended is None or len(told) >= self._growth * self._learnt:
            views = self._crossed(images, told)
            self.detected = self._simulation.detect(told, views)
            return self._simulation.recover(self.detected, told, views)
        images, told = images[len(self._mended) :], told[len(self._mended) :]
        views = np.mean([said(copy, images) for copy in self._copies], axis=0)
        assert self.detected is not None
        return np.concatenate([self._mended, self._simulation.recover(self.detected, told, views)])

    def _simulated(self, told: Probabilities) -> _Simulation:
        labels_only = bool((told.max(axis=1) == 1.0).all())
        table = simulate(self._own, told.shape[1], labels_only, self._shadows, self._redraws, self._random)

        def train(rows: Table) -> RecoveryNetwork:
            return train_recovery(rows, self._epochs, self._batch, self._rate, self._random)

        return _Simulation(table, train_meta_classifier(table, self._random), labels_only, train)

    def _crossed(self, images: Images, told: Probabilities) -> Probabilities:
        """[n, classes], what a copy says of each query that learnt from the half in which the query is not."""
        halves = np.arange(len(told)) % 2
        views = np.empty_like(told)
        self._copies, self._learnt = [], len(told)
        for half in range(2):
            copy = Substitute(told.shape[1], self._random)
            copy.train(images[halves == half], told[halves == half], SHADOW_EPOCHS)
            views[halves != half] = said(copy, images[halves != half])
            self._copies.append(copy)
        return views
