"""Similar pairs and likelihood as TR 2021-126 judges them: accounts that an attack costs, and honest false alarms.

Zhang, Chen and Wagner, Towards characterizing model extraction queries and how to detect them (UC Berkeley, TR
2021-126), section VIII: tables VII, IX to XI and XIII to XV, figures 13 and 14.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from services.evaluation.attackers import DATA_FREE_BATCH, seeds_of
from services.evaluation.context import Context
from services.evaluation.drawing import ATTACKS, HONEST, NEUTRAL, drawn, mean_and_spread, seeds_in_words
from services.evaluation.figures import Finding
from services.evaluation.papers_attackers import (
    ADAPTIVE,
    BLINDED,
    FILTERED,
    ON_OTHERS,
    ON_SEEDS,
    OTHER_IMAGES,
    PLAIN,
    SEEDED,
    report_attackers,
)
from services.evaluation.replaying import (
    ALL,
    PER,
    Burned,
    Rule,
    likelihood_of,
    replay,
    tuned_delta,
    tuned_likelihood,
)
from services.evaluation.report import Cell, Picture, Study, Table
from services.evaluation.streams import Stream
from services.likelihood.detector import LikelihoodDetector
from services.redteam.blinding import AUTO_ENCODER
from services.redteam.dfme import Dfme
from services.redteam.jacobian import JbaBs, JbaCw, JbaPgd, JbTop3
from services.similarity.detector import SimilarityDetector
from services.training.tracing import HonestPlan, Recording, honest_plans
from shared.bundle import Bundle
from shared.datasets import Dataset
from shared.population import KINDS

JB_TOP3, JBA_PGD, DFME = JbTop3.name, JbaPgd.name, Dfme.name
RATE = 1e-4
"""Alarms a query on honest natural images (VIII-A 1)."""
HONEST_SEED = 9_000
"""Of the honest accounts; the first of those that the guarantee is judged by, so that their traces serve twice."""
FOREIGN_KIND = "natural images of another kind"
PAIRS, LIKELIHOOD, EVIDENCE = "similar pairs", "likelihood", "evidence of all detectors"


# ---- the report's numbers, all on CIFAR-10 ----

PAPER_PLAIN: Mapping[str, tuple[float, float]] = MappingProxyType(
    {JB_TOP3: (59, 87), JBA_PGD: (21, 87), JbaCw.name: (126, 85), JbaBs.name: (765, 85)}
)
"""Accounts and extraction accuracy, % (table VII)."""
_DFME_QUERIES = 20_000_000
PAPER_ADAPTIVE: Mapping[str, Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        JB_TOP3: {
            PLAIN: (59, 87), ON_OTHERS: (55, 82), ON_SEEDS: (11, 86),
            "crop": (50, 85), "brightness": (221, 77), "scale": (28, 86), "rotate": (59, 86), "contrast": (266, 79),
            "uniform": (245, 79), "gaussian": (179, 77), "translate": (19, 85), AUTO_ENCODER: (6, 81),
        },
        JBA_PGD: {
            PLAIN: (21, 87), ON_OTHERS: (21, 87), ON_SEEDS: (8, 87),
            "crop": (26, 86), "brightness": (88, 83), "scale": (16, 86), "rotate": (18, 87), "contrast": (226, 82),
            "uniform": (91, 82), "gaussian": (84, 82), "translate": (13, 86), AUTO_ENCODER: (2, 82),
        },
        DFME: {
            name: (accounts * PER / _DFME_QUERIES, accuracy)
            for name, accounts, accuracy in (
                (PLAIN, 56981, 89), (ON_OTHERS, 126674, 87), ("uniform", 57394, 87), ("gaussian", 57222, 88),
                ("scale", 56981, 88), ("brightness", 56994, 89), ("rotate", 56981, 89), ("contrast", 112231, 70),
                ("crop", 56981, 88), ("translate", 56981, 85),
            )
        },
    }
)  # fmt: skip
"""Tables X, XI and XIII by scheme, the last one for as many queries as the others."""
PAPER_TABLES: Mapping[str, str] = MappingProxyType({JB_TOP3: "X", JBA_PGD: "XI", DFME: "XIII"})
PAPER_LIKELIHOOD_ACCOUNTS = 122
"""JB-top3 from CIFAR-10 seeds (table XIV)."""
PAPER_FALSE_ALARMS = ("0.007 to 0.060", "0 to 1.46")
"""%, similarity over nine data sets (table IX), likelihood (table XV)."""
FINDINGS: Mapping[str, str] = MappingProxyType(
    {JB_TOP3: "accounts-jb-top3", JBA_PGD: "accounts-jba-pgd", DFME: "accounts-dfme"}
)


def paper_of(attack: str, scheme: str) -> tuple[float | None, float | None]:
    """The report's accounts for 50,000 queries and extraction accuracy, %."""
    if attack in ADAPTIVE:
        return PAPER_ADAPTIVE[attack].get(scheme.removeprefix(f"{BLINDED}, "), (None, None))
    return PAPER_PLAIN.get(attack, (None, None)) if scheme == PLAIN else (None, None)


