"""What thieves without data get of a model that MeCo or QUEEN guards: the shape of MeCo's tables 1 to 5.

MeCo (Wang et al. 2023, Defending against data-free model extraction by distributionally robust defensive training)
guards ResNets of CIFAR-10 against DFME and MAZE (20 million queries) and DFMS-HL (8 million). The paper's numbers stand
beside ours for the order of the defences; neither data nor budgets are the same. QUEEN meets the same thieves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from services.evaluation.attackers import REQUEST_ROWS, Build
from services.evaluation.context import Context
from services.evaluation.defended import RespondingVictim
from services.evaluation.drawing import DEFENCES, drawn, mean_and_spread, seeds_in_words
from services.evaluation.figures import Finding
from services.evaluation.report import Cell, Picture, Study, Table
from services.evaluation.thefts import Defence, Theft, Thefts, Thief
from services.evaluation.variants import plain_model, with_model, with_responses
from services.inference.model import Model, softmax
from services.inference.response_networks import MECO as MECO_NETWORK
from services.inference.response_networks import QUEEN as QUEEN_NETWORKS
from services.inference.responses.interface import AnswerMode
from services.redteam.attack import Attack
from services.redteam.dfme import Dfme, Maze
from services.redteam.dfms import DfmsHl
from services.redteam.substitute import Shape, VictimsOwn, shape_of
from shared.bundle import Bundle
from shared.responses import (
    GradientRedirectionResponse,
    MecoResponse,
    PredictionPoisoningResponse,
    QueenResponse,
    RandomPerturbationResponse,
)

LABEL, PROBABILITIES = AnswerMode.LABEL, AnswerMode.PROBABILITIES
PLAIN = Defence("none, model trained plainly")
NONE = Defence("none")
RANDOM = Defence("random perturbation", response=RandomPerturbationResponse(epsilon=1.0))
POISONING = Defence("prediction poisoning", response=PredictionPoisoningResponse(epsilon=1.0))
REDIRECTION = Defence("gradient redirection", response=GradientRedirectionResponse(epsilon=1.0))
MECO = Defence("MeCo", response=MecoResponse())
MECO_UNKEYED = Defence("MeCo, noise drawn anew", response=MecoResponse(keyed=False))
QUEEN = Defence("QUEEN", response=QueenResponse())
COMPARED = (NONE, RANDOM, POISONING, REDIRECTION, MECO, MECO_UNKEYED, QUEEN)
SEVERAL_SEEDS = (NONE, MECO)
"""The defences that the figure to reach is of."""
REPEATS = 4
"""Times that an adaptive thief asks everything."""
MEASUREMENTS = 40
"""Of a copy over a theft."""


@dataclass(frozen=True, slots=True)
class DataFree:
    """Builds an attack without data.

    Attributes:
        kind: which.
        shape: of the victim's images.
    """

    kind: Callable[..., Attack]
    shape: Shape

    def __call__(self, random: np.random.Generator) -> Attack:
        """The attack, with its authors' own parameters."""
        return self.kind(self.shape, request_rows=REQUEST_ROWS)


ATTACKS: Mapping[str, tuple[Callable[..., Attack], AnswerMode]] = MappingProxyType(
    {Dfme.name: (Dfme, PROBABILITIES), Maze.name: (Maze, PROBABILITIES), DfmsHl.name: (DfmsHl, LABEL)}
)
"""Each with what its paper has the victim answer."""
PAPER: Mapping[tuple[str, Defence], float] = MappingProxyType(
    {
        (Dfme.name, NONE): 87.36, (Dfme.name, RANDOM): 84.28, (Dfme.name, POISONING): 78.06,
        (Dfme.name, REDIRECTION): 79.33, (Dfme.name, MECO_UNKEYED): 51.68,
        (Maze.name, NONE): 45.17, (Maze.name, RANDOM): 28.76, (Maze.name, POISONING): 26.81,
        (Maze.name, REDIRECTION): 26.06, (Maze.name, MECO_UNKEYED): 21.89,
        (DfmsHl.name, NONE): 84.67, (DfmsHl.name, RANDOM): 84.02, (DfmsHl.name, POISONING): 84.06,
        (DfmsHl.name, REDIRECTION): 84.28, (DfmsHl.name, MECO_UNKEYED): 76.86,
    }
)  # fmt: skip
"""Tables 1 and 2: accuracy of a ResNet-18 copy on CIFAR-10, %. The paper draws MeCo's noise anew."""
PAPER_UTILITY: Mapping[Defence, tuple[float, float]] = MappingProxyType(
    {
        NONE: (98.91, 0.0), RANDOM: (98.52, 1.0), POISONING: (98.87, 1.0), REDIRECTION: (98.73, 1.0),
        MECO_UNKEYED: (98.63, 0.0126),
    }
)  # fmt: skip
"""Table 3: accuracy on MNIST, %, and the L1 distance of what is told from the truth."""
PAPER_ADAPTIVE: Mapping[str, float] = MappingProxyType({Dfme.name: 25.79, Maze.name: 19.82})
"""Table 4: under MeCo, from thieves who add a perturbation of their own, %."""
PAPER_LABELS: Mapping[Defence, float] = MappingProxyType({MECO_UNKEYED: 41.23})
"""Table 5: DFME from labels, %."""


