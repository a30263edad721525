"""Models that are hard to copy by their training alone: AMAO, section 5.2, tables 2 and 3, and the bundle's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from services.evaluation.context import Context
from services.evaluation.copies import (
    CLOUDLEAK,
    JBDA_TR,
    KNOCKOFF,
    LABEL,
    NAMES,
    PROBABILITIES,
    RADIUS,
    SCENARIOS,
    SEEDS,
    attacks,
    copied_architecture,
    is_clothes,
)
from services.evaluation.drawing import mean_and_spread
from services.evaluation.report import Cell, Study, Table
from services.evaluation.thefts import Defence, Thefts, Thief
from services.evaluation.variants import adversarial_model, plain_model, with_model
from services.inference.model import served_network
from services.inference.responses.interface import AnswerMode
from services.redteam.substitute import VictimsOwn
from services.training.prediction import accuracy

PLAIN, ADVERSARIAL, DOUBTING = (
    Defence("trained plainly"), Defence("trained adversarially"), Defence("the bundle's: trained to doubt"),
)  # fmt: skip
TRAININGS = (PLAIN, ADVERSARIAL, DOUBTING)
VARIANTS = MappingProxyType({PLAIN: "plain", ADVERSARIAL: "adversarial"})
"""Bundles of them, by name; the last one's is the bundle itself."""


@dataclass(frozen=True, slots=True)
class Paper:
    """What AMAO says of one data set, in %, of plain and of adversarial training.

    Attributes:
        victims: accuracy (table 2).
        copies: accuracy of the copies (table 3).
    """

    victims: tuple[float, float]
    copies: Mapping[tuple[str, AnswerMode], tuple[float, float]]

    def of_copy(self, attack: str, mode: AnswerMode) -> Mapping[Defence, float]:
        """By training."""
        return dict(zip((PLAIN, ADVERSARIAL), self.copies[attack, mode], strict=True))


F_MNIST = Paper(
    (92.11, 89.24),
    MappingProxyType({
        (JBDA_TR, LABEL): (79.33, 75.44), (JBDA_TR, PROBABILITIES): (81.44, 80.42),
        (KNOCKOFF, LABEL): (40.38, 35.80), (KNOCKOFF, PROBABILITIES): (42.10, 41.16),
        (CLOUDLEAK, LABEL): (76.07, 71.91), (CLOUDLEAK, PROBABILITIES): (78.26, 74.83),
    }),
)  # fmt: skip
MNIST = Paper(
    (99.21, 99.13),
    MappingProxyType({
        (JBDA_TR, LABEL): (91.23, 87.08), (JBDA_TR, PROBABILITIES): (95.58, 89.22),
        (KNOCKOFF, LABEL): (89.57, 78.89), (KNOCKOFF, PROBABILITIES): (91.72, 87.53),
        (CLOUDLEAK, LABEL): (83.72, 79.46), (CLOUDLEAK, PROBABILITIES): (86.36, 84.77),
    }),
)  # fmt: skip


def _steal(context: Context, models: Mapping[Defence, nn.Module]) -> Thefts:
    sizes, architecture = context.sizes, VictimsOwn(copied_architecture(context))
    found = []
    for training, model in models.items():
        thieves = [
            Thief(attack, training, mode, sizes.theft_budget, seed, attacks(context, seed)[attack], architecture)
            for seed in sizes.theft_seeds
            for attack in NAMES
            for mode in SCENARIOS
            # Probabilities are told to the first seed's thieves alone, as where the whole system is measured.
            if mode is LABEL or seed == sizes.theft_seeds[0]
        ]
        bundle = with_model(context, model, VARIANTS[training]) if training in VARIANTS else None
        found += context.steal(thieves, f"thieves of a model {training.name.removeprefix('the ')}", bundle)
    return Thefts(found)


def study(context: Context) -> Study:
    """Accuracy of three models of one architecture, and of the copies that undefended answers of each make."""
    paper = F_MNIST if is_clothes(context.bundle) else MNIST
    models = {
        PLAIN: plain_model(context),
        ADVERSARIAL: adversarial_model(context),
        DOUBTING: served_network(context.bundle),
    }
    victims = dict(zip((PLAIN, ADVERSARIAL), paper.victims, strict=True))
    rows: list[list[Cell]] = [
        [training.name, 100 * accuracy(model, context.splits.test), victims.get(training)]
        for training, model in models.items()
    ]
    thefts = _steal(context, models)
    copies: list[list[Cell]] = []
    for attack in NAMES:
        for mode, scenario in SCENARIOS.items():
            theirs = paper.of_copy(attack, mode)
            cells: list[Cell] = [attack, scenario]
            for training in TRAININGS:
                cells.append(mean_and_spread([100 * theft.accuracy for theft in thefts.of(attack, mode, training)]))
                if training in theirs:
                    cells.append(theirs[training])
            copies.append(cells)
    name = "hardening" if is_clothes(context.bundle) else f"hardening-{context.bundle.manifest.model.name}"
    return Study(
        name=name,
        title="How hard training alone makes a model to copy",
        text=f"Models of the architecture {context.bundle.manifest.model.architecture}, from the same images by the "
        "same schedule: plainly; each on the worst image within 0.1 of every pixel (AMAO, section 4.2); and the "
        "bundle's own, which learnt from varied photographs and to doubt what nobody photographed. Nothing else stands "
        f"between a thief and the model. Copies: {copied_architecture(context)}, at most "
        f"{context.sizes.theft_budget:,} queries, JBDA-TR (radius {RADIUS}) and Cloudleak from {SEEDS} natural images; "
        f"seeds {', '.join(map(str, context.sizes.theft_seeds))}, one for probabilities.",
        tables=[
            Table("Table 2: accuracy of the model, %", ["model", "accuracy, %", "(paper)"], rows),
            Table(
                "Table 3: accuracy of the copy, %",
                ["attack", "told", "trained plainly", "(paper)", "trained adversarially", "(paper)", "the bundle's"],
                copies,
            ),
        ],
    )