# ---- the study ----


@dataclass(frozen=True, slots=True)
class Encoder:
    """One similarity encoder under its own tuned delta.

    Attributes:
        positives: what its positives are, in words.
        bundle: that holds it.
        delta: tuned.
        burned: of every stream, in their order.
    """

    positives: str
    bundle: Bundle
    delta: float
    burned: Sequence[Burned]

    @property
    def rule(self) -> Rule:
        """Similar pairs."""
        return _similar(self.bundle, self.delta)


def _similar(bundle: Bundle, delta: float) -> Rule:
    return Rule(bundle.folder, SimilarityDetector.name, {"delta": delta})


class Accounts:
    """What streams cost, by attack and scheme."""

    def __init__(self, streams: Sequence[Stream], burned: Sequence[Burned]) -> None:
        """
        Args:
            streams: over all seeds of randomness.
            burned: of each.
        """
        self._pairs = list(zip(streams, burned, strict=True))

    def of(self, attack: str, scheme: str) -> list[float]:
        """Accounts for 50,000 queries, for each seed of randomness."""
        return [
            found.accounts_for()
            for stream, found in self._pairs
            if (stream.attacker.attack, stream.attacker.scheme) == (attack, scheme)
        ]

    def document(self) -> list[dict[str, str | int]]:
        """Every stream's alarms."""
        return [
            {"attack": s.attacker.attack, "scheme": s.attacker.scheme, "seed": s.attacker.seed,
             "queries": found.queries, "alarms": len(found.alarms)}
            for s, found in self._pairs
        ]  # fmt: skip

    def least_adaptive(self) -> tuple[str, str]:
        """The attack and scheme, blinding or filtering, that costs the fewest accounts."""
        names = {(s.attacker.attack, s.attacker.scheme) for s, _ in self._pairs if s.attacker.scheme != PLAIN}
        return min(sorted(names), key=lambda name: float(np.mean(self.of(*name))))


