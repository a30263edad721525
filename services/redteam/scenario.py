"""A scenario: who asks what of a deployment, as a file that a red team keeps and runs again."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.redteam.plan import AnswerKind, AttackName, BlindingName, ClientPlan, HonestName
from shared.keys import Account
from shared.validation import first_mistake

LARGEST_FILE = 1 << 20
ROLES = {"attack": typing.get_args(AttackName), "honest": typing.get_args(HonestName)}


class ScenarioError(ValueError):
    """A scenario, or the keys for it, cannot be used; the message names the file and the field."""


class Party(BaseModel):
    """One account, or several of one kind; an attacker with his accomplices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Account
    role: Literal["honest", "attack"]
    kind: AttackName | HonestName
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Accounts of an honest kind, or attackers; each draws for itself."""
    accomplices: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Further accounts of each attacker, over which he spreads related queries."""
    queries: Annotated[int, Field(ge=1)] = 1_200
    queries_per_second: Annotated[float | None, Field(gt=0)] = None
    """Of each account; as fast as they are answered where not given."""
    request_rows: Annotated[int, Field(ge=1)] = 1
    blinding: BlindingName = ""
    blinding_strength: Literal["low", "high"] = "low"
    mix: Annotated[float, Field(ge=0, lt=1)] = 0.0
    filtered: bool = False
    recovering: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind not in ROLES[self.role]:
            raise ValueError(f"{self.kind} is no kind of role {self.role}; there are {', '.join(ROLES[self.role])}")
        disguised = self.accomplices or self.blinding or self.mix or self.filtered or self.recovering
        if self.role == "honest" and disguised:
            raise ValueError(f"{self.name} is honest and has nothing to disguise")
        return self

    @property
    def accounts(self) -> tuple[str, ...]:
        """Those that are told apart in reports: without accomplices."""
        return (self.name,) if self.count == 1 else tuple(f"{self.name}-{n + 1}" for n in range(self.count))

    def accomplices_of(self, account: str) -> tuple[str, ...]:
        """Of one of `accounts`."""
        return tuple(f"{account}:{n + 1}" for n in range(self.accomplices))

    def clients(self, keys: Mapping[str, str]) -> Iterator[ClientPlan]:
        """One for each of `accounts`."""
        shared = self.model_dump(exclude={"name", "count", "accomplices"})
        for account in self.accounts:
            accomplices = {helper: keys[helper] for helper in self.accomplices_of(account)}
            yield ClientPlan(account=account, key=keys[account], accomplices=accomplices, **shared)


class Scenario(BaseModel):
    """The file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    text: str = ""
    """What it is meant to show."""
    model: str = "fashion-mnist"
    """Name of the served model."""
    answers: AnswerKind = "probabilities"
    """What the endpoint answers; so answers the model with which the attackers are compared."""
    seed: int = 0
    parties: Annotated[tuple[Party, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _accounts_differ(self) -> Self:
        if len(set(self.accounts)) != len(self.accounts):
            double = next(name for name in self.accounts if self.accounts.count(name) > 1)
            raise ValueError(f"two parties have an account {double}")
        return self

    @property
    def accounts(self) -> tuple[str, ...]:
        """All that need a key."""
        return tuple(
            name
            for party in self.parties
            for account in party.accounts
            for name in (account, *party.accomplices_of(account))
        )

    def clients(self, keys: Mapping[str, str]) -> tuple[ClientPlan, ...]:
        """Every client.

        Raises:
            ScenarioError: an account has no key.
        """
        missing = [account for account in self.accounts if account not in keys]
        if missing:
            raise ScenarioError(
                f"no key for {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}; "
                "'portcullis redteam keys' issues them"
            )
        return tuple(client for party in self.parties for client in party.clients(keys))


def load_scenario(path: Path) -> Scenario:
    """Read a scenario's YAML.

    Raises:
        ScenarioError: it is none.
        OSError: the file cannot be read.
    """
    try:
        return Scenario.model_validate(_yaml(path))
    except ValidationError as error:
        raise ScenarioError(f"{path}: {first_mistake(error)}") from error


def load_secrets(path: Path) -> dict[str, str]:
    """Read accounts' API keys, as `portcullis redteam keys` writes them.

    Raises:
        ScenarioError: the file is something else.
        OSError: it cannot be read.
    """
    document = _yaml(path)
    if not isinstance(document, dict) or not all(isinstance(part, str) for pair in document.items() for part in pair):
        raise ScenarioError(f"{path}: is no mapping of accounts to API keys")
    return document


def _yaml(path: Path) -> object:
    text = path.read_bytes()
    if len(text) > LARGEST_FILE:
        raise ScenarioError(f"{path}: is larger than {LARGEST_FILE} bytes")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
