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
from shared.evidence import BETS, EvidenceModel, advance, combined, log_by_profile

Statistics = Mapping[str, Sequence[Statistic]]
"""Of each detector, by its name."""

HISTORY_EDGES = np.array([64, 256, 1024])
"""Queries sent before, at which calibration begins anew: a nearest-neighbour distance shrinks as history grows."""
TAILS = np.geomspace(1.0, 1e-4, 64)
"""Tail probabilities at which sorted scores are kept; a p-value is rounded up to the next."""
PROFILES = 24
"""Honest profiles. All accounts pooled are none of them: where films are, near repeats are common to all, and an attack
that hides among single photographs would be found honest."""
ENOUGH = 200
"""Scores of one profile, statistic and history size that are worth sorting."""
DOUBTS = np.array([100.0 if bet.tail is None else 3.0 / bet.tail for bet in BETS])
"""[B], imagined queries that pay an even 1 in every account's mean: over few real ones it is mostly chance. A bet on
the three rarest in a thousand has a thousand of them."""
MARGIN = 1.5
"""On the discount: the most that any of some hundred accounts won says little of the most among the next thousands."""
FOLDS = 4
"""Parts of the calibration accounts; each is bet against under profiles of the others to find the discount."""
QUERIES_AT_ONCE = 16
"""Of each account, when many accounts are followed side by side."""
ROUNDS = 12
"""Most rounds in which accounts choose their profiles again under the discounts that their choices led to."""


