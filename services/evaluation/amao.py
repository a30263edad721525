"""TMSP and PRADA as AMAO judges them: single queries, constants that generalise, and streams that evade PRADA.

AMAO (Jiang et al., A comprehensive defense framework against model extraction attacks), sections 4.3, 5.3 and 5.6.1:
tables 4 to 6, figures 5, 7 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from services.evaluation.attackers import Jacobian, Knockoff, Seeded, seeds_of
from services.evaluation.context import Context
from services.evaluation.drawing import ATTACKS, HONEST, NEUTRAL, drawn, mean_and_spread, seeds_in_words
from services.evaluation.figures import Finding
from services.evaluation.papers_attackers import AMAO_ATTACKS
from services.evaluation.replaying import with_sections
from services.evaluation.report import Cell, Picture, Study, Table
from services.evaluation.streams import Attacker, Stream
from services.prada.detector import PradaDetector
from services.redteam.adaptive import Colluding
from services.redteam.attack import NATURAL, Questions, Reply, Route
from services.redteam.jacobian import Cloudleak, JbdaTr
from services.redteam.pool import KnockoffNets
from services.tmsp.detector import TmspDetector
from services.training.papers import TEMPERATURES
from services.training.tracing import Recording
from shared.bundle import Bundle
from shared.datasets import Dataset
from shared.detection import Detector
from shared.softmax import tmsp

Logits = NDArray[np.float32]
"""[n, classes]"""

JBDA_TR, KNOCKOFF, CLOUDLEAK = JbdaTr.name, KnockoffNets.name, Cloudleak.name
NAMES = (JBDA_TR, KNOCKOFF, CLOUDLEAK)
NATURAL_SEEDS = 100
"""Of JBDA-TR and Cloudleak on MNIST and F-MNIST (section 5.1.2)."""
VALIDATION = 100
"""Malicious samples that the defender has, and as many honest ones (section 5.3)."""
VALIDATION_SEED = 500
"""Added to a seed of randomness: the defender's samples are of an attacker of his own."""
COLLUDERS = (10, 50)
"""Accounts of one attacker (section 5.6.1 does not say how many): relatives share the few, hardly ever the many."""
HONEST_STREAM = "honest"


# ---- the paper's numbers ----


@dataclass(frozen=True, slots=True)
class Paper:
    """What AMAO says of one data set; attacks in the order of `NAMES`.

    Attributes:
        name: of the data set.
        prefix: of the findings' names.
        constants: T and lambda (table 4).
        accuracy: %, of each attack under each attack's constants (table 5); its first column is table 6's.
        baseline_accuracy: %, of MSP-based out-of-distribution detection (table 6).
        baseline_f1: the same.
        f1: of TMSP (table 6).
    """

    name: str
    prefix: str
    constants: tuple[tuple[float, float], ...]
    accuracy: tuple[tuple[float, float, float], ...]
    baseline_accuracy: tuple[float, float, float]
    baseline_f1: tuple[float, float, float]
    f1: tuple[float, float, float]


F_MNIST = Paper(
    name="F-MNIST",
    prefix="tmsp-",
    constants=((1.51, 0.998), (2.29, 0.994), (2.25, 0.961)),
    accuracy=((81.20, 79.02, 80.40), (69.89, 70.11, 69.75), (74.37, 74.76, 74.87)),
    baseline_accuracy=(73.05, 65.91, 66.33),
    baseline_f1=(0.66, 0.53, 0.54),
    f1=(0.81, 0.67, 0.73),
)
MNIST = Paper(
    name="MNIST",
    prefix="tmsp-digits-",
    constants=((1.53, 0.998), (2.21, 0.953), (2.30, 0.996)),
    accuracy=((87.85, 85.04, 83.44), (93.75, 94.17, 86.89), (84.99, 82.18, 85.13)),
    baseline_accuracy=(76.15, 86.20, 72.23),
    baseline_f1=(0.68, 0.82, 0.61),
    f1=(0.87, 0.93, 0.84),
)
FINDINGS: Mapping[str, str] = MappingProxyType({JBDA_TR: "jbda-tr", KNOCKOFF: "knockoff", CLOUDLEAK: "cloudleak"})


