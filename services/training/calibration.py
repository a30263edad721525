"""From honest accounts to evidence: profiles, discount, and the last word on whole accounts.

Two sets of accounts share neither account nor image: *calibration* gives profiles and discount; *holdout* gives the
evidence's threshold and every false-positive rate that the bundle states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.stats import beta as beta_distribution

from services.training.tracing import Traces
from shared.detection import Statistic
from shared.evidence import BET_SIZES, EvidenceModel, advance, combined, log_by_profile

Statistics = Mapping[str, Sequence[Statistic]]
"""Of each detector, by its name."""

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
MARGIN = 1.5
"""On the discount: the most that any of some hundred accounts won says little of the most among the next thousands."""
FOLDS = 4
"""Parts of the calibration accounts; each is bet against under profiles of the others to find the discount."""
QUERIES_AT_ONCE = 64
"""Of each account, when many accounts are followed side by side."""


def silent_evidence(statistics: Sequence[Statistic]) -> EvidenceModel:
    """Evidence that no score moves, for the time before there is a better one."""
    thresholds = np.full((1, len(statistics), 1, 2), np.inf, dtype=np.float32)
    names = tuple(statistic.name for statistic in statistics)
    return EvidenceModel(
        names, np.array([], dtype=np.int64), np.array([1.0, 0.5]), thresholds, np.ones(len(statistics))
    )


# ---- profiles ----


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

    def quantiles(values: NDArray[np.float32]) -> NDArray[np.float64]:
        # An account that never has a statistic stands at 0 in it.
        spoken = np.where(np.isfinite(values).any(axis=0), values, 0.0)
        return np.nanquantile(spoken, levels, axis=0).ravel()

    table = np.array([np.concatenate([quantiles(a[name].values) for name in sorted(a)]) for a in accounts])
    table = (table - table.mean(0)) / np.maximum(table.std(0), 1e-9)
    _, raw = kmeans2(table, min(profiles, len(table)), minit="++", seed=seed, iter=50)
    labels: NDArray[np.intp] = np.unique(raw, return_inverse=True)[1].astype(np.intp)
    return labels


def profile_thresholds(
    detector: str, statistics: Sequence[Statistic], accounts: Sequence[Traces], labels: NDArray[np.intp], profiles: int
) -> NDArray[np.float32]:
    """[profiles, S, H, G]; the first profile is all accounts pooled, empty ones at the end repeat it.

    Where a profile has fewer than `ENOUGH` scores, all accounts speak for it: a profile that cannot be contradicted
    would shelter every attack. Where they too have few, those of the next smaller history do.
    """
    sizes = len(HISTORY_EDGES) + 1
    members = [list(accounts)]
    members += [[a for a, label in zip(accounts, labels, strict=True) if label == k] for k in range(labels.max() + 1)]
    result = np.empty((profiles, len(statistics), sizes, len(TAILS)), dtype=np.float32)
    for p in range(profiles):
        chosen = members[p] if p < len(members) else members[0]
        scores = np.concatenate([a[detector].scores(statistics) for a in chosen])
        size = np.searchsorted(HISTORY_EDGES, np.concatenate([a[detector].history for a in chosen]), side="right")
        for s in range(len(statistics)):
            for h in range(sizes):
                mine = scores[(size == h) & np.isfinite(scores[:, s]), s]
                if len(mine) >= ENOUGH:
                    result[p, s, h] = tail_thresholds(mine)
                elif p:
                    result[p, s, h] = result[0, s, h]
                else:
                    result[p, s, h] = result[p, s, h - 1] if h else tail_thresholds(scores[:, s])
    return result


def _model(
    statistics: Sequence[Statistic], thresholds: NDArray[np.float32], discount: NDArray[np.float64] | None = None
) -> EvidenceModel:
    names = tuple(statistic.name for statistic in statistics)
    discount = np.ones(len(names)) if discount is None else discount
    return EvidenceModel(names, HISTORY_EDGES, TAILS, thresholds, discount)


# ---- discount ----


def account_e_values(
    detector: str, statistics: Sequence[Statistic], model: EvidenceModel, account: Traces
) -> NDArray[np.float64]:
    """[m, P, S], e-values of an account's queries under every profile of the model."""
    seen = account[detector]
    return model.e_values(seen.scores(statistics), seen.history)


def _mean_e_values(
    detector: str, statistics: Sequence[Statistic], model: EvidenceModel, account: Traces
) -> NDArray[np.float64]:
    """[P, S], mean undiscounted e-value of the account's queries and of `DOUBT` imagined ones."""
    values = account_e_values(detector, statistics, model, account)
    spoken = np.isfinite(values)
    means: NDArray[np.float64] = (np.where(spoken, values, 0.0).sum(0) + DOUBT) / (spoken.sum(0) + DOUBT)
    return means


