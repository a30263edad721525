"""Settings of the ownership service; every field is read from the environment as PORTCULLIS_<NAME>."""

from __future__ import annotations

from shared.settings import ServiceSettings

DEFAULT_REGISTRY = "sqlite:///build/ownership/registry.db"


class OwnershipSettings(ServiceSettings):
    """What the ownership service needs to know."""

    registry: str = DEFAULT_REGISTRY
    """Where evidence is kept: sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE."""