def study(context: Context, others: Mapping[str, Bundle] = MappingProxyType({})) -> Study:
    """Accounts that every attack and disguise costs, and what honest accounts suffer.

    Args:
        context: of the evaluation.
        others: further bundles, of the same victim, whose similarity encoders learnt from other positives; by what
            these are, in words. The bundle's own encoder is always there.
    """
    sizes, splits, bundle = context.sizes, context.splits, context.bundle
    classes = len(bundle.manifest.model.classes)
    attackers = report_attackers(context.natural, splits.train, sizes.seeds, sizes.counted_crafted, classes)
    streams = context.streams(attackers, "TR 2021-126, attackers: recording")
    natural = _natural(context)
    encoders = [
        _encoder(context, positives, of, natural, streams)
        for positives, of in ({"the bundle's own": bundle} | dict(others)).items()
    ]
    alpha, beta = tuned_likelihood(bundle, natural, RATE)
    likelihood = Rule(bundle.folder, LikelihoodDetector.name, {"benign_mean": alpha, "beta": beta})
    together = Rule(bundle.folder, ALL, {})
    recordings = [stream.recording for stream in streams]
    by_likelihood = Accounts(streams, _replay(context, recordings, likelihood, "likelihood"))
    by_all = Accounts(streams, _replay(context, recordings, together, "all detectors"))
    own = encoders[0]
    honest = _honest_alarms(context, own, likelihood, together)
    worst = max((name for name in honest if name != FOREIGN_KIND), key=lambda name: honest[name][EVIDENCE].rate)
    alarmed = honest[worst][EVIDENCE]
    by_pairs = Accounts(streams, own.burned)
    least = by_all.least_adaptive()
    return Study(
        name="berkeley",
        title="Similar pairs and likelihood against TR 2021-126's attacks",
        text=f"TR 2021-126, section VIII, on {bundle.manifest.model.name} where the report has CIFAR-10. Accounts are "
        "counted by replaying a stream through the detector that the service runs; whenever its rule condemns, the "
        f"stream goes on from a new account. Each stream is of {len(streams[0]):,} queries, a tenth of them natural "
        f"seeds, as in the report; accounts are extrapolated to {PER:,} queries by the rate of alarms. Thresholds are "
        f"found by bisection on {len(natural.inputs):,} honest natural images that no network has learnt from, so that "
        f"they raise at most {100 * RATE:.2f}% alarms a query: delta "
        + ", ".join(f"{one.delta:.4g} ({one.positives} positives)" for one in encoders)
        + f"; alpha {alpha:.4g} and beta {beta:.3g} of the likelihood. The victim tells labels only, also to DFME, "
        f"which sends batches of {DATA_FREE_BATCH} instead of 256 images. The figures are of the evidence of all "
        "detectors, on which the decision rests; its alarms on honest accounts are in the last table. Random seeds: "
        f"{', '.join(map(str, sizes.seeds))}; numbers are means ± standard deviations over them.",
        tables=[
            *(_plain_table(one, streams, by_likelihood, by_all) for one in encoders),
            *(_adaptive_table(attack, one, streams, by_all) for one in encoders for attack in ADAPTIVE),
            _false_alarms_table(honest),
        ],
        pictures=[
            _accounts_picture(context, by_pairs, by_all),
            *_likelihood_pictures(context, streams, likelihood_of(bundle, alpha, beta)),
        ],
        findings=[
            *(_finding(name, attack, PLAIN, by_all, by_pairs) for attack, name in FINDINGS.items()),
            _finding(
                "accounts-adaptive", *least, by_all, by_pairs,
                f"{', '.join(least)}, the copy's accuracy {_copy(streams, *least, 2)}%; ",
            ),
            Finding(
                "false-alarms",
                100 * alarmed.rate,
                f"{EVIDENCE}, kind {worst}: {len(alarmed.alarms)} alarms in {alarmed.queries:,} queries",
            ),
        ],
        data={
            "deltas": {one.positives: one.delta for one in encoders},
            "alarms": {
                **{one.positives: Accounts(streams, one.burned).document() for one in encoders},
                LIKELIHOOD: by_likelihood.document(),
                EVIDENCE: by_all.document(),
            },
        },
    )  # fmt: skip


def _finding(name: str, attack: str, scheme: str, by_all: Accounts, by_pairs: Accounts, more: str = "") -> Finding:
    found, pairs = by_all.of(attack, scheme), by_pairs.of(attack, scheme)
    spread = f"{more}{EVIDENCE}, {seeds_in_words(found, 0)}; {PAIRS} alone {mean_and_spread(pairs, 0)}"
    return Finding(name, float(np.mean(found)), spread)


