"""Evidence against an account in one currency: conformal bets on its queries, summed by e-detectors.

The papers' rules (a share over a threshold, W under delta, 50 pairs, an interval) cannot be compared or added, and none
says how often an honest account will be hurt. Evidence can. The unit of honesty is the account: honest accounts differ
from each other, so an account is suspect only when it is unlike every honest profile.

- *Profiles*: sorted scores of calibration accounts, clustered; for each profile, statistic and history size.
- *Bets*: a query's conformal p-value under a profile is its rank among that profile's scores. Several gamblers bet on
  it: some by the mixture of power calibrators of Vovk and Wang (E-values: calibration, combination and applications,
  2021, eq. 2), some on the few smallest p-values alone; some stake all of their wealth, and some little, so that a few
  bad queries among many good ones still pay.
- *E-detectors*: the Shiryaev-Roberts sum `R = e (R + 1)` (Shin, Ramdas, Rinaldo, E-detectors, 2022), averaged over bets
  and statistics; averages are valid whatever their dependence. A threshold of 1/alpha on R gives at least 1/alpha
  honest queries between false alarms on average.
- *Leash*: no profile's R exceeds `leash` times the smallest, so that an honest account that changes from one profile to
  another does not carry the first one's doubts along.
- *Discount*: what a bet on a statistic pays is divided by the most that it paid a calibration account on average, under
  profiles that exclude the account.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

LEASH = 30.0
"""Largest ratio between a profile's R and the smallest."""
LARGEST_R = 1e12
"""R is capped, so that an account can regain its innocence."""