def paper_of(bundle: Bundle) -> Paper | None:
    """The paper's numbers for a bundle's data set, told by the names of its classes; None for any other."""
    classes = {name.lower() for name in bundle.manifest.model.classes}
    if classes == {str(digit) for digit in range(10)}:
        return MNIST
    return F_MNIST if {"sandal", "ankle-boot"} <= classes else None


# ---- single queries ----


@dataclass(frozen=True, slots=True)
class Constants:
    """T and lambda of TMSP."""

    temperature: float
    threshold: float

    def detector(self, bundle: Bundle) -> TmspDetector:
        """The bundle's detector with these constants."""
        section = bundle.manifest.tmsp.model_copy(
            update={"temperature": self.temperature, "lambda_": min(self.threshold, 1.0)}
        )
        return TmspDetector.from_bundle(with_sections(bundle, tmsp=section))


def threshold_of(honest: NDArray[np.float64], malicious: NDArray[np.float64]) -> tuple[float, float]:
    """The lambda that tells two sets of TMSP values apart best, and the share of values that it judges rightly.

    Halfway between the two neighbouring values; the smallest of equals.

    Args:
        honest: [n].
        malicious: [m], each of which weighs as much as n / m honest ones.
    """
    values = np.unique(np.concatenate([honest, malicious]))
    caught = np.searchsorted(np.sort(malicious), values, side="right") / len(malicious)
    spared = 1 - np.searchsorted(np.sort(honest), values, side="right") / len(honest)
    rightly = (caught + spared) / 2
    best = int(rightly.argmax())
    upper = values[best + 1] if best + 1 < len(values) else values[best]
    return float((values[best] + upper) / 2), float(rightly[best])


