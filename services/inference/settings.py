"""Settings of the inference service; every field is read from the environment as PORTCULLIS_<NAME>."""

from __future__ import annotations

import enum
from pathlib import Path

from pydantic import Field, SecretStr

from services.inference.responses.interface import AnswerMode
from shared.keys import DEFAULT_KEYS
from shared.settings import ServiceSettings


class StalePolicy(enum.StrEnum):
    """What happens to queries while no verdict can arrive."""

    OPEN = "open"
    """The verdicts known so far stay in force, and queries are answered."""
    CLOSED = "closed"
    """Queries are refused as UNAVAILABLE."""


class InferenceSettings(ServiceSettings):
    """What the inference service needs to know."""

    grpc_address: str = "127.0.0.1:8001"
    """host:port to listen on; port 0 takes any free one and logs it."""

    keys: Path = DEFAULT_KEYS
    """File of the accounts' hashed API keys; read again whenever it changes."""

    answer_mode: AnswerMode = AnswerMode.PROBABILITIES

    defence: bool = True
    """False: authenticate and answer, but obey no verdict and publish nothing. The benchmark's baseline."""

    max_request_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    """Of one request: larger ones get INVALID_ARGUMENT, and above twice as much gRPC itself refuses to read them."""

    max_request_rows: int = Field(256, ge=1)
    """Queries in one request; fewer where a record of `queries` could not hold them."""

    max_batch_rows: int = Field(64, ge=1)
    """Queries that one forward pass gathers from several requests."""

    max_waiting_rows: int = Field(4096, ge=4)
    """Queries that may wait for the model; one account may fill a quarter. More are refused, to be sent again."""

    torch_threads: int = Field(1, ge=1)
    """Threads of one forward pass."""

    spool: Path = Path("build/spool/inference")
    """Folder for events while the broker is away; of this replica alone."""

    spool_bytes: int = Field(1024**3, ge=1024**2)
    """Most bytes in the spool. When it is full, and the queue too, queries are refused rather than lost."""

    queue_rows: int = Field(20_000, ge=1)
    """Most answered queries in memory on their way to the broker or the spool."""

    publish_linger_ms: float = Field(20.0, ge=0.0, le=1000.0)
    """How long the publisher gathers rows into a batch. Everything behind it pays per batch, not per row."""

    publish_rows: int = Field(512, ge=1)
    """Most rows of one published batch."""

    delivery_timeout_ms: int = Field(3000, ge=500)
    """How long a batch may wait for the broker's acknowledgement before it goes to the spool."""

    stale_verdicts: StalePolicy = StalePolicy.OPEN

    stale_after_seconds: float = Field(30.0, gt=0.0)
    """Without an answer from the broker for so long, verdicts count as stale."""

    response_key: SecretStr = SecretStr("")
    """Secret by which responses choose at random what must be the same on every replica. Where it is empty the bundle's
    fingerprint serves, which whoever has the bundle knows too."""

    similar_bits: int | None = Field(None, ge=0, le=64)
    """Hashes (64 bits) that differ in no more bits than this are of similar images; where it is not given, as the
    bundle's hash was calibrated."""

    remembered_answers: int = Field(50_000, ge=1)
    """Most spoiled answers that are remembered; the oldest are forgotten."""

    promised_answers: int = Field(500_000, ge=1)
    """Most inputs that accounts under PERTURB were answered truly and will be again; about 100 bytes each."""

    promised_answers_an_account: int = Field(20_000, ge=1)
    """Most of them that are one account's."""

    shutdown_grace_seconds: float = Field(10.0, ge=0.0)
    """For running requests after SIGTERM; and as long again for events to reach the broker before they are spooled."""
