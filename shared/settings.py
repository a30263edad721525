"""Settings that all services share; each service extends `ServiceSettings` with its own.

Every field is read from the environment as PORTCULLIS_<NAME>.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.topics import Topic

SettingsType = TypeVar("SettingsType", bound="ServiceSettings")

REPOSITORY_BUNDLE = Path("deploy/bundle")


class ServiceSettings(BaseSettings):
    """What every service needs to know."""

    model_config = SettingsConfigDict(env_prefix="PORTCULLIS_", frozen=True, extra="ignore")

    kafka: str = "localhost:9092"
    """host:port of one or more brokers, separated by commas."""

    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]*$")
    """Put before every topic's and consumer group's name, so that several deployments can share a broker."""

    partitions: int = Field(4, ge=1, le=4096)
    """Of every topic; workers scale up to this number. Changing it moves accounts: start with empty topics."""

    replication: int = Field(1, ge=1)
    """Copies of every topic; 3 wherever there are three brokers."""

    bundle: Path = REPOSITORY_BUNDLE
    """Folder of the trained bundle."""

    metrics_port: int = Field(0, ge=0, le=65535)
    """Port of /metrics, /health/live and /health/ready; 0 takes any free one and logs it."""

    metrics_host: str = "127.0.0.1"
    """Address of the same; a container sets 0.0.0.0."""

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    log_json: bool = True
    """One JSON object a line; False prints for people."""

    def topic(self, topic: Topic) -> str:
        """The topic's name in this deployment."""
        return self.topic_prefix + topic.name


class SettingsError(ValueError):
    """Settings have mistakes; the message has a line for each, which begins with the variable's name."""


def read_settings(kind: type[SettingsType]) -> SettingsType:
    """A service's settings, from the environment.

    Raises:
        SettingsError: they have mistakes.
    """
    try:
        return kind()
    except ValidationError as error:
        lines = [
            f"PORTCULLIS_{'_'.join(str(part) for part in mistake['loc']).upper()}: {mistake['msg']}"
            for mistake in error.errors()
        ]
        raise SettingsError("\n".join(lines)) from error
