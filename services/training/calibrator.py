"""All thresholds of a bundle from two populations of honest accounts: calibration makes them, holdout judges them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.training import calibration, papers
from services.training.calibration import Statistics
from services.training.tracing import DETECTORS, Traces
from shared.bundle import LikelihoodSection, PradaSection, SimilaritySection, TmspSection
from shared.evidence import EvidenceModel

SMALLEST_THRESHOLD = float(np.log(1e6))
"""The e-detectors' own promise: a million honest queries between false alarms, on average."""

STATISTICS: Statistics = {kind.name: kind.statistics for kind in DETECTORS}


@dataclass(frozen=True, slots=True)
class Rates:
    """The false alarms that thresholds are set to."""

    query: float = 0.05
    """Share of honest queries that TMSP may flag."""
    pair: float = 0.005
    """Share of honest queries that may find a similar earlier one: 50 pairs an alarm make 0.01% alarms a query, the
    rate that TR 2021-126 tunes for."""
    account: float = 0.05
    """Share of calibration accounts that each paper's rule may condemn."""
    evidence: float = 0.01
    """Share of holdout accounts that may ever reach the evidence's threshold."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibration found.

    Attributes:
        sections: fields of the manifest: profiles, tmsp, prada, similarity, likelihood, evidence and
            false_positive_rates.
        models: evidence of each detector.
        largest: [holdout accounts] the largest log evidence that each reached.
    """

    sections: Mapping[str, Any]
    models: Mapping[str, EvidenceModel]
    largest: NDArray[np.float64]


class Calibrator:
    """Calibrates on traces; T and lambda, on which TMSP's own trace depends, are found before."""

    def __init__(
        self, rates: Rates, tmsp: Mapping[str, float], data_variance: float, seed: int,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        """
        Args:
            rates: what thresholds are set to.
            tmsp: fields `temperature` and `lambda`.
            data_variance: of the likelihood's section.
            seed: of clustering, folds and confidence limits.
            say: told what was found.
        """
        self._rates, self._tmsp, self._data_variance = rates, tmsp, data_variance
        self._seed, self._say = seed, say

    def calibrate(self, accounts: Sequence[Traces], holdout: Sequence[Traces]) -> Calibration:
        """Thresholds and evidence from `accounts`, the last word and the rates from `holdout`."""
        sections: dict[str, Any] = {"profiles": calibration.PROFILES, "tmsp": self._suspicion(accounts)}
        sections["prada"] = {"delta": self._quantile([_smallest_w(account) for account in accounts], high=False)}
        sections["similarity"] = {"delta": self._pair_delta(accounts)}
        sections["likelihood"] = self._likelihood(accounts)
        models = calibration.evidence_models(STATISTICS, accounts, self._seed)
        for name, model in models.items():
            pairs = zip(model.statistics, model.discount, strict=True)
            self._say(f"discounts, {name}: " + ", ".join(f"{s} {min(d):.2f} to {max(d):.1f}" for s, d in pairs))
        paths = calibration.evidence_paths(STATISTICS, models, holdout)
        largest = np.array([path.max(initial=0.0) for path in paths])
        sections["evidence"] = self._last_word(largest, holdout)
        sections["false_positive_rates"] = self._false_positives(sections, holdout)
        return Calibration(sections, models, largest)

    def _quantile(self, values: Sequence[float], high: bool) -> float:
        return papers.quantile_over_accounts(values, self._rates.account, high)

    def _suspicion(self, accounts: Sequence[Traces]) -> dict[str, float]:
        warm_up = TmspSection.model_fields["warm_up"].default
        largest = [papers.largest_suspicion(_column(a, "tmsp"), self._tmsp["lambda"], warm_up) for a in accounts]
        return {**self._tmsp, "suspicion": self._quantile(largest, high=True)}

    def _pair_delta(self, accounts: Sequence[Traces]) -> float:
        nearest = np.concatenate([_column(account, "similarity") for account in accounts])
        return float(np.quantile(nearest[np.isfinite(nearest)], self._rates.pair))

    def _likelihood(self, accounts: Sequence[Traces]) -> dict[str, float]:
        benign_mean = float(np.concatenate([_column(account, "likelihood") for account in accounts]).mean())
        warm_up = LikelihoodSection.model_fields["warm_up"].default
        needed = [papers.needed_beta(_column(account, "likelihood"), benign_mean, warm_up) for account in accounts]
        beta = max(self._quantile(needed, high=True), 1e-6)
        return {"benign_mean": benign_mean, "beta": beta, "data_variance": self._data_variance}

    def _last_word(self, largest: NDArray[np.float64], holdout: Sequence[Traces]) -> dict[str, Any]:
        threshold, alarmed = calibration.account_threshold(largest, SMALLEST_THRESHOLD, self._rates.evidence)
        return {
            "log_threshold": threshold,
            "accounts": len(holdout),
            "alarmed": alarmed,
            "alarm_rate_upper": calibration.confidence_interval(alarmed, len(holdout))[1],
            "queries_an_account": max(int(account["tmsp"].rows[-1]) + 1 for account in holdout),
        }

    def _false_positives(self, sections: Mapping[str, Any], holdout: Sequence[Traces]) -> dict[str, dict[str, float]]:
        """Shares on the holdout: of queries for TMSP's flag and similar pairs, of accounts for each rule."""
        tmsp = TmspSection.model_validate(sections["tmsp"])
        likelihood = LikelihoodSection.model_validate(sections["likelihood"])
        similarity = SimilaritySection.model_validate(sections["similarity"])
        flags = [_column(account, "tmsp") <= tmsp.lambda_ for account in holdout]
        pairs = [_column(account, "similarity") < similarity.delta for account in holdout]
        suspicious = [
            papers.largest_suspicion(_column(account, "tmsp"), tmsp.lambda_, tmsp.warm_up) > tmsp.suspicion
            for account in holdout
        ]
        return {
            "tmsp, queries": self._of_queries(flags),
            "tmsp, accounts": _of_accounts(suspicious),
            "prada, accounts": _of_accounts([_smallest_w(a) < sections["prada"]["delta"] for a in holdout]),
            "similarity, pairs a query": self._of_queries(pairs),
            "similarity, accounts": _of_accounts([found.sum() >= similarity.pairs for found in pairs]),
            "likelihood, accounts": _of_accounts(
                [papers.flags_anyone(likelihood, _column(account, "likelihood")) for account in holdout]
            ),
            "evidence, accounts": _share(sections["evidence"]["alarmed"], len(holdout)),
        }

    def _of_queries(self, flags: Sequence[NDArray[np.bool_]]) -> dict[str, float]:
        found = np.array([int(flag.sum()) for flag in flags])
        of = np.array([len(flag) for flag in flags])
        lower, upper = calibration.bootstrapped_interval(found, of, self._seed)
        return {"share": float(found.sum() / of.sum()), "lower": lower, "upper": upper}


def _column(account: Traces, detector: str) -> NDArray[np.float32]:
    """[m], the detector's first statistic."""
    return account[detector].values[:, 0]


def _smallest_w(account: Traces) -> float:
    values = _column(account, "prada")
    return papers.smallest_w(values[np.isfinite(values)], PradaSection(delta=0.0))


def _share(found: int, of: int) -> dict[str, float]:
    lower, upper = calibration.confidence_interval(found, of)
    return {"share": found / of, "lower": lower, "upper": upper}


def _of_accounts(condemned: Sequence[bool]) -> dict[str, float]:
    return _share(int(np.sum(condemned)), len(condemned))
