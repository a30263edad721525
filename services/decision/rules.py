"""A policy: named rules over what the detectors say of one account, and what follows from them.

The models here are what a policy file holds; `services.decision.policy_file` reads one and names the line of a mistake.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from shared.bundle import DETECTORS
from shared.events import Action
from shared.evidence import LARGEST_R
from shared.responses import Response

FOREVER = 0
"""A time to live, or an expiry, that never comes."""

OVERRIDE_RULE = "override"
"""Stands in a verdict's `rule` where a person decided."""
RELEASE_RULE = "release"
"""Stands there where no rule holds the account any longer."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,6})([smhd])")
_CALIBRATED = re.compile(r"(?:(?P<times>[0-9.eE+-]+)\s*\*\s*)?calibrated")


@dataclass(frozen=True, slots=True)
class Level:
    """An amount of evidence: a number of R, or a multiple of the bundle's calibrated threshold."""

    factor: float
    """Positive."""
    calibrated: bool

    def logarithm(self, log_threshold: float) -> float:
        """Natural logarithm of R, given that of the calibrated threshold."""
        return math.log(self.factor) + (log_threshold if self.calibrated else 0.0)


def _level(value: Any) -> Level:
    if isinstance(value, Level):
        return value
    match = _CALIBRATED.fullmatch(str(value).strip())
    try:
        factor = float((match["times"] or 1.0) if match else value)
    except (TypeError, ValueError):
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"{value!r} is no amount of evidence: write 1e4, calibrated, or 100 * calibrated")
    return Level(factor, match is not None)


