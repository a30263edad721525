"""Whether a suspect model learnt from the answers that one account was told wrongly, and how sure that is.

A *mark* is a query that was answered with a wrong label on purpose. Whoever trains on an account's answers learns its
marks (AMAO, Jiang et al., section 4.5: such samples are remembered like a backdoor's); who never saw them has no reason
to say just these wrong labels. AMAO's Algorithm 3 calls a model stolen when it says the told label on a share of an
account's marks over a threshold t. It does not say how often an innocent model would. Here is the probability of that:
for each account the larger of two, which err in different ways.

1. *By a measured base rate* (`p_base`): how often do innocent models say the told labels of these very marks? The
   upper limit of that share (Clopper-Pearson, one-sided) goes into a binomial tail. Marks differ in difficulty; their
   sum then has a lighter tail than the binomial with the same mean (Hoeffding 1956), so the tail is no understatement.
   Models differ too: the limit is never below the share of the innocent model that says most of them. Without innocent
   models the base rate is what the suspect itself says elsewhere: how often it gives a mark's told label to the inputs
   of other accounts' marks, and no less than the probability that the marked model gives that label.
2. *By order* (`p_order`): a suspect that says one class to everything, or to everything foreign, says many told labels.
   Among all ways to deal this account's told labels out to its marks, how many match the suspect's labels in as many
   places? That needs no independence of the marks: it fixes what the suspect says, and how often.

Over accounts both Holm's and Bonferroni's corrections are told; a claim needs Holm's. And it needs that the same two
tests, asked of each innocent model in the suspect's place, accuse none of them of the same account.

Marks that repeat an input, or whose perceptual hashes are near, count once: of a picture and its near copy a model says
the same. Pure: no I/O, no clock, no chance.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from shared.events import PerturbedAnswer

THRESHOLD = 0.5
"""t of Algorithm 3. The paper gives no value; in its Table 11 copies reach 87 to 100%, other models less than 1%."""
LEVEL = 0.001
CONFIDENCE = 0.95
LEAST = 1e-300
"""No smaller probability is told."""

Labels = NDArray[np.int64]
"""What a model says, class by class of ours; -1 for a class that ours has not."""


@dataclass(frozen=True, slots=True)
class Marks:
    """One account's independent marks; m of them."""

    account: str
    told: Labels
    """[m], the wrong label that the account was told."""
    true: Labels
    """[m], the label that the marked model would have told."""
    believed: NDArray[np.float64]
    """[m], the probability that the marked model gives to the told label."""

    def __len__(self) -> int:
        return len(self.told)


class _Hashes:
    """Perceptual hashes of one kind."""

    def __init__(self) -> None:
        self._held = np.zeros(64, dtype=np.uint64)
        self._count = 0

    def near(self, new: np.uint64, similar_bits: int) -> bool:
        return bool((np.bitwise_count(self._held[: self._count] ^ new) <= similar_bits).any())

    def add(self, new: np.uint64) -> None:
        if self._count == len(self._held):
            self._held = np.concatenate([self._held, np.zeros_like(self._held)])
        self._held[self._count] = new
        self._count += 1


class MarkSelector:
    """Which of one account's spoiled answers are marks of their own."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._hashes: defaultdict[str, _Hashes] = defaultdict(_Hashes)
        """Of the marks, by the hash's kind."""

    def admits(self, answer: PerturbedAnswer) -> bool:
        """Whether the label told is wrong, and the input neither that of an earlier mark nor like it."""
        if answer.answer.argmax() == answer.logits.argmax():
            return False
        digest = hashlib.sha256(answer.input.tobytes()).digest()
        comparable, new = self._hashes[answer.hash_kind], np.uint64(answer.perceptual_hash)
        if digest in self._digests or comparable.near(new, answer.similar_bits):
            return False
        self._digests.add(digest)
        comparable.add(new)
        return True


