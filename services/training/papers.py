"""The constants of the papers' own rules, each found on honest accounts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.prada.detector import shapiro_wilk
from shared.bundle import LikelihoodSection, PradaSection
from shared.softmax import tmsp

TEMPERATURES = np.geomspace(0.5, 20.0, 32)


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
    for temperature in TEMPERATURES:
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


def smallest_w(distances: NDArray[np.floating], section: PradaSection) -> float:
    """The smallest Shapiro-Wilk W that PRADA meets over an account's distances; 1 where it never tests."""
    found = [
        shapiro_wilk(distances[max(0, end - section.window) : end].astype(np.float64), section.warm_up)
        for end in range(section.test_every, len(distances) + 1, section.test_every)
    ]
    return float(np.nanmin(found)) if np.isfinite(found).any() else 1.0


def largest_suspicion(values: NDArray[np.floating], threshold: float, warm_up: int) -> float:
    """The largest suspicion S (AMAO eq. 10) that an account ever has once it is warm."""
    suspicion = np.cumsum(values <= threshold) / np.arange(1, len(values) + 1)
    return float(suspicion[warm_up:].max()) if len(suspicion) > warm_up else 0.0


def needed_beta(log_likelihoods: NDArray[np.floating], benign_mean: float, warm_up: int) -> float:
    """The smallest beta at which the interval's upper end never falls below `benign_mean` for this account."""
    means = np.cumsum(log_likelihoods, dtype=np.float64) / np.arange(1, len(log_likelihoods) + 1)
    means = means[warm_up:]
    counts = np.arange(1, len(means) + 1)
    first = np.cumsum(means) / counts
    variance = (np.cumsum(means**2) - counts * first**2) / np.maximum(counts - 1, 1)
    deviation = np.sqrt(np.maximum(variance, 0.0))[1:]
    shortfall = (benign_mean - means)[1:]
    return float(np.max(np.where(shortfall > 0, shortfall / np.maximum(deviation, 1e-12), 0.0), initial=0.0))


def flags_anyone(section: LikelihoodSection, log_likelihoods: NDArray[np.floating]) -> bool:
    """Whether the likelihood's rule ever flags this account."""
    return needed_beta(log_likelihoods, section.benign_mean, section.warm_up) > section.beta
