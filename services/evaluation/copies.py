"""What a thief's copy is worth under the whole system, and whether it gives him away: AMAO, sections 5.4 to 5.6.

Tables 8, 9, 11 and 13 and figure 9 (Jiang et al., A comprehensive defense framework against model extraction attacks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from torch import nn

from services.decision.policy_file import DEFAULT_POLICY, load_policy
from services.evaluation import amao
from services.evaluation.attackers import Build, Jacobian, Knockoff, Seeded, seeds_of
from services.evaluation.context import Context
from services.evaluation.defended import DefendedVictim
from services.evaluation.drawing import ATTACKS, NEUTRAL, drawn, mean_and_spread, seeds_in_words
from services.evaluation.figures import Finding
from services.evaluation.recall import quantile
from services.evaluation.report import Cell, Picture, Study, Table
from services.evaluation.thefts import Defence, Theft, Thefts, Thief, independent, pruned
from services.evaluation.variants import plain_model, with_responses
from services.inference.response_networks import MISLEADING
from services.inference.responses.interface import AnswerMode
from services.ownership.verification import Labels, verify
from services.redteam.jacobian import Cloudleak, JbdaTr
from services.redteam.pool import KnockoffNets
from services.redteam.substitute import Substitute, VictimsOwn
from services.training.prediction import accuracy, logits_of
from shared.bundle import Bundle
from shared.population import draw_account
from shared.responses import AdaptiveMisinformationResponse, DawnResponse, ReverseSigmoidResponse

JBDA_TR, KNOCKOFF, CLOUDLEAK = JbdaTr.name, KnockoffNets.name, Cloudleak.name
NAMES = (JBDA_TR, KNOCKOFF, CLOUDLEAK)
COSTLY = CLOUDLEAK
"""It crafts for a quarter of an hour where the others take a minute or three: one seed, no baselines, no D-DAE."""
SEEDS = 100
"""Natural images of JBDA-TR and Cloudleak (AMAO, section 5.1.2)."""
RADIUS = 0.1
OWN_IMAGES = 2_000
"""Labelled images of a thief who mends answers."""
LABEL, PROBABILITIES = AnswerMode.LABEL, AnswerMode.PROBABILITIES
SCENARIOS: Mapping[AnswerMode, str] = MappingProxyType({LABEL: "labels", PROBABILITIES: "probabilities"})

UNDEFENDED = Defence("none")
SYSTEM = Defence("Portcullis", policy=DEFAULT_POLICY)
SHARE = 1 / 16
"""Of answers that are spoiled (AMAO, section 5.4.1)."""
DAWN = Defence("DAWN", response=DawnResponse(share=SHARE))
DECEPTIVE = Defence("deceptive perturbation", response=ReverseSigmoidResponse())
MISINFORMATION = Defence("adaptive misinformation", response=AdaptiveMisinformationResponse())
BASELINES: Mapping[AnswerMode, tuple[Defence, ...]] = MappingProxyType(
    {LABEL: (DAWN,), PROBABILITIES: (DECEPTIVE, MISINFORMATION)}
)

PRUNED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Shares of a copy's weights that are taken away (figure 9)."""
REFERENCES = 10
"""Innocent models beside a suspect."""
POPULATION_SEED = 9_000


# ---- the paper's numbers ----


@dataclass(frozen=True, slots=True)
class Paper:
    """What AMAO says of one data set, in %; for each attack (in the order of `NAMES`) and scenario.

    Attributes:
        copies: accuracy of the copy without a defence, under the best baseline, under AMAO (table 8).
        marked: watermark accuracy of a copy from marked answers, and from others (table 11).
        mended: accuracy with D-DAE under the best baseline, and under AMAO (table 13).
        utility: accuracy of the model without a defence, and under AMAO (table 9).
    """

    copies: Mapping[tuple[str, AnswerMode], tuple[float, float, float]]
    marked: Mapping[tuple[str, AnswerMode], tuple[float, float]]
    mended: Mapping[tuple[str, AnswerMode], tuple[float, float]]
    utility: tuple[float, float]


