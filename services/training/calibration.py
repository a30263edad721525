"""From honest accounts to thresholds: profiles, discount, the papers' constants, and the last word on whole accounts.

Two sets of accounts share neither account nor image: *calibration* gives profiles, discount and the papers' thresholds;
*holdout* gives the evidence's threshold and every false-positive rate that the bundle states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save
from scipy.cluster.vq import kmeans2
from scipy.stats import beta as beta_distribution

from services.prada.detector import shapiro_wilk
from services.tmsp.detector import tmsp
from shared.bundle import LikelihoodSection, PradaSection
from shared.detection import Detector, Statistic, orient
from shared.evidence import EvidenceModel, EvidenceState, combine

HISTORY_EDGES = np.array([64, 256, 1024])
"""Queries sent before, at which calibration begins anew: a nearest-neighbour distance shrinks as history grows."""
TAILS = np.geomspace(1.0, 1e-4, 64)
"""Tail probabilities at which sorted scores are kept; a p-value is rounded up to the next."""
PROFILES = 24
"""Honest profiles, the pooled one included."""
ENOUGH = 200
"""Scores of one profile, statistic and history size that are worth sorting."""
DOUBT = 100
"""Imagined queries with an e-value of 1 in every account's mean: over few real ones it is mostly chance."""
FOLDS = 4
"""Parts of the calibration accounts; each is bet against under profiles of the others to find the discount."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What one account sent and how the victim answered.

    Attributes:
        inputs: [n, ...] uint8.
        logits: [n, classes] float32.
    """

    inputs: NDArray[np.uint8]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trace:
    """One account in the eyes of one detector.

    Attributes:
        values: [m, S] of the statistics, NaN where a query has none; repeats are left out.
        history: [m], queries sent before each.
    """

    values: NDArray[np.float64]
    history: NDArray[np.int64]


Traces = Mapping[str, Trace]
"""One account in the eyes of every detector, by the detector's name."""


def save_traces(path: Path, accounts: Sequence[Traces]) -> None:
    """Keep traces in one file, so that calibration can be done again in seconds."""
    arrays = {
        f"{number}/{name}/{part}": array
        for number, traces in enumerate(accounts)
        for name, seen in traces.items()
        for part, array in (("values", seen.values), ("history", seen.history))
    }
    partial = path.with_suffix(".partial")
    partial.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    partial.rename(path)


def load_traces(path: Path) -> list[Traces]:
    """The inverse of `save_traces`."""
    arrays = load(path.read_bytes())
    names = sorted({tuple(key.split("/")[:2]) for key in arrays})
    accounts: list[dict[str, Trace]] = [{} for _ in {number for number, _ in names}]
    for number, name in names:
        prefix = f"{number}/{name}"
        accounts[int(number)][name] = Trace(arrays[f"{prefix}/values"], arrays[f"{prefix}/history"])
    return list(accounts)


def trace(detector: Detector[Any], recording: Recording) -> Trace:
    """Replay an account through the very detector that the service runs."""
    features = detector.features(recording.inputs, recording.logits)
    return Trace(*detector.replay(detector.initial(), features, np.arange(len(recording.inputs))))


def silent_evidence(statistics: Sequence[Statistic]) -> EvidenceModel:
    """Evidence that no score moves, for the time before there is a better one."""
    thresholds = np.full((1, len(statistics), 1, 2), np.inf, dtype=np.float32)
    names = tuple(statistic.name for statistic in statistics)
    return EvidenceModel(
        names, np.array([], dtype=np.int64), np.array([1.0, 0.5]), thresholds, np.ones(len(statistics))
    )


# ---- evidence ----


def tail_thresholds(scores: NDArray[np.float64]) -> NDArray[np.float32]:
    """[G], for each tail probability t the score whose conformal p-value, (1 + rank) / (n + 1), is at most t."""
    ascending = np.sort(scores[np.isfinite(scores)])
    n = len(ascending)
    # (1 + #{calibration >= score}) / (n + 1) <= t leaves room for so many scores at or above.
    above = np.floor(TAILS * (n + 1) + 1e-9).astype(int) - 1
    result = np.full(len(TAILS), np.inf)
    result[above >= n] = -np.inf
    inside = (above >= 0) & (above < n)
    # A score ties with the one it equals, so it must lie strictly above the first that is one too many.
    result[inside] = np.nextafter(ascending[n - 1 - above[inside]].astype(np.float32), np.float32(np.inf))
    result[0] = -np.inf
    return result.astype(np.float32)


