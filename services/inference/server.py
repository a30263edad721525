"""The inference service, put together: one gRPC server, its model, and the defence around it."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.inference.auth import Authenticator
from services.inference.batching import Batcher
from services.inference.defence import Defence
from services.inference.image_hash import ImageHash
from services.inference.link import KafkaLink
from services.inference.model import Model
from services.inference.publisher import Destination, Limits, Publisher
from services.inference.response_networks import ResponseNetworks
from services.inference.responses.catalogue import Catalogue
from services.inference.responses.memory import PerturbedMemory, Promises
from services.inference.servicer import SERVICE, InferenceServicer
from services.inference.settings import InferenceSettings, StalePolicy
from services.inference.spool import Spool
from services.inference.tensors import Interface
from services.inference.topic_reader import TopicReader
from shared.bundle import Bundle, ModelSection
from shared.clock import Clock, SystemClock
from shared.log import get_logger
from shared.metrics import VERDICT_AGE_SECONDS, VERDICTS_STALE
from shared.pb.open_inference import open_inference_grpc_pb2 as pb
from shared.pb.open_inference import open_inference_grpc_pb2_grpc as pb_grpc
from shared.topics import PERTURBED, QUERIES, RESPONSE_NOTES, VERDICTS

log = get_logger(__name__)

WATCH_SECONDS = 0.25
"""How often readiness is looked at."""
RECORD_BYTES = 6 * 1024 * 1024
"""Of one request's tensors in a record of `queries`; the rest of what the topic takes is for the other columns."""


@dataclass(slots=True)
class Streams:
    """What the service has to do with Kafka."""

    defence: Defence
    publisher: Publisher
    readers: Sequence[TopicReader]
    verdicts: TopicReader

    def start(self) -> None:
        """Begin to publish and to read."""
        self.publisher.start()
        for reader in self.readers:
            reader.start()

    @property
    def alive(self) -> bool:
        """Whether every thread runs."""
        return self.publisher.alive and all(reader.alive for reader in self.readers)

    @property
    def caught_up(self) -> bool:
        """Whether verdicts and spoiled answers are known."""
        return all(reader.caught_up for reader in self.readers)

    async def stop(self, timeout: float) -> None:
        """Bring every event to Kafka or to the spool, and end the threads."""
        for reader in self.readers:
            reader.stop()
        await asyncio.to_thread(self.publisher.close, timeout)
        for reader in self.readers:
            await asyncio.to_thread(reader.join, timeout)