def marks_of(account: str, answers: Sequence[PerturbedAnswer]) -> Marks:
    """One account's marks, from answers that a `MarkSelector` admitted."""
    told = np.array([answer.answer.argmax() for answer in answers], dtype=np.int64)
    true = np.array([answer.logits.argmax() for answer in answers], dtype=np.int64)
    probabilities = [special.softmax(answer.logits.astype(np.float64)) for answer in answers]
    believed = np.array([of[label] for of, label in zip(probabilities, told, strict=True)], dtype=np.float64)
    return Marks(account, told, true, believed)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the suspect says of one account's marks."""

    account: str
    marks: int
    matches: int
    """Marks on which it says the told label."""
    agreements: int
    """Marks on which it says the true one."""
    base_rate: float
    """Measured share of marks on which the told label is said without theft."""
    base_rate_limit: float
    """Upper limit of it."""
    p_base: float
    p_order: float
    p: float
    """The larger of the two: the probability of so many matches by chance."""
    p_holm: float
    p_bonferroni: float
    tolerated_base_rate: float
    """Base rate up to which `p_base` would still be under the level, after Bonferroni's correction."""
    paper_rule: bool
    """Whether the ratio is over Algorithm 3's threshold."""
    accused_innocents: int
    """Innocent models that the same tests would accuse of this account."""
    claim: bool

    @property
    def ratio(self) -> float:
        """Share of marks that match."""
        return self.matches / self.marks if self.marks else 0.0