F_MNIST = Paper(
    copies={
        (JBDA_TR, LABEL): (79.33, 74.21, 65.21), (JBDA_TR, PROBABILITIES): (81.44, 75.48, 61.59),
        (KNOCKOFF, LABEL): (40.38, 34.95, 32.46), (KNOCKOFF, PROBABILITIES): (42.10, 37.81, 34.24),
        (CLOUDLEAK, LABEL): (76.07, 67.82, 63.64), (CLOUDLEAK, PROBABILITIES): (78.26, 71.33, 64.94),
    },
    marked={
        (JBDA_TR, LABEL): (96.75, 0.01), (JBDA_TR, PROBABILITIES): (95.62, 0.00),
        (KNOCKOFF, LABEL): (97.33, 0.08), (KNOCKOFF, PROBABILITIES): (97.65, 0.04),
        (CLOUDLEAK, LABEL): (98.47, 0.09), (CLOUDLEAK, PROBABILITIES): (94.23, 0.02),
    },
    mended={
        (JBDA_TR, LABEL): (77.89, 68.33), (JBDA_TR, PROBABILITIES): (78.20, 64.01),
        (KNOCKOFF, LABEL): (38.09, 35.23), (KNOCKOFF, PROBABILITIES): (41.20, 38.58),
        (CLOUDLEAK, LABEL): (71.54, 67.30), (CLOUDLEAK, PROBABILITIES): (74.41, 68.54),
    },
    utility=(92.11, 89.24),
)  # fmt: skip
MNIST = Paper(
    copies={
        (JBDA_TR, LABEL): (91.23, 87.30, 67.21), (JBDA_TR, PROBABILITIES): (95.58, 91.80, 81.30),
        (KNOCKOFF, LABEL): (89.57, 70.44, 68.03), (KNOCKOFF, PROBABILITIES): (91.72, 80.56, 80.11),
        (CLOUDLEAK, LABEL): (83.72, 73.14, 67.28), (CLOUDLEAK, PROBABILITIES): (86.36, 75.93, 72.88),
    },
    marked={
        (JBDA_TR, LABEL): (89.71, 0.31), (JBDA_TR, PROBABILITIES): (88.30, 0.23),
        (KNOCKOFF, LABEL): (91.04, 0.42), (KNOCKOFF, PROBABILITIES): (90.26, 0.37),
        (CLOUDLEAK, LABEL): (99.97, 0.51), (CLOUDLEAK, PROBABILITIES): (96.82, 0.40),
    },
    mended={
        (JBDA_TR, LABEL): (89.57, 69.32), (JBDA_TR, PROBABILITIES): (93.48, 83.55),
        (KNOCKOFF, LABEL): (75.89, 73.24), (KNOCKOFF, PROBABILITIES): (85.66, 84.97),
        (CLOUDLEAK, LABEL): (78.98, 75.06), (CLOUDLEAK, PROBABILITIES): (78.50, 75.25),
    },
    utility=(99.21, 99.13),
)  # fmt: skip
FINDINGS: Mapping[str, str] = MappingProxyType(
    {JBDA_TR: "copy-jbda-tr", KNOCKOFF: "copy-knockoff", CLOUDLEAK: "copy-cloudleak"}
)


def is_clothes(bundle: Bundle) -> bool:
    """Whether the bundle's data is Fashion-MNIST, of which the figures to reach are."""
    return amao.paper_of(bundle) is amao.F_MNIST


# ---- who steals ----


def attacks(context: Context, seed: int) -> dict[str, Build]:
    """The attacks of `NAMES`, as the thief of that seed builds them."""
    natural = seeds_of(context.natural, min(SEEDS, len(context.natural)), seed).images
    foreign = seeds_of(context.foreign, min(context.sizes.theft_budget, len(context.foreign)), seed).images
    # KnockoffNets asks the same whatever its copy has learnt, so the copy is trained once, when all is asked.
    return {
        JBDA_TR: Jacobian(JbdaTr, natural, RADIUS),
        KNOCKOFF: Knockoff(foreign, context.sizes.theft_budget),
        CLOUDLEAK: Seeded(Cloudleak, natural),
    }


