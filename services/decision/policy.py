"""The decision: one account's record, and what a detector or a person now says of it.

Pure: no I/O and no clock. The same record, event, policy and moment give the same verdict, id and all, so a replay
repeats it and never contradicts it.

Two tracks. The *standing* is what the rules hold the account at; a *pin* is a person's word and lies on top of it while
it lasts. What is in force is the pin where there is one, the standing elsewhere. The rules go on under a pin, so that
an account whose pin ends is at once where the rules would have it.

Rising and falling. A rule fires when its conditions have held for its number of queries, which the slowest detector
counts: one that has stopped must not condemn an account by what it said last. The strongest firing rule, by its action
and then by its response, lifts the standing at once. The standing falls, to the strongest rule that still fires, only
when no rule of its strength fires, its time to live since it last fired has passed, and the evidence is below its
release level. A ban is different, since a banned account is not heard and its evidence cannot change: it ends with its
time to live, and then has to be earned again in full.

Pardons. The detectors do not know of pardons: their sums R go on. So decision remembers each detector's R at the
pardon and counts only R / R_pardoned, where R_pardoned is lowered to every smaller R that follows. That is sound: the
Shiryaev-Roberts sum after n further queries is R_n = R_pardoned M_n + S_n, with M_n the product of their e-values and
S_n the sum that starts afresh, so the quotient is at most M_n + S_n, a fresh e-detector with a head start of one query.
But R is capped, and an account that was pardoned at the cap could never be seen to grow: its pardon would be a licence
to steal. So a pardon is remembered for the policy's `pardon_queries` queries of the account; an honest account's R has
fallen by itself in that time, and where it has not, the new queries alone hold it up. Whom a person wants to exempt for
good is pinned. A paper's rule that condemned the account at its pardon counts again once it has ceased to.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from services.decision.record import Campaign, Held, Pardon, Pin, Record, Standing
from services.decision.rules import FOREVER, OVERRIDE_RULE, RELEASE_RULE, Facts, Policy, Rule
from shared.events import Action, Override, OverrideKind, Signal, Verdict
from shared.evidence import LARGEST_R, combine
from shared.responses import response_text

OVERRIDES_REMEMBERED = 8
LARGEST_LOG_EVIDENCE = math.log(LARGEST_R) + 1e-3
LARGEST_COUNT = 1 << 48


@dataclass(frozen=True, slots=True)
class Sighting:
    """A detector's signal on an account, with where it came from."""

    detector: str
    batch_id: bytes
    source_partition: int
    source_offset: int
    signal: Signal


Event: TypeAlias = Sighting | Override


class Activity(enum.IntEnum):
    """What an alert does to its finding; the numbers are OCSF's `activity_id`."""

    CREATE = 1
    UPDATE = 2
    CLOSE = 3
    AUDIT = 99
    """A person's decision that found nothing to change."""


@dataclass(frozen=True, slots=True)
class Alert:
    """What the security team is told: every change of an account's action, and every decision of a person."""

    alert_id: str
    finding_id: str
    """The same for all alerts from the first suspicion until the account is free again."""
    activity: Activity
    account: str
    model_name: str
    action: Action
    previous_action: Action
    rule: str
    reason: str
    author: str
    """Of an override; empty where a rule decided."""
    log_evidence: float
    log_threshold: float
    queries: int
    began_at: int
    issued_at: int
    """Microseconds since the Unix epoch."""
    cause_query_id: str
    cause_accepted_at: int
    detectors: Mapping[str, Held]
    """The latest word of each."""
    policy: str
    policy_fingerprint: str


def refusal(event: Event, profiles: int) -> str | None:
    """Why an event must not be used, or None; nothing that passes can make the decision fail or jump to a ban.

    Args:
        event: well-formed, but perhaps absurd.
        profiles: of the bundle; evidence is one number for each.
    """
    return _override_refusal(event) if isinstance(event, Override) else _signal_refusal(event.signal, profiles)


