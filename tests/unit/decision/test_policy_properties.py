"""What holds of the decision whatever happens to an account."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.decision.policy import decide, facts_of, refusal
from services.decision.record import Record, decode, encode
from shared.events import Action, Override, OverrideKind, Verdict
from tests.support.decisions import (
    DAY,
    DETECTORS,
    PROFILES,
    SECOND,
    START,
    Account,
    default_policy,
    override,
    sighting,
)
from tests.support.events import same

POLICY = default_policy()
R = st.one_of(st.sampled_from([1.0, 1e3, 1e5, 1e7, 1e9, 1e12]), st.floats(1.0, 1e12))
VECTORS = st.lists(R, min_size=PROFILES, max_size=PROFILES)


class AnyHistory(RuleBasedStateMachine):
    """One account under the default policy, and its twin whose record is cut and restored before each event."""

    @initialize()
    def begin(self) -> None:
        self.account, self.twin = Account(POLICY), Account(POLICY)
        self.offset = 0
        self.clock = START
        self.queries = 0
        self.last: Verdict | None = None

    def meet(self, event: object) -> Verdict | None:
        before = self.account.record
        self.twin.cut_and_restore()
        verdict = self.account.meet(event, self.clock)  # type: ignore[arg-type]
        assert self.twin.meet(event, self.clock) == verdict  # type: ignore[arg-type]
        assert same(self.account.alerts[-1:], self.twin.alerts[-1:])
        self.judge(before, verdict, event)
        return verdict

    def judge(self, before: Record, verdict: Verdict | None, event: object) -> None:
        after = self.account.record
        if verdict is None:
            assert after.action is before.action
            return
        assert verdict.action is after.action
        assert self.last is None or verdict.issued_at >= self.last.issued_at
        assert (verdict.response != "") == (verdict.action is Action.PERTURB)
        assert (verdict.queries_per_second > 0) == (verdict.action is Action.THROTTLE)
        if self.last is not None and not isinstance(event, Override):
            told = (self.last.action, self.last.rule, self.last.expires_at)
            assert (verdict.action, verdict.rule, verdict.expires_at) != told
        self.last = verdict

    @rule(
        detector=st.sampled_from(DETECTORS),
        r=VECTORS,
        flagged=st.booleans(),
        queries=st.integers(1, 700),
        seconds=st.one_of(st.integers(0, 100), st.integers(0, 8 * 86400)),
    )
    def hears(self, detector: str, r: list[float], flagged: bool, queries: int, seconds: int) -> None:
        self.offset += 1
        self.queries += queries
        self.clock += seconds * SECOND
        pinned = self.account.record.pin
        event = sighting(self.offset, r, detector=detector, queries=self.queries, at=self.clock, flagged=flagged)
        assert refusal(event, PROFILES) is None
        verdict = self.meet(event)
        if pinned and (pinned.expires_at == 0 or self.clock < pinned.expires_at):
            assert verdict is None
            assert self.account.record.action is pinned.action

    @precondition(lambda self: self.offset > 0)
    @rule(detector=st.sampled_from(DETECTORS), r=VECTORS)
    def hears_something_old(self, detector: str, r: list[float]) -> None:
        held = self.account.record.latest.get(detector)
        if held is None:
            return
        before = self.account.record
        assert self.meet(sighting(held.source_offset, r, detector=detector, batch_id=b"other")) is None
        assert self.account.record is before

    @rule(action=st.sampled_from(Action), days=st.integers(0, 3))
    def is_pinned(self, action: Action, days: int) -> None:
        expires_at = self.clock + days * DAY if days else 0
        self.meet(override(OverrideKind.PIN, action, at=self.clock, expires_at=expires_at))
        assert self.account.record.action is action

    @rule()
    def is_pardoned(self) -> None:
        self.meet(override(OverrideKind.PARDON, at=self.clock))
        assert self.account.record.action is Action.ALLOW
        assert facts_of(self.account.record, POLICY).log_evidence == 0.0

    @rule()
    def is_cleared(self) -> None:
        self.meet(override(OverrideKind.CLEAR, at=self.clock))
        assert self.account.record.pin is None

    @invariant()
    def every_severity_has_its_reason(self) -> None:
        record = self.account.record
        if record.pin is None and record.standing.action is not Action.ALLOW:
            held_by = POLICY.rule(record.standing.rule)
            assert held_by is not None
            assert held_by.action is record.standing.action

    @invariant()
    def a_finding_is_open_just_while_the_account_is_held(self) -> None:
        record = self.account.record
        assert (record.campaign is not None) == (record.action is not Action.ALLOW or record.pin is not None)

    @invariant()
    def the_record_survives_its_encoding(self) -> None:
        assert same(decode(encode(self.account.record, "bundle"), "bundle"), self.account.record)


AnyHistory.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAnyHistory = AnyHistory.TestCase


@given(st.lists(st.tuples(st.sampled_from(DETECTORS), VECTORS, st.booleans()), max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_replay_from_the_start_repeats_every_word(said: list[tuple[str, list[float], bool]]) -> None:
    first, second = Account(POLICY), Account(POLICY)
    for account in (first, second):
        for offset, (detector, r, flagged) in enumerate(said):
            account.meet(sighting(100 * offset, r, detector=detector, flagged=flagged))
    assert first.verdicts == second.verdicts
    assert same(first.alerts, second.alerts)


@given(st.lists(st.tuples(st.sampled_from(DETECTORS), VECTORS), max_size=30))
@settings(max_examples=50, deadline=None)
def test_without_time_or_people_severity_only_rises(said: list[tuple[str, list[float]]]) -> None:
    account = Account(POLICY)
    for offset, (detector, r) in enumerate(said):
        account.meet(sighting(100 * offset, r, detector=detector), START)
    rules = [POLICY.rule(verdict.rule) for verdict in account.verdicts]
    strengths = [POLICY.strength(rule) for rule in rules if rule]
    assert len(strengths) == len(account.verdicts)
    assert strengths == sorted(set(strengths))


@given(
    st.lists(st.floats(width=32), max_size=PROFILES + 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.floats(),
)
def test_whatever_a_signal_holds_it_is_refused_or_leaves_an_honest_account_unbanned(
    log_evidence: list[float], queries: int, repeats: int, flagged: bool, statistic: float
) -> None:
    event = sighting(1)
    signal = replace(
        event.signal,
        log_evidence=np.array(log_evidence, dtype=np.float32),
        queries=queries,
        repeats=repeats,
        flagged=flagged,
        statistic=statistic,
    )
    event = replace(event, signal=signal)
    if refusal(event, PROFILES) is not None:
        return
    record, _, _ = decide(Record(account="mallory", model_name="fashion"), event, POLICY, START)
    assert record.action is not Action.BAN
    assert math.isfinite(facts_of(record, POLICY).log_evidence)


@given(VECTORS, st.lists(VECTORS, min_size=1, max_size=10))
@settings(max_examples=40, deadline=None)
def test_a_pardon_never_makes_evidence_larger(before: list[float], after: list[list[float]]) -> None:
    pardoned, other = Account(POLICY), Account(POLICY)
    for account in (pardoned, other):
        account.hear(0, before)  # type: ignore[arg-type]
    pardoned.meet(override(OverrideKind.PARDON))
    for offset, r in enumerate(after, start=1):
        pardoned.hear(offset, r, at=pardoned.now + SECOND)  # type: ignore[arg-type]
        other.hear(offset, r, at=pardoned.now + SECOND)  # type: ignore[arg-type]
        mine, its = facts_of(pardoned.record, POLICY), facts_of(other.record, POLICY)
        assert mine.log_evidence <= its.log_evidence + 1e-9
