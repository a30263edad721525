"""Topics on a real broker, and what the services beside inference would do with them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from deploy.kafka.broker import Broker
from shared.codec import decode_perturbed, decode_queries, encode_verdict
from shared.events import Action, PerturbedAnswer, QueryBatch, Verdict
from shared.settings import ServiceSettings
from shared.topics import PERTURBED, QUERIES, VERDICTS, Topic
from shared.topics_admin import create_topics
from tests.support.inference import InferenceProcess

PARTITIONS = 2


class Deployment:
    """Topics on a broker, and what the other services would do with them."""

    def __init__(self, broker: Broker, prefix: str) -> None:
        self.broker = broker
        self.settings = ServiceSettings(kafka=broker.address, topic_prefix=prefix, partitions=PARTITIONS)

    def create_topics(self) -> None:
        create_topics(self.settings)

    def inference(self, folder: Path, *accounts: str, **settings: Any) -> InferenceProcess:
        process = InferenceProcess(
            folder,
            kafka=self.broker.address,
            topic_prefix=self.settings.topic_prefix,
            partitions=PARTITIONS,
            **settings,
        )
        for account in accounts:
            process.key(account)
        return process

    def issue(self, account: str, action: Action, **changes: Any) -> None:
        now = time.time_ns() // 1000
        verdict = Verdict(
            "v", account, "fashion", action, "rule", "reason", 20.0, now, 0,
            cause_query_id="q", cause_accepted_at=now - 1000, at_query=5, **changes,
        )  # fmt: skip
        producer = KafkaProducer(bootstrap_servers=self.broker.address)
        producer.send(self.settings.topic(VERDICTS), encode_verdict(verdict), key=account.encode()).get(10)
        producer.close()

    def records(self, topic: Topic) -> list[Any]:
        """Everything in a topic, by partition and offset."""
        consumer = KafkaConsumer(bootstrap_servers=self.broker.address, auto_offset_reset="earliest")
        partitions = [TopicPartition(self.settings.topic(topic), partition) for partition in range(PARTITIONS)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        found: list[Any] = []
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(timeout_ms=500).values():
                found += records
        consumer.close()
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def queries(self) -> list[QueryBatch]:
        return [decode_queries(record.value) for record in self.records(QUERIES)]

    def perturbed(self) -> list[PerturbedAnswer]:
        return [decode_perturbed(record.value) for record in self.records(PERTURBED)]