def copied_architecture(context: Context) -> str:
    """Of the copies."""
    return context.sizes.theft_architecture or context.bundle.manifest.model.architecture


def _thieves(context: Context, mode: AnswerMode) -> list[Thief]:
    sizes = context.sizes
    architecture = VictimsOwn(copied_architecture(context))
    first = sizes.theft_seeds[0]
    own = seeds_of(context.natural, min(OWN_IMAGES, len(context.natural)), first)

    def of(attack: str, seed: int) -> Iterator[Thief]:
        plain = partial(Thief, attack, mode=mode, budget=sizes.theft_budget, seed=seed,
                        build=attacks(context, seed)[attack], architecture=architecture)  # fmt: skip
        yield from (plain(UNDEFENDED), plain(SYSTEM))
        if seed == first and attack != COSTLY:
            for baseline in BASELINES[mode]:
                yield plain(baseline)
            for defence in (SYSTEM, *BASELINES[mode]) if sizes.mending else ():
                yield plain(defence, own=own)

    return [thief for attack in NAMES for seed in _seeds(context, mode, attack) for thief in of(attack, seed)]


def _seeds(context: Context, mode: AnswerMode, attack: str) -> Sequence[int]:
    """Probabilities are told to the first seed's thieves alone: the figures are of labels."""
    several = mode is LABEL and attack != COSTLY
    return context.sizes.theft_seeds if several else context.sizes.theft_seeds[:1]


def _steal(context: Context, mode: AnswerMode) -> Thefts:
    thieves = _thieves(context, mode)
    misled = [thief for thief in thieves if thief.defence is MISINFORMATION]
    others = [thief for thief in thieves if thief.defence is not MISINFORMATION]
    found = context.steal(others, "thieves")
    if misled:
        found += context.steal(misled, "thieves, adaptive misinformation", with_responses(context, MISLEADING))
    return Thefts(found)


# ---- what innocent models say ----


def _innocents(context: Context) -> list[Substitute]:
    """Models of the victim's task that learnt from images with their own labels."""
    data, each = context.splits.train, context.sizes.innocent_images
    classes = len(context.bundle.manifest.model.classes)
    task = context.progress.add_task("innocent models", total=context.sizes.innocents)
    models = []
    for number in range(context.sizes.innocents):
        random = np.random.default_rng([POPULATION_SEED, number])
        rows = random.choice(len(data), min(each, len(data)), replace=False)
        model = Substitute(classes, random)
        model.train(data.images[rows], np.eye(classes, dtype=np.float32)[data.labels[rows]], epochs=10)
        models.append(model)
        context.progress.advance(task)
    return models


def _said(network: nn.Module, inputs: NDArray[np.uint8]) -> Labels:
    return logits_of(network, inputs).argmax(axis=1).astype(np.int64) if len(inputs) else np.empty(0, dtype=np.int64)


def _inputs(theft: Theft) -> NDArray[np.uint8]:
    shape = (0, *theft.marks[0].input.shape) if theft.marks else (0,)
    return np.array([mark.input for mark in theft.marks], dtype=np.uint8).reshape(-1, *shape[1:])


def matched(network: nn.Module, theft: Theft) -> float | None:
    """Share of a theft's marks on which a model says the told label; None where there is no mark."""
    if not theft.marks:
        return None
    told = np.array([mark.answer.argmax() for mark in theft.marks])
    return float((_said(network, _inputs(theft)) == told).mean())


# ---- tables ----