def _natural(context: Context) -> Recording:
    """Honest natural images, each once, that no network has learnt from and nothing else here is drawn from."""
    sizes, splits = context.sizes, context.splits
    images = np.concatenate([splits.calibration.images, splits.holdout.images])
    order = np.random.default_rng(HONEST_SEED).permutation(len(images))[: 2 * sizes.honest_queries]
    return Recording(images[order], context.logits(images[order]))


def _replay(
    context: Context, accounts: Sequence[Recording] | Sequence[HonestPlan], rule: Rule, what: str
) -> list[Burned]:
    cache, processes = context.cache / "replays", context.sizes.processes
    return replay(accounts, rule, context.bundle, cache, context.progress, f"replaying: {what}", processes)


def _encoder(
    context: Context, positives: str, bundle: Bundle, natural: Recording, streams: Sequence[Stream]
) -> Encoder:
    delta = tuned_delta(bundle, natural, RATE)
    recordings = [stream.recording for stream in streams]
    return Encoder(positives, bundle, delta, _replay(context, recordings, _similar(bundle, delta), positives))


Honest = Mapping[str, Mapping[str, Burned]]
"""Alarms on honest accounts, by kind, then by rule."""


def _honest_alarms(context: Context, encoder: Encoder, likelihood: Rule, together: Rule) -> Honest:
    """Of a few accounts of each kind; what whole accounts suffer, and of many, is the guarantee's study."""
    sizes = context.sizes
    accounts = min(sizes.honest_accounts, len(sizes.seeds) * len(KINDS))
    plans = honest_plans(context.splits.test, accounts, sizes.honest_queries, HONEST_SEED)
    foreign = _once(context.foreign, sizes.honest_queries)
    foreign_plan = honest_plans(foreign, 1, len(foreign), HONEST_SEED, (KINDS[0],))
    traces = context.traces(plans, "honest accounts: detectors")
    alarms = context.judge.first_alarms(traces)

    def few_pairs(row: int) -> bool:
        distances = traces[row][SimilarityDetector.name].values[:, 0]
        return int((distances < encoder.delta).sum()) < encoder.bundle.manifest.similarity.pairs

    rules: dict[str, tuple[Rule, Callable[[int], bool]]] = {
        PAIRS: (encoder.rule, few_pairs),
        LIKELIHOOD: (likelihood, lambda row: False),
        EVIDENCE: (together, lambda row: alarms[row] is None),
    }
    honest: dict[str, dict[str, Burned]] = {}
    for name, (rule, silent) in rules.items():
        # Whoever never alarms with one memory throughout has no account closed, and needs no replay.
        loud = [row for row in range(len(plans)) if not silent(row)]
        burned = _replay(context, [plans[row] for row in loud], rule, f"honest accounts, {name}")
        replayed = dict(zip(loud, burned, strict=True))
        found = [replayed.get(row, Burned(plan.queries, ())) for row, plan in enumerate(plans)]
        for kind in dict.fromkeys(plan.kind for plan in plans):
            mine = [one for plan, one in zip(plans, found, strict=True) if plan.kind == kind]
            honest.setdefault(kind.replace("_", " "), {})[name] = joined(mine)
        honest.setdefault(FOREIGN_KIND, {})[name] = _replay(context, foreign_plan, rule, f"{FOREIGN_KIND}, {name}")[0]
    return honest


def _once(data: Dataset, count: int) -> Dataset:
    return seeds_of(data, min(count, len(data)), HONEST_SEED)


def joined(parts: Sequence[Burned]) -> Burned:
    """Several streams, each from a new account, as if one followed the other."""
    starts = np.cumsum([0, *(part.queries for part in parts)]).tolist()
    alarms = [start + alarm for part, start in zip(parts, starts, strict=False) for alarm in part.alarms]
    return Burned(starts[-1], tuple(alarms))


# ---- tables ----


def _copy(streams: Sequence[Stream], attack: str, scheme: str, column: int) -> str:
    """The last copy's agreement (column 1) or accuracy (column 2), %."""
    values = [
        100 * float(stream.copies[-1, column])
        for stream in streams
        if (stream.attacker.attack, stream.attacker.scheme) == (attack, scheme) and len(stream.copies)
    ]
    return mean_and_spread(values) if values else "not measured"


