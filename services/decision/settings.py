"""Settings of the decision service; every field is read from the environment as PORTCULLIS_<NAME>."""

from __future__ import annotations

from pathlib import Path

from services.decision.policy_file import DEFAULT_POLICY
from shared.worker import WorkerSettings


class DecisionSettings(WorkerSettings):
    """What the decision service needs to know."""

    policy: Path = DEFAULT_POLICY
    """The policy's file; read once, at start."""
