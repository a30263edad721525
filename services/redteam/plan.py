"""What a campaign is told and what it reports: data alone, so that who orders one needs neither torch nor a client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.datasets import DEFAULT_FOLDER

AnswerKind = Literal["probabilities", "label"]


AttackName = Literal[
    "jbda", "jbda-tr", "jba-pgd", "jb-top3", "jba-cw", "jba-bs", "cloudleak", "dfme", "maze", "dfms-hl",
    "knockoff-digits", "knockoff-adaptive-digits", "copycat", "random-natural", "activethief-uncertainty",
    "activethief-k-center", "activethief-dfal", "activethief-dfal-k-center", "line-search",
]  # fmt: skip
"""Those of `services.redteam.campaign.ATTACKS`."""
HonestName = Literal[
    "steady", "skewed", "shoes", "dark", "styled", "burst", "frames", "augmenting", "retrying", "batches", "shared-key",
    "changing", "anything", "digits",
]  # fmt: skip
"""Those of `services.redteam.honest.HONEST_KINDS`."""
BlindingName = Literal[
    "", "crop", "brightness", "scale", "rotate", "contrast", "uniform", "gaussian", "translate", "auto-encoder"
]
"""Those of `services.redteam.blinding.BLINDINGS`, and none."""


class ClientPlan(BaseModel):
    """One account."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account: str
    key: str = Field(repr=False)
    role: Literal["honest", "attack"]
    kind: AttackName | HonestName
    accomplices: Mapping[str, str] = Field({}, repr=False)
    """Further accounts of an attacker, with their keys: related queries are spread over all of them."""
    queries: int = Field(ge=1)
    """Of an honest client; an attacker's budget."""
    queries_per_second: float | None = Field(None, gt=0)
    request_rows: int = Field(1, ge=1)
    """Of an attacker; an honest kind has its own."""
    blinding: BlindingName = ""
    """Of an attacker that hides its queries."""
    blinding_strength: Literal["low", "high"] = "low"
    mix: float = Field(0.0, ge=0, lt=1)
    """Share of honest queries among all that an attacker sends; its budget pays for them."""
    filtered: bool = False
    """Whether an attacker holds back what its own similarity detector believes suspicious."""
    recovering: bool = False
    """Whether an attacker mends disturbed answers before its copy learns from them."""


class CampaignPlan(BaseModel):
    """Accounts that one process drives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    model: str
    clients: tuple[ClientPlan, ...] = Field(min_length=1)
    report: Path
    """Rewritten as the campaign goes on."""
    journals: Path | None = None
    """Folder of what each account was answered, so that a campaign that was cut goes on; none is kept where None."""
    seed: int = 0
    data: Path = DEFAULT_FOLDER
    bundle: Path | None = None
    """The victim itself, to measure the copies by; no attack reads it."""
    undefended: AnswerKind | None = None
    """Where given, only the attackers act, and the bundle's model answers them itself, in this way: what they would get
    if nobody stood between."""


class ClientReport(BaseModel):
    """What became of one account, as its client saw it."""

    state: Literal["waiting", "running", "done", "banned", "failed"] = "waiting"
    queries: int = 0
    """Answered."""
    error: str = ""
    milestones: list[tuple[int, float, float]] = Field(default_factory=list)
    """Of a copy: after so many queries, its agreement with the victim and its accuracy on clean images."""


class CampaignReport(BaseModel):
    """What became of every account."""

    accounts: dict[str, ClientReport] = Field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether no client has anything left to do."""
        return all(report.state not in ("waiting", "running") for report in self.accounts.values())

    @classmethod
    def read(cls, path: Path) -> CampaignReport:
        """The report as far as it goes; empty where there is none yet."""
        return cls.model_validate_json(path.read_text()) if path.exists() else cls()
