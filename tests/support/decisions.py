"""What decision's tests say: signals and overrides with the fields that matter to them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from services.decision.policy import Alert, Event, Sighting, decide
from services.decision.policy_file import DEFAULT_POLICY, load_policy
from services.decision.record import Record, decode, encode
from services.decision.rules import Policy
from shared.bundle import Manifest
from shared.events import Action, Override, OverrideKind, Signal, Verdict
from tests.support.bundles import untrained_manifest

PROFILES = 3
LOG_THRESHOLD = math.log(1e6)
START = 1_700_000_000_000_000
SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
DETECTORS = ("tmsp", "prada", "similarity", "likelihood")


def default_policy() -> Policy:
    """The policy that is shipped, at a calibrated threshold of 1e6."""
    return load_policy(DEFAULT_POLICY, LOG_THRESHOLD)


def manifest() -> Manifest:
    """Of a bundle that was never trained, with `PROFILES` profiles."""
    return Manifest.model_validate({"format": 1, "files": {}, **untrained_manifest(), "profiles": PROFILES})


def policy_of(folder: Path, rules: str) -> Policy:
    """A policy of all detectors with these rules (a YAML list)."""
    head = (
        "format: 1\nname: test\nthreat_model: a test\ndetectors: [tmsp, prada, similarity, likelihood]\n"
        "responses:\n  mild: {policy: amao, group: 16}\n  harsh: {policy: amao, group: 2}\n"
        "throttled_queries_per_second: 2.0\npardon_queries: 2000\nrules:\n"
    )
    path = folder / "policy.yaml"
    path.write_text(head + rules)
    return load_policy(path, LOG_THRESHOLD)


def vector(r: float | Sequence[float]) -> np.ndarray:
    """Evidence of R under all profiles, or of one R for each."""
    return np.log(np.broadcast_to(np.asarray(r, dtype=np.float64), (PROFILES,))).astype(np.float32)


def sighting(
    offset: int,
    r: float | Sequence[float] = 1.0,
    *,
    detector: str = "tmsp",
    queries: int | None = None,
    at: int | None = None,
    flagged: bool = False,
    partition: int = 0,
    batch_id: bytes | None = None,
) -> Sighting:
    """A signal of an account that sent one query a second since `START`."""
    queries = offset + 1 if queries is None else queries
    signal = Signal(
        account="mallory",
        queries=queries,
        repeats=0,
        statistic=0.7,
        threshold=0.5,
        flagged=flagged,
        details={},
        log_evidence=vector(r),
        accepted_at=START + queries * SECOND if at is None else at,
        query_id=f"query-{queries}",
    )
    identity = offset.to_bytes(16, "big") if batch_id is None else batch_id
    return Sighting(detector, identity, partition, offset, signal)


_numbers = itertools.count()


def override(
    kind: OverrideKind, action: Action = Action.ALLOW, *, at: int = START, expires_at: int = 0, identity: str = ""
) -> Override:
    """A person's word; every call is another one."""
    return Override(
        override_id=identity or f"override-{next(_numbers)}",
        account="mallory",
        model_name="fashion",
        kind=kind,
        action=action,
        author="ada",
        reason="known customer",
        issued_at=at,
        expires_at=expires_at,
    )


@dataclass
class Account:
    """One account under a policy, and everything that was said of it."""

    policy: Policy
    record: Record = field(default_factory=lambda: Record(account="mallory", model_name="fashion"))
    verdicts: list[Verdict] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    now: int = START

    def meet(self, event: Event, now: int | None = None) -> Verdict | None:
        """Take in an event at `now`, by default a second after the last."""
        self.now = self.now + SECOND if now is None else now
        self.record, verdict, alert = decide(self.record, event, self.policy, self.now)
        self.verdicts += [verdict] if verdict else []
        self.alerts += [alert] if alert else []
        return verdict

    def hear(self, offset: int, r: float = 1.0, now: int | None = None, **fields: object) -> Verdict | None:
        """All detectors report the same R; the verdict of the last that changes something."""
        make: Callable[..., Sighting] = sighting
        said = [self.meet(make(offset, r, detector=name, **fields), now) for name in DETECTORS]
        return next((verdict for verdict in reversed(said) if verdict), None)

    def cut_and_restore(self) -> None:
        """What a crash does to the record."""
        self.record = decode(encode(self.record, "bundle"), "bundle")