def best_constants(honest: Logits, malicious: Logits, temperatures: Sequence[float]) -> Constants:
    """T and lambda of the highest accuracy on few samples (section 5.3); of equally good T the middle one.

    Args:
        honest: logits of honest samples.
        malicious: logits of malicious ones.
        temperatures: that are tried.
    """
    found = []
    for temperature in temperatures:
        threshold, rightly = threshold_of(tmsp(honest, temperature), tmsp(malicious, temperature))
        found.append((rightly, temperature, threshold))
    best = [one for one in found if one[0] == max(found)[0]]
    _, temperature, threshold = best[len(best) // 2]
    return Constants(float(temperature), threshold)


def flagged(detector: TmspDetector, logits: Logits) -> NDArray[np.bool_]:
    """[n], whether the detector flags each query (eq. 9)."""
    # The detector takes inputs for the sake of its kin, and does not look at them.
    features = detector.score(np.empty((len(logits), 0), dtype=np.uint8), logits)
    memory = detector.initial_memory()
    counts = [0]
    for row in range(len(logits)):
        detector.observe(memory, features, row)
        counts.append(memory.flagged)
    return np.diff(counts) > 0


@dataclass(frozen=True, slots=True)
class Score:
    """How well queries are told apart.

    Attributes:
        accuracy: %, share of queries that are judged rightly.
        f1: harmonic mean of precision and true positive rate (eq. 15 to 17).
    """

    accuracy: float
    f1: float

    @classmethod
    def of(cls, flags: NDArray[np.bool_], malicious: NDArray[np.bool_]) -> Score:
        """
        Args:
            flags: [n], what a detector says.
            malicious: [n], what is true.
        """
        positives, right = int((flags & malicious).sum()), int((flags == malicious).sum())
        wrong = len(flags) - right
        return cls(100 * right / len(flags), 2 * positives / max(2 * positives + wrong, 1))


def judged(detector: TmspDetector, honest: Logits, malicious: Logits) -> Score:
    """The detector's score on honest and malicious queries."""
    truth = np.repeat([False, True], [len(honest), len(malicious)])
    return Score.of(flagged(detector, np.concatenate([honest, malicious])), truth)


# ---- streams ----


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the two detectors say of one account.

    Attributes:
        distances: [m] minimum L2 distances (eq. 13), of the last test's window; pixels in [0, 1].
        w: Shapiro-Wilk W of them; NaN where there were too few for a test.
        least_w: the smallest W of all tests.
        prada: whether PRADA's rule ever condemns.
        suspicion: S (eq. 10) at the end.
        tmsp: whether S ever condemns.
    """

    distances: NDArray[np.float64]
    w: float
    least_w: float
    prada: bool
    suspicion: float
    tmsp: bool


def _followed(detector: Detector[Any], recording: Recording) -> tuple[NDArray[np.float64], list[float], bool]:
    """[n, S] values, the rule's statistic after each query, and whether it ever condemned."""
    features, state = detector.features(recording.inputs, recording.logits), detector.initial()
    values, statistics, condemned = [], [], False
    for row in range(len(recording.inputs)):
        found, *_ = detector.replay(state, features, np.array([row]))
        rule = detector.rule(state.memory)
        values.append(found)
        statistics.append(rule.statistic)
        condemned |= rule.flagged
    return np.concatenate(values), statistics, condemned


def verdict(bundle: Bundle, recording: Recording) -> Verdict:
    """An account in the eyes of both detectors, as the bundle has them."""
    prada, suspicion = PradaDetector.from_bundle(bundle), TmspDetector.from_bundle(bundle)
    values, w, prada_condemns = _followed(prada, recording)
    _, shares, tmsp_condemns = _followed(suspicion, recording)
    distances = values[np.isfinite(values[:, 0]), 0]
    tested = np.array(w)[np.isfinite(w)]
    return Verdict(
        distances=distances[-prada.section.window :],
        w=w[-1],
        least_w=float(tested.min()) if len(tested) else float("nan"),
        prada=prada_condemns,
        suspicion=shares[-1],
        tmsp=tmsp_condemns,
    )


class _Spy(Route):
    """An account that remembers which questions it was given."""

    def __init__(self, classes: int) -> None:
        self.numbers: list[int] = []
        self._classes = classes

    def send(self, questions: Questions, limit: int) -> Reply:
        """An answer that nobody reads."""
        taken = questions[:limit]
        self.numbers += taken.numbers.tolist()
        rows = np.arange(len(taken))
        return Reply(rows, np.zeros((len(taken), self._classes), dtype=np.float32), len(taken))


def doubling_origins(seeds: int, queries: int) -> NDArray[np.int64]:
    """[queries], which query each was crafted from by an attack that crafts one image from each known one a round."""
    numbers = np.arange(queries)
    rounds = np.floor(np.log2(np.maximum(numbers, seeds) / seeds)).astype(np.int64)
    return np.where(numbers < seeds, NATURAL, numbers - seeds * 2**rounds)


def colluding(stream: Stream, accounts: int) -> list[Recording]:
    """What each of several accounts sends of a JBDA-TR stream: relatives go to different ones (section 5.6.1).

    The victim's answers do not depend on who asks, so the questions are the same as those of one account.
    """
    recording = stream.recording
    spies = [_Spy(recording.logits.shape[1]) for _ in range(accounts)]
    questions = Questions(
        recording.inputs,
        np.arange(len(stream)),
        doubling_origins(stream.attacker.seeds, len(stream)),
        np.zeros(len(stream), dtype=np.bool_),
    )
    Colluding(spies).send(questions, len(stream))
    return [Recording(recording.inputs[spy.numbers], recording.logits[spy.numbers]) for spy in spies]


# ---- the study ----


@dataclass(frozen=True, slots=True)
class Samples:
    """Logits for one seed of randomness.

    Attributes:
        validation: honest ones, then malicious ones of each attack; `VALIDATION` of each.
        honest: to be judged.
        malicious: of each attack, to be judged; as many as honest ones, unless the stream is shorter.
        weaker: of JBDA-TR at each radius, pixels in [0, 1].
    """

    validation: tuple[Logits, Mapping[str, Logits]]
    honest: Logits
    malicious: Mapping[str, Logits]
    weaker: Mapping[float, Logits]

    def balanced(self, malicious: Logits) -> tuple[Logits, Logits]:
        """As many honest ones as malicious ones."""
        least = min(len(self.honest), len(malicious))
        return self.honest[:least], malicious[:least]


VALIDATED, JUDGED = "validation", "judged"


class Key(NamedTuple):
    """Which stream: for which seed of randomness, to what end, of which attack."""

    seed: int
    part: str
    attack: str


Streams = Mapping[Key, Stream]


def _of_radius(radius: float) -> str:
    return f"radius {radius:.3g}"


def _attackers(context: Context) -> dict[Key, Attacker]:
    """For each seed three of the defender's own, three to be judged, and JBDA-TR at every radius."""
    sizes, splits, half = context.sizes, context.splits, len(context.foreign) // 2
    attacked = context.natural
    found = {}
    for seed in sizes.seeds:
        few = max(2 * VALIDATION, sizes.crafted)
        for part, own, natural, crafted, foreign, surrogates in (
            (VALIDATED, VALIDATION_SEED + seed, splits.calibration, few, context.foreign[:half], few),
            (JUDGED, seed, attacked, sizes.long_crafted, context.foreign[half:], sizes.samples),
        ):
            seeds, budget = seeds_of(natural, NATURAL_SEEDS, own).images, NATURAL_SEEDS + crafted
            for name, kind in AMAO_ATTACKS.items():
                build = Seeded(kind, seeds)
                found[Key(seed, part, name)] = Attacker(name, part, NATURAL_SEEDS, budget, own, build)
            sent = min(surrogates, len(foreign))
            surrogate = Knockoff(seeds_of(foreign, sent, own).images)
            found[Key(seed, part, KNOCKOFF)] = Attacker(KNOCKOFF, part, 0, sent, own, surrogate)
        seeds, budget = seeds_of(attacked, NATURAL_SEEDS, seed).images, NATURAL_SEEDS + sizes.crafted
        for radius in sizes.radii:
            part = _of_radius(radius)
            attacker = Attacker(JBDA_TR, part, NATURAL_SEEDS, budget, seed, Jacobian(JbdaTr, seeds, radius))
            found[Key(seed, part, JBDA_TR)] = attacker
    return found


def _drawn(logits: Logits, count: int, random: np.random.Generator) -> Logits:
    return logits[random.permutation(len(logits))[:count]]


def _samples(context: Context, streams: Streams, seed: int) -> Samples:
    random, sizes = np.random.default_rng([seed, 4]), context.sizes

    def of(part: str, name: str, count: int) -> Logits:
        stream = streams[Key(seed, part, name)]
        return _drawn(stream.recording.logits[stream.attacking], count, random)

    return Samples(
        validation=(
            _honest(context, context.splits.calibration, VALIDATION, random),
            {name: of(VALIDATED, name, VALIDATION) for name in NAMES},
        ),
        honest=_honest(context, context.splits.test, sizes.samples, random),
        malicious={name: of(JUDGED, name, sizes.samples) for name in NAMES},
        weaker={radius: of(_of_radius(radius), JBDA_TR, sizes.samples) for radius in sizes.radii},
    )


def _honest(context: Context, data: Dataset, count: int, random: np.random.Generator) -> Logits:
    return context.logits(data.images[random.choice(len(data), min(count, len(data)), replace=False)])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed of randomness gave.

    Attributes:
        constants: by attack.
        scores: by attack whose constants are used, then by attack that is judged; of TMSP.
        baseline: by attack; of MSP, its lambda found on that of JBDA-TR, as TMSP's constants are for table 6.
        deployed: by attack; of the bundle's own constants.
        weaker: accuracy, %, by radius; under JBDA-TR's constants.
    """

    constants: Mapping[str, Constants]
    scores: Mapping[str, Mapping[str, Score]]
    baseline: Mapping[str, Score]
    deployed: Mapping[str, Score]
    weaker: Mapping[float, float]


def outcome(bundle: Bundle, samples: Samples) -> Outcome:
    """Constants from the validation samples, judged on the others."""
    honest, validation = samples.validation
    constants = {name: best_constants(honest, validation[name], TEMPERATURES.tolist()) for name in NAMES}
    detectors = {name: one.detector(bundle) for name, one in constants.items()}
    msp = best_constants(honest, validation[JBDA_TR], [1.0]).detector(bundle)
    deployed = TmspDetector.from_bundle(bundle)

    def scores(detector: TmspDetector) -> dict[str, Score]:
        return {name: judged(detector, *samples.balanced(samples.malicious[name])) for name in NAMES}

    return Outcome(
        constants=constants,
        scores={name: scores(detector) for name, detector in detectors.items()},
        baseline=scores(msp),
        deployed=scores(deployed),
        weaker={
            radius: judged(detectors[JBDA_TR], *samples.balanced(malicious)).accuracy
            for radius, malicious in samples.weaker.items()
        },
    )


def study(context: Context) -> Study:
    """TMSP on single queries, and both detectors on whole streams."""
    sizes, bundle = context.sizes, context.bundle
    attackers = _attackers(context)
    recorded = context.streams(list(attackers.values()), "AMAO's attackers: recording")
    streams = dict(zip(attackers, recorded, strict=True))
    samples = {seed: _samples(context, streams, seed) for seed in sizes.seeds}
    outcomes = [outcome(bundle, samples[seed]) for seed in sizes.seeds]
    paper = paper_of(bundle)
    accounts = {seed: _accounts(context, streams, seed) for seed in sizes.seeds}
    first = sizes.seeds[0]
    model = bundle.manifest.model
    name = "amao-digits" if paper is MNIST else "amao"
    accuracy = {attack: [one.scores[JBDA_TR][attack].accuracy for one in outcomes] for attack in NAMES}
    return Study(
        name=name,
        title=f"TMSP and PRADA against AMAO's attacks: {model.name}",
        text=f"AMAO, sections 4.3, 5.3 and 5.6.1. Victim {model.name} {model.version}, accuracy on its test images "
        f"{100 * model.test_accuracy:.1f}%. Seeds of randomness: {', '.join(map(str, sizes.seeds))}; for each, T and "
        f"lambda are found on {VALIDATION} malicious samples of an attacker of the defender's own and {VALIDATION} "
        "honest calibration images, and judged on malicious queries of another attacker and as many honest test "
        f"images, {len(samples[first].honest):,} of each at most. JBDA-TR and Cloudleak start from {NATURAL_SEEDS} "
        f"natural images and send {sizes.long_crafted:,} crafted ones; natural seeds are not counted as malicious. The "
        "victim tells labels only. Numbers are means ± standard deviations over the seeds.",
        tables=[
            _constants_table(outcomes, paper),
            _generalisation_table(outcomes, paper),
            _comparison_table(outcomes, paper),
            _strength_table(outcomes),
            _accounts_table(bundle, accounts),
        ],
        pictures=[
            _distribution_picture(context, name, outcomes[0], samples[first]),
            _distances_picture(context, name, accounts[first]),
            _strength_picture(context, name, outcomes),
        ],
        findings=[
            Finding(f"{paper.prefix}{FINDINGS[attack]}", float(np.mean(values)), seeds_in_words(values))
            for attack, values in accuracy.items()
        ]
        if paper
        else [],
        data={"accuracy by seed": accuracy, "radius": {str(r): [o.weaker[r] for o in outcomes] for r in sizes.radii}},
    )


def _constants_table(outcomes: Sequence[Outcome], paper: Paper | None) -> Table:
    rows: list[list[Cell]] = []
    for number, name in enumerate(NAMES):
        temperatures = [one.constants[name].temperature for one in outcomes]
        thresholds = [one.constants[name].threshold for one in outcomes]
        theirs = [f"{constant:g}" for constant in paper.constants[number]] if paper else [None, None]
        rows.append([name, mean_and_spread(temperatures, 2), theirs[0], mean_and_spread(thresholds, 3), theirs[1]])
    of = f", paper's, {paper.name}" if paper else ", paper's"
    return Table(
        "Table 4: constants found on the validation samples",
        ["attack of the malicious samples", "T", f"T{of}", "lambda", f"lambda{of}"],
        rows,
        "The victim's network and training are others than the paper's, so its constants need not be ours.",
    )


def _generalisation_table(outcomes: Sequence[Outcome], paper: Paper | None) -> Table:
    rows: list[list[Cell]] = []
    for number, name in enumerate(NAMES):
        row: list[Cell] = [name]
        for column, constants in enumerate(NAMES):
            row.append(mean_and_spread([one.scores[constants][name].accuracy for one in outcomes]))
            row.append(paper.accuracy[number][column] if paper else None)
        row.append(mean_and_spread([one.deployed[name].accuracy for one in outcomes]))
        rows.append(row)
    of = f"paper's, {paper.name}" if paper else "paper's"
    columns = [title for name in NAMES for title in (f"constants of {name}", of)]
    return Table(
        "Table 5: detection accuracy under each attack's constants, %",
        ["attack", *columns, "the bundle's constants"],
        rows,
        "The bundle's lambda holds the share of honest queries that are flagged, not the accuracy.",
    )


def _comparison_table(outcomes: Sequence[Outcome], paper: Paper | None) -> Table:
    rows: list[list[Cell]] = []
    for number, name in enumerate(NAMES):
        ours, baseline = [one.scores[JBDA_TR][name] for one in outcomes], [one.baseline[name] for one in outcomes]
        rows.append(
            [
                name,
                mean_and_spread([one.accuracy for one in baseline]),
                paper.baseline_accuracy[number] if paper else None,
                mean_and_spread([one.accuracy for one in ours]),
                paper.accuracy[number][0] if paper else None,
                mean_and_spread([one.f1 for one in baseline], 2),
                paper.baseline_f1[number] if paper else None,
                mean_and_spread([one.f1 for one in ours], 2),
                paper.f1[number] if paper else None,
            ]
        )
    of = f"paper's, {paper.name}" if paper else "paper's"
    return Table(
        "Table 6: TMSP against MSP-based out-of-distribution detection",
        ["attack", "MSP accuracy, %", of, "TMSP accuracy, %", of, "MSP F1", of, "TMSP F1", of],
        rows,
        "Constants of both are those found on JBDA-TR samples; MSP is TMSP with T = 1.",
    )


def _strength_table(outcomes: Sequence[Outcome]) -> Table:
    rows: list[list[Cell]] = [
        [f"{radius:.3f}", mean_and_spread([one.weaker[radius] for one in outcomes])] for radius in outcomes[0].weaker
    ]
    return Table(
        "Detection accuracy of TMSP against the strength of JBDA-TR, %",
        ["radius, L-infinity, pixels in [0, 1]", "accuracy, %"],
        rows,
        "Constants are those found on JBDA-TR samples of its own radius, 0.1.",
    )


Accounts = Mapping[str, Sequence[Verdict]]


def _over(accounts: int) -> str:
    return f"{JBDA_TR} over {accounts} accounts"


def _accounts(context: Context, streams: Streams, seed: int) -> Accounts:
    """Verdicts by kind of stream."""
    bundle, data = context.bundle, context.splits.test
    mine = {name: streams[Key(seed, JUDGED, name)] for name in NAMES}
    queries = min(context.sizes.long_crafted, context.sizes.honest_queries, len(data))
    images = seeds_of(data, queries, seed).images
    honest = Recording(images, context.logits(images))
    return {
        HONEST_STREAM: [verdict(bundle, honest)],
        **{name: [verdict(bundle, mine[name].recording)] for name in NAMES},
        **{_over(count): [verdict(bundle, part) for part in colluding(mine[JBDA_TR], count)] for count in COLLUDERS},
    }


def _accounts_table(bundle: Bundle, accounts: Mapping[int, Accounts]) -> Table:
    rows: list[list[Cell]] = []
    for name in next(iter(accounts.values())):
        found = [one for by_name in accounts.values() for one in by_name[name]]
        tested = [one.w for one in found if np.isfinite(one.w)]
        rows.append(
            [
                name,
                len(found),
                mean_and_spread(tested, 3) if tested else "too few distances",
                mean_and_spread([one.least_w for one in found if np.isfinite(one.least_w)], 3) if tested else None,
                f"{sum(one.prada for one in found)} of {len(found)}",
                mean_and_spread([one.suspicion for one in found], 3),
                f"{sum(one.tmsp for one in found)} of {len(found)}",
            ]
        )
    section = bundle.manifest
    return Table(
        "What PRADA and TMSP say of whole accounts (section 5.6.1)",
        ["account", "accounts", "W at the end", "smallest W", "PRADA condemns", "suspicion S", "TMSP condemns"],
        rows,
        f"By the bundle's own thresholds: W below {section.prada.delta:.3f}, S above {section.tmsp.suspicion:.3f}, "
        f"each set so that few honest accounts of every kind are condemned. Over several accounts, relatives apart, an "
        "attacker sends what one alone would have sent. The paper has PRADA condemn the synthetic stream alone.",
    )


# ---- pictures ----


def _distribution_picture(context: Context, name: str, found: Outcome, samples: Samples) -> Picture:
    """Figure 5."""
    constants = found.constants[JBDA_TR]
    file = f"{name}-distributions.png"
    with drawn(context.output / file, columns=2) as axes:
        for axis, temperature, title in (
            (axes[0], 1.0, "MSP"),
            (axes[1], constants.temperature, f"TMSP, T = {constants.temperature:.2f}"),
        ):
            for label, logits in ((HONEST_STREAM, samples.honest), *samples.malicious.items()):
                values = np.sort(tmsp(logits, temperature))
                shares = np.arange(1, len(values) + 1) / len(values)
                honest = label == HONEST_STREAM
                axis.plot(values, shares, color=HONEST if honest else ATTACKS[label], label=label, linewidth=1.8)
            axis.set(title=title, xlabel="largest softmax probability", ylim=(0, 1))
            axis.locator_params(axis="x", nbins=6)
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("share of queries at or below")
        axes[1].axvline(constants.threshold, color=NEUTRAL, linestyle="--", linewidth=1, label="lambda")
        axes[1].legend(loc="lower right")
    return Picture(
        file,
        "Figure 5: cumulative distributions of MSP and TMSP. The further a malicious curve lies above the honest one "
        "at some value, the better that value tells them apart.",
    )


def _distances_picture(context: Context, name: str, accounts: Accounts) -> Picture:
    """Figures 7 and 8."""
    panels = {
        "(a) honest": (accounts[HONEST_STREAM][0], HONEST),
        "(b) synthetic: JBDA-TR": (accounts[JBDA_TR][0], ATTACKS[JBDA_TR]),
        "(c) surrogate: KnockoffNets": (accounts[KNOCKOFF][0], ATTACKS[KNOCKOFF]),
        **{
            f"({letter}) JBDA-TR, one of {count} accounts": (accounts[_over(count)][0], ATTACKS["colluding"])
            for letter, count in zip("de", COLLUDERS, strict=True)
        },
    }
    file = f"{name}-distances.png"
    with drawn(context.output / file, columns=len(panels), width=3.2) as axes:
        largest = max(float(one.distances.max(initial=1.0)) for one, _ in panels.values())
        for axis, (title, (one, colour)) in zip(axes, panels.items(), strict=True):
            axis.hist(
                one.distances, bins=40, range=(0, largest), density=True, color=colour, alpha=0.75, label="queries"
            )
            grid = np.linspace(0, largest, 300)
            fitted = norm.pdf(grid, one.distances.mean(), max(one.distances.std(), 1e-6))
            axis.plot(grid, fitted, color=NEUTRAL, linewidth=1.4, label="normal fit")
            w = f"W = {one.w:.3f}" if np.isfinite(one.w) else "too few distances for a test"
            axis.set(title=f"{title}\n{w}", xlabel="smallest L2 distance, pixels in [0, 1]")
        axes[0].set_ylabel("density")
        axes[0].legend()
    return Picture(
        file,
        "Figures 7 and 8: PRADA's distances to the nearest earlier query of the same class, in the last test's window, "
        f"with the normal fit; PRADA condemns below W = {context.bundle.manifest.prada.delta:.3f}.",
    )


def _strength_picture(context: Context, name: str, outcomes: Sequence[Outcome]) -> Picture:
    file = f"{name}-strength.png"
    with drawn(context.output / file) as (axis,):
        radii = list(outcomes[0].weaker)
        table = np.array([[one.weaker[radius] for radius in radii] for one in outcomes])
        spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(radii))
        axis.errorbar(
            radii, table.mean(axis=0), yerr=spread, color=ATTACKS[JBDA_TR], marker="o", capsize=3, label=JBDA_TR
        )
        axis.axhline(50, color=NEUTRAL, linestyle="--", linewidth=1, label="chance")
        axis.set(xlabel="radius, L-infinity norm, pixels in [0, 1]", ylabel="detection accuracy, %", ylim=(45, 100))
        axis.grid(alpha=0.25)
        axis.legend(loc="lower right")
    return Picture(file, "Detection accuracy of TMSP against the strength of JBDA-TR's perturbation.")