def cluster(accounts: Sequence[Traces], profiles: int, seed: int) -> NDArray[np.intp]:
    """[accounts], the profile of each: k-means over the standardised quantiles of all its statistics."""
    levels = [0.02, 0.1, 0.5, 0.9, 0.98]

    def quantiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
        # An account that never has a statistic stands at 0 in it.
        spoken = np.where(np.isfinite(values).any(axis=0), values, 0.0)
        return np.nanquantile(spoken, levels, axis=0).ravel()

    table = np.array([np.concatenate([quantiles(a[name].values) for name in sorted(a)]) for a in accounts])
    table = (table - table.mean(0)) / np.maximum(table.std(0), 1e-9)
    _, raw = kmeans2(table, min(profiles, len(table)), minit="++", seed=seed, iter=50)
    labels: NDArray[np.intp] = np.unique(raw, return_inverse=True)[1].astype(np.intp)
    return labels


def profile_thresholds(
    detector: Detector[Any], accounts: Sequence[Traces], labels: NDArray[np.intp], profiles: int
) -> NDArray[np.float32]:
    """[profiles, S, H, G]; the first profile is all accounts pooled, empty ones at the end repeat it.

    Where a profile has fewer than `ENOUGH` scores, all accounts speak for it: a profile that cannot be contradicted
    would shelter every attack. Where they too have few, those of the next smaller history do.
    """
    statistics, sizes = len(detector.statistics), len(HISTORY_EDGES) + 1
    members = [list(accounts)]
    members += [[a for a, label in zip(accounts, labels, strict=True) if label == k] for k in range(labels.max() + 1)]
    result = np.empty((profiles, statistics, sizes, len(TAILS)), dtype=np.float32)
    for p in range(profiles):
        chosen = members[p] if p < len(members) else members[0]
        scores = np.concatenate([orient(detector.statistics, a[detector.name].values) for a in chosen])
        size = np.searchsorted(HISTORY_EDGES, np.concatenate([a[detector.name].history for a in chosen]), side="right")
        for s in range(statistics):
            for h in range(sizes):
                mine = scores[(size == h) & np.isfinite(scores[:, s]), s]
                if len(mine) >= ENOUGH:
                    result[p, s, h] = tail_thresholds(mine)
                elif p:
                    result[p, s, h] = result[0, s, h]
                else:
                    result[p, s, h] = result[p, s, h - 1] if h else tail_thresholds(scores[:, s])
    return result


def _mean_e_values(detector: Detector[Any], model: EvidenceModel, account: Traces) -> NDArray[np.float64]:
    """[P, S], mean undiscounted e-value of the account's queries and of `DOUBT` imagined ones."""
    seen = account[detector.name]
    values = model.e_values(orient(detector.statistics, seen.values), seen.history)
    spoken = np.isfinite(values)
    means: NDArray[np.float64] = (np.where(spoken, values, 0.0).sum(0) + DOUBT) / (spoken.sum(0) + DOUBT)
    return means


def discounts(
    detectors: Sequence[Detector[Any]], accounts: Sequence[Traces], seed: int
) -> dict[str, NDArray[np.float64]]:
    """[S] for each detector: the largest mean e-value of an account under the best profile of the other folds.

    An account's best profile is the one under which its worst statistic looks best, over all detectors: the decision
    takes the minimum over profiles once, not once a statistic.
    """
    fold = np.arange(len(accounts)) % FOLDS
    largest = {detector.name: np.ones(len(detector.statistics)) for detector in detectors}
    for part in range(FOLDS):
        others = [a for a, f in zip(accounts, fold, strict=True) if f != part]
        labels = cluster(others, PROFILES - 1, seed + part)
        models = {d.name: _model(d, profile_thresholds(d, others, labels, PROFILES)) for d in detectors}
        for account in (a for a, f in zip(accounts, fold, strict=True) if f == part):
            means = {d.name: _mean_e_values(d, models[d.name], account) for d in detectors}
            best = int(np.concatenate(list(means.values()), axis=1).max(axis=1).argmin())
            for name, values in means.items():
                largest[name] = np.maximum(largest[name], values[best])
    return largest


def _model(
    detector: Detector[Any], thresholds: NDArray[np.float32], discount: NDArray[np.float64] | None = None
) -> EvidenceModel:
    names = tuple(statistic.name for statistic in detector.statistics)
    discount = np.ones(len(names)) if discount is None else discount
    return EvidenceModel(names, HISTORY_EDGES, TAILS, thresholds, discount)


def evidence_models(
    detectors: Sequence[Detector[Any]], accounts: Sequence[Traces], seed: int
) -> dict[str, EvidenceModel]:
    """The evidence of every detector, of `PROFILES` profiles each; profile p is the same accounts for all."""
    labels = cluster(accounts, PROFILES - 1, seed)
    discount = discounts(detectors, accounts, seed)
    return {d.name: _model(d, profile_thresholds(d, accounts, labels, PROFILES), discount[d.name]) for d in detectors}


