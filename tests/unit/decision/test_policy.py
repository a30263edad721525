"""The decision on one account, example by example; `test_policy_properties.py` looks for counterexamples."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.decision.policy import Activity, refusal
from shared.events import Action, OverrideKind
from shared.responses import AmaoResponse, parse_response
from tests.support.decisions import (
    DAY,
    HOUR,
    PROFILES,
    SECOND,
    START,
    Account,
    default_policy,
    override,
    policy_of,
    sighting,
    vector,
)


@pytest.fixture
def account() -> Account:
    return Account(default_policy())


def test_an_account_like_an_honest_profile_is_never_told_of(account: Account) -> None:
    for offset in range(200):
        account.hear(offset, [1e9, 1e9, 5.0])  # type: ignore[arg-type]
    assert account.record.action is Action.ALLOW
    assert not account.verdicts
    assert not account.alerts


def test_evidence_over_the_calibrated_threshold_perturbs_once_there_are_fifty_queries(account: Account) -> None:
    account.hear(10, 1e7)
    assert account.record.action is Action.OBSERVE
    account.hear(48, 1e7)
    assert account.record.action is Action.OBSERVE
    verdict = account.hear(49, 1e7)
    assert verdict is not None
    assert (verdict.action, verdict.rule) == (Action.PERTURB, "extraction")
    assert parse_response(verdict.response) == AmaoResponse(group=16)
    assert verdict.at_query == 50
    assert verdict.expires_at == 0
    assert verdict.cause_query_id == "query-50"
    assert verdict.log_evidence == pytest.approx(math.log(1e7), rel=1e-5)


def test_detectors_that_have_not_spoken_count_for_the_account(account: Account) -> None:
    account.meet(sighting(100, 3.9e6, detector="prada"))
    assert account.record.action is Action.OBSERVE
    account.meet(sighting(101, 4.1e6, detector="prada"))
    assert account.record.action is Action.PERTURB


def test_one_honest_profile_that_fits_outweighs_all_that_do_not(account: Account) -> None:
    account.hear(100, [1e12, 1e12, 9e3])  # type: ignore[arg-type]
    assert account.record.action is Action.ALLOW


def test_a_repeated_signal_changes_nothing(account: Account) -> None:
    account.hear(100, 1e7)
    before = account.record
    for event in (
        sighting(100, 1e12),
        sighting(99, 1e12, batch_id=b"another"),
        sighting(500, 1e12, batch_id=(100).to_bytes(16, "big")),
    ):
        assert account.meet(event) is None
        assert account.record is before


def test_a_ban_needs_ten_thousand_queries_of_unbroken_evidence_under_perturbation(account: Account) -> None:
    account.hear(49, 1e9)
    for queries in range(100, 10_050, 50):
        account.hear(queries, 1e9)
        assert account.record.action is Action.PERTURB
    verdict = account.hear(10_060, 1e9)
    assert verdict is not None
    assert verdict.action is Action.BAN
    assert verdict.rule == "relentless-extraction"
    assert verdict.expires_at == account.record.standing.held_until
    assert verdict.expires_at - verdict.issued_at == 7 * DAY


def test_evidence_that_lets_up_starts_the_count_to_the_ban_again(account: Account) -> None:
    account.hear(49, 1e9)
    account.hear(10_000, 1e9)
    account.hear(10_010, 1e7)
    for queries in range(10_020, 20_020, 1000):
        account.hear(queries, 1e9)
        assert account.record.action is Action.PERTURB
    account.hear(20_030, 1e9)
    assert account.record.action is Action.BAN


def test_a_detector_that_has_stopped_bans_nobody_by_what_it_said_last(account: Account) -> None:
    account.hear(49, 1e9)
    for queries in range(50, 40_000, 500):
        for detector in ("tmsp", "prada", "likelihood"):
            account.meet(sighting(queries, 1.0, detector=detector))
    assert account.record.action is Action.PERTURB


def test_a_detector_that_the_policy_no_longer_asks_is_forgotten(account: Account) -> None:
    account.hear(100, 1e5)
    document = account.policy.document.model_copy(update={"detectors": ("tmsp", "prada")})
    account.policy = replace(account.policy, document=document)
    assert account.meet(sighting(101, 1e12, detector="likelihood")) is None
    account.meet(sighting(101, 1.0, detector="tmsp"))
    assert set(account.record.latest) == {"tmsp", "prada"}


def test_an_account_is_released_only_after_its_time_and_with_little_evidence(account: Account) -> None:
    account.hear(100, 1e7)
    account.hear(101, 10.0, now=START + HOUR)
    assert account.record.action is Action.PERTURB, "the time to live has not passed"
    account.hear(102, 2e4, now=START + 2 * HOUR)
    account.hear(103, 2e4, now=START + 8 * HOUR)
    assert account.record.action is Action.PERTURB, "the evidence is above the release level of 1e4"
    verdict = account.hear(104, 10.0, now=START + 8 * HOUR + SECOND)
    assert verdict is not None
    assert (verdict.action, verdict.rule, verdict.response) == (Action.ALLOW, "release", "")
    assert account.record.standing.rule == ""


def test_a_rule_that_fires_again_renews_the_time_without_a_verdict(account: Account) -> None:
    account.hear(100, 1e7)
    said = len(account.verdicts)
    account.hear(101, 1e7, now=START + 5 * HOUR)
    account.hear(102, 1.0, now=START + 5 * HOUR)
    assert len(account.verdicts) == said
    account.hear(103, 1.0, now=START + 11 * HOUR - 1)
    assert account.record.action is Action.PERTURB
    account.hear(104, 1.0, now=START + 11 * HOUR)
    assert account.record.action is Action.ALLOW


def test_an_account_falls_to_the_strongest_rule_that_still_fires(account: Account) -> None:
    account.hear(100, 1e7, now=START)
    account.hear(101, 5e3, now=START, flagged=True)
    account.hear(102, 5e3, now=START + 7 * HOUR, flagged=True)
    assert account.record.action is Action.OBSERVE
    assert account.record.standing.rule == "tmsp-suspicion"


def test_a_ban_ends_with_its_time_and_has_to_be_earned_again(account: Account) -> None:
    account.hear(49, 1e9)
    account.hear(10_049, 1e9)
    account.hear(10_060, 1e9)
    assert account.record.action is Action.BAN
    account.hear(10_061, 1e9, now=account.now + 6 * DAY)
    assert account.record.action is Action.BAN
    account.hear(10_062, 1e9, now=account.now + 2 * DAY)
    assert account.record.action is Action.PERTURB
    account.hear(20_050, 1e9)
    assert account.record.action is Action.PERTURB
    account.hear(20_070, 1e9)
    assert account.record.action is Action.BAN


def test_the_papers_rules_alone_never_change_what_a_client_gets(account: Account) -> None:
    for offset in range(3000):
        account.meet(
            sighting(offset, 1.0, detector=("tmsp", "prada", "similarity", "likelihood")[offset % 4], flagged=True)
        )
    assert account.record.action is Action.OBSERVE
    assert [verdict.action for verdict in account.verdicts] == [Action.OBSERVE]


def test_rules_can_count_flags_and_combine_with_any(tmp_path: Path) -> None:
    account = Account(
        policy_of(
            tmp_path,
            """
  - name: two-papers
    when: {any: [{flagged: {at_least: 2}}, {all: [{flagged: prada}, {queries: {at_least: 500}}]}]}
    action: throttle
    time_to_live: 1h
