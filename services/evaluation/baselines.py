"""The papers' rules, each with one threshold, so that all can be compared at one rate of falsely condemned accounts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from services.prada.detector import shapiro_wilk
from services.training import papers
from services.training.tracing import Traces
from shared.bundle import Bundle


class PaperRule(ABC):
    """A rule that condemns an account once its statistic passes a threshold."""

    name: ClassVar[str]
    high: ClassVar[bool]
    """Whether large values condemn."""

    def __init__(self, bundle: Bundle) -> None:
        """
        Args:
            bundle: its constants other than the threshold.
        """
        self.manifest = bundle.manifest

    @abstractmethod
    def extreme(self, account: Traces) -> float:
        """The threshold at which the account would just not be condemned, or just be."""

    @abstractmethod
    def path(self, account: Traces, threshold: float) -> NDArray[np.bool_]:
        """[m], whether the rule condemns after each query that counted."""

    def threshold(self, honest: Sequence[Traces], share: float) -> float:
        """That condemns at most `share` of the honest accounts."""
        extremes = [self.extreme(account) for account in honest]
        return papers.quantile_over_accounts(extremes, share, self.high)

    def first_alarm(self, account: Traces, threshold: float) -> int | None:
        """The query at which the rule condemns; None if never."""
        found = np.flatnonzero(self.path(account, threshold))
        return int(next(iter(account.values())).rows[found[0]]) if len(found) else None


class Suspicion(PaperRule):
    """AMAO, eq. 10: the share of queries that TMSP flags."""

    name = "TMSP (AMAO)"
    high = True

    def extreme(self, account: Traces) -> float:
        section = self.manifest.tmsp
        return papers.largest_suspicion(account["tmsp"].values[:, 0], section.lambda_, section.warm_up)

    def path(self, account: Traces, threshold: float) -> NDArray[np.bool_]:
        values = account["tmsp"].values[:, 0]
        counts = np.arange(1, len(values) + 1)
        suspicion = np.cumsum(values <= self.manifest.tmsp.lambda_) / counts
        return (suspicion > threshold) & (counts > self.manifest.tmsp.warm_up)


class Normality(PaperRule):
    """PRADA: Shapiro-Wilk W of the distances."""

    name = "PRADA"
    high = False

    def extreme(self, account: Traces) -> float:
        values = account["prada"].values[:, 0]
        return papers.smallest_w(values[np.isfinite(values)], self.manifest.prada)

    def path(self, account: Traces, threshold: float) -> NDArray[np.bool_]:
        values, section = account["prada"].values[:, 0].astype(np.float64), self.manifest.prada
        known = np.flatnonzero(np.isfinite(values))
        condemned = np.zeros(len(values), dtype=np.bool_)
        for end in range(section.test_every, len(known) + 1, section.test_every):
            w = shapiro_wilk(values[known[max(0, end - section.window) : end]], section.warm_up)
            condemned[known[end - 1]] = w < threshold
        return condemned


class Pairs(PaperRule):
    """TR 2021-126, VI-A: similar pairs; the threshold is delta."""

    name = "similar pairs (TR 2021-126)"
    high = False

    def extreme(self, account: Traces) -> float:
        distances = account["similarity"].values[:, 0]
        known = np.sort(distances[np.isfinite(distances)])
        pairs = self.manifest.similarity.pairs
        return float(known[pairs - 1]) if len(known) >= pairs else float("inf")

    def path(self, account: Traces, threshold: float) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.cumsum(account["similarity"].values[:, 0] < threshold) >= (
            self.manifest.similarity.pairs
        )
        return found


class Credibility(PaperRule):
    """TR 2021-126, VI-B: the running mean's credibility interval; the threshold is beta."""

    name = "likelihood (TR 2021-126)"
    high = True

    def extreme(self, account: Traces) -> float:
        section = self.manifest.likelihood
        return papers.needed_beta(account["likelihood"].values[:, 0], section.benign_mean, section.warm_up)

    def path(self, account: Traces, threshold: float) -> NDArray[np.bool_]:
        section, values = self.manifest.likelihood, account["likelihood"].values[:, 0]
        means = np.cumsum(values, dtype=np.float64) / np.arange(1, len(values) + 1)
        warm = means[section.warm_up :]
        counts = np.arange(1, len(warm) + 1)
        variance = (np.cumsum(warm**2) - np.cumsum(warm) ** 2 / counts) / np.maximum(counts - 1, 1)
        upper = warm + threshold * np.sqrt(np.maximum(variance, 0.0))
        condemned = np.zeros(len(values), dtype=np.bool_)
        condemned[section.warm_up :] = (upper < section.benign_mean) & (counts > 1)
        return condemned


PAPER_RULES: tuple[type[PaperRule], ...] = (Suspicion, Normality, Pairs, Credibility)
