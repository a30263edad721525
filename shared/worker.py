"""The one Faust shell: takes many records at once, lets the engine work on them, sends, stores, and only then commits.

What Faust 0.15.3 is trusted with is consumption, group membership, recovery of the table from its changelog, and
commits of what was acknowledged. What it is not trusted with, and why:

- *Acknowledgement.* Every way of iterating a stream acknowledges in `finally`, exceptions included, and so do events
  that a rebalance makes it skip. Here a record counts as acknowledged only if the worker has finished with it
  (`_Consumer`), and any exception ends the process before anything else can be committed.
- *Queues.* At the end of a rebalance it may drop records that it has just read (`FlowControl`).
- *Table writes.* `table[key] = value` does not say when Kafka has it, and the commit that follows does not notice if it
  never had it. Here the worker sends changelog records itself, waits, and only then changes the local store (`_Store`).
- *Retries.* Its producer may write a record twice or out of order when a connection breaks; here it is idempotent
  (`_Producer`).

The process is crash-only: whatever goes wrong beyond a record that cannot be read, it says so and ends with a non-zero
status; whatever started it starts it again, and the records that were not committed are replayed. Two processes never
work on one partition unless one of them has been silent for a whole session timeout and then goes on; Kafka
transactions would fence that off, and Faust's are not to be trusted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import faust
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, NoError, TopicAlreadyExistsError, for_code
from faust import streams
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import CrashingSupervisor
from mode.utils.futures import notify
from mode.utils.queues import FlowControlEvent
from pydantic import Field, ValidationError

from shared.bundle import Bundle
from shared.clock import Clock, SystemClock
from shared.detection import Detector
from shared.engine import DeadLetter, Engine, Take, Write
from shared.log import configure_logging, get_logger
from shared.metrics import (
    DEAD_LETTERS,
    WORKER_ACCOUNTS,
    WORKER_DELAY_SECONDS,
    WORKER_QUERIES,
    WORKER_RECORDS,
    WORKER_TAKE_SECONDS,
    HealthServer,
)
from shared.settings import ServiceSettings
from shared.stage import DetectorStage, Output, Record, Stage

SESSION_SECONDS = 10.0
HEARTBEAT_SECONDS = 3.0
COMMIT_SECONDS = 1.0
POLL_SECONDS = 2.0
"""Between two looks at the broker, the lag and the event loop."""
ANSWER_SECONDS = 5.0
"""Longest wait for each such look."""
UNREACHABLE_SECONDS = 10.0
"""Without an answer from the broker, after which the worker is not ready."""
HANGING_SECONDS = 30.0
"""Without a turn of the event loop, after which the worker is not live."""
STOP_SECONDS = 15.0
"""A worker that has not stopped in order by then just ends: nothing is lost by that."""
SLICE_SECONDS = 2.0
"""A rebalance waits for what is being worked on; above this, less is taken at once."""
WAITING_NOTICE_SECONDS = 10.0
MAX_REQUEST_BYTES = 9 * 1024 * 1024
"""Above the 8 MiB of the topics, for what a record adds to its value."""
LONGEST_ERROR = 1000


class WorkerSettings(ServiceSettings):
    """What every stateful stage needs to know."""

    instance: str = Field("0", pattern=r"^[A-Za-z0-9._-]{1,100}$")
    """Tells this worker from the others of its kind, and stays the same when it is started again (a pod's name): it
    gets its partitions back at once. Two workers with one name throw each other out."""

    store: Literal["memory", "rocksdb"] = "memory"
    """Where states lie beside Kafka: memory is read again from the changelog at every start."""

    data_folder: Path | None = None
    """Where rocksdb lies, and outlives the process; a temporary folder where it is missing."""

    take_records: int = Field(512, ge=1)
    """Most records taken at once."""

    take_seconds: float = Field(0.05, gt=0, le=10)
    """Longest wait for a take to fill."""

    accounts_in_memory: int = Field(10_000, ge=1)
    """Decoded states kept between takes; the others are decoded from the store when they return."""

    recent_batches: int = Field(8192, ge=1)
    """Batch ids remembered for each partition: a batch that is sent again within so many is dropped."""

    stalled_seconds: float = Field(60.0, gt=0)
    """With records waiting and none processed for so long although Kafka answers, the worker ends itself."""


SettingsType = TypeVar("SettingsType", bound=WorkerSettings)
AnyStage = Stage[Any, Any, Any, Any]


class _Consumer(driver.Consumer):
    """Acknowledges what the worker has finished, and nothing else."""

    def on_init(self) -> None:
        super().on_init()
        self.finished: weakref.WeakSet[Any] = weakref.WeakSet()

    def ack(self, message: Any) -> bool:
        """Faust acknowledges the events that it skips around a rebalance: they are to come again instead."""
        if message in self.finished:
            return bool(super().ack(message))
        message.acked = True
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return False


class FlowControl(FlowControlEvent):
    """Lets records flow to the stream; what has arrived stays when it is told so again."""

    def resume(self) -> None:
        """Faust says so twice at the end of a rebalance, and empties its queues each time: the second time of records
        that it has read since, and will not read again."""
        if not self.is_active():
            super().resume()


class _Producer(driver.Producer):
    """Writes each record once and in order, whatever happens to connections."""

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class _ExistingTopic(faust.Topic):
    """Topics are made with their right configuration before Faust starts."""

    async def declare(self) -> None:
        """Do nothing."""


class _Store:
    """The table: a local store and its changelog in Kafka."""

    def __init__(self, app: Any, partitions: int) -> None:
        self._app = app
        self._table = app.Table("state", key_type=bytes, value_type=bytes, partitions=partitions)
        self._events: dict[int, Any] = {}

    @property
    def changelog(self) -> str:
        """Name of the changelog topic."""
        return str(self._table.changelog_topic.get_topic_name())

    def begin(self, events: Iterable[Any]) -> None:
        """Remember an event of each partition that the next reads and writes are about."""
        self._events = {event.message.partition: event for event in events}

    def _enter(self, partition: int) -> None:
        # A store finds the partition of a key by the current event, and inside a take there is none. Any of the
        # partition's own events will do: what is stored in a partition comes from records of the same partition.
        streams._current_event.set(weakref.ref(self._events[partition]))

    def read(self, partition: int, key: str) -> bytes | None:
        """What is stored in a partition under a key."""
        self._enter(partition)
        value: bytes | None = self._table.data.get(key.encode())
        return value

    async def write(self, writes: Sequence[Write]) -> None:
        """Store in Kafka, in order and acknowledged, then in the local store.

        Raises:
            KafkaError: Kafka does not take it.
        """
        topic, producer = self.changelog, self._app.producer
        sent = [
            await producer.send(topic, write.key.encode(), write.value, write.partition, None, None) for write in writes
        ]
        positions: dict[int, int] = {}
        for write, answer in zip(writes, await asyncio.gather(*sent), strict=True):
            self._put(write)
            positions[write.partition] = answer.offset
        for partition, offset in positions.items():
            self._table.data.set_persisted_offset(TP(topic, partition), offset)

    def _put(self, write: Write) -> None:
        self._enter(write.partition)
        store, key = self._table.data, write.key.encode()
        if write.value is not None:
            store[key] = write.value
        elif key in store:
            del store[key]
        if hasattr(store, "_key_partition"):
            # The memory store drops the keys of a partition that has gone elsewhere, but only those it knows of.
            store._key_partition[key] = write.partition


class Watch:
    """What is known of the worker's health; read from another thread."""

    def __init__(self, clock: Clock, stalled_seconds: float) -> None:
        self._clock = clock
        self._stalled_seconds = stalled_seconds
        self._turned_at = self._answered_at = self._progress_at = clock.monotonic()

    def turned(self) -> None:
        """The event loop has had a turn."""
        self._turned_at = self._clock.monotonic()

    def answered(self) -> None:
        """Kafka has answered."""
        self._answered_at = self._clock.monotonic()

    def progressed(self) -> None:
        """Records were processed, or there are none to process."""
        self._progress_at = self._clock.monotonic()

    def live(self, in_order: bool) -> bool:
        """Whether to let the process be; not so when it hangs, or has records and does nothing about them."""
        now = self._clock.monotonic()
        stalled = in_order and now - self._progress_at > self._stalled_seconds
        return now - self._turned_at < HANGING_SECONDS and not stalled

    def ready(self, in_order: bool) -> bool:
        """Whether it works."""
        return in_order and self._clock.monotonic() - self._answered_at < UNREACHABLE_SECONDS


class Pace:
    """How many records to work on at once: as many as possible, and not so many that a rebalance has to wait long."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.records = most

    def took(self, records: int, seconds: float) -> None:
        """Learn from what working on so many took."""
        if seconds > SLICE_SECONDS:
            self.records = max(records // 2, 1)
        elif records == self.records and seconds < SLICE_SECONDS / 4:
            self.records = min(2 * self.records, self._most)


class TopicsMismatchError(RuntimeError):
    """Topics differ in their partitions from what this deployment says; the message names them."""


class Worker:
    """One process of a stage."""

    _app: Any  # of Faust; much of what is needed of it is not in its interfaces

    def __init__(self, stage: AnyStage, settings: WorkerSettings, clock: Clock | None = None) -> None:
        self._stage = stage
        self._settings = settings
        self._clock = clock or SystemClock()
        self._log = get_logger("worker")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._stop = asyncio.Event()
        self._topics = {settings.topic(topic): topic for topic in stage.sources}
        self._app = self._build_app()
        self._store = _Store(self._app, settings.partitions)
        self._engine = Engine(stage, self._store.read, settings.recent_batches, settings.accounts_in_memory)
        self._pace = Pace(settings.take_records)
        self._watch = Watch(self._clock, settings.stalled_seconds)
        self._assigned = False
        self._positions: dict[TP, int] = {}

    def _build_app(self) -> Any:
        settings = self._settings
        self._folder = settings.data_folder or Path(tempfile.mkdtemp(prefix=f"portcullis-{self._stage.name}-"))
        app: Any = faust.App(
            settings.topic_prefix + self._stage.name,
            broker=[f"kafka://{address}" for address in settings.kafka.split(",")],
            store={"memory": "memory://", "rocksdb": "rocksdb://"}[settings.store],
            datadir=self._folder,
            autodiscover=False,
            web_enabled=False,
            Topic=_ExistingTopic,
            topic_partitions=settings.partitions,
            topic_replication_factor=settings.replication,
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=0,
            consumer_group_instance_id=f"{self._stage.name}-{settings.instance}",
            broker_session_timeout=SESSION_SECONDS,
            broker_heartbeat_interval=HEARTBEAT_SECONDS,
            broker_commit_interval=COMMIT_SECONDS,
            producer_linger=0.005,
            producer_max_batch_size=1024 * 1024,
            producer_max_request_size=MAX_REQUEST_BYTES,
            stream_wait_empty=True,
            stream_buffer_maxsize=2 * settings.take_records,
        )
        app.flow_control = FlowControl()
        app.transport.Consumer = _Consumer
        app.producer_transport.Producer = _Producer
        app.on_partitions_revoked.connect(self._on_revoked)
        app.on_rebalance_complete.connect(self._on_assigned)
        source = app.topic(*self._topics, key_serializer="raw", value_serializer="raw", allow_empty=True)
        app.agent(source, name=self._stage.name, supervisor_strategy=CrashingSupervisor)(self._consume)
        return app

    # ---- life ----

    async def run(self) -> int:
        """Work until SIGTERM or SIGINT; the exit status.

        Raises:
            TopicsMismatchError: the topics have other numbers of partitions than the settings say.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        health = HealthServer(self._settings.metrics_host, self._settings.metrics_port, self._live, self._ready)
        health.start()
        self._log.info("starting", health_port=health.port, instance=self._settings.instance)
        turning = asyncio.create_task(self._keep_turning())
        try:
            if await self._unless_stopped(self._wait_for_kafka()):
                await self._serve()
        finally:
            turning.cancel()
            health.stop()
            if self._settings.data_folder is None:
                shutil.rmtree(self._folder, ignore_errors=True)
        self._log.info("stopped")
        return 0

    async def _serve(self) -> None:
        await self._app.start()
        watching = self._watch_kafka()
        if await self._unless_stopped(asyncio.wait({asyncio.ensure_future(self._app._crashed.wait())}), watching):
            self._log.critical("ended by Faust", reason=repr(self._app.crash_reason))
            self._die(1)
        self._log.info("stopping")
        try:
            await asyncio.wait_for(self._app.stop(), STOP_SECONDS)
        except TimeoutError:
            self._log.warning("not stopped in order: records not yet committed will be replayed", after=STOP_SECONDS)
            self._die(0)

    async def _unless_stopped(self, *work: Any) -> bool:
        """Wait for the first of `work` to end; whether it did before the signal to stop."""
        tasks = [asyncio.ensure_future(one) for one in work]
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, stopping):
            if not task.done():
                task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
        return not stopping.done()

    def _die(self, status: int) -> None:
        """End at once, so that nothing more is sent, acknowledged or committed."""
        logging.shutdown()
        os._exit(status)

    # ---- before Faust ----

    async def _wait_for_kafka(self) -> None:
        said, said_at = "", 0.0
        while problem := await self._problem_with_kafka():
            now = self._clock.monotonic()
            if problem != said or now - said_at > WAITING_NOTICE_SECONDS:
                self._log.warning("waiting", because=problem)
                said, said_at = problem, now
            await asyncio.sleep(1.0)
        self._watch.answered()

    async def _problem_with_kafka(self) -> str:
        """Why Faust cannot be started yet; empty if it can be.

        Raises:
            TopicsMismatchError: a topic has the wrong number of partitions.
        """
        admin = AIOKafkaAdminClient(bootstrap_servers=self._settings.kafka, request_timeout_ms=5000)
        try:
            await admin.start()
            return await self._problem_with_topics(admin)
        except (KafkaError, OSError) as error:
            return f"Kafka does not answer at {self._settings.kafka} ({type(error).__name__})"
        finally:
            await admin.close()

    async def _problem_with_topics(self, admin: AIOKafkaAdminClient) -> str:
        needed = [*self._stage.sources, *self._stage.sinks, *(topic.dead for topic in self._stage.sources)]
        names = [self._settings.topic(topic) for topic in needed]
        found = {
            topic["topic"]: len(topic["partitions"])
            for topic in await admin.describe_topics([*names, self._store.changelog])
            if not topic["error_code"]
        }
        wrong = {name: count for name, count in found.items() if count != self._settings.partitions}
        if wrong:
            raise TopicsMismatchError(f"PORTCULLIS_PARTITIONS is {self._settings.partitions}, but Kafka has {wrong}")
        if missing := sorted(set(names) - set(found)):
            return f"topics are missing: {', '.join(missing)}"
        if self._store.changelog not in found:
            await self._create_changelog(admin)
        return ""

    async def _create_changelog(self, admin: AIOKafkaAdminClient) -> None:
        topic = NewTopic(
            self._store.changelog,
            self._settings.partitions,
            self._settings.replication,
            topic_configs={"cleanup.policy": "compact", "max.message.bytes": str(MAX_REQUEST_BYTES)},
        )
        answer = await admin.create_topics([topic])
        for name, code, *_ in answer.topic_errors:
            error = for_code(code)
            if error not in (NoError, TopicAlreadyExistsError):
                raise error(name)

    # ---- a take ----

    async def _consume(self, stream: Any) -> None:
        settings = self._settings
        try:
            async for events in stream.noack_take(settings.take_records, within=settings.take_seconds):
                await self._take(stream, events)
            if not self._stop.is_set():
                raise RuntimeError("the stream has ended by itself")
        except Exception:  # noqa: BLE001
            # Whatever it is, going on would acknowledge records that were not worked on.
            self._log.exception("a bug, or Kafka refuses what is sent; nothing of this take is acknowledged")
            self._die(1)

    async def _take(self, stream: Any, events: Sequence[Any]) -> None:
        waiting = list(events)
        # A rebalance or a stop waits until nothing is unacknowledged: what has not been begun comes again afterwards.
        while waiting and self._app.flow_control.is_active():
            begun, waiting = waiting[: self._pace.records], waiting[self._pace.records :]
            started_at = self._clock.monotonic()
            await self._absorb(begun)
            self._pace.took(len(begun), self._clock.monotonic() - started_at)
            self._app.consumer.finished.update(event.message for event in begun)
            for event in begun:
                await stream.ack(event)
        for event in waiting:
            await stream.ack(event)

    async def _absorb(self, events: Sequence[Any]) -> None:
        with WORKER_TAKE_SECONDS.labels(self._stage.name).time():
            self._store.begin(events)
            records = [self._record(event.message) for event in events]
            work = partial(copy_context().run, self._engine.take, records)
            take = await asyncio.get_running_loop().run_in_executor(self._thread, work)
            await self._send(take)
            await self._store.write(take.writes)
        self._report(take, records)

    def _record(self, message: Any) -> Record:
        return Record(
            topic=self._topics[message.topic],
            partition=message.partition,
            offset=message.offset,
            timestamp=round(message.timestamp * 1000) * 1000,
            value=message.value or b"",
            key=message.key,
            headers=tuple(message.headers or ()),
        )

    async def _send(self, take: Take) -> None:
        outputs = [*take.outputs, *(self._as_output(letter) for letter in take.dead)]
        producer = self._app.producer
        sent = [
            await producer.send(
                self._settings.topic(output.topic),
                output.key,
                output.value,
                output.partition,
                None,
                list(output.headers),
            )
            for output in outputs
        ]
        await asyncio.gather(*sent)

    def _as_output(self, letter: DeadLetter) -> Output:
        record = letter.record
        self._log.warning(
            "dead letter",
            topic=record.topic.name,
            partition=record.partition,
            offset=record.offset,
            reason=letter.reason,
            error=letter.error[:LONGEST_ERROR],
        )
        DEAD_LETTERS.labels(self._stage.name, letter.reason).inc()
        ours = {
            "error": letter.error[:LONGEST_ERROR],
            "reason": letter.reason,
            "topic": self._settings.topic(record.topic),
            "partition": str(record.partition),
            "offset": str(record.offset),
            "worker": self._stage.name,
        }
        headers = (*record.headers, *((f"portcullis-{name}", text.encode()) for name, text in ours.items()))
        return Output(record.topic.dead, letter.value, record.key, record.partition, headers)

    def _report(self, take: Take, records: Sequence[Record]) -> None:
        name, now = self._stage.name, self._clock.now()
        for outcome, count in take.outcomes.items():
            WORKER_RECORDS.labels(name, outcome).inc(count)
        WORKER_QUERIES.labels(name).inc(take.queries)
        WORKER_ACCOUNTS.labels(name).set(self._engine.accounts)
        for accepted in take.oldest_accepted:
            WORKER_DELAY_SECONDS.labels(name).observe((now - accepted) / 1e6)
        for key in take.anew:
            self._log.warning("state of other parameters put aside: the account starts anew", key=key)
        for record in records:
            self._positions[TP(self._settings.topic(record.topic), record.partition)] = record.offset + 1
        self._watch.progressed()

    # ---- membership and health ----

    async def _on_revoked(self, *_: Any, **__: Any) -> None:
        self._assigned = False
        self._positions.clear()
        self._engine.forget()

    async def _on_assigned(self, *_: Any, **__: Any) -> None:
        self._assigned = True
        self._watch.progressed()
        self._log.info("partitions assigned", partitions=sorted(tp.partition for tp in self._sources()))

    def _sources(self) -> set[TP]:
        return {tp for tp in self._app.consumer.assignment() if tp.topic in self._topics}

    async def _keep_turning(self) -> None:
        while True:
            self._watch.turned()
            await asyncio.sleep(1.0)

    async def _watch_kafka(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._app.producer._producer.client.force_metadata_update()
                    await self._look_at_lag()
                self._watch.answered()
                if not self._live():
                    # Faust's consumers and producers have stopped for no reason before; a new process goes on.
                    self._log.critical("stalled: Kafka answers, records wait, and none is processed")
                    for task in asyncio.all_tasks():
                        task.print_stack(limit=8)
                    self._die(1)
            except (KafkaError, OSError, TimeoutError) as error:
                self._log.debug("no answer from Kafka", error=repr(error))
            await asyncio.sleep(POLL_SECONDS)

    async def _look_at_lag(self) -> None:
        if not self._in_order():
            return
        sources = self._sources()
        ends = await self._app.consumer.highwaters(*sources) if sources else {}
        begins = await self._app.consumer.earliest_offsets(*sources) if sources else {}
        committed = self._app.consumer._committed_offset
        lag = 0
        for tp in sources:
            position = max(self._positions.get(tp, committed[tp] or 0), begins.get(tp) or 0)
            lag += max((ends.get(tp) or 0) - position, 0)
        if lag == 0:
            self._watch.progressed()

    def _in_order(self) -> bool:
        return self._assigned and not self._app.rebalancing and not self._app.in_recovery

    def _live(self) -> bool:
        return self._watch.live(self._in_order())

    def _ready(self) -> bool:
        return self._watch.ready(self._in_order())


def run_worker(build_stage: Callable[[SettingsType], AnyStage], settings_class: type[SettingsType]) -> None:
    """Run a stage as this process until it is told to stop; does not return.

    Args:
        build_stage: makes the stage; raises ValueError or OSError with a clear message where it cannot (a mistake in
            the bundle, the policy).
        settings_class: read from the environment.
    """
    try:
        settings = settings_class()
    except ValidationError as error:
        _refuse(f"settings: {error}")
    try:
        stage = build_stage(settings)
    except (ValueError, OSError) as error:
        _refuse(f"refused to start: {error}")
    configure_logging(stage.name, settings)
    sys.exit(asyncio.run(_run(stage, settings)))


async def _run(stage: AnyStage, settings: WorkerSettings) -> int:
    try:
        return await Worker(stage, settings).run()
    except TopicsMismatchError as error:
        _refuse(f"refused to start: {error}")


def _refuse(message: str) -> NoReturn:
    """End with the status of a mistake that starting again does not mend."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def run_detector(from_bundle: Callable[[Bundle], Detector[Any]]) -> None:
    """Run a detector, made from the bundle of the settings, as this process; does not return."""

    def build_stage(settings: WorkerSettings) -> DetectorStage:
        bundle = Bundle.load(settings.bundle)
        return DetectorStage(from_bundle(bundle), bundle.manifest.model, settings.partitions)

    run_worker(build_stage, WorkerSettings)