def _signal_refusal(signal: Signal, profiles: int) -> str | None:
    evidence = signal.log_evidence
    if evidence.shape != (profiles,):
        return f"log_evidence has {len(evidence)} numbers, the bundle has {profiles} profiles"
    if not (np.isfinite(evidence).all() and (evidence >= 0).all() and (evidence <= LARGEST_LOG_EVIDENCE).all()):
        return f"log_evidence is not between 0 and {LARGEST_LOG_EVIDENCE:.2f}"
    if not 0 < signal.queries <= LARGEST_COUNT or signal.repeats > signal.queries:
        return f"{signal.repeats} repeats among {signal.queries} queries cannot be"
    if signal.flagged and not (math.isfinite(signal.statistic) and math.isfinite(signal.threshold)):
        return f"flagged at statistic {signal.statistic} and threshold {signal.threshold}"
    if signal.accepted_at <= 0:
        return "accepted_at is missing"
    return None


def _override_refusal(override: Override) -> str | None:
    for name in ("override_id", "author", "reason"):
        if not getattr(override, name).strip():
            return f"{name} is empty"
    if override.issued_at <= 0:
        return "issued_at is missing"
    if override.expires_at and override.expires_at <= override.issued_at:
        return "expires_at is not after issued_at"
    if override.kind is not OverrideKind.PIN and (override.action is not Action.ALLOW or override.expires_at):
        return f"{override.kind.name} has an action or an expiry; only PIN does"
    return None


def decide(record: Record, event: Event, policy: Policy, now: int) -> tuple[Record, Verdict | None, Alert | None]:
    """Take in one event.

    Args:
        record: of the event's account.
        event: one that `refusal` has nothing against.
        policy: the rules.
        now: microseconds since the Unix epoch, the same on every replay; one before the record's own counts as that.

    Returns:
        The record to go on from; a verdict where what is in force has changed; an alert then, and for each override.
    """
    now = max(now, record.now)
    if isinstance(event, Override):
        if event.override_id in record.overrides:
            return record, None, None
        heard = _obey(record, event, now)
    else:
        if event.detector not in policy.document.detectors or _is_duplicate(record, event):
            return record, None, None
        heard = _absorb(record, event, policy)
    # What a detector said that the policy no longer asks would count for ever.
    asked = {name: held for name, held in heard.latest.items() if name in policy.document.detectors}
    settled = _settle(replace(heard, now=now, latest=asked), policy, now)
    return _announce(record, settled, event, policy, now)


def _is_duplicate(record: Record, event: Sighting) -> bool:
    held = record.latest.get(event.detector)
    if held is None:
        return False
    if held.batch_id == event.batch_id:
        return True
    return held.source_partition == event.source_partition and event.source_offset <= held.source_offset


def _absorb(record: Record, event: Sighting, policy: Policy) -> Record:
    signal, before, pardon = event.signal, record.latest.get(event.detector), record.pardon
    if pardon and signal.accepted_at <= pardon.at:
        # A detector that lags behind the pardon: what it tells of is forgiven too.
        forgiven, forgiven_flag = signal.log_evidence, signal.flagged
        pardon = replace(pardon, at_query=max(pardon.at_query, signal.queries))
    elif pardon and before:
        forgiven = np.minimum(before.forgiven, signal.log_evidence)
        forgiven_flag = before.forgiven_flag and signal.flagged
    else:
        forgiven, forgiven_flag = np.zeros_like(signal.log_evidence), False
    held = Held(
        source_partition=event.source_partition,
        source_offset=event.source_offset,
        batch_id=event.batch_id,
        queries=signal.queries,
        statistic=signal.statistic,
        threshold=signal.threshold,
        flagged=signal.flagged,
        log_evidence=signal.log_evidence,
        accepted_at=signal.accepted_at,
        query_id=signal.query_id,
        forgiven=forgiven,
        forgiven_flag=forgiven_flag,
    )
    heard = replace(record, latest={**record.latest, event.detector: held}, pardon=pardon)
    if pardon and not 0 <= heard.queries - pardon.at_query < policy.document.pardon_queries:
        return _without_pardon(heard)
    return heard