def silent_evidence(statistics: Sequence[Statistic]) -> EvidenceModel:
    """Evidence that no score moves, for the time before there is a better one."""
    thresholds = np.full((1, len(statistics), 1, 2), np.inf, dtype=np.float32)
    names = tuple(statistic.name for statistic in statistics)
    return EvidenceModel(
        names, np.array([], dtype=np.int64), np.array([1.0, 0.5]), thresholds, np.ones((len(statistics), len(BETS)))
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
    """[profiles, S, H, G]; where there are fewer clusters than profiles, the first one repeats.

    Where a profile has fewer than `ENOUGH` scores, all accounts speak for it: a profile that cannot be contradicted
    would shelter every attack. Where they too have few, those of the next smaller history do.
    """
    scores = [account[detector].scores(statistics) for account in accounts]
    sizes = [np.searchsorted(HISTORY_EDGES, account[detector].history, side="right") for account in accounts]
    pooled = _thresholds(np.concatenate(scores), np.concatenate(sizes))
    for s in range(len(statistics)):
        everything = np.concatenate(scores)[:, s]
        for h in range(len(HISTORY_EDGES) + 1):
            if np.isnan(pooled[s, h, 0]):
                pooled[s, h] = pooled[s, h - 1] if h else tail_thresholds(everything)
    result = np.empty((profiles, *pooled.shape), dtype=np.float32)
    for p in range(profiles):
        members = np.flatnonzero(labels == (p if p <= labels.max() else 0))
        mine = _thresholds(np.concatenate([scores[a] for a in members]), np.concatenate([sizes[a] for a in members]))
        result[p] = np.where(np.isnan(mine), pooled, mine)
    return result


def _thresholds(scores: NDArray[np.float64], sizes: NDArray[np.intp]) -> NDArray[np.float32]:
    """[S, H, G] from [n, S] scores of queries with histories of [n] sizes; NaN where there are fewer than `ENOUGH`."""
    result = np.full((scores.shape[1], len(HISTORY_EDGES) + 1, len(TAILS)), np.nan, dtype=np.float32)
    for s, h in np.ndindex(result.shape[:2]):
        mine = scores[(sizes == h) & np.isfinite(scores[:, s]), s]
        if len(mine) >= ENOUGH:
            result[s, h] = tail_thresholds(mine)
    return result


def _model(
    statistics: Sequence[Statistic], thresholds: NDArray[np.float32], discount: NDArray[np.float64] | None = None
) -> EvidenceModel:
    names = tuple(statistic.name for statistic in statistics)
    discount = np.ones((len(names), len(BETS))) if discount is None else discount
    return EvidenceModel(names, HISTORY_EDGES, TAILS, thresholds, discount)


def pooled_models(statistics: Statistics, accounts: Sequence[Traces]) -> dict[str, EvidenceModel]:
    """One profile of all accounts for each detector, and no discount: how common a score is among honest queries."""
    together = np.zeros(len(accounts), dtype=np.intp)
    return {
        name: _model(mine, profile_thresholds(name, mine, accounts, together, profiles=1))
        for name, mine in statistics.items()
    }


# ---- discount ----


def account_bets(
    detector: str, statistics: Sequence[Statistic], model: EvidenceModel, account: Traces
) -> NDArray[np.float64]:
    """[m, P, S, B], by what an account's queries multiply each gambler's wealth."""
    seen = account[detector]
    return model.bets(seen.scores(statistics), seen.history)


def _mean_payoffs(
    detector: str, statistics: Sequence[Statistic], model: EvidenceModel, account: Traces
) -> NDArray[np.float64]:
    """[P, S, B], what the account's queries, and `DOUBTS` imagined ones, pay each bet on average, undiscounted."""
    seen = account[detector]
    ranks = model.ranks(seen.scores(statistics), seen.history)
    spoken = (ranks >= 0).sum(axis=0)[..., None]
    counts = np.stack([(ranks == rank).sum(axis=0) for rank in range(len(TAILS))], axis=-1)
    payoffs = np.stack([bet.payoff(TAILS) for bet in BETS], axis=1)
    means: NDArray[np.float64] = (counts @ payoffs + DOUBTS) / (spoken + DOUBTS)
    return means


def discounts(statistics: Statistics, accounts: Sequence[Traces], seed: int) -> dict[str, NDArray[np.float64]]:
    """[S, B] for each detector: the most that a bet pays an account on average under its best profile, and a margin.

    Profiles are those of the other accounts. An account's best one is the same for all detectors, since the decision
    takes the smallest over profiles once.
    """
    fold = np.arange(len(accounts)) % FOLDS
    means: list[NDArray[np.float64]] = []
    for part in range(FOLDS):
        others = [a for a, f in zip(accounts, fold, strict=True) if f != part]
        labels = cluster(others, PROFILES, seed + part)
        models = {
            name: _model(mine, profile_thresholds(name, mine, others, labels, PROFILES))
            for name, mine in statistics.items()
        }
        means += [
            np.concatenate([_mean_payoffs(name, mine, models[name], a) for name, mine in statistics.items()], axis=1)
            for a, f in zip(accounts, fold, strict=True)
            if f == part
        ]
    found = MARGIN * smallest_discounts(np.stack(means))
    ends = np.cumsum([len(mine) for mine in statistics.values()])
    return dict(zip(statistics, np.split(found, ends[:-1]), strict=True))


def smallest_discounts(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S, B], at least 1, such that every account has a profile under which no bet pays it more on average.

    Each account chooses the profile under which its worst bet is best, measured by the discounts so far, which can only
    fall by that.

    Args:
        means: [accounts, P, S, B], what bets pay.
    """
    found = np.full(means.shape[2:], np.inf)
    measure = np.ones(means.shape[2:])
    for _ in range(ROUNDS):
        best = (means / measure).max(axis=(2, 3)).argmin(axis=1)
        chosen = np.maximum(means[np.arange(len(means)), best].max(axis=0), 1.0)
        if np.array_equal(chosen, found):
            break
        found = measure = chosen
    return found


def evidence_models(statistics: Statistics, accounts: Sequence[Traces], seed: int) -> dict[str, EvidenceModel]:
    """The evidence of every detector, of `PROFILES` profiles each; profile p is the same accounts for all."""
    labels = cluster(accounts, PROFILES, seed)
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
        name: np.zeros((len(accounts), model.profiles, len(model.statistics), len(BETS)))
        for name, model in models.items()
    }
    scores = {name: [account[name].scores(statistics[name]) for account in accounts] for name in models}
    for start in range(0, longest, QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, longest)
        ranks = {name: _padded(models[name], scores[name], start, end) for name in models}
        for query in range(start, end):
            for name, model in models.items():
                sums[name] = advance(sums[name], model.factors(ranks[name][:, query - start]))
            spoken = np.stack([log_by_profile(sums[name]) for name in models])
            paths[:, query] = combined(spoken, len(models))
    return [path[:length] for path, length in zip(paths, lengths, strict=True)]


def _padded(model: EvidenceModel, scores: Sequence[NDArray[np.float64]], start: int, end: int) -> NDArray[np.int64]:
    """[accounts, end - start, P, S], ranks of those queries; -1 beyond an account's last."""
    table = np.full((len(scores), end - start, len(model.statistics)), np.nan)
    for row, mine in enumerate(scores):
        part = mine[start:end]
        table[row, : len(part)] = part
    history = np.tile(np.arange(start, end), len(scores))
    flat = model.ranks(table.reshape(-1, table.shape[2]), history)
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