def _duration(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if value == "forever":
        return FOREVER
    match = _DURATION.fullmatch(str(value))
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{value!r} is no duration: write 90s, 30m, 6h, 7d or forever")
    return int(match[1]) * _SECONDS[match[2]] * 1_000_000


def _action(value: Any) -> Action:
    if isinstance(value, Action):
        return value
    try:
        return Action[str(value).upper()]
    except KeyError:
        raise ValueError(f"{value!r} is no action: write {', '.join(a.name.lower() for a in Action)}") from None


def _detector(value: str) -> str:
    if value not in DETECTORS:
        raise ValueError(f"{value!r} is no detector: write {', '.join(DETECTORS)}")
    return value


EvidenceLevel = Annotated[Level, BeforeValidator(_level)]
Duration = Annotated[int, BeforeValidator(_duration)]
"""Microseconds; `FOREVER` has no end."""
ActionName = Annotated[Action, BeforeValidator(_action)]
DetectorName = Annotated[str, AfterValidator(_detector)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Count = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


class EvidenceBound(_Model):
    """Evidence, all detectors together, of at least this much."""

    at_least: EvidenceLevel


class CountBound(_Model):
    """A number of at least this much."""

    at_least: Count


class ActionBound(_Model):
    """An action at least this severe."""

    at_least: ActionName


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at: one account at one moment."""

    log_evidence: float
    """Natural logarithm of R over all detectors."""
    log_threshold: float
    """The bundle's calibrated threshold, as a logarithm too."""
    flagged: frozenset[str]
    """Detectors whose paper's rule condemns the account."""
    queries: int
    """Since the account's first, or since its pardon."""
    action: Action
    """In force."""


class Condition(_Model):
    """One condition on an account; exactly one of the fields is there."""

    evidence: EvidenceBound | None = None
    flagged: DetectorName | CountBound | None = None
    queries: CountBound | None = None
    action: ActionBound | None = None
    all_: tuple[Condition, ...] | None = Field(None, alias="all", min_length=1)
    any_: tuple[Condition, ...] | None = Field(None, alias="any", min_length=1)

    @model_validator(mode="after")
    def _is_one(self) -> Condition:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("a condition is exactly one of evidence, flagged, queries, action, all, any")
        return self

    def holds(self, facts: Facts) -> bool:
        """Whether it is so."""
        if self.all_ is not None:
            return all(condition.holds(facts) for condition in self.all_)
        if self.any_ is not None:
            return any(condition.holds(facts) for condition in self.any_)
        if self.evidence is not None:
            return facts.log_evidence >= self.evidence.at_least.logarithm(facts.log_threshold)
        if self.queries is not None:
            return facts.queries >= self.queries.at_least
        if self.action is not None:
            return facts.action >= self.action.at_least
        if isinstance(self.flagged, CountBound):
            return len(facts.flagged) >= self.flagged.at_least
        return self.flagged in facts.flagged

    def walk(self) -> Iterator[Condition]:
        """This condition and all inside it."""
        yield self
        for inner in (*(self.all_ or ()), *(self.any_ or ())):
            yield from inner.walk()


class Release(_Model):
    """When an account may leave a rule's action, once the rule no longer fires and its time to live has passed."""

    evidence_below: EvidenceLevel


class Rule(_Model):
    """Where `when` has held for `for_queries` queries, the account gets at least `action`."""

    name: Name
    description: str = ""
    when: Condition
    for_queries: Annotated[int, Field(ge=0)] = 0
    """For how many queries the conditions must have held without a break; counted by the slowest detector."""
    action: ActionName
    time_to_live: Duration
    """Least time under the action since the rule last fired; of a ban, its length."""
    release: Release | None = None
    response: Name | None = None
    """For PERTURB: one of the policy's responses; the gentlest where none is named."""

    @model_validator(mode="after")
    def _acts(self) -> Rule:
        if self.action is Action.ALLOW:
            raise ValueError("a rule's action is observe, perturb, throttle or ban: what no rule holds is allowed")
        if self.name in (OVERRIDE_RULE, RELEASE_RULE):
            raise ValueError(f"{self.name!r} is a name that verdicts use for something else")
        if self.response is not None and self.action is not Action.PERTURB:
            raise ValueError("only a rule whose action is perturb has a response")
        return self


class PolicyDocument(_Model):
    """What a policy file holds."""

    format: Literal[1]
    name: Name
    threat_model: Annotated[str, Field(min_length=1)]
    """What counts as malicious here, for people."""
    detectors: tuple[DetectorName, ...] = Field(min_length=1)
    """Whose word counts."""
    responses: dict[Name, Response] = Field(min_length=1)
    """How inference spoils the answers of accounts under PERTURB, from the gentlest to the harshest."""
    throttled_queries_per_second: Annotated[float, Field(gt=0)]
    """What an account under THROTTLE keeps."""
    pardon_queries: Count
    """For how many queries a pardon is remembered; see `services.decision.policy`."""
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> PolicyDocument:
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"there are {names.count(name)} rules named {name!r}")
        for rule in self.rules:
            if rule.response is not None and rule.response not in self.responses:
                raise ValueError(
                    f"rule {rule.name!r} names the response {rule.response!r}, which is not among responses"
                )
            for condition in rule.when.walk():
                if isinstance(condition.flagged, str) and condition.flagged not in self.detectors:
                    raise ValueError(f"rule {rule.name!r} asks {condition.flagged!r}, which is not among detectors")
        return self


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy document, and the bundle's threshold that its `calibrated` stands for."""

    document: PolicyDocument
    log_threshold: float
    fingerprint: str = ""
    """Of the file, for audit."""

    @property
    def detectors(self) -> int:
        """How many detectors the threshold was calibrated with; one that the policy leaves out counts as silent.

        Leaving one out can only make the evidence smaller, so the calibrated promise to honest accounts still holds.
        """
        return len(DETECTORS)

    def strength(self, rule: Rule) -> tuple[Action, int]:
        """By which of several rules one is chosen: the severer action, and of two PERTURB the harsher response."""
        return rule.action, list(self.document.responses).index(rule.response) if rule.response else 0

    def response(self, rule: Rule | None) -> Response:
        """How answers are spoiled under a rule; the gentlest way where it names none, or no rule decided."""
        responses = self.document.responses
        return responses[rule.response] if rule and rule.response else next(iter(responses.values()))

    def rule(self, name: str) -> Rule | None:
        """The rule of that name; None where an earlier policy had it."""
        return next((rule for rule in self.document.rules if rule.name == name), None)

    def check_levels(self) -> None:
        """
        Raises:
            PolicyError: a rule asks for more evidence than there can be, or would let go while it still fires.
        """
        for number, rule in enumerate(self.document.rules):
            levels = [self._logarithm(one.evidence.at_least) for one in rule.when.walk() if one.evidence]
            if levels and max(levels) > math.log(LARGEST_R):
                most, asked = LARGEST_R, math.exp(max(levels))
                message = f"rule {rule.name!r} asks for evidence of {asked:.1e}; there is never more than {most:.0e}"
                raise PolicyError(message, ("rules", number, "when"))
            if levels and rule.release and self._logarithm(rule.release.evidence_below) >= min(levels):
                message = f"rule {rule.name!r} would release at evidence that it still fires on"
                raise PolicyError(message, ("rules", number, "release", "evidence_below"))

    def _logarithm(self, level: Level) -> float:
        return level.logarithm(self.log_threshold)


class PolicyError(ValueError):
    """A policy cannot be used; `path` leads to the field."""

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path