def _without_pardon(record: Record) -> Record:
    latest = {
        detector: replace(held, forgiven=np.zeros_like(held.forgiven), forgiven_flag=False)
        for detector, held in record.latest.items()
    }
    return replace(record, latest=latest, pardon=None)


def _obey(record: Record, override: Override, now: int) -> Record:
    remembered = (*record.overrides, override.override_id)[-OVERRIDES_REMEMBERED:]
    record = replace(record, overrides=remembered, pin=None)
    if override.kind is OverrideKind.PIN:
        pin = Pin(override.action, override.author, override.reason, override.override_id, now, override.expires_at)
        return replace(record, pin=pin)
    if override.kind is OverrideKind.PARDON:
        latest = {
            detector: replace(held, forgiven=held.log_evidence, forgiven_flag=held.flagged)
            for detector, held in record.latest.items()
        }
        pardon = Pardon(at=now, at_query=record.queries)
        return replace(record, latest=latest, holding={}, standing=Standing(since=now), pardon=pardon)
    return record


def facts_of(record: Record, policy: Policy) -> Facts:
    """What the rules look at."""
    return Facts(
        log_evidence=combine([held.counts() for held in record.latest.values()], policy.detectors),
        log_threshold=policy.log_threshold,
        flagged=frozenset(name for name, held in record.latest.items() if held.condemns()),
        queries=record.queries - (record.pardon.at_query if record.pardon else 0),
        action=record.action,
    )


def _settle(record: Record, policy: Policy, now: int) -> Record:
    """Let what has expired end, and move the standing as the rules say."""
    if record.pin and record.pin.expires_at and now >= record.pin.expires_at:
        record = replace(record, pin=None)
    standing = record.standing
    if standing.action is Action.BAN and standing.held_until and now >= standing.held_until:
        record = replace(record, standing=Standing(since=now), holding={})
    facts = facts_of(record, policy)
    holds = [rule for rule in policy.document.rules if rule.when.holds(facts)]
    heard = record.queries_heard_by_all
    # A detector that starts anew counts from nothing; so does then the way to the rule.
    holding = {rule.name: min(record.holding.get(rule.name, heard), heard) for rule in holds}
    firing = [rule for rule in holds if heard - holding[rule.name] >= rule.for_queries]
    return replace(record, holding=holding, standing=_move(record.standing, firing, facts, policy, now))


def _move(standing: Standing, firing: list[Rule], facts: Facts, policy: Policy, now: int) -> Standing:
    strongest = max(firing, key=policy.strength, default=None)
    held_by = policy.rule(standing.rule)
    held = standing.action, policy.strength(held_by)[1] if held_by else 0
    if strongest and policy.strength(strongest) > held:
        return _under(strongest, now)
    if standing.action in (Action.ALLOW, Action.BAN):
        return standing
    if strongest and policy.strength(strongest) == held:
        return replace(standing, held_until=_until(strongest, now))
    if not standing.held_until or now < standing.held_until or not _releases(held_by, facts):
        return standing
    return _under(strongest, now) if strongest else Standing(since=now)


def _under(rule: Rule, now: int) -> Standing:
    return Standing(action=rule.action, rule=rule.name, since=now, held_until=_until(rule, now))


def _until(rule: Rule, now: int) -> int:
    return 0 if rule.time_to_live == FOREVER else now + rule.time_to_live


def _releases(rule: Rule | None, facts: Facts) -> bool:
    if rule is None or rule.release is None:
        return True
    return facts.log_evidence < rule.release.evidence_below.logarithm(facts.log_threshold)


@dataclass(frozen=True, slots=True)
class _InForce:
    """What inference is told; a verdict is due whenever it changes."""

    action: Action
    rule: str
    expires_at: int


