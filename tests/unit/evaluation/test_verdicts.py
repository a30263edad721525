"""The evaluation's verdicts are the services': the same evidence, the same policy, at the same query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from services.decision.policy import Sighting, decide
from services.decision.policy_file import DEFAULT_POLICY, load_policy
from services.decision.record import Record
from services.evaluation.verdicts import Judge, attack_queries_until, first_alarm
from services.training.calibration import evidence_models
from services.training.calibrator import STATISTICS
from services.training.tracing import Trace, Traces
from shared.detection import Statistic, orient
from shared.events import Action, Signal
from shared.evidence import EvidenceState

THRESHOLD = float(np.log(1e6))


def account(random: np.random.Generator, queries: int, shift: float = 0.0) -> Traces:
    """Values are normal, moved towards suspicion by `shift`; every seventh row is a repeat, a tenth no news."""
    rows = np.flatnonzero(np.arange(queries) % 7 != 6)
    return {name: _trace(random, statistics, rows, shift) for name, statistics in STATISTICS.items()}


def _trace(random: np.random.Generator, statistics: Sequence[Statistic], rows: np.ndarray, shift: float) -> Trace:
    values = orient(statistics, random.normal(shift, 1.0, (len(rows), len(statistics))))
    return Trace(values.astype(np.float32), rows, random.random(values.shape) < 0.9)


@pytest.fixture(scope="module")
def judge() -> Judge:
    random = np.random.default_rng(1)
    return Judge(evidence_models(STATISTICS, [account(random, 150) for _ in range(30)], seed=1), THRESHOLD)


def perturbed_by_the_policy(judge: Judge, traces: Traces) -> int | None:
    """The row at which the shipped policy, told each detector's evidence query by query, spoils the answers."""
    policy = load_policy(DEFAULT_POLICY, judge.log_threshold)
    record = Record(account="mallory", model_name="fashion")
    states = {name: EvidenceState.initial(model) for name, model in judge.models.items()}
    for number, row in enumerate(traces["tmsp"].rows.tolist()):
        for name, state in states.items():
            scores = traces[name].scores(STATISTICS[name])[number : number + 1]
            state.absorb(judge.models[name].bets(scores, np.array([number])))
            at = 1_700_000_000_000_000 + row * 1_000_000
            signal = Signal(
                account="mallory", queries=row + 1, repeats=row - number, statistic=0.0, threshold=1.0, flagged=False,
                details={}, log_evidence=state.log_evidence(), accepted_at=at, query_id=f"query-{row}",
            )  # fmt: skip
            sighting = Sighting(name, number.to_bytes(16, "big"), 0, number, signal)
            record, _, _ = decide(record, sighting, policy, at)
        if record.action >= Action.PERTURB:
            return row
    return None


@pytest.mark.parametrize("shift", [0.0, 1.2, 2.5])
def test_an_account_alarms_at_the_query_at_which_the_shipped_policy_perturbs_it(judge: Judge, shift: float) -> None:
    traces = account(np.random.default_rng(2), 180, shift)
    assert judge.first_alarms([traces]) == [perturbed_by_the_policy(judge, traces)]
    assert (judge.first_alarms([traces]) == [None]) == (shift == 0.0)


def test_nobody_is_condemned_before_fifty_queries(judge: Judge) -> None:
    traces = account(np.random.default_rng(3), 100, 6.0)
    (path,) = judge.paths([traces])
    assert path[20] > THRESHOLD
    assert first_alarm(path, traces, THRESHOLD) == 49


def test_only_queries_of_the_attack_proper_are_counted_until_the_alarm() -> None:
    attacking = np.array([False, False, True, False, True, True])
    assert attack_queries_until(4, attacking) == 2
    assert attack_queries_until(1, attacking) == 0
    assert attack_queries_until(None, attacking) is None
