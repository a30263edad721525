"""Settings come from the environment, are checked once, and name what is wrong."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shared.settings import ServiceSettings
from shared.topics import QUERIES


def test_every_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "KAFKA": "one:9092,two:9092",
        "TOPIC_PREFIX": "blue.",
        "PARTITIONS": "16",
        "REPLICATION": "3",
        "BUNDLE": "/bundles/7",
        "METRICS_PORT": "9100",
        "METRICS_HOST": "0.0.0.0",
        "LOG_LEVEL": "DEBUG",
        "LOG_JSON": "false",
    }
    assert {name.lower() for name in values} == set(ServiceSettings.model_fields)
    for name, value in values.items():
        monkeypatch.setenv(f"PORTCULLIS_{name}", value)
    settings = ServiceSettings()
    for name, value in values.items():
        assert str(getattr(settings, name.lower())).lower() == value.lower()


def test_a_prefix_separates_deployments_that_share_a_broker() -> None:
    assert ServiceSettings(topic_prefix="blue.").topic(QUERIES) == "blue.queries"
    assert ServiceSettings(topic_prefix="").topic(QUERIES) == "queries"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARTITIONS", "0"),
        ("PARTITIONS", "many"),
        ("REPLICATION", "0"),
        ("METRICS_PORT", "65536"),
        ("LOG_LEVEL", "LOUD"),
        ("TOPIC_PREFIX", "a b"),
    ],
)
def test_a_wrong_value_is_refused_by_the_settings_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"PORTCULLIS_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        ServiceSettings()


def test_settings_do_not_change_while_a_service_runs() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ServiceSettings().partitions = 2  # type: ignore[misc]