def _in_force(record: Record) -> _InForce:
    if record.pin:
        return _InForce(record.pin.action, OVERRIDE_RULE, record.pin.expires_at)
    standing = record.standing
    # Only a ban ends by itself: under any other action the account is heard, and let go when its evidence has fallen.
    return _InForce(standing.action, standing.rule, standing.held_until if standing.action is Action.BAN else 0)


def _announce(
    before: Record, after: Record, event: Event, policy: Policy, now: int
) -> tuple[Record, Verdict | None, Alert | None]:
    old, new = _in_force(before), _in_force(after)
    if old == new and isinstance(event, Sighting):
        return after, None, None
    after = replace(after, sequence=before.sequence + 1)
    rule = new.rule or (OVERRIDE_RULE if isinstance(event, Override) else RELEASE_RULE)
    cause = event.override_id if isinstance(event, Override) else event.signal.query_id
    identity = _digest(after.account, after.model_name, cause, new.action.name, rule, str(after.sequence))
    facts = facts_of(after, policy)
    reason = _reason(before, after, event, facts)
    cause_query_id, cause_accepted_at = (
        ("", 0) if isinstance(event, Override) else (event.signal.query_id, event.signal.accepted_at)
    )
    verdict = Verdict(
        verdict_id=identity,
        account=after.account,
        model_name=after.model_name,
        action=new.action,
        rule=rule,
        reason=reason,
        log_evidence=facts.log_evidence,
        issued_at=now,
        expires_at=new.expires_at,
        cause_query_id=cause_query_id,
        cause_accepted_at=cause_accepted_at,
        response=response_text(policy.response(policy.rule(rule))) if new.action is Action.PERTURB else "",
        queries_per_second=policy.document.throttled_queries_per_second if new.action is Action.THROTTLE else 0.0,
        at_query=after.queries,
    )
    after, campaign, activity = _campaign(before, after, identity, now)
    alert = Alert(
        alert_id=identity,
        finding_id=campaign.finding_id,
        activity=activity,
        account=after.account,
        model_name=after.model_name,
        action=new.action,
        previous_action=old.action,
        rule=rule,
        reason=reason,
        author=event.author if isinstance(event, Override) else "",
        log_evidence=facts.log_evidence,
        log_threshold=policy.log_threshold,
        queries=after.queries,
        began_at=campaign.began_at,
        issued_at=now,
        cause_query_id=cause_query_id,
        cause_accepted_at=cause_accepted_at,
        detectors=after.latest,
        policy=policy.document.name,
        policy_fingerprint=policy.fingerprint,
    )
    return after, verdict if old != new else None, alert


def _campaign(before: Record, after: Record, identity: str, now: int) -> tuple[Record, Campaign, Activity]:
    """Open, go on with, or close the account's campaign; it is open while the account is held or pinned."""
    held = after.action is not Action.ALLOW or after.pin is not None
    campaign = before.campaign or Campaign(finding_id=identity, began_at=now)
    if held:
        activity = Activity.UPDATE if before.campaign else Activity.CREATE
    else:
        activity = Activity.CLOSE if before.campaign else Activity.AUDIT
    return replace(after, campaign=campaign if held else None), campaign, activity


def _reason(before: Record, after: Record, event: Event, facts: Facts) -> str:
    if isinstance(event, Override):
        return f"{event.kind.name.lower()} by {event.author}: {event.reason}"
    condemned = f", condemned by {', '.join(sorted(facts.flagged))}" if facts.flagged else ""
    seen = f"evidence R = {math.exp(facts.log_evidence):.1e} after {after.queries} queries{condemned}"
    if before.pin and not after.pin:
        return f"the pin by {before.pin.author} has expired; {seen}"
    if after.action < before.action:
        return f"{before.standing.rule} released; {seen}"
    return seen


def _digest(*parts: str) -> str:
    # Length first, so that no two different lists of parts read alike.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
