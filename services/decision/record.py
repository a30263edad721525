"""What decision remembers of one account, and its encoding: JSON, vectors as base64 of little-endian float32."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.detection import StateError
from shared.events import Action

FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The latest signal of one detector, and what of it is forgiven."""

    source_partition: int
    source_offset: int
    batch_id: bytes
    queries: int
    statistic: float
    threshold: float
    flagged: bool
    log_evidence: NDArray[np.float32]
    """[profiles]"""
    accepted_at: int
    query_id: str
    forgiven: NDArray[np.float32]
    """[profiles], log R that a pardon took off the account; zeros without one."""
    forgiven_flag: bool = False
    """Whether the paper's rule has condemned the account without a break since before its pardon."""

    def counts(self) -> NDArray[np.float32]:
        """[profiles], log R that is held against the account."""
        counting: NDArray[np.float32] = np.maximum(self.log_evidence - self.forgiven, np.float32(0.0))
        return counting

    def condemns(self) -> bool:
        """Whether the paper's rule is held against the account."""
        return self.flagged and not self.forgiven_flag


@dataclass(frozen=True, slots=True)
class Standing:
    """What the rules hold an account at."""

    action: Action = Action.ALLOW
    rule: str = ""
    since: int = 0
    """Microseconds since the Unix epoch."""
    held_until: int = 0
    """Before then no rule lets go; 0 never."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A person's word that outranks the rules while it lasts."""

    action: Action
    author: str
    reason: str
    override_id: str
    since: int
    expires_at: int
    """0 never."""


@dataclass(frozen=True, slots=True)
class Pardon:
    """When an account was pardoned."""

    at: int
    at_query: int


@dataclass(frozen=True, slots=True)
class Campaign:
    """From the first departure from ALLOW until the account is free again: one finding for the security team."""

    finding_id: str
    began_at: int


@dataclass(frozen=True, slots=True)
class Record:
    """One account of one model. Mappings are never changed in place."""

    account: str
    model_name: str
    latest: Mapping[str, Held] = field(default_factory=dict)
    """By detector."""
    standing: Standing = Standing()
    pin: Pin | None = None
    pardon: Pardon | None = None
    holding: Mapping[str, int] = field(default_factory=dict)
    """`queries_heard_by_all` when the conditions of a rule began to hold, by rule."""
    campaign: Campaign | None = None
    overrides: tuple[str, ...] = ()
    """Ids of the latest that were applied."""
    sequence: int = 0
    """Of announcements."""
    now: int = 0
    """The latest moment that the record has been told; never goes back."""

    @property
    def queries(self) -> int:
        """Most queries of the account that any detector has seen."""
        return max((held.queries for held in self.latest.values()), default=0)

    @property
    def queries_heard_by_all(self) -> int:
        """Queries of the account that every detector has seen that has spoken of it."""
        return min((held.queries for held in self.latest.values()), default=0)

    @property
    def action(self) -> Action:
        """In force."""
        return self.pin.action if self.pin else self.standing.action

    def without_signals(self) -> Record:
        """The record under another bundle: decisions stay, what the old bundle's detectors said is void."""
        return replace(self, latest={}, holding={}, pardon=None)


def encode(record: Record, fingerprint: str) -> bytes:
    """The record in bytes, beside the fingerprint of the bundle under which its signals were made."""
    document = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        **{
            name: getattr(record, name) for name in ("account", "model_name", "holding", "overrides", "sequence", "now")
        },
        "latest": {detector: _encode_held(held) for detector, held in record.latest.items()},
        **{
            name: None if getattr(record, name) is None else asdict(getattr(record, name))
            for name in ("standing", "pin", "pardon", "campaign")
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


def format_of(data: bytes) -> Any:
    """The number that `encode` wrote first.

    Raises:
        StateError: the bytes are no record.
    """
    return _document(data).get("format")


def decode(data: bytes, fingerprint: str) -> Record:
    """The inverse of `encode`; under another bundle, `Record.without_signals`.

    Raises:
        StateError: the bytes are no record.
    """
    document = _document(data)
    try:
        record = Record(
            account=document["account"],
            model_name=document["model_name"],
            latest={detector: _decode_held(held) for detector, held in document["latest"].items()},
            standing=_with_action(Standing, document["standing"]),
            pin=_with_action(Pin, document["pin"]) if document["pin"] else None,
            pardon=Pardon(**document["pardon"]) if document["pardon"] else None,
            holding=document["holding"],
            campaign=Campaign(**document["campaign"]) if document["campaign"] else None,
            overrides=tuple(document["overrides"]),
            sequence=document["sequence"],
            now=document["now"],
        )
        same_bundle = document["fingerprint"] == fingerprint
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"a decision record cannot be read: {error!r}") from error
    return record if same_bundle else record.without_signals()


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise StateError(f"a decision record is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise StateError("a decision record is no JSON object")
    return document


def _with_action(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    return kind(**{**fields, "action": Action(fields["action"])})


def _encode_held(held: Held) -> dict[str, Any]:
    scalars = {name: getattr(held, name) for name in _SCALARS}
    return {
        **scalars,
        "batch_id": held.batch_id.hex(),
        "log_evidence": _encode_vector(held.log_evidence),
        "forgiven": _encode_vector(held.forgiven),
    }


_SCALARS = (
    "source_partition",
    "source_offset",
    "queries",
    "statistic",
    "threshold",
    "flagged",
    "accepted_at",
    "query_id",
    "forgiven_flag",
)


def _decode_held(fields: Mapping[str, Any]) -> Held:
    return Held(
        **{name: fields[name] for name in _SCALARS},
        batch_id=bytes.fromhex(fields["batch_id"]),
        log_evidence=_decode_vector(fields["log_evidence"]),
        forgiven=_decode_vector(fields["forgiven"]),
    )


def _encode_vector(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _decode_vector(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
