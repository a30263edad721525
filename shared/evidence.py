"""Evidence against an account in one currency: conformal bets on its queries, summed by e-detectors.

The papers' rules (a share over a threshold, W under delta, 50 pairs, an interval) cannot be compared or added, and none
says how often an honest account will be hurt. Evidence can. The unit of honesty is the account: honest accounts differ
from each other, so an account is suspect only when it is unlike every honest profile.

- *Profiles*: sorted scores of calibration accounts, clustered; for each profile, statistic and history size.
- *Bets*: a query's conformal p-value under a profile is its rank among that profile's scores; its e-value is the
  mixture of power calibrators of Vovk and Wang (E-values: calibration, combination and applications, 2021, eq. 2),
  hedged over bet sizes so that a few bad queries among many good ones still pay.
- *E-detectors*: the Shiryaev-Roberts sum `R = e (R + 1)` (Shin, Ramdas, Rinaldo, E-detectors, 2022), averaged over bet
  sizes and statistics; averages are valid whatever their dependence. A threshold of 1/alpha on R gives at least 1/alpha
  honest queries between false alarms on average.
- *Leash*: no profile's R exceeds `leash` times the smallest, so that an honest account that changes from one profile to
  another does not carry the first one's doubts along.
- *Discount*: a statistic's e-values are divided by the largest mean e-value that calibration accounts reach under
  profiles that exclude them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BET_SIZES = np.array([0.05, 0.25, 1.0])
"""Shares of the wealth that are staked on each query."""
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
        discount: [S], at least 1.
    """

    statistics: tuple[str, ...]
    history_edges: NDArray[np.int64]
    tails: NDArray[np.float64]
    thresholds: NDArray[np.float32]
    discount: NDArray[np.float64]

    def __post_init__(self) -> None:
        fitting = (len(self.statistics), len(self.history_edges) + 1, len(self.tails))
        if self.thresholds.ndim != 4 or self.thresholds.shape[1:] != fitting:
            raise ValueError(f"thresholds of shape {self.thresholds.shape} do not fit the other arrays")
        if not len(self.thresholds) or self.discount.shape != fitting[:1] or not (self.discount >= 1).all():
            raise ValueError("there must be a profile, and for each statistic a discount of at least 1")
        if self.tails[0] != 1.0 or not (np.diff(self.tails) < 0).all() or not self.tails[-1] > 0:
            raise ValueError("tails must descend from 1 and stay above 0")
        if (np.diff(self.history_edges) <= 0).any():
            raise ValueError("history edges must ascend")
        if not (self.thresholds[..., 2:] >= self.thresholds[..., 1:-1]).all():
            raise ValueError("thresholds must be numbers and ascend as the tails fall")

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

    def e_values(self, scores: NDArray[np.float64], history: NDArray[np.int64]) -> NDArray[np.float64]:
        """Discounted e-values of queries under every profile.

        Args:
            scores: [n, S] oriented scores; NaN where a query has none.
            history: [n], how many queries the account had sent before each.

        Returns:
            [n, P, S]; NaN where the score is.
        """
        size = np.searchsorted(self.history_edges, history, side="right")
        thresholds = self.thresholds[:, :, size].transpose(2, 0, 1, 3)
        # Thresholds ascend with falling tails, so counting them finds the rank without a search for each profile.
        rank = (scores.astype(np.float32)[:, None, :, None] >= thresholds[..., 1:]).sum(axis=-1)
        table = e_value(self.tails)[:, None] / self.discount
        values = table[rank, np.arange(len(self.statistics))]
        return np.where(np.isnan(scores)[:, None, :], np.nan, values)


Sums = NDArray[np.float64]
"""[..., P, S, B]: R for each profile, statistic and bet size; leading axes are accounts, where there are many."""


def advance(sums: Sums, e_values: NDArray[np.float64]) -> Sums:
    """The sums after one more query of each account.

    Args:
        sums: [..., P, S, B].
        e_values: [..., P, S]; where NaN, the sum stays as it is (the query says nothing).
    """
    bets = 1 - BET_SIZES + BET_SIZES * e_values[..., None]
    grown = np.where(np.isnan(bets), sums, np.minimum(bets * (sums + 1.0), LARGEST_R))
    by_profile = grown.mean(axis=(-2, -1))
    # Below 1 a sum says nothing, so the leash hangs no lower.
    limit = LEASH * np.maximum(by_profile.min(axis=-1, keepdims=True), 1.0)
    if (by_profile > limit).any():
        grown = grown * np.minimum(1.0, limit / np.maximum(by_profile, limit))[..., None, None]
    return grown


def log_by_profile(sums: Sums) -> NDArray[np.float32]:
    """[..., P], natural logarithm of R averaged over statistics and bet sizes; floored at 0, where it says nothing."""
    logarithms: NDArray[np.float64] = np.log(np.maximum(sums.mean(axis=(-2, -1)), 1.0))
    return logarithms.astype(np.float32)


class EvidenceState:
    """The Shiryaev-Roberts sums of one account: R for each profile, statistic and bet size."""

    __slots__ = ("sums",)

    def __init__(self, sums: Sums) -> None:
        self.sums = sums
        """[P, S, B]"""

    @classmethod
    def initial(cls, model: EvidenceModel) -> EvidenceState:
        """An account of which nothing is known."""
        return cls(np.zeros((model.profiles, len(model.statistics), len(BET_SIZES))))

    def absorb(self, e_values: NDArray[np.float64]) -> None:
        """Take in an account's queries in order; cutting them anywhere gives the same sums bit for bit.

        Args:
            e_values: [n, P, S]; where NaN, the sum stays as it is (the query says nothing).
        """
        for row in e_values:
            self.sums = advance(self.sums, row)

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