def _thieves(context: Context) -> tuple[list[Thief], list[Thief]]:
    """Those of the bundle's model, and those of the model that was trained plainly."""
    sizes, shape = context.sizes, shape_of(context.splits.test.images)
    first = sizes.data_free_seeds[0]

    def of(attack: str, mode: AnswerMode, defence: Defence, seed: int, architecture: str, repeats: int = 1) -> Thief:
        build: Build = DataFree(ATTACKS[attack][0], shape)
        return Thief(
            attack, defence, mode, sizes.data_free_budget, seed, build, VictimsOwn(architecture), repeats=repeats,
            measured_every=sizes.data_free_budget // MEASUREMENTS,
        )  # fmt: skip

    thieves, of_plain = [], []
    main, *others = sizes.data_free_architectures
    for attack, (_, mode) in ATTACKS.items():
        of_plain.append(of(attack, mode, PLAIN, first, main))
        for defence in COMPARED:
            several = defence in SEVERAL_SEEDS and attack == Dfme.name
            seeds = sizes.data_free_seeds if several else (first,)
            thieves += [of(attack, mode, defence, seed, main) for seed in seeds]
        thieves += [of(attack, mode, defence, first, other) for defence in SEVERAL_SEEDS for other in others]
    for defence in (MECO, MECO_UNKEYED):
        thieves += [of(attack, PROBABILITIES, defence, first, main, REPEATS) for attack in PAPER_ADAPTIVE]
    thieves += [of(Dfme.name, LABEL, defence, first, main) for defence in (NONE, MECO, MECO_UNKEYED, QUEEN)]
    return thieves, of_plain


def _accuracies(thefts: Sequence[Theft]) -> str | None:
    return mean_and_spread([100 * theft.accuracy for theft in thefts]) if thefts else None


def _relative(thefts: Sequence[Theft], undefended: Sequence[Theft]) -> float | None:
    """The copy's accuracy as a share of the undefended one's, means over the same seeds."""
    without = {theft.thief.seed: theft.accuracy for theft in undefended}
    shares = [theft.accuracy / without[theft.thief.seed] for theft in thefts]
    return float(np.mean(shares)) if shares else None


def _copies(context: Context, thefts: Thefts, mode: AnswerMode) -> Table:
    main, *others = context.sizes.data_free_architectures
    rows: list[list[Cell]] = []
    for attack, (_, told) in ATTACKS.items():
        if told is not mode:
            continue
        undefended = thefts.of(attack, mode, NONE, architecture=main)
        for defence in (PLAIN, *COMPARED):
            found = thefts.of(attack, mode, defence, architecture=main)
            rows.append([
                attack, defence.name, _accuracies(found), _relative(found, undefended),
                *(_accuracies(thefts.of(attack, mode, defence, architecture=other)) for other in others),
                PAPER.get((attack, defence)), _of(PAPER.get((attack, defence)), PAPER[attack, NONE]),
            ])  # fmt: skip
    number, said = (1, "probabilities") if mode is PROBABILITIES else (2, "labels")
    return Table(
        f"Table {number}: accuracy of the copy from {said}, %",
        ["attack", "defence", f"copy: {main}", "of undefended", *(f"copy: {other}" for other in others),
         "(paper)", "(of undefended)"],
        rows,
        "Mean and standard deviation over seeds, or one seed.",
    )  # fmt: skip


def _of(value: float | None, whole: float) -> float | None:
    return None if value is None else value / whole


def _adaptive(context: Context, thefts: Thefts) -> Table:
    main = context.sizes.data_free_architectures[0]
    rows: list[list[Cell]] = []
    for attack, paper in PAPER_ADAPTIVE.items():
        for defence in (MECO, MECO_UNKEYED):
            once = thefts.of(attack, PROBABILITIES, defence, architecture=main)[:1]
            again = thefts.of(attack, PROBABILITIES, defence, repeats=REPEATS, architecture=main)
            unkeyed = defence is MECO_UNKEYED
            rows.append([
                attack, defence.name, _accuracies(once), PAPER[attack, defence] if unkeyed else None,
                _accuracies(again), paper if unkeyed else None,
            ])  # fmt: skip
    return Table(
        "Table 4: accuracy of the copy of a thief who knows of MeCo, %",
        ["attack", "defence", "asks once", "(paper)", f"asks {REPEATS} times and takes the mean", "(paper's adaptive)"],
        rows,
        "The paper's adaptive thief adds a perturbation of his own. Both spend the same number of queries.",
    )