def _copies(thefts: Thefts, paper: Paper, mode: AnswerMode) -> Table:
    rows: list[list[Cell]] = []
    for attack in NAMES:
        without, baseline, amao = paper.copies[attack, mode]
        system = thefts.of(attack, mode, SYSTEM)
        rows.append([
            attack,
            _accuracies(thefts.of(attack, mode, UNDEFENDED)), without,
            _best([thefts.of(attack, mode, defence) for defence in BASELINES[mode]]), baseline,
            _accuracies(system), amao,
            quantile([theft.spoiled_from for theft in system], 0.5),
            quantile([theft.banned_at for theft in system], 0.5),
            100 * float(np.mean([theft.perturbed / theft.queries for theft in system])),
        ])  # fmt: skip
    return Table(
        "Table 8: accuracy of the copy, %",
        ["attack", "undefended", "(paper)", "best baseline", "(paper)", "Portcullis", "(AMAO)",
         "spoiled from query", "banned at query", "answers spoiled, %"],
        rows,
        "Mean and standard deviation over seeds; of baselines, one seed, and none against Cloudleak. Baselines "
        "spoil one answer in sixteen (DAWN, for labels) or bend all of them (deceptive perturbation, adaptive "
        "misinformation); the one that leaves the thief least is shown.",
    )  # fmt: skip


def _accuracies(thefts: Sequence[Theft]) -> str:
    return mean_and_spread([100 * theft.accuracy for theft in thefts])


def _best(groups: Sequence[Sequence[Theft]]) -> str:
    """Of the defence that leaves the thief least; nothing where none was tried."""
    tried = [thefts for thefts in groups if thefts]
    if not tried:
        return ""
    best = min(tried, key=lambda thefts: float(np.mean([theft.accuracy for theft in thefts])))
    return f"{_accuracies(best)} ({best[0].thief.defence.name})"


def _mended(thefts: Thefts, paper: Paper, mode: AnswerMode) -> Table:
    rows: list[list[Cell]] = []
    for attack in NAMES:
        if attack == COSTLY:
            continue
        baseline, amao = paper.mended[attack, mode]
        rows.append([
            attack,
            _best([thefts.of(attack, mode, defence, mended=True) for defence in BASELINES[mode]]), baseline,
            _accuracies(thefts.of(attack, mode, SYSTEM)[:1]),
            _accuracies(thefts.of(attack, mode, SYSTEM, mended=True)), amao,
        ])  # fmt: skip
    return Table(
        "Table 13: accuracy of the copy of a thief who mends answers (D-DAE), %",
        ["attack", "best baseline", "(paper)", "Portcullis without D-DAE", "Portcullis", "(AMAO)"],
        rows,
        "Of the first seed.",
    )


def _marked(thefts: Thefts, paper: Paper, mode: AnswerMode) -> tuple[Table, list[float], list[float]]:
    """The table; of each attack with marks, the mean share that copies of marked and of true answers say."""
    rows: list[list[Cell]] = []
    stolen: list[float] = []
    innocent: list[float] = []
    for attack in NAMES:
        own, other = [], []
        undefended = {theft.thief.seed: theft for theft in thefts.of(attack, mode, UNDEFENDED)}
        marks = []
        for theft in thefts.of(attack, mode, SYSTEM):
            share = matched(theft.copy, theft)
            without = matched(undefended[theft.thief.seed].copy, theft)
            if share is not None and without is not None:
                own.append(100 * share)
                other.append(100 * without)
                marks.append(len(theft.marks))
        paper_own, paper_other = paper.marked[attack, mode]
        shown = (mean_and_spread(own), mean_and_spread(other)) if own else ("no marks", "")
        count = round(float(np.mean(marks))) if marks else 0
        rows.append([attack, count, shown[0], paper_own, shown[1], paper_other])
        if own:
            stolen.append(float(np.mean(own)))
            innocent.append(float(np.mean(other)))
    table = Table(
        "Table 11: marks on which a copy says what was told, %",
        ["attack", "marks", "copy of marked answers", "(paper)", "copy of true answers", "(paper)"],
        rows,
        "The second copy is the same thief's, had nobody spoiled his answers.",
    )
    return table, stolen, innocent