def _row(name: str, attack: str, scheme: str, streams: Sequence[Stream], accounts: Sequence[Accounts]) -> list[Cell]:
    theirs, accuracy = paper_of(attack, scheme)
    own, *further = (mean_and_spread(one.of(attack, scheme), 0) for one in accounts)
    copies = (_copy(streams, attack, scheme, column) for column in (2, 1))
    return [name, own, None if theirs is None else round(theirs), *further, *copies, accuracy]


def _plain_table(encoder: Encoder, streams: Sequence[Stream], by_likelihood: Accounts, by_all: Accounts) -> Table:
    accounts = (Accounts(streams, encoder.burned), by_likelihood, by_all)
    return Table(
        f"Tables VII and XIV: accounts for {PER:,} queries, {encoder.positives} positives",
        [
            "attack", PAIRS, "report's, CIFAR-10", LIKELIHOOD, EVIDENCE,
            "copy's accuracy, %", "copy's agreement, %", "report's accuracy, CIFAR-10, %",
        ],
        [_row(name, name, PLAIN, streams, accounts) for name in (*SEEDED, DFME)],
        f"The report's likelihood asks {PAPER_LIKELIHOOD_ACCOUNTS} accounts of JB-top3 (CIFAR-10). An account costs 50 "
        f"pairs, so no rule of pairs can ask for more than {PER // 51 + 1:,}. The report's DFME, 56,981 accounts for "
        f"20 million queries, is here for {PER:,}. Copies are of the stream's own end, not of {PER:,} queries.",
    )  # fmt: skip


def _adaptive_table(attack: str, encoder: Encoder, streams: Sequence[Stream], by_all: Accounts) -> Table:
    schemes = list(dict.fromkeys(s.attacker.scheme for s in streams if s.attacker.attack == attack))
    accounts = (Accounts(streams, encoder.burned), by_all)
    return Table(
        f"Table {PAPER_TABLES[attack]}: adaptive {attack}, accounts for {PER:,} queries, {encoder.positives} positives",
        [
            "scheme", PAIRS, "report's, CIFAR-10", EVIDENCE, "copy's accuracy, %",
            "copy's agreement, %", "report's accuracy, CIFAR-10, %",
        ],
        [_row(scheme or "none", attack, scheme, streams, accounts) for scheme in schemes],
        f"{FILTERED.capitalize()} and {BLINDED} as in section VII, blinding at the report's defaults. The report's "
        f"encoder on other images learnt from CINIC-10, ours from {OTHER_IMAGES:,} of the victim's training images.",
    )  # fmt: skip


def _false_alarms_table(honest: Honest) -> Table:
    def cell(found: Burned) -> str:
        return f"{100 * found.rate:.4f} ({len(found.alarms)} in {found.queries:,})"

    rows: list[list[Cell]] = [
        [name, *(cell(found[rule]) for rule in (PAIRS, LIKELIHOOD, EVIDENCE))] for name, found in honest.items()
    ]
    rows.append(["the report's data sets", *PAPER_FALSE_ALARMS, None])
    return Table(
        "Tables IX and XV: alarms a query on honest accounts, % (alarms in queries)",
        ["kind", PAIRS, LIKELIHOOD, EVIDENCE],
        rows,
        "Pairs and likelihood under the thresholds above, tuned on plain natural images as in the report; the evidence "
        "under the bundle's threshold. Whenever an account is closed, its client goes on with a new one. Images of "
        "another kind are honest to the report; to AMAO and to the evidence they are an attacker's surrogate set, so "
        "they do not count for the worst kind.",
    )


# ---- pictures ----


