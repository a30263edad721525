"""Creating the topics on a real Kafka."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from deploy.kafka.broker import Broker
from deploy.processes import free_port
from shared.settings import ServiceSettings
from shared.topics import VERDICTS, all_topics
from shared.topics_admin import TopicsError, create_topics, wait_for_topics

pytestmark = pytest.mark.kafka


def settings_for(broker: Broker, prefix: str, partitions: int = 2) -> ServiceSettings:
    return ServiceSettings(kafka=broker.address, topic_prefix=prefix, partitions=partitions)


def test_every_topic_is_created_once_with_its_configuration(broker: Broker, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    names = tuple(settings.topic(topic) for topic in all_topics())

    assert create_topics(settings) == names
    assert create_topics(settings) == ()

    admin = KafkaAdminClient(bootstrap_servers=broker.address)
    described = admin.describe_topics(list(names))
    verdicts = settings.topic(VERDICTS)
    configured = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, verdicts)])["topic"][verdicts]
    admin.close()
    assert {topic["name"]: len(topic["partitions"]) for topic in described} == dict.fromkeys(names, 2)
    assert configured["cleanup.policy"]["value"] == "compact"


def test_a_topic_with_another_number_of_partitions_is_refused_by_name(broker: Broker, topic_prefix: str) -> None:
    create_topics(settings_for(broker, topic_prefix, partitions=2))
    other = settings_for(broker, topic_prefix, partitions=3)
    with pytest.raises(TopicsError, match=f"{topic_prefix}alerts has 2"):
        create_topics(other)
    with pytest.raises(TopicsError, match="PORTCULLIS_PARTITIONS=3"):
        wait_for_topics(other, timeout=20)


def test_more_copies_than_brokers_are_refused_with_kafkas_reason(broker: Broker, topic_prefix: str) -> None:
    settings = ServiceSettings(kafka=broker.address, topic_prefix=topic_prefix, replication=30)
    with pytest.raises(TopicsError, match=r"queries: .*replica"):
        create_topics(settings)


def test_waiting_for_topics_that_nobody_creates_ends_with_their_names(broker: Broker, topic_prefix: str) -> None:
    with pytest.raises(TopicsError, match=rf"has no {topic_prefix}queries, .*shared\.topics_admin"):
        wait_for_topics(settings_for(broker, topic_prefix), timeout=0)


def test_waiting_for_a_broker_that_is_not_there_ends_and_names_it() -> None:
    settings = ServiceSettings(kafka=f"127.0.0.1:{free_port()}")
    with pytest.raises(TopicsError, match=f"{settings.kafka} does not answer"):
        wait_for_topics(settings, timeout=0)


def test_the_command_creates_them_and_says_so(broker: Broker, topic_prefix: str) -> None:
    environment = {**os.environ, "PORTCULLIS_KAFKA": broker.address, "PORTCULLIS_TOPIC_PREFIX": topic_prefix}
    command = [sys.executable, "-m", "shared.topics_admin"]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert f"{topic_prefix}queries" in first.stdout
    assert "there already" in second.stdout