def _claims(context: Context, thefts: Thefts, mode: AnswerMode) -> tuple[Table, float, float]:
    """Every copy and every innocent model as the suspect; the worst and the best probability."""
    innocents = _innocents(context)
    classes = len(context.bundle.manifest.model.classes)
    rows: list[list[Cell]] = []
    worst, best = 0.0, 1.0
    for attack in NAMES:
        p_stolen, p_innocent, ratios, claims = [], [], [], 0
        for theft in thefts.of(attack, mode, SYSTEM):
            marks, answers = independent(theft)
            if not answers:
                continue
            inputs = np.array([answer.input for answer in answers])
            said = [_said(model.network, inputs) for model in innocents]
            beside = [[labels] for labels in said[:REFERENCES]]
            (found,) = verify([marks], [_said(theft.copy, inputs)], beside, classes).findings
            p_stolen.append(found.p)
            claims += found.claim
            for suspect, labels in enumerate(said):
                others = range(suspect + 1, suspect + 1 + min(REFERENCES, len(said) - 1))
                beside = [[said[other % len(said)]] for other in others]
                (of_it,) = verify([marks], [labels], beside, classes).findings
                p_innocent.append(of_it.p)
                ratios.append(of_it.ratio)
        if not p_stolen:
            rows.append([attack, "no marks", "", "", "", ""])
            continue
        rows.append([
            attack, f"{max(p_stolen):.1e}", f"{claims} of {len(p_stolen)}", f"{min(p_innocent):.1e}",
            f"{sum(p <= 1e-3 for p in p_innocent)} of {len(p_innocent)}", 100 * max(ratios),
        ])  # fmt: skip
        worst, best = max(worst, *p_stolen), min(best, *p_innocent)
    table = Table(
        "Chance of so many matches",
        ["attack", "worst stolen model", "claims", "best innocent model", "innocent models at 0.001",
         "most matches of an innocent one, %"],
        rows,
        f"{len(innocents)} innocent models, each the suspect once with {REFERENCES} of the others beside it; marks "
        "that count are of different images. The larger of two probabilities (docs/ownership.md).",
    )  # fmt: skip
    return table, worst, best


def _utility(context: Context, paper: Paper) -> tuple[Table, float, str]:
    """Accuracy without a defence and with it, and the points lost."""
    accounts, queries = context.sizes.utility
    bundle = context.bundle
    victim = DefendedVictim(bundle, load_policy(DEFAULT_POLICY, bundle.manifest.evidence.log_threshold), LABEL)
    asked = changed = 0
    task = context.progress.add_task("honest accounts under the system", total=accounts)
    for number in range(accounts):
        account, name = draw_account(context.splits.test, number, queries, POPULATION_SEED), f"honest-{number}"
        for request in account.requests():
            victim.ask(name, request)
        asked += victim.served(name).queries
        changed += victim.served(name).perturbed
        context.progress.advance(task)
    plain, served = accuracy(plain_model(context), context.splits.test), bundle.manifest.model.test_accuracy
    spoiled = changed / asked
    lost = 100 * (plain - served + spoiled)
    without, amao = paper.utility
    table = Table(
        "Table 9: accuracy of the model, %",
        ["model", "accuracy, %", "(paper)"],
        [
            ["trained plainly, undefended", 100 * plain, without],
            ["trained to doubt what nobody photographed, undefended", 100 * served, None],
            ["the same under Portcullis, as honest accounts get it", 100 * (served - spoiled), amao],
        ],
        f"On clean test images. Of {asked:,} answers to {accounts} honest accounts of every kind {changed:,} were "
        "spoiled; each counts as wrong.",
    )
    return table, lost, f"{changed} of {asked:,} honest answers spoiled"


