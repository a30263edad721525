"""Who is caught although his queries are blinded: nine transformations, gentle and harsh, of attacks of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from services.evaluation.attackers import Build, DataFree, Knockoff, Seeded, middle_of, seeds_of
from services.evaluation.context import Context
from services.evaluation.papers_attackers import Adaptive, Blind
from services.evaluation.recall import (
    CAUGHT_COLUMNS,
    RECALL_QUERIES,
    UNTIL_NOTE,
    attack_queries,
    finding,
    grouped,
    last_copies,
    recall_row,
)
from services.evaluation.report import Study, Table
from services.evaluation.streams import Attacker
from services.redteam.blinding import AUTO_ENCODER, BLINDINGS, Strength
from services.redteam.dfme import Dfme
from services.redteam.jacobian import JacobianAttack, JbaPgd, JbdaTr, JbTop3
from services.redteam.pool import KnockoffNets
from services.redteam.substitute import shape_of
from shared.datasets import Dataset

JACOBIAN: Sequence[type[JacobianAttack]] = (JbdaTr, JbaPgd, JbTop3)


def blinded_attackers(context: Context) -> list[Attacker]:
    """Each attack behind each blinding that it can use, at the strength that is the attack's own paper's."""
    return [attacker for seed in context.sizes.seeds for attacker in _of_seed(context, seed)]


def _of_seed(context: Context, seed: int) -> Iterator[Attacker]:
    sizes, classes = context.sizes, len(context.bundle.manifest.model.classes)
    count = middle_of(sizes.seed_counts)
    natural, foreign = seeds_of(context.natural, count, seed), seeds_of(context.foreign, sizes.crafted, seed)
    everyone: list[tuple[str, int, Build, Dataset]] = [
        *((kind.name, count, Seeded(kind, natural.images), natural) for kind in JACOBIAN),
        (KnockoffNets.name, 0, Knockoff(foreign.images), foreign),
        (Dfme.name, 0, DataFree(shape_of(natural.images)), natural),
    ]
    strengths: tuple[Strength, ...] = get_args(Strength)
    for attack, seeds, build, own in everyone:
        for blinding in BLINDINGS:
            # The auto-encoder learns from images of the attacker's own, and a data-free attacker has none.
            if attack == Dfme.name and blinding == AUTO_ENCODER:
                continue
            for strength in strengths:
                disguise = Adaptive(build, Blind(blinding, strength, own, classes))
                yield Attacker(attack, strength, seeds, seeds + sizes.crafted, seed, disguise, blinding)


def study(context: Context) -> Study:
    """Recall of the decision on blinded attacks."""
    streams = context.streams(blinded_attackers(context), "blinded attackers: recording")
    traces = context.traces([stream.recording for stream in streams], "blinded attackers: detectors")
    untils = attack_queries(streams, context.judge.first_alarms(traces))
    by_blinding = grouped(streams, untils, lambda s: (s.attacker.scheme, s.attacker.strength))
    by_attack = grouped(streams, untils, lambda s: (s.attacker.attack, s.attacker.strength))
    copies = {
        key: last_copies([s for s in streams if (s.attacker.scheme, s.attacker.strength) == key]) for key in by_blinding
    }
    order = sorted(by_blinding, key=lambda key: (BLINDINGS.index(str(key[0])), key[1] == "high"))
    return Study(
        name="blinded",
        title="Who is caught although his queries are blinded",
        text=f"{len(streams)} attackers' accounts: JBDA-TR, JBA-PGD, JB-top3, KnockoffNets on digits and DFME, each "
        "behind the nine transformations of TR 2021-126, section VII-A, at the report's default strength (low) and at "
        f"the high one of its code, for {len(context.sizes.seeds)} random seeds, each with {context.sizes.crafted} "
        "queries after its natural seeds. The attacker sends t(x) and books the answer to x. DFME has no images to "
        "train the auto-encoder on.",
        tables=[
            Table(
                "By transformation",
                ["transformation", "strength", *CAUGHT_COLUMNS, "copy's accuracy undefended, %"],
                [[*recall_row(key, by_blinding[key], RECALL_QUERIES), copies[key]] for key in order],
                UNTIL_NOTE,
            ),
            Table(
                "By attack",
                ["attack", "strength of the blinding", *CAUGHT_COLUMNS],
                [recall_row(key, group, RECALL_QUERIES) for key, group in sorted(by_attack.items())],
            ),
        ],
        findings=[finding("decision-blinded", untils, RECALL_QUERIES)],
    )
