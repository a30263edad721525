"""When the decision would have acted on a stream: evidence over all detectors against the bundle's threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.training.calibration import evidence_paths
from services.training.calibrator import STATISTICS
from services.training.tracing import DETECTORS, Traces
from shared.bundle import Bundle
from shared.evidence import EvidenceModel

LEAST_QUERIES = 50
"""Of an account before the default policy's rule `extraction` may fire."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Evidence and its threshold, as a bundle or a calibration has them."""

    models: Mapping[str, EvidenceModel]
    log_threshold: float

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Judge:
        """As the services would judge."""
        models = {kind.name: kind.calibrated_evidence(bundle) for kind in DETECTORS}
        return cls(models, bundle.manifest.evidence.log_threshold)

    def paths(self, accounts: Sequence[Traces]) -> list[NDArray[np.float64]]:
        """For each account [m], its log evidence after each query that counted."""
        return evidence_paths(STATISTICS, self.models, accounts)

    def first_alarms(self, accounts: Sequence[Traces]) -> list[int | None]:
        """For each account the number (from 0) of the query at which its answers begin to be spoiled; None if never."""
        return alarms_on(self.paths(accounts), accounts, self.log_threshold)


def alarms_on(
    paths: Sequence[NDArray[np.float64]], accounts: Sequence[Traces], log_threshold: float
) -> list[int | None]:
    """As `Judge.first_alarms`, of evidence that is known already and under any threshold."""
    return [first_alarm(path, account, log_threshold) for path, account in zip(paths, accounts, strict=True)]


def first_alarm(path: NDArray[np.float64], account: Traces, log_threshold: float) -> int | None:
    """The query at which the evidence is over the threshold and the account old enough; None if never."""
    rows = next(iter(account.values())).rows
    over = np.flatnonzero((path >= log_threshold) & (rows + 1 >= LEAST_QUERIES))
    return int(rows[over[0]]) if len(over) else None


def attack_queries_until(alarm: int | None, attacking: NDArray[np.bool_]) -> int | None:
    """Queries of the attack proper up to the alarm, its own one included; None without an alarm."""
    return None if alarm is None else int(attacking[: alarm + 1].sum())