def _pruning(context: Context, thefts: Thefts, mode: AnswerMode) -> Picture:
    file = f"{_name(context, mode)}-pruning.png"
    with drawn(context.output / file, columns=len(NAMES), sharey=True) as axes:
        for axis, attack in zip(axes, NAMES, strict=True):
            theft = thefts.of(attack, mode, SYSTEM)[0]
            smaller = [pruned(theft.copy, share) for share in PRUNED]
            shares = [100 * share for share in PRUNED]
            right = [100 * accuracy(network, context.clean) for network in smaller]
            axis.plot(shares, right, color=NEUTRAL, marker="o", label="accuracy")
            if theft.marks:
                verified = [100 * (matched(network, theft) or 0.0) for network in smaller]
                axis.plot(shares, verified, color=ATTACKS[JBDA_TR], marker="s", label="marks that match")
            axis.set(title=attack, xlabel="weights taken away, %", ylabel="%", ylim=(0, 103))
        axes[0].legend()
    return Picture(file, "Figure 9: a copy, made under the system, that is pruned to get rid of the marks.")


def _name(context: Context, mode: AnswerMode) -> str:
    told = "" if mode is LABEL else f"-{SCENARIOS[mode]}"
    return f"copies{told}" if is_clothes(context.bundle) else f"copies{told}-{context.bundle.manifest.model.name}"


def study(context: Context, mode: AnswerMode = LABEL) -> Study:
    """Thefts under the system, without it, and under what the papers compare with.

    Args:
        context: of the evaluation.
        mode: what thieves are told.
    """
    sizes, clothes = context.sizes, is_clothes(context.bundle)
    paper = F_MNIST if clothes else MNIST
    thefts = _steal(context, mode)
    marked, stolen, innocent = _marked(thefts, paper, mode)
    claims, worst, best = _claims(context, thefts, mode)
    tables = [_copies(thefts, paper, mode), marked, claims]
    findings: list[Finding] = []
    if mode is LABEL:
        utility, lost, spoiled = _utility(context, paper)
        tables.insert(1, utility)
        if clothes:
            findings = [_copy_finding(attack, thefts.of(attack, LABEL, SYSTEM)) for attack in NAMES]
            findings += [
                Finding("utility-loss", lost, spoiled),
                Finding("watermark-stolen", min(stolen, default=0.0), "worst of three attacks, means over seeds"),
                Finding("watermark-innocent", max(innocent, default=100.0), "worst of three attacks, means over seeds"),
                Finding("claim-p-stolen", worst, f"worst of {len(thefts.under(SYSTEM))} stolen models"),
                Finding("claim-p-innocent", best, f"best of {sizes.innocents} innocent models"),
            ]
    return Study(
        name=_name(context, mode),
        title=f"What a copy of {SCENARIOS[mode]} is worth, and whether it gives the thief away",
        text=f"Thefts of the bundle's model, each by one account of at most {sizes.theft_budget:,} queries that is "
        f"told {SCENARIOS[mode]}, under the default policy in one process, verdicts 16 queries late. Copies are of the "
        f"architecture {copied_architecture(context)} (the victim's is {context.bundle.manifest.model.architecture}), "
        f"trained for 20 epochs in each round, JBDA-TR (radius {RADIUS}) and Cloudleak from {SEEDS} natural images "
        "that the victim has not learnt from, KnockoffNets on "
        f"{min(sizes.theft_budget, len(context.foreign)):,} foreign images. A banned thief keeps the copy that he has. "
        f"Of {', '.join(f'{attack} {len(_seeds(context, mode, attack))}' for attack in NAMES)} random seeds; copies "
        f"are measured on {len(context.clean):,} images.",
        tables=[*tables, *([_mended(thefts, paper, mode)] if sizes.mending else ())],
        pictures=[_pruning(context, thefts, mode)],
        findings=findings,
    )


def _copy_finding(attack: str, thefts: Sequence[Theft]) -> Finding:
    values = [100 * theft.accuracy for theft in thefts]
    return Finding(FINDINGS[attack], float(np.mean(values)), seeds_in_words(values))