def discounts(statistics: Statistics, accounts: Sequence[Traces], seed: int) -> dict[str, NDArray[np.float64]]:
    """[S] for each detector: the largest mean e-value of an account under the best profile of the others, and a margin.

    An account's best profile is the one under which its worst statistic looks best, over all detectors: the decision
    takes the minimum over profiles once, not once a statistic.
    """
    fold = np.arange(len(accounts)) % FOLDS
    largest = {name: np.ones(len(mine)) for name, mine in statistics.items()}
    for part in range(FOLDS):
        others = [a for a, f in zip(accounts, fold, strict=True) if f != part]
        labels = cluster(others, PROFILES - 1, seed + part)
        models = {
            name: _model(mine, profile_thresholds(name, mine, others, labels, PROFILES))
            for name, mine in statistics.items()
        }
        for account in (a for a, f in zip(accounts, fold, strict=True) if f == part):
            means = {name: _mean_e_values(name, mine, models[name], account) for name, mine in statistics.items()}
            best = int(np.concatenate(list(means.values()), axis=1).max(axis=1).argmin())
            for name, values in means.items():
                largest[name] = np.maximum(largest[name], values[best])
    return {name: MARGIN * values for name, values in largest.items()}


def evidence_models(statistics: Statistics, accounts: Sequence[Traces], seed: int) -> dict[str, EvidenceModel]:
    """The evidence of every detector, of `PROFILES` profiles each; profile p is the same accounts for all."""
    labels = cluster(accounts, PROFILES - 1, seed)
    discount = discounts(statistics, accounts, seed)
    return {
        name: _model(mine, profile_thresholds(name, mine, accounts, labels, PROFILES), discount[name])
        for name, mine in statistics.items()
    }


# ---- the evidence of whole accounts ----


def evidence_paths(
    statistics: Statistics, models: Mapping[str, EvidenceModel], accounts: Sequence[Traces]
) -> list[NDArray[np.float64]]:
    """For each account [m], its log evidence over all detectors after each query that counted.

    The same arithmetic as each detector's `EvidenceState` and the decision's `combine`, for many accounts at once.
    """
    lengths = [len(next(iter(account.values())).rows) for account in accounts]
    longest = max(lengths, default=0)
    paths = np.zeros((len(accounts), longest))
    sums = {
        name: np.zeros((len(accounts), model.profiles, len(model.statistics), len(BET_SIZES)))
        for name, model in models.items()
    }
    scores = {name: [account[name].scores(statistics[name]) for account in accounts] for name in models}
    for start in range(0, longest, QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, longest)
        e_values = {name: _padded(models[name], scores[name], start, end) for name in models}
        for query in range(start, end):
            for name in models:
                sums[name] = advance(sums[name], e_values[name][:, query - start])
            spoken = np.stack([log_by_profile(sums[name]) for name in models])
            paths[:, query] = combined(spoken, len(models))
    return [path[:length] for path, length in zip(paths, lengths, strict=True)]


def _padded(model: EvidenceModel, scores: Sequence[NDArray[np.float64]], start: int, end: int) -> NDArray[np.float64]:
    """[accounts, end - start, P, S], e-values of those queries; NaN beyond an account's last."""
    table = np.full((len(scores), end - start, len(model.statistics)), np.nan)
    for row, mine in enumerate(scores):
        part = mine[start:end]
        table[row, : len(part)] = part
    history = np.tile(np.arange(start, end), len(scores))
    flat = model.e_values(table.reshape(-1, table.shape[2]), history)
    return flat.reshape(len(scores), end - start, model.profiles, table.shape[2])


# ---- the last word ----


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


def confidence_interval(found: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson limits of a share, each held with the given one-sided confidence."""
    lower = float(beta_distribution.ppf(1 - confidence, found, of - found + 1)) if found else 0.0
    upper = float(beta_distribution.ppf(confidence, found + 1, of - found)) if found < of else 1.0
    return lower, upper


def bootstrapped_interval(
    found: NDArray[np.int64], of: NDArray[np.int64], seed: int, confidence: float = 0.95, draws: int = 2_000
) -> tuple[float, float]:
    """Limits of a share of queries, each held with the given one-sided confidence; accounts are drawn, not queries.

    Args:
        found: [accounts] queries of each that were found.
        of: [accounts] queries of each.
        seed: of the draws.
        confidence: one-sided.
        draws: of as many accounts as there are, with replacement.
    """
    rows = np.random.default_rng(seed).integers(0, len(found), (draws, len(found)))
    shares = found[rows].sum(axis=1) / np.maximum(of[rows].sum(axis=1), 1)
    lower, upper = np.quantile(shares, [1 - confidence, confidence])
    return float(lower), float(upper)
