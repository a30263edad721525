"""Creates the deployment's topics: `python -m shared.topics_admin`.

Services never create topics themselves: a topic made by accident has the wrong number of partitions, and accounts then
live in different workers for different topics.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from shared.settings import ServiceSettings
from shared.topics import Topic, all_topics

_RETRY_SECONDS = 0.25
_REQUEST_MS = 10_000
_CREATION_SECONDS = 30.0


class TopicsError(RuntimeError):
    """The topics are not as this deployment needs them; the message says what to do."""


@contextmanager
def _admin(settings: ServiceSettings, connect_ms: int = _REQUEST_MS) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(
        bootstrap_servers=settings.kafka.split(","),
        client_id="portcullis-topics",
        request_timeout_ms=_REQUEST_MS,
        bootstrap_timeout_ms=connect_ms,
    )
    try:
        yield client
    finally:
        client.close()


def _leaders(client: KafkaAdminClient, settings: ServiceSettings) -> dict[str, list[int]]:
    """For each of the deployment's topics that exists, the leader of each partition, -1 where there is none yet."""
    return {
        topic["name"]: [partition["leader_id"] for partition in topic["partitions"]]
        for topic in client.describe_topics([settings.topic(topic) for topic in all_topics()])
        if not topic["error_code"]
    }


def _require_partitions(leaders: dict[str, list[int]], settings: ServiceSettings) -> None:
    wrong = [f"{name} has {len(of)}" for name, of in sorted(leaders.items()) if len(of) != settings.partitions]
    if wrong:
        raise TopicsError(
            f"every topic must have PORTCULLIS_PARTITIONS={settings.partitions} partitions, but {', '.join(wrong)}: "
            "set PORTCULLIS_PARTITIONS to what is there, or choose another PORTCULLIS_TOPIC_PREFIX, or delete these "
            "topics (more partitions cannot be added: accounts would move away from their history)"
        )


def create_topics(settings: ServiceSettings) -> tuple[str, ...]:
    """Create every topic of the deployment that is not there yet; return the names of those when they can be used.

    Topics that exist are left as they are. Several callers at once do no harm.

    Raises:
        TopicsError: a topic exists with another number of partitions, or the broker does not create one.
        KafkaError: no broker answers.
    """
    with _admin(settings) as client:
        existing = _leaders(client, settings)
        _require_partitions(existing, settings)
        missing = {
            settings.topic(topic): {
                "num_partitions": settings.partitions,
                "replication_factor": settings.replication,
                "configs": topic.config(),
            }
            for topic in all_topics()
            if settings.topic(topic) not in existing
        }
        results = client.create_topics(missing, raise_errors=False)["topics"] if missing else ()
    for result in results:
        error = for_code(result["error_code"])
        if result["error_code"] and error is not TopicAlreadyExistsError:
            raise TopicsError(f"Kafka does not create {result['name']}: {result['error_message'] or error.__name__}")
    # Others may have created some meanwhile, and a broker knows a new topic only after a moment.
    wait_for_topics(settings, _CREATION_SECONDS)
    return tuple(missing)


def wait_for_topics(settings: ServiceSettings, timeout: float) -> None:
    """Wait until a broker answers and every topic of the deployment is there, each partition with its leader.

    Raises:
        TopicsError: not within `timeout` seconds, or a topic has another number of partitions.
    """
    deadline = time.monotonic() + timeout
    while True:
        wait_ms = int(max(deadline - time.monotonic(), 0.1) * 1000)
        try:
            with _admin(settings, min(wait_ms, _REQUEST_MS)) as client:
                leaders = _leaders(client, settings)
        except (KafkaError, OSError) as error:
            lack = f"Kafka at {settings.kafka} does not answer ({error}); start it, or set PORTCULLIS_KAFKA"
        else:
            _require_partitions(leaders, settings)
            names = [settings.topic(topic) for topic in all_topics()]
            absent = [name for name in names if min(leaders.get(name, []), default=-1) < 0]
            if not absent:
                return
            lack = f"Kafka at {settings.kafka} has no {', '.join(absent)}; run `python -m shared.topics_admin`"
        if time.monotonic() > deadline:
            raise TopicsError(lack)
        time.sleep(_RETRY_SECONDS)


def topic_id(settings: ServiceSettings, topic: Topic) -> str:
    """What Kafka calls this topic and no other: a topic that is deleted and made again has another.

    Raises:
        KafkaError: no broker answers, or the topic is not there.
    """
    name = settings.topic(topic)
    with _admin(settings) as client:
        (described,) = client.describe_topics([name])
    if described["error_code"]:
        raise for_code(described["error_code"])(name)
    return str(described["topic_id"])


def main() -> int:
    """Create the topics, and say which."""
    settings = ServiceSettings()
    try:
        created = create_topics(settings)
    except (TopicsError, KafkaError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{settings.kafka}: {', '.join(created) or 'every topic was there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