class InferenceServer:
    """One process of the service."""

    def __init__(self, settings: InferenceSettings, clock: Clock | None = None) -> None:
        """
        Raises:
            BundleError: the bundle cannot be used; the message names the file and the field.
            KeyFileError: the keys cannot be used; the message names the file and the field.
            SpoolError: the spool's folder cannot be used.
        """
        self._settings = settings
        self._clock = clock or SystemClock()
        torch.set_num_threads(settings.torch_threads)
        bundle = Bundle.load(settings.bundle)
        section = bundle.manifest.model
        interface = Interface(section, settings.answer_mode, _most_rows(settings, section), settings.max_request_bytes)
        served = Model(bundle)
        self._batcher = Batcher(served.outputs, settings.max_batch_rows, settings.max_waiting_rows)
        authenticator = Authenticator(settings.keys, self._clock)
        self._streams = _streams(settings, bundle, served, self._clock) if settings.defence else None
        self._stopping = False
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                # A little too large is answered with the field's name; far too large is not even read.
                ("grpc.max_receive_message_length", 2 * settings.max_request_bytes),
                ("grpc.so_reuseport", 0),
            ]
        )
        servicer = InferenceServicer(
            interface, self._batcher, authenticator, self._streams.defence if self._streams else None, self.ready
        )
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name, health.SERVICE_NAME)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)
        self.port = 0
        self._watcher: asyncio.Task[None] | None = None

    def live(self) -> bool:
        """Whether a restart would not help."""
        return self._streams is None or self._streams.alive

    def ready(self) -> bool:
        """Whether queries are answered: verdicts and spoiled answers are known, and fresh where that is required."""
        if self._stopping:
            return False
        if self._streams is None:
            return True
        refuse_stale = self._settings.stale_verdicts is StalePolicy.CLOSED and self._stale()
        return self._streams.caught_up and not refuse_stale

    async def start(self) -> None:
        """Listen, and begin to read and to publish.

        Raises:
            RuntimeError: the address cannot be listened on.
        """
        self.port = self._server.add_insecure_port(self._settings.grpc_address)
        await self._set_health(False)
        if self._streams:
            self._streams.start()
        await self._server.start()
        log.info("grpc listens", address=self._settings.grpc_address, port=self.port)
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Take no new requests, finish the running ones, and bring every event to Kafka or to the spool."""
        grace = self._settings.shutdown_grace_seconds
        self._stopping = True
        await self._health.enter_graceful_shutdown()
        if self._watcher:
            self._watcher.cancel()
        await self._server.stop(grace)
        await self._batcher.close()
        if self._streams:
            await self._streams.stop(grace)
        log.info("stopped")

    def _stale(self) -> bool:
        return self._streams is not None and self._streams.verdicts.age() > self._settings.stale_after_seconds

    async def _watch(self) -> None:
        """Keep the health service and the gauges as things are."""
        was_ready = False
        while True:
            ready = self.ready()
            if ready != was_ready:
                log.info("ready" if ready else "not ready")
                await self._set_health(ready)
                was_ready = ready
            if self._streams:
                self._streams.defence.live = self._streams.caught_up
                VERDICT_AGE_SECONDS.set(self._streams.verdicts.age())
                for policy in StalePolicy:
                    VERDICTS_STALE.labels(policy).set(policy is self._settings.stale_verdicts and self._stale())
            await asyncio.sleep(WATCH_SECONDS)

    async def _set_health(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        for service in ("", SERVICE):
            await self._health.set(service, status.SERVING if ready else status.NOT_SERVING)


def _most_rows(settings: InferenceSettings, model: ModelSection) -> int:
    """Rows a request: what the settings allow, and one record of `queries` can hold."""
    row_bytes = math.prod(model.input_shape) + 2 * 4 * len(model.classes)
    return max(1, min(settings.max_request_rows, RECORD_BYTES // row_bytes))


def _streams(settings: InferenceSettings, bundle: Bundle, served: Model, clock: Clock) -> Streams:
    model = bundle.manifest.model
    image_hash = ImageHash.of_bundle(bundle)
    if settings.similar_bits is not None:
        image_hash = replace(image_hash, similar_bits=settings.similar_bits)
    to = Destination(
        queries_topic=settings.topic(QUERIES),
        perturbed_topic=settings.topic(PERTURBED),
        notes_topic=settings.topic(RESPONSE_NOTES),
        partitions=settings.partitions,
        model_name=model.name,
        model_version=model.version,
    )
    connect = partial(
        KafkaLink,
        settings.kafka,
        (to.queries_topic, to.perturbed_topic, to.notes_topic),
        settings.partitions,
        settings.delivery_timeout_ms,
        QUERIES.max_message_bytes,
    )
    limits = Limits(settings.queue_rows, settings.publish_linger_ms / 1000, settings.publish_rows)
    publisher = Publisher(to, limits, Spool(settings.spool, settings.spool_bytes), connect, clock)
    memory = PerturbedMemory(settings.remembered_answers, image_hash.similar_bits)
    promises = Promises(settings.promised_answers, settings.promised_answers_an_account)
    key = hashlib.sha256((settings.response_key.get_secret_value() or bundle.fingerprint).encode()).digest()
    networks = ResponseNetworks(bundle, served)
    responses = Catalogue(settings.answer_mode, len(model.classes), key, memory, promises, networks)
    defence = Defence(model, settings.answer_mode, responses, image_hash, publisher, clock)
    reader = partial(TopicReader, settings.kafka, partitions=settings.partitions, clock=clock)
    verdicts = reader(settings.topic(VERDICTS), apply=defence.apply_verdicts)
    perturbed = reader(settings.topic(PERTURBED), apply=defence.apply_perturbed)
    notes = reader(settings.topic(RESPONSE_NOTES), apply=defence.apply_notes)
    return Streams(defence, publisher, (verdicts, perturbed, notes), verdicts)
