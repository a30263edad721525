"""The papers' rules over traces condemn when the detectors' own rules do, and at the rate that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from services.evaluation.baselines import PAPER_RULES, PaperRule
from services.training.tracing import DETECTORS, Trace, Traces
from shared.bundle import Bundle
from tests.support.bundles import untrained_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained_bundle(tmp_path_factory.mktemp("bundle"))


def account(seed: int, queries: int = 400, bend: float = 1.0) -> Traces:
    """Log-normal distances (normal where `bend` is small), uniform TMSP, likelihoods that sink with `bend`."""
    random = np.random.default_rng(seed)
    columns = {
        "tmsp": random.uniform(0.3, 1.0, queries),
        "prada": np.exp(random.normal(0.0, 0.2 * bend, queries)),
        "similarity": random.uniform(0.0, 1.0, queries),
        "likelihood": random.normal(-100.0 - bend, 1.0, queries),
    }
    columns["prada"][0] = np.nan
    rows = np.arange(queries)
    width = {kind.name: len(kind.statistics) for kind in DETECTORS}
    tables = {name: np.tile(values[:, None], width[name]).astype(np.float32) for name, values in columns.items()}
    return {name: Trace(table, rows, np.ones(table.shape, dtype=np.bool_)) for name, table in tables.items()}


@pytest.mark.parametrize("kind", PAPER_RULES, ids=lambda kind: kind.__name__)
def test_a_threshold_condemns_no_more_accounts_than_it_may(kind: type[PaperRule], bundle: Bundle) -> None:
    rule, honest = kind(bundle), [account(seed, bend=1 + seed / 20) for seed in range(20)]
    threshold = rule.threshold(honest, 0.1)
    condemned = sum(rule.path(one, threshold).any() for one in honest)
    assert condemned <= 2
    assert sum(rule.path(one, threshold * (0.99 if rule.high else 1.01)).any() for one in honest) >= condemned


@pytest.mark.parametrize("kind", PAPER_RULES, ids=lambda kind: kind.__name__)
def test_the_first_alarm_is_the_first_query_at_which_the_rule_condemns(kind: type[PaperRule], bundle: Bundle) -> None:
    rule, one = kind(bundle), account(1)
    loose = rule.extreme(one) * (0.5 if rule.high else 1.5)
    path = rule.path(one, loose)
    assert rule.first_alarm(one, loose) == int(np.flatnonzero(path)[0])
    strict = rule.extreme(one) * (2.0 if rule.high else 0.5)
    assert rule.first_alarm(one, strict) is None