def e_value(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mixture over k in (0, 1) of the power calibrators k p^(k-1): (1 - p + p ln p) / (p ln(p)^2).

    Args:
        p: p-values in (0, 1], any shape.

    Returns:
        E-values of the same shape; their mean is at most 1 where `p` is uniform or larger.
    """
    p = np.asarray(p, dtype=np.float64)
    log_p = np.log(p)
    # At p = 1 the quotient is 0/0; its limit is 1/2.
    near_one = log_p > -1e-4
    safe = np.where(near_one, -1.0, log_p)
    return np.where(near_one, 0.5, (1 - p + p * log_p) / (p * safe**2))


@dataclass(frozen=True, slots=True)
class Bet:
    """One way to bet against an honest profile.

    Attributes:
        size: share of the wealth that is staked on each query.
        tail: the p-value up to which the bet pays, equally; by the mixture of power calibrators where None.
    """

    size: float
    tail: float | None = None

    def payoff(self, tails: NDArray[np.float64]) -> NDArray[np.float64]:
        """[G], what each unit of the stake becomes at p-values that were rounded up to one of these; a fair bet.

        Args:
            tails: [G] descending from 1.
        """
        if self.tail is None:
            return e_value(tails)
        pays = tails <= self.tail
        likelihood = tails[pays].max(initial=0.0)
        return pays / (likelihood or 1.0)


BETS = (Bet(0.1), Bet(1.0), Bet(0.02, 0.01), Bet(0.1, 0.01), Bet(0.02, 0.003), Bet(0.1, 0.003))
"""Where one query in eight is crafted, seven cost an eighth of a stake of 0.02 and half of one of 0.1: the smaller one
wins. What pays at small p-values alone is discounted least, since honest accounts differ least there."""


@dataclass(frozen=True, slots=True)
class EvidenceModel:
    """The calibrated part of a detector's evidence: P profiles, S statistics, H history sizes, G tail probabilities.

    Scores are oriented: larger is more suspicious.

    Attributes:
        statistics: [S] names.
        history_edges: [H - 1], ascending; history size h is the number of edges that are <= the number of queries
            that the account sent before.
        tails: [G] descending tail probabilities, the first is 1.
        thresholds: [P, S, H, G] float32; a score of at least `thresholds[..., g]` has a conformal p-value of at most
            `tails[g]`. Infinite where the calibration data is too small to tell.
        discount: [S, B], at least 1; for each statistic, of each of the `BETS`.
    """

    statistics: tuple[str, ...]
    history_edges: NDArray[np.int64]
    tails: NDArray[np.float64]
    thresholds: NDArray[np.float32]
    discount: NDArray[np.float64]
    _factors: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    """[S, G + 1, B]; the last row is of a query without a score."""
    _by_history: NDArray[np.float32] = field(init=False, repr=False, compare=False)
    """[H, P, S, G - 1], `thresholds` without the first, which every score reaches."""

    def __post_init__(self) -> None:
        fitting = (len(self.statistics), len(self.history_edges) + 1, len(self.tails))
        if self.thresholds.ndim != 4 or self.thresholds.shape[1:] != fitting:
            raise ValueError(f"thresholds of shape {self.thresholds.shape} do not fit the other arrays")
        discounts = (len(self.statistics), len(BETS))
        if not len(self.thresholds) or self.discount.shape != discounts or not (self.discount >= 1).all():
            raise ValueError("there must be a profile, and for each statistic and bet a discount of at least 1")
        if self.tails[0] != 1.0 or not (np.diff(self.tails) < 0).all() or not self.tails[-1] > 0:
            raise ValueError("tails must descend from 1 and stay above 0")
        if (np.diff(self.history_edges) <= 0).any():
            raise ValueError("history edges must ascend")
        if not (self.thresholds[..., 2:] >= self.thresholds[..., 1:-1]).all():
            raise ValueError("thresholds must be numbers and ascend as the tails fall")
        sizes = np.array([bet.size for bet in BETS])
        payoffs = np.stack([bet.payoff(self.tails) for bet in BETS], axis=1)
        factors = 1 - sizes + sizes * payoffs / self.discount[:, None]
        silent = np.full((len(self.statistics), 1, len(BETS)), np.nan)
        object.__setattr__(self, "_factors", np.concatenate([factors, silent], axis=1))
        by_history = np.ascontiguousarray(self.thresholds[..., 1:].transpose(2, 0, 1, 3))
        object.__setattr__(self, "_by_history", by_history)

    @property
    def profiles(self) -> int:
        """P, the number of honest profiles."""
        return int(self.thresholds.shape[0])

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """As a safetensors file keeps it; the names of the statistics are the detector's."""
        return {
            "history_edges": self.history_edges,
            "tails": self.tails,
            "thresholds": self.thresholds,
            "discount": self.discount,
        }

    @classmethod
    def from_tensors(cls, statistics: Sequence[str], tensors: Mapping[str, NDArray[np.generic]]) -> EvidenceModel:
        """The inverse of `tensors`.

        Raises:
            KeyError: a tensor is missing.
            ValueError: the tensors do not fit each other or the statistics.
        """
        return cls(
            statistics=tuple(statistics),
            history_edges=tensors["history_edges"].astype(np.int64),
            tails=tensors["tails"].astype(np.float64),
            thresholds=tensors["thresholds"].astype(np.float32),
            discount=tensors["discount"].astype(np.float64),
        )

    def ranks(self, scores: NDArray[np.float64], history: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n, P, S], how rare each score is under each profile: the number of its p-value among `tails`.

        Args:
            scores: [n, S] oriented scores; NaN where a query has none.
            history: [n], how many queries the account had sent before each.

        Returns:
            In 0 to G - 1; -1 where there is no score.
        """
        thresholds = self._by_history[np.searchsorted(self.history_edges, history, side="right")]
        # Thresholds ascend with falling tails, so counting them finds the rank without a search for each profile.
        rank = np.count_nonzero(scores.astype(np.float32)[:, None, :, None] >= thresholds, axis=-1)
        return np.where(np.isnan(scores)[:, None, :], -1, rank)

    def factors(self, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
        """[..., P, S, B], by what each query multiplies each gambler's wealth; NaN where it says nothing.

        Args:
            ranks: [..., P, S] of `ranks`.
        """
        # A rank of -1 takes the last row.
        return self._factors[np.arange(len(self.statistics)), ranks]

    def bets(self, scores: NDArray[np.float64], history: NDArray[np.int64]) -> NDArray[np.float64]:
        """[n, P, S, B], `factors` of the `ranks` of scores."""
        return self.factors(self.ranks(scores, history))


Sums = NDArray[np.float64]
"""[..., P, S, B]: R for each profile, statistic and bet; leading axes are accounts, where there are many."""


def advance(sums: Sums, factors: NDArray[np.float64]) -> Sums:
    """The sums after one more query of each account.

    Args:
        sums: [..., P, S, B].
        factors: [..., P, S, B]; where NaN, the sum stays as it is (the query says nothing).
    """
    grown = np.where(np.isnan(factors), sums, np.minimum(factors * (sums + 1.0), LARGEST_R))
    by_profile = grown.reshape(*grown.shape[:-2], -1).mean(axis=-1)
    # Below 1 a sum says nothing, so the leash hangs no lower.
    limit = LEASH * np.maximum(by_profile.min(axis=-1, keepdims=True), 1.0)
    if (by_profile > limit).any():
        grown = grown * np.minimum(1.0, limit / np.maximum(by_profile, limit))[..., None, None]
    return grown


def log_by_profile(sums: Sums) -> NDArray[np.float32]:
    """[..., P], natural logarithm of R averaged over statistics and bets; floored at 0, where it says nothing."""
    flat = sums.reshape(*sums.shape[:-2], -1)
    by_profile = np.add.reduce(flat, axis=-1) / flat.shape[-1]
    logarithms: NDArray[np.float64] = np.log(np.maximum(by_profile, 1.0))
    return logarithms.astype(np.float32)


class EvidenceState:
    """The Shiryaev-Roberts sums of one account: R for each profile, statistic and bet."""

    __slots__ = ("sums",)

    def __init__(self, sums: Sums) -> None:
        self.sums = sums
        """[P, S, B]"""

    @classmethod
    def initial(cls, model: EvidenceModel) -> EvidenceState:
        """An account of which nothing is known."""
        return cls(np.zeros((model.profiles, len(model.statistics), len(BETS))))

    def absorb(self, factors: NDArray[np.float64]) -> None:
        """Take in an account's queries in order; cutting them anywhere gives the same sums bit for bit.

        Args:
            factors: [n, P, S, B]; where NaN, the sum stays as it is (the query says nothing).
        """
        # `advance`, bit for bit, in place: here every query of every account comes by.
        queries, profiles, width = len(factors), len(self.sums), self.sums[0].size
        multiply = factors.reshape(queries, profiles, width)
        silent = np.isnan(multiply)
        add: Iterable[NDArray[np.float64] | float] = itertools.repeat(1.0, queries)
        if silent.any():
            multiply, add = np.where(silent, 1.0, multiply), np.where(silent, 0.0, 1.0)
        sums = self.sums.reshape(profiles, width).copy()
        for by, more in zip(multiply, add, strict=True):
            sums += more
            sums *= by
            np.minimum(sums, LARGEST_R, out=sums)
            by_profile = np.add.reduce(sums, axis=1)
            by_profile /= width
            limit = LEASH * max(float(np.minimum.reduce(by_profile)), 1.0)
            if float(np.maximum.reduce(by_profile)) > limit:
                sums *= np.minimum(1.0, limit / np.maximum(by_profile, limit))[:, None]
        self.sums = sums.reshape(self.sums.shape)

    def log_evidence(self) -> NDArray[np.float32]:
        """[P], as `log_by_profile`."""
        return log_by_profile(self.sums)


def combine(log_evidence: Sequence[NDArray[np.float32]], detectors: int) -> float:
    """The account's evidence over all detectors: the smallest, over the profiles, of the averages of R.

    Args:
        log_evidence: the latest vector [P] of each detector that has spoken.
        detectors: how many there are; one that has not spoken counts as R = 0, which errs on the account's side.

    Returns:
        Natural logarithm, at least 0.

    Raises:
        ValueError: more vectors than detectors, or vectors of different lengths.
    """
    if len(log_evidence) > detectors:
        raise ValueError(f"{len(log_evidence)} detectors spoke where there are {detectors}")
    return float(combined(np.stack(log_evidence), detectors)) if log_evidence else 0.0


def combined(log_evidence: NDArray[np.float32], detectors: int) -> NDArray[np.float64]:
    """`combine` for many accounts at once: [spoken detectors, ..., P] to [...]."""
    sums = np.exp(log_evidence.astype(np.float64)).sum(axis=0) / detectors
    logarithms: NDArray[np.float64] = np.log(np.maximum(sums.min(axis=-1), 1.0))
    return logarithms