@dataclass(frozen=True, slots=True)
class Verification:
    """What the suspect says of all accounts' marks."""

    base: str
    """Where the base rate comes from: `innocent models`, or `suspect elsewhere`."""
    level: float
    threshold: float
    confidence: float
    findings: tuple[Finding, ...]

    @property
    def claim(self) -> bool:
        """Whether the suspect learnt from some account's answers."""
        return any(finding.claim for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Chance:
    base_rate: float
    base_rate_limit: float
    p_base: float
    p_order: float

    @property
    def p(self) -> float:
        return max(self.p_base, self.p_order)


def verify(
    marks: Sequence[Marks],
    suspect: Sequence[Labels],
    innocents: Sequence[Sequence[Labels]],
    classes: int,
    *,
    threshold: float = THRESHOLD,
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
) -> Verification:
    """Hold a suspect's labels against every account's marks.

    Args:
        marks: of n accounts.
        suspect: its labels [m_i] for the marks of each of them.
        innocents: for each innocent model, the same. Trained without any of the answers, for the same task.
        classes: how many the marked model tells apart.
        threshold: t of Algorithm 3, for the paper's rule.
        level: probability by chance, corrected for n accounts, up to which a claim holds.
        confidence: of the base rate's limit.

    Raises:
        ValueError: a model's labels are not as many as the marks.
    """
    models = [suspect, *innocents]
    for said in models:
        if [len(of) for of in said] != [len(of) for of in marks]:
            raise ValueError(f"labels of {[len(of) for of in said]} marks, there are {[len(of) for of in marks]}")

    def chance(account: int, model: int, references: Sequence[int]) -> _Chance:
        elsewhere = [said for number, said in enumerate(models[model]) if number != account and len(said)]
        return _chance(
            marks[account],
            models[model][account],
            [models[reference][account] for reference in references],
            np.concatenate(elsewhere) if elsewhere else models[model][account],
            classes,
            confidence,
        )

    tested = [account for account, of in enumerate(marks) if len(of)]
    others = range(1, len(models))
    chances = {account: chance(account, 0, others) for account in tested}
    accused = {
        account: sum(
            chance(account, model, [other for other in others if other != model]).p <= level for model in others
        )
        for account in tested
    }
    holm = _holm([chances[account].p for account in tested])
    corrected = dict(zip(tested, holm, strict=True))
    return Verification(
        "innocent models" if innocents else "suspect elsewhere",
        level,
        threshold,
        confidence,
        tuple(
            _finding(
                of,
                suspect[account],
                chances[account],
                corrected[account],
                accused[account],
                len(tested),
                level,
                threshold,
            )
            if account in chances
            else _nothing(of.account)
            for account, of in enumerate(marks)
        ),
    )


def _finding(
    marks: Marks,
    said: Labels,
    chance: _Chance,
    p_holm: float,
    accused: int,
    tested: int,
    level: float,
    threshold: float,
) -> Finding:
    matches = int((said == marks.told).sum())
    # The lower Clopper-Pearson limit of the ratio: the base rate at which the binomial tail is the level.
    tolerated = stats.beta.ppf(level / tested, matches, len(marks) - matches + 1) if matches else 0.0
    return Finding(
        account=marks.account,
        marks=len(marks),
        matches=matches,
        agreements=int((said == marks.true).sum()),
        base_rate=chance.base_rate,
        base_rate_limit=chance.base_rate_limit,
        p_base=chance.p_base,
        p_order=chance.p_order,
        p=chance.p,
        p_holm=p_holm,
        p_bonferroni=min(1.0, tested * chance.p),
        tolerated_base_rate=float(tolerated),
        paper_rule=matches > threshold * len(marks),
        accused_innocents=accused,
        claim=p_holm <= level and not accused,
    )


def _nothing(account: str) -> Finding:
    """Of an account without a mark."""
    return Finding(account, 0, 0, 0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, False, 0, False)


def _chance(
    marks: Marks,
    said: Labels,
    references: Sequence[Labels],
    elsewhere: Labels,
    classes: int,
    confidence: float,
) -> _Chance:
    """How probable a model's matches are, were it innocent.

    Args:
        marks: m of one account.
        said: the model's labels [m].
        references: of each innocent model, its labels [m]; may be none.
        elsewhere: the model's labels for other inputs, for where there is no reference.
        classes: of the marked model.
        confidence: of the base rate's limit.
    """
    rate, limit = (
        _rate_of_references(marks, references, confidence)
        if references
        else _rate_elsewhere(marks, elsewhere, classes, confidence)
    )
    matches = int((said == marks.told).sum())
    p_base = float(stats.binom.sf(matches - 1, len(marks), limit))
    return _Chance(rate, limit, max(p_base, LEAST), max(_order(marks.told, said, classes), LEAST))


def _rate_of_references(marks: Marks, references: Sequence[Labels], confidence: float) -> tuple[float, float]:
    """Share of marks on which innocent models say the told label, and its upper limit."""
    hits = np.array([(said == marks.told).sum() for said in references])
    answers = len(references) * len(marks)
    limit = float(_upper_limit(hits.sum(), answers, confidence))
    return float(hits.sum() / answers), max(limit, float(hits.max() / len(marks)))


def _rate_elsewhere(marks: Marks, elsewhere: Labels, classes: int, confidence: float) -> tuple[float, float]:
    """Mean share of other inputs that are given a mark's told label, and its upper limit."""
    counts = np.bincount(elsewhere[elsewhere >= 0], minlength=classes)
    # All classes' limits hold at once, so their mean over the marks does.
    limits = _upper_limit(counts, len(elsewhere), 1.0 - (1.0 - confidence) / classes)
    shares = counts / len(elsewhere)
    return (
        float(np.maximum(shares[marks.told], marks.believed).mean()),
        float(np.maximum(limits[marks.told], marks.believed).mean()),
    )


def _upper_limit(hits: NDArray[np.int64], trials: int, confidence: float) -> NDArray[np.float64]:
    """Upper limit of a share (Clopper and Pearson 1934), one-sided."""
    limit = stats.beta.ppf(confidence, np.asarray(hits) + 1, trials - np.asarray(hits))
    return np.where(np.asarray(hits) == trials, 1.0, limit)


def _order(told: Labels, said: Labels, classes: int) -> float:
    """Upper limit of the probability that as many places match when the told labels are dealt out at random.

    Let S be the matches of a random permutation. The r-th factorial moment is exact: E[C(S, r)] is the number of ways
    to place r non-attacking rooks where told and said label are equal (for each class with F and G of them, C(F, r)
    C(G, r) r! ways; classes multiply) times (m - r)! / m!. And P(S >= k) <= E[C(S, r)] / C(k, r) for every r, by
    Markov's inequality; the best r is taken.
    """
    matches = int((told == said).sum())
    ways = np.zeros(1)
    """Logarithm of the number of placements of r rooks, by r."""
    for label in range(classes):
        in_told, in_said = int((told == label).sum()), int((said == label).sum())
        rooks = np.arange(min(in_told, in_said, matches) + 1)
        of_class = _log_choose(in_told, rooks) + _log_choose(in_said, rooks) + special.gammaln(rooks + 1)
        ways = _log_product(ways, of_class)[: matches + 1]
    rooks = np.arange(len(ways))
    moments = ways + special.gammaln(len(told) - rooks + 1) - special.gammaln(len(told) + 1)
    return float(min(1.0, np.exp((moments - _log_choose(matches, rooks)).min())))


def _log_choose(n: int, r: NDArray[np.int64]) -> NDArray[np.float64]:
    chosen: NDArray[np.float64] = special.gammaln(n + 1) - special.gammaln(r + 1) - special.gammaln(n - r + 1)
    return chosen


def _log_product(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of the product of two polynomials; all three as logarithms."""
    product = np.full(len(one) + len(other) - 1, -np.inf)
    for power, coefficient in enumerate(other):
        place = slice(power, power + len(one))
        product[place] = np.logaddexp(product[place], one + coefficient)
    return product


def _holm(probabilities: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the order given."""
    corrected = [1.0] * len(probabilities)
    largest = 0.0
    for rank, index in enumerate(np.argsort(probabilities, kind="stable")):
        largest = max(largest, min(1.0, (len(probabilities) - rank) * probabilities[index]))
        corrected[index] = largest
    return corrected