def _labels(context: Context, thefts: Thefts) -> Table:
    main = context.sizes.data_free_architectures[0]
    rows: list[list[Cell]] = [
        [
            defence.name, _accuracies(thefts.of(Dfme.name, PROBABILITIES, defence, architecture=main)[:1]),
            _accuracies(thefts.of(Dfme.name, LABEL, defence, architecture=main)), PAPER_LABELS.get(defence),
        ]
        for defence in (NONE, MECO, MECO_UNKEYED, QUEEN)
    ]  # fmt: skip
    return Table(
        "Table 5: accuracy of DFME's copy, %",
        ["defence", "from probabilities", "from labels", "(paper, from labels)"],
        rows,
        "Of the first seed.",
    )


def _utility(context: Context, bundle: Bundle) -> Table:
    """What honest accounts of a thousand queries each are told of test images."""
    data = context.clean
    truth: NDArray[np.float32] = softmax(Model(bundle).logits(data.images))
    rows: list[list[Cell]] = []
    for defence in COMPARED:
        told = truth
        if defence.response:
            victim = RespondingVictim(bundle, defence.response, PROBABILITIES)
            starts = range(0, len(data), 1_000)
            told = np.concatenate([victim.ask(f"honest-{s}", data.images[s : s + 1_000]) for s in starts])
        right = 100 * float((told.argmax(axis=1) == data.labels).mean())
        distance = float(np.abs(told - truth).sum(axis=1).mean())
        paper = PAPER_UTILITY.get(defence, (None, None))
        rows.append([defence.name, right, paper[0], distance, paper[1]])
    return Table(
        "Table 3: what the defence costs whoever meets it",
        ["defence", "accuracy, %", "(paper)", "L1 distance", "(paper)"],
        rows,
        "Every answer is given by the defence here. Under Portcullis's policy an honest account meets none of them.",
    )


def _picture(context: Context, thefts: Thefts) -> Picture:
    main = context.sizes.data_free_architectures[0]
    with drawn(context.output / "data-free.png", columns=len(ATTACKS), sharey=True) as axes:
        for axis, (attack, (_, mode)) in zip(axes, ATTACKS.items(), strict=True):
            for defence, colour in zip((NONE, RANDOM, REDIRECTION, MECO, QUEEN), DEFENCES, strict=False):
                (theft, *_) = thefts.of(attack, mode, defence, architecture=main)
                axis.plot(theft.milestones[:, 0], 100 * theft.milestones[:, 2], color=colour, label=defence.name)
            axis.set(title=f"{attack}, {mode}", xlabel="queries", ylabel="accuracy of the copy, %")
        axes[0].legend()
    return Picture("data-free.png", "Copies as they grow, first seed.")


def study(context: Context) -> Study:
    """DFME, MAZE and DFMS-HL against MeCo, QUEEN and what MeCo is compared with."""
    sizes = context.sizes
    guarded = with_responses(context, MECO_NETWORK, QUEEN_NETWORKS)
    thieves, of_plain = _thieves(context)
    found = context.steal(thieves, "thieves without data", guarded)
    found += context.steal(
        of_plain, "thieves without data, of a plain model", with_model(context, plain_model(context), "plain")
    )
    thefts = Thefts(found)
    main = sizes.data_free_architectures[0]
    undefended, meco = (thefts.of(Dfme.name, PROBABILITIES, one, architecture=main) for one in SEVERAL_SEEDS)
    relative = _relative(meco, undefended)
    assert relative is not None
    return Study(
        name="data-free",
        title="What thieves without data get",
        text=f"Thefts of the bundle's model ({context.bundle.manifest.model.architecture}) by generated images, "
        f"{sizes.data_free_budget:,} queries each; no detector and no verdict, every answer is the defence's. "
        "Perturbed probabilities stay within an L1 distance of 1 of the true ones, as in the paper. The bundle's model "
        "was trained to doubt what nobody photographed, which is hard on thieves already; the first row of each attack "
        f"is of a model that was not. Seeds {', '.join(map(str, sizes.data_free_seeds))}; copies are measured on "
        f"{len(context.clean):,} images. Paper: CIFAR-10, ResNet-34, copies of ResNet-18, 20 million queries "
        "(8 million of labels).",
        tables=[
            _copies(context, thefts, PROBABILITIES),
            _copies(context, thefts, LABEL),
            _utility(context, guarded),
            _adaptive(context, thefts),
            _labels(context, thefts),
        ],
        pictures=[_picture(context, thefts)],
        findings=[
            Finding(
                "copy-meco-dfme", relative,
                f"{seeds_in_words([100 * theft.accuracy for theft in meco])} under MeCo, "
                f"{seeds_in_words([100 * theft.accuracy for theft in undefended])} undefended",
            )
        ],
    )  # fmt: skip