""",
        )
    )
    account.meet(sighting(1, detector="prada", flagged=True))
    assert account.record.action is Action.ALLOW
    verdict = account.meet(sighting(2, detector="similarity", flagged=True))
    assert verdict is not None
    assert (verdict.action, verdict.queries_per_second) == (Action.THROTTLE, 2.0)
    late = Account(account.policy)
    assert late.meet(sighting(499, detector="prada", flagged=True)) is not None


# ---- people ----


def test_a_pin_outranks_every_rule_until_it_is_cleared(account: Account) -> None:
    account.hear(100, 1e7)
    verdict = account.meet(override(OverrideKind.PIN, Action.ALLOW))
    assert verdict is not None
    assert (verdict.action, verdict.rule, verdict.cause_query_id) == (Action.ALLOW, "override", "")
    assert "ada" in verdict.reason
    assert "known customer" in verdict.reason
    for offset in range(101, 3000, 100):
        assert account.hear(offset, 1e12) is None
    verdict = account.meet(override(OverrideKind.CLEAR))
    assert verdict is not None
    assert verdict.action is Action.PERTURB, "the rules went on beneath the pin"


def test_a_pin_ends_at_its_expiry_and_the_rules_take_over(account: Account) -> None:
    expiry = START + 2 * HOUR
    verdict = account.meet(override(OverrideKind.PIN, Action.BAN, expires_at=expiry))
    assert verdict is not None
    assert verdict.expires_at == expiry
    assert account.hear(0, 1.0, now=expiry - 1) is None
    assert account.record.action is Action.BAN
    verdict = account.hear(1, 1.0, now=expiry)
    assert verdict is not None
    assert verdict.action is Action.ALLOW
    assert "expired" in verdict.reason


def test_an_account_pinned_to_allow_does_not_earn_a_ban_meanwhile(account: Account) -> None:
    account.meet(override(OverrideKind.PIN, Action.ALLOW))
    for offset in range(100, 5000, 100):
        account.hear(offset, 1e12)
    account.meet(override(OverrideKind.CLEAR))
    assert account.record.action is Action.PERTURB


def test_the_same_override_counts_once(account: Account) -> None:
    pin = override(OverrideKind.PIN, Action.BAN)
    account.meet(pin)
    account.meet(override(OverrideKind.CLEAR))
    before = account.record
    assert account.meet(pin) is None
    assert account.record is before


def test_every_override_leaves_an_alert_with_who_and_why(account: Account) -> None:
    for kind in OverrideKind:
        account.meet(override(kind, Action.BAN if kind is OverrideKind.PIN else Action.ALLOW))
    assert [(alert.author, alert.activity) for alert in account.alerts] == [
        ("ada", Activity.AUDIT),
        ("ada", Activity.CREATE),
        ("ada", Activity.CLOSE),
    ]


def test_a_pardon_forgets_the_evidence_and_counts_only_what_is_new(account: Account) -> None:
    account.hear(200, 1e8)
    verdict = account.meet(override(OverrideKind.PARDON), now=account.now + HOUR)
    assert verdict is not None
    assert verdict.action is Action.ALLOW
    account.hear(300, 1e9, at=account.now + SECOND)
    assert account.record.action is Action.ALLOW, "R has grown tenfold since the pardon"
    account.hear(310, 2e12 / 2, at=account.now + SECOND)
    assert account.record.action is Action.OBSERVE, "it has grown ten thousand times"


def test_a_pardoned_account_whose_evidence_fell_is_judged_from_its_lowest_point(account: Account) -> None:
    account.hear(200, 1e8)
    account.meet(override(OverrideKind.PARDON), now=account.now + HOUR)
    account.hear(300, 10.0, at=account.now + SECOND)
    account.hear(360, 2e7, at=account.now + SECOND)
    assert account.record.action is Action.PERTURB


def test_a_pardoned_account_is_heard_for_fifty_queries_before_its_answers_change(account: Account) -> None:
    account.hear(200, 1.0)
    account.meet(override(OverrideKind.PARDON), now=account.now + HOUR)
    account.hear(240, 1e9, at=account.now + SECOND)
    assert account.record.action is Action.OBSERVE
    account.hear(251, 1e9, at=account.now + SECOND)
    assert account.record.action is Action.PERTURB


def test_a_pardon_at_the_cap_is_no_licence_to_steal(account: Account) -> None:
    account.hear(1000, 1e12)
    account.meet(override(OverrideKind.PARDON), now=account.now + HOUR)
    for queries in range(1100, 3000, 100):
        account.hear(queries, 1e12, at=account.now + SECOND)
        assert account.record.action is Action.ALLOW
    account.hear(3010, 1e12, at=account.now + SECOND)
    assert account.record.action is Action.PERTURB


def test_signals_of_queries_from_before_the_pardon_are_forgiven_when_they_arrive_late(account: Account) -> None:
    account.meet(sighting(200, 1e12, detector="tmsp"))
    account.meet(override(OverrideKind.PARDON), now=START + HOUR)
    for detector in ("prada", "similarity", "likelihood"):
        account.meet(sighting(250, 1e12, detector=detector, flagged=True, at=START + HOUR - 1))
    assert account.record.action is Action.ALLOW


def test_a_papers_rule_that_condemned_before_the_pardon_counts_again_after_it_has_ceased(account: Account) -> None:
    later = START + HOUR
    account.meet(sighting(200, flagged=True))
    account.meet(override(OverrideKind.PARDON), now=later)
    account.meet(sighting(201, flagged=True, at=later + 1))
    assert account.record.action is Action.ALLOW
    account.meet(sighting(202, flagged=False, at=later + 2))
    account.meet(sighting(203, flagged=True, at=later + 3))
    assert account.record.action is Action.OBSERVE


def test_a_pardon_takes_a_pin_off_too(account: Account) -> None:
    account.meet(override(OverrideKind.PIN, Action.BAN))
    account.meet(override(OverrideKind.PARDON))
    assert account.record.pin is None
    assert account.record.action is Action.ALLOW


# ---- alerts ----


def test_one_finding_goes_from_the_first_suspicion_to_the_release(account: Account) -> None:
    account.hear(20, 1e5)
    account.hear(100, 1e7)
    account.hear(101, 1.0)
    account.hear(102, 1.0, now=START + 8 * HOUR)
    assert [alert.activity for alert in account.alerts] == [Activity.CREATE, Activity.UPDATE, Activity.CLOSE]
    assert len({alert.finding_id for alert in account.alerts}) == 1
    assert len({alert.alert_id for alert in account.alerts}) == 3
    account.hear(300, 1e5, now=START + 9 * HOUR)
    assert account.alerts[-1].activity is Activity.CREATE
    assert account.alerts[-1].finding_id != account.alerts[0].finding_id


# ---- time and absurdity ----


def test_time_never_goes_back(account: Account) -> None:
    account.hear(100, 1e7, now=START + HOUR)
    verdict = account.meet(override(OverrideKind.PIN, Action.BAN), now=START)
    assert verdict is not None
    assert verdict.issued_at == START + HOUR


def test_another_bundle_voids_what_the_detectors_said_and_keeps_decisions(account: Account) -> None:
    account.hear(100, 1e7)
    record = account.record.without_signals()
    assert record.action is Action.PERTURB
    assert record.queries == 0


def test_a_detector_that_starts_anew_does_not_shorten_the_way_to_a_ban(account: Account) -> None:
    account.hear(1000, 1e9)
    account.record = account.record.without_signals()
    account.hear(1001, 1e9, queries=60)
    account.hear(1002, 1e9, queries=900)
    assert account.record.action is Action.PERTURB


@pytest.mark.parametrize(
    "change",
    [
        {"log_evidence": np.full(PROFILES, np.nan, np.float32)},
        {"log_evidence": np.full(PROFILES, np.inf, np.float32)},
        {"log_evidence": np.full(PROFILES, 40.0, np.float32)},
        {"log_evidence": np.full(PROFILES, -1.0, np.float32)},
        {"log_evidence": np.zeros(PROFILES + 1, np.float32)},
        {"log_evidence": np.zeros(0, np.float32)},
        {"flagged": True, "statistic": math.nan},
        {"flagged": True, "threshold": math.inf},
        {"queries": 0},
        {"queries": 2**63},
        {"repeats": 5000},
        {"accepted_at": 0},
    ],
    ids=str,
)
def test_an_absurd_signal_is_refused(change: dict[str, object]) -> None:
    event = sighting(100, 1e12)
    assert refusal(event, PROFILES) is None
    assert refusal(replace(event, signal=replace(event.signal, **change)), PROFILES)


def test_a_signal_without_a_statistic_yet_is_fine() -> None:
    event = sighting(1)
    assert refusal(replace(event, signal=replace(event.signal, statistic=math.nan)), PROFILES) is None


@pytest.mark.parametrize(
    "change",
    [
        {"author": " "},
        {"reason": ""},
        {"override_id": ""},
        {"issued_at": 0},
        {"expires_at": START},
        {"kind": OverrideKind.PARDON, "action": Action.BAN},
        {"kind": OverrideKind.CLEAR, "expires_at": START + 1},
    ],
    ids=str,
)
def test_an_override_that_says_too_little_or_too_much_is_refused(change: dict[str, object]) -> None:
    pin = override(OverrideKind.PIN, Action.ALLOW)
    assert refusal(pin, PROFILES) is None
    assert refusal(replace(pin, **change), PROFILES)


def test_evidence_at_the_cap_is_not_absurd() -> None:
    assert refusal(sighting(1, 1e12), PROFILES) is None
    assert vector(1e12).max() > 27


# ---- responses ----

ESCALATING = """\
  - name: gentle
    when: {evidence: {at_least: calibrated}}
    action: perturb
    response: mild
    time_to_live: 1h
    release: {evidence_below: 0.01 * calibrated}
  - name: hard
    when: {evidence: {at_least: 100 * calibrated}}
    action: perturb
    response: harsh
    time_to_live: 1h
    release: {evidence_below: calibrated}
"""


def test_of_two_rules_that_perturb_the_harsher_response_counts_and_falls_back_to_the_milder_one(tmp_path: Path) -> None:
    account = Account(policy_of(tmp_path, ESCALATING))
    verdict = account.hear(1, 1e7)
    assert verdict is not None
    assert (verdict.rule, parse_response(verdict.response)) == ("gentle", AmaoResponse(group=16))
    verdict = account.hear(2, 1e9)
    assert verdict is not None
    assert (verdict.rule, parse_response(verdict.response)) == ("hard", AmaoResponse(group=2))
    assert account.hear(3, 1e7) is None
    account.now += 2 * HOUR
    assert account.hear(4, 1e7) is None
    verdict = account.hear(5, 9e5)
    assert verdict is not None
    assert (verdict.action, verdict.rule) == (Action.ALLOW, "release")


def test_an_account_that_is_pinned_to_perturb_gets_the_gentlest_response(tmp_path: Path) -> None:
    account = Account(policy_of(tmp_path, ESCALATING))
    verdict = account.meet(override(OverrideKind.PIN, action=Action.PERTURB))
    assert verdict is not None
    assert parse_response(verdict.response) == AmaoResponse(group=16)