def account_evidence(
    detectors: Sequence[Detector[Any]], models: Mapping[str, EvidenceModel], account: Traces
) -> NDArray[np.float64]:
    """[m], the account's log evidence over all detectors after each of its queries."""
    vectors = []
    for detector in detectors:
        model, seen = models[detector.name], account[detector.name]
        values = model.e_values(orient(detector.statistics, seen.values), seen.history)
        state = EvidenceState.initial(model)
        steps = []
        for row in values[:, None]:
            state.absorb(row)
            steps.append(state.log_evidence())
        vectors.append(np.array(steps))
    return np.array([combine(list(step), len(detectors)) for step in np.stack(vectors, axis=1)])


def upper_limit(alarmed: int, accounts: int, confidence: float = 0.95) -> float:
    """Clopper-Pearson upper confidence limit of the share of accounts that alarm."""
    if alarmed >= accounts:
        return 1.0
    return float(beta_distribution.ppf(confidence, alarmed + 1, accounts - alarmed))


def account_threshold(largest: NDArray[np.float64], smallest_threshold: float, share: float) -> tuple[float, int]:
    """The last word: a threshold that at most `share` of honest accounts ever reach.

    Args:
        largest: [accounts], the largest log evidence that each honest account reached.
        smallest_threshold: what the e-detectors' guarantee asks for anyway, natural logarithm.
        share: of accounts that may alarm.

    Returns:
        The threshold, natural logarithm, and how many of these accounts reach it.
    """
    allowed = int(share * len(largest))
    highest_kept = np.sort(largest)[::-1][allowed]
    # A factor of e^0.5 above the highest, not just above it: the next population's highest will differ.
    threshold = max(smallest_threshold, float(highest_kept) + 0.5)
    return threshold, int((largest >= threshold).sum())


# ---- the papers' constants ----


def choose_temperature(
    honest: NDArray[np.float32], malicious: NDArray[np.float32], query_rate: float
) -> tuple[float, float, float]:
    """T and lambda of TMSP (AMAO, section 5.3), from few malicious samples.

    Args:
        honest: [n, classes] logits of honest queries.
        malicious: [m, classes] logits of about a hundred malicious ones.
        query_rate: share of honest queries that may be flagged; lambda is its quantile.

    Returns:
        The T that flags most malicious samples at that rate, its lambda, and that share.
    """
    best = (1.0, 0.5, -1.0)
    for temperature in np.geomspace(0.5, 20.0, 32):
        threshold = float(np.quantile(tmsp(honest, float(temperature)), query_rate))
        caught = float((tmsp(malicious, float(temperature)) <= threshold).mean())
        if caught > best[2]:
            best = (float(temperature), threshold, caught)
    return best


def quantile_over_accounts(values: Sequence[float], share: float, high: bool) -> float:
    """The value that at most `share` of the accounts lie beyond, above it if `high`, else below."""
    ordered = np.sort(np.asarray(values))
    allowed = int(share * len(ordered))
    return float(ordered[::-1][allowed] if high else ordered[allowed])


def smallest_w(distances: NDArray[np.float64], section: PradaSection) -> float:
    """The smallest Shapiro-Wilk W that PRADA meets over an account's distances; 1 where it never tests."""
    found = [
        shapiro_wilk(distances[max(0, end - section.window) : end], section.warm_up)
        for end in range(section.test_every, len(distances) + 1, section.test_every)
    ]
    return float(np.nanmin(found)) if np.isfinite(found).any() else 1.0


def largest_suspicion(values: NDArray[np.float64], threshold: float, warm_up: int) -> float:
    """The largest suspicion S (AMAO eq. 10) that an account ever has once it is warm."""
    suspicion = np.cumsum(values <= threshold) / np.arange(1, len(values) + 1)
    return float(suspicion[warm_up:].max()) if len(suspicion) > warm_up else 0.0


def needed_beta(log_likelihoods: NDArray[np.float64], benign_mean: float, warm_up: int) -> float:
    """The smallest beta at which the interval's upper end never falls below `benign_mean` for this account."""
    means = np.cumsum(log_likelihoods) / np.arange(1, len(log_likelihoods) + 1)
    means = means[warm_up:]
    counts = np.arange(1, len(means) + 1)
    first = np.cumsum(means) / counts
    variance = (np.cumsum(means**2) - counts * first**2) / np.maximum(counts - 1, 1)
    deviation = np.sqrt(np.maximum(variance, 0.0))[1:]
    shortfall = (benign_mean - means)[1:]
    return float(np.max(np.where(shortfall > 0, shortfall / np.maximum(deviation, 1e-12), 0.0), initial=0.0))


def flags_anyone(section: LikelihoodSection, log_likelihoods: NDArray[np.float64]) -> bool:
    """Whether the likelihood's rule ever flags this account."""
    return needed_beta(log_likelihoods, section.benign_mean, section.warm_up) > section.beta