def _accounts_picture(context: Context, by_pairs: Accounts, by_all: Accounts) -> Picture:
    file = "berkeley-accounts.png"
    names = (*SEEDED, DFME)

    def means(accounts: Accounts) -> list[float]:
        return [float(np.mean(accounts.of(name, PLAIN))) for name in names]

    with drawn(context.output / file, width=6.4) as (axis,):
        places = np.arange(len(names))
        theirs = [paper_of(name, PLAIN)[0] for name in names]
        for shift, values, colour, label in (
            (-0.27, means(by_all), ATTACKS[JB_TOP3], f"{EVIDENCE}, {context.bundle.manifest.model.name}"),
            (0.0, means(by_pairs), ATTACKS["foreign"], f"{PAIRS} alone"),
            (0.27, theirs, NEUTRAL, "report's similar pairs, CIFAR-10"),
        ):
            axis.bar(places + shift, values, 0.25, color=colour, label=label)
        axis.set_xticks(places, names)
        axis.set(ylabel=f"accounts for {PER:,} queries")
        axis.legend()
    return Picture(
        file,
        f"Accounts that each attack costs for {PER:,} queries: under the evidence of all detectors, under the rule of "
        "similar pairs, and in the report.",
    )


def _running(detector: LikelihoodDetector, recording: Recording) -> NDArray[np.float64]:
    """[n, 3]: the running mean log-likelihood and the ends of its credibility interval, after each query."""
    features, state = detector.features(recording.inputs, recording.logits), detector.initial()
    found = []
    for row in range(len(recording.inputs)):
        detector.replay(state, features, np.array([row]))
        details = detector.rule(state.memory).details
        found.append((details["mean"], details["lower"], details["upper"]))
    return np.array(found)


def _likelihood_pictures(context: Context, streams: Sequence[Stream], detector: LikelihoodDetector) -> list[Picture]:
    """Figures 13 and 14."""
    (crafted,) = [
        stream
        for stream in streams
        if (stream.attacker.attack, stream.attacker.scheme) == (JB_TOP3, PLAIN)
        if stream.attacker.seed == context.sizes.seeds[0]
    ]
    seeds, queries = crafted.attacker.seeds, len(crafted)

    def recorded(data: Dataset) -> Recording:
        images = _once(data, queries).images
        return Recording(images, context.logits(images))

    honest = recorded(context.splits.test)
    panels: dict[str, dict[str, tuple[Recording, str]]] = {
        "berkeley-likelihood-crafted.png": {
            "honest": (honest, HONEST), JB_TOP3: (crafted.recording, ATTACKS[JB_TOP3]),
        },
        "berkeley-likelihood-foreign.png": {
            "honest": (honest, HONEST), FOREIGN_KIND: (recorded(context.foreign), ATTACKS["foreign"]),
        },
    }  # fmt: skip
    for file, lines in panels.items():
        with drawn(context.output / file, width=5.2) as (axis,):
            for label, (recording, colour) in lines.items():
                found = _running(detector, recording)[detector.section.warm_up :]
                numbers = np.arange(len(found)) + detector.section.warm_up
                axis.plot(numbers, found[:, 0], color=colour, label=label, linewidth=1.6)
                axis.fill_between(numbers, found[:, 1], found[:, 2], color=colour, alpha=0.2, linewidth=0)
            alpha = detector.section.benign_mean
            axis.axhline(alpha, color=NEUTRAL, linestyle="--", linewidth=1, label="alpha, the honest mean")
            if JB_TOP3 in lines:
                axis.axvline(seeds, color=NEUTRAL, linestyle=":", linewidth=1, label="first crafted query")
            axis.set(xlabel="queries", ylabel="mean log-likelihood, up to a constant")
            axis.legend()
    interval = "with its credibility interval"
    return [
        Picture(
            "berkeley-likelihood-crafted.png",
            f"Figure 13: running mean log-likelihood {interval}, honest images and {JB_TOP3}. An account is condemned "
            "when its interval lies below alpha.",
        ),
        Picture(
            "berkeley-likelihood-foreign.png",
            f"Figure 14: the same for natural images of another kind, {interval}.",
        ),
    ]
