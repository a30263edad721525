"""Traces are what the running detectors see, are kept, and do not depend on what is calibrated later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress

from services.tmsp.detector import TmspDetector
from services.training.tracing import (
    Recording,
    Tracer,
    honest_plans,
    read_traces,
    trace,
    traced_by,
)
from shared.bundle import Bundle, TmspSection
from shared.datasets import Dataset
from shared.evidence import BETS, EvidenceModel
from shared.population import draw_accounts
from shared.softmax import tmsp
from tests.support.bundles import untrained_bundle


def detector() -> TmspDetector:
    silent = EvidenceModel(
        ("tmsp",), np.array([], dtype=np.int64), np.array([1.0, 0.5]), np.full((1, 1, 1, 2), np.inf, np.float32),
        np.ones((1, len(BETS))),
    )  # fmt: skip
    section = TmspSection.model_validate({"temperature": 2.0, "lambda": 0.5, "suspicion": 0.5})
    return TmspDetector(section, 3, silent, "fingerprint")


@pytest.fixture
def recording() -> Recording:
    """40 queries, of which rows 5 and 11 repeat earlier ones."""
    random = np.random.default_rng(1)
    inputs = random.integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    inputs[5], inputs[11] = inputs[4], inputs[0]
    return Recording(inputs, random.normal(size=(40, 3)).astype(np.float32))


def test_a_trace_holds_the_values_of_all_queries_but_repeats_and_says_where_they_stood(recording: Recording) -> None:
    seen = trace(detector(), recording)
    kept = [row for row in range(40) if row not in (5, 11)]
    assert seen.rows.tolist() == kept
    np.testing.assert_allclose(seen.values[:, 0], tmsp(recording.logits[kept], 2.0), rtol=1e-6)
    assert seen.history.tolist() == list(range(38))


def test_the_beginning_of_a_trace_is_cut_by_queries_not_by_values(recording: Recording) -> None:
    seen = trace(detector(), recording).until(6)
    assert seen.rows.tolist() == [0, 1, 2, 3, 4]


def test_an_honest_plan_draws_the_account_that_the_population_would(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    data = Dataset(random.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8), np.arange(60) % 3)
    plans = honest_plans(data, 5, 20, seed=4)
    accounts = draw_accounts(data, 5, 20, seed=4)
    for plan, account in zip(plans, accounts, strict=True):
        np.testing.assert_array_equal(plan.record(lambda x: np.zeros((len(x), 3), np.float32)).inputs, account.images)
    assert len({plan.key for plan in plans} | {plan.key for plan in honest_plans(data, 5, 20, seed=5)}) == 10


def test_what_is_traced_depends_on_networks_and_temperature_and_on_no_threshold(tmp_path: Path) -> None:
    bundle, other_weights = untrained_bundle(tmp_path / "a"), untrained_bundle(tmp_path / "b", seed=1)
    tmsp_section = bundle.manifest.tmsp

    def changed(**sections: object) -> Bundle:
        return Bundle(bundle.folder, bundle.manifest.model_copy(update=sections), "")

    same = changed(
        prada=bundle.manifest.prada.model_copy(update={"delta": 0.5}),
        tmsp=tmsp_section.model_copy(update={"suspicion": 0.1}),
    )
    assert traced_by(same) == traced_by(bundle)
    warmer = changed(tmsp=tmsp_section.model_copy(update={"temperature": 3.0}))
    smaller = changed(prada=bundle.manifest.prada.model_copy(update={"window": 10}))
    names = {traced_by(one) for one in (bundle, warmer, smaller, other_weights)}
    assert len(names) == 4


def test_a_kept_trace_is_read_and_not_made_again(tmp_path: Path, recording: Recording) -> None:
    bundle = untrained_bundle(tmp_path / "bundle")
    tracer = Tracer(bundle, tmp_path / "cache", Progress(disable=True))
    kept = tmp_path / "cache" / traced_by(bundle) / f"{recording.key}.safetensors"
    from services.training.tracing import _file

    # The bundle has no detectors' networks: making the trace anew would fail.
    kept.write_bytes(_file({"tmsp": trace(detector(), recording)}))
    (found,) = tracer.trace([recording], "recordings")
    np.testing.assert_array_equal(found["tmsp"].values, trace(detector(), recording).values)
    assert read_traces(kept).keys() == {"tmsp"}
