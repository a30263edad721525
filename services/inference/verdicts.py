"""The verdicts in force, as the topic `verdicts` tells them; and the rate that THROTTLE leaves to an account.

No I/O and no clock here: times come in. All of it lives in the server's event loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.events import Action, Verdict

LONGEST_WAIT = 3600.0
"""Seconds; what a throttled account is told at most, also where its rate is 0."""


@dataclass(slots=True)
class TokenBucket:
    """A rate with a burst of one second.

    A request may take more than there is: the next ones pay the debt, so that a batch larger than the burst gets
    through at all, and the mean rate still holds.
    """

    rate: float
    """Queries a second."""
    updated: float
    """Seconds."""
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.burst

    @property
    def burst(self) -> float:
        """Most tokens that can be saved up."""
        return max(1.0, self.rate)

    def take(self, queries: int, now: float) -> float:
        """Take `queries` tokens at `now` seconds; 0, or for how many seconds the account has to wait instead."""
        if self.rate <= 0.0:
            return LONGEST_WAIT
        self.tokens = min(self.burst, self.tokens + (now - self.updated) * self.rate)
        self.updated = now
        if self.tokens < 1.0:
            return min(LONGEST_WAIT, (1.0 - self.tokens) / self.rate)
        self.tokens -= queries
        return 0.0


class VerdictTable:
    """The latest verdict of each account on one model."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._verdicts: dict[str, Verdict] = {}
        self._buckets: dict[str, tuple[Verdict, TokenBucket]] = {}

    def apply(self, account: str, verdict: Verdict | None) -> bool:
        """Take in one record of the topic; None is a tombstone. Whether it changed the table.

        The verdict that was issued last wins, in whatever order they arrive; one on another model is none of ours.
        """
        if verdict is None:
            return self._verdicts.pop(account, None) is not None
        held = self._verdicts.get(account)
        if verdict.model_name != self._model_name or (held is not None and verdict.issued_at < held.issued_at):
            return False
        self._verdicts[account] = verdict
        return held != verdict

    def in_force(self, account: str, now: int) -> Verdict | None:
        """The account's verdict at `now` (microseconds since the Unix epoch); None where none is or it has expired."""
        verdict = self._verdicts.get(account)
        if verdict is None or 0 < verdict.expires_at <= now:
            return None
        return verdict

    def wait_of(self, verdict: Verdict, queries: int, now: float) -> float:
        """0 where a THROTTLE verdict lets `queries` pass at `now` (seconds, monotonic), else the seconds to wait."""
        held, bucket = self._buckets.get(verdict.account, (None, None))
        if bucket is None or held != verdict:
            bucket = TokenBucket(verdict.queries_per_second, now)
            self._buckets[verdict.account] = (verdict, bucket)
        return bucket.take(queries, now)

    def held(self, now: int) -> int:
        """Accounts under an action other than ALLOW."""
        in_force = (self.in_force(account, now) for account in self._verdicts)
        return sum(verdict is not None and verdict.action > Action.ALLOW for verdict in in_force)
