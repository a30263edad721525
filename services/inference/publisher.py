"""Publishes every accepted query, without blocking the event loop and without losing one silently.

The loop offers rows, a thread gathers them into one batch for each partition and sends them. One round of batches is
under way at a time, and while it is, the next rows gather: the slower the broker, the fuller the batches, and the
order of an account's queries holds through every failure. A round that fails goes to the spool, and everything after
it, until the broker is back and the spool is empty again. A batch keeps its id however often it is sent.

What is lost where: nothing, when the broker dies, or this process is told to stop. When this process is killed, what
was answered in the last few milliseconds (the linger and one round trip).
"""

from __future__ import annotations

import enum
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference.link import Link, LinkError
from services.inference.spool import Record, Spool, SpoolFullError
from shared.clock import Clock
from shared.codec import encode_perturbed, encode_queries, encode_response_note
from shared.events import Action, PerturbedAnswer, QueryBatch, ResponseNote
from shared.log import get_logger
from shared.metrics import EVENTS_FAILED, EVENTS_PUBLISHED, EVENTS_QUEUED, EVENTS_SPOOLED, SPOOL_BYTES
from shared.topics import partition_of

log = get_logger(__name__)

RECONNECT_SECONDS = 1.0
SYNC_SECONDS = 1.0
"""How often the spool is forced to disk while it grows: what a power cut may cost."""
REPLAY_BYTES = 3 * 1024 * 1024
"""Of the spool that one round sends."""
BATCH_BYTES = 2 * 1024 * 1024
"""Of the inputs of one batch; a quarter of what a topic takes."""
IDLE_SECONDS = 0.2


class State(enum.StrEnum):
    """Where events go."""

    AWAY = "away"
    """To the spool."""
    REPLAYING = "replaying"
    """To the spool's end, while its beginning goes to Kafka."""
    CONNECTED = "connected"
    """To Kafka."""


@dataclass(frozen=True, slots=True)
class AcceptedQueries:
    """The n queries of one request of one account, answered."""

    account: str
    request_id: str
    query_ids: Sequence[str]
    accepted_at: int
    """Microseconds since the Unix epoch."""
    inputs: NDArray[np.uint8]
    logits: NDArray[np.float32]
    answers: NDArray[np.float32]
    action: Action
    perturbed: NDArray[np.bool_]
    spoiled: Sequence[PerturbedAnswer] = ()
    note: ResponseNote | None = None

    def __len__(self) -> int:
        return len(self.query_ids)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where and as what events are published."""

    queries_topic: str
    perturbed_topic: str
    notes_topic: str
    partitions: int
    model_name: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Limits:
    """See `InferenceSettings`."""

    queue_rows: int
    linger_seconds: float
    batch_rows: int


def query_batches(accepted: Iterable[AcceptedQueries], to: Destination, most_rows: int) -> list[Record]:
    """Records of `queries` for requests in order: as few as hold them, each of one partition."""
    by_partition: dict[int, list[AcceptedQueries]] = defaultdict(list)
    for queries in accepted:
        by_partition[partition_of(queries.account, to.partitions)].append(queries)
    return [
        _query_record(part, partition, to)
        for partition, parts in by_partition.items()
        for part in _cut(parts, most_rows)
    ]


def _cut(requests: list[AcceptedQueries], most_rows: int) -> Iterable[list[AcceptedQueries]]:
    """Requests in groups of at most `most_rows` rows and `BATCH_BYTES`; a request is never cut."""
    group: list[AcceptedQueries] = []
    rows = size = 0
    for request in requests:
        if group and (rows + len(request) > most_rows or size + request.inputs.nbytes > BATCH_BYTES):
            yield group
            group, rows, size = [], 0, 0
        group.append(request)
        rows += len(request)
        size += request.inputs.nbytes
    if group:
        yield group


def _query_record(requests: list[AcceptedQueries], partition: int, to: Destination) -> Record:
    rows = [len(request) for request in requests]
    batch = QueryBatch(
        batch_id=uuid.uuid4().bytes,
        model_name=to.model_name,
        model_version=to.model_version,
        query_ids=[query_id for request in requests for query_id in request.query_ids],
        accounts=[request.account for request in requests for _ in range(len(request))],
        request_ids=[request.request_id for request in requests for _ in range(len(request))],
        accepted_at=np.repeat(np.array([request.accepted_at for request in requests], dtype=np.int64), rows),
        inputs=np.concatenate([request.inputs for request in requests]),
        logits=np.concatenate([request.logits for request in requests]),
        answers=np.concatenate([request.answers for request in requests]),
        actions=np.repeat(np.array([request.action for request in requests], dtype=np.uint8), rows),
        perturbed=np.concatenate([request.perturbed for request in requests]),
    )
    return Record(to.queries_topic, partition, str(partition).encode(), encode_queries(batch), len(batch))


def perturbed_records(accepted: Iterable[AcceptedQueries], to: Destination) -> list[Record]:
    """Records of `perturbed` for the answers that were spoiled."""
    spoiled = [answer for queries in accepted for answer in queries.spoiled]
    return [_account_record(to.perturbed_topic, answer.account, encode_perturbed(answer), to) for answer in spoiled]


def note_records(accepted: Iterable[AcceptedQueries], to: Destination) -> list[Record]:
    """Records of `response-notes` for what the response policies must remember."""
    notes = [queries.note for queries in accepted if queries.note is not None]
    return [_account_record(to.notes_topic, note.account, encode_response_note(note), to) for note in notes]


def _account_record(topic: str, account: str, value: bytes, to: Destination) -> Record:
    return Record(topic, partition_of(account, to.partitions), account.encode(), value, rows=0)


class Publisher:
    """The bounded queue, and the thread that empties it into Kafka or the spool."""

    def __init__(
        self, to: Destination, limits: Limits, spool: Spool, connect: Callable[[], Link], clock: Clock
    ) -> None:
        """
        Args:
            to: topics and model.
            limits: of memory and time.
            spool: handed over; closed with the publisher.
            connect: makes a link or raises LinkError; may take seconds, runs in a thread of its own.
            clock: for waits between attempts.
        """
        self._to = to
        self._limits = limits
        self._spool = spool
        self._connect = connect
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: list[AcceptedQueries] = []
        self._unsettled = 0
        self._arrived = threading.Event()
        self._full = threading.Event()
        self._stopping = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        # What follows belongs to the thread.
        self._held: list[Record] = []
        self._held_rows = 0
        self._link: Link | None = None
        self._connector = ThreadPoolExecutor(1, thread_name_prefix="connect")
        self._connecting: Future[Link] | None = None
        self._connect_at = 0.0
        self._complained = ""
        self._sync_at = 0.0

    @property
    def state(self) -> State:
        """Where events go at the moment."""
        if self._link is None:
            return State.AWAY
        return State.CONNECTED if self._spool.empty else State.REPLAYING

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to publish, with what an earlier process left in the spool."""
        self._thread.start()

    def has_room(self, rows: int) -> bool:
        """Whether `offer` would take `rows` rows; only the caller of `offer` can make that false again.

        Up to the limit as many rows as are neither with Kafka nor in the spool yet; a larger request passes alone.
        """
        return (
            self.alive
            and not self._stopping.is_set()
            and (self._unsettled == 0 or self._unsettled + rows <= self._limits.queue_rows)
        )

    def offer(self, queries: AcceptedQueries) -> bool:
        """Take a request's queries, or False where there is no room: then it must not be answered. Never waits."""
        if not self.has_room(len(queries)):
            return False
        with self._lock:
            self._queue.append(queries)
            self._unsettled += len(queries)
            full = self._unsettled - self._held_rows >= self._limits.batch_rows
        EVENTS_QUEUED.set(self._unsettled)
        self._arrived.set()
        if full:
            self._full.set()
        return True

    def close(self, timeout: float) -> None:
        """Take no more, and bring what is there to Kafka within `timeout` seconds, or else to the spool."""
        self._give_up_at = self._clock.monotonic() + timeout
        self._stopping.set()
        self._arrived.set()
        self._full.set()
        self._thread.join(timeout + 30.0)
        self._connector.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            log.error("publisher does not stop", rows=self._unsettled)

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._finished():
                self._gather()
                self._look_for_broker()
                self._settle()
                self._replay()
                self._sync()
        except Exception:
            log.exception("publisher died; queries are refused from now on", rows=self._unsettled)
            raise
        finally:
            self._leave()

    def _finished(self) -> bool:
        if not self._stopping.is_set():
            return False
        if self._held or self._queue:
            return self._clock.monotonic() > self._give_up_at
        # Without a broker the rest of the spool waits for the next process; one that may be about to answer is awaited,
        # since the disk under the spool may go with this process.
        away = self._link is None and self._connecting is None
        return self._spool.empty or away or self._clock.monotonic() > self._give_up_at

    def _gather(self) -> None:
        """Move what has arrived into records, after a while in which more may come."""
        if self._held:
            # Neither Kafka nor the spool took them: no more until one does.
            self._stopping.wait(IDLE_SECONDS)
            return
        if not self._arrived.wait(0.0 if self.state is State.REPLAYING else IDLE_SECONDS):
            return
        self._full.wait(self._limits.linger_seconds)
        with self._lock:
            taken, self._queue = self._queue, []
            self._held_rows = sum(len(queries) for queries in taken)
            self._arrived.clear()
            if not self._stopping.is_set():
                self._full.clear()
        # An answer must be with the other replicas before the detectors' verdicts on it can be.
        self._held = [
            *perturbed_records(taken, self._to),
            *note_records(taken, self._to),
            *query_batches(taken, self._to, self._limits.batch_rows),
        ]

    def _look_for_broker(self) -> None:
        if self._link is not None:
            return
        if self._connecting is None:
            if self._clock.monotonic() >= self._connect_at:
                self._connecting = self._connector.submit(self._connect)
            return
        if not self._connecting.done():
            return
        attempt, self._connecting = self._connecting, None
        try:
            self._link = attempt.result()
        except LinkError as error:
            self._complain("kafka is away, events go to the spool", str(error))
            self._connect_at = self._clock.monotonic() + RECONNECT_SECONDS
        else:
            self._complained = ""
            log.info("kafka is there", spooled_bytes=self._spool.bytes)

    def _settle(self) -> None:
        """Bring the records at hand to Kafka or to the spool."""
        if self._held and self._link is not None and self._spool.empty:
            self._held = list(self._send(self._held))
        if self._held:
            self._store(self._held)
        if not self._held:
            with self._lock:
                self._unsettled -= self._held_rows
                self._held_rows = 0
            EVENTS_QUEUED.set(self._unsettled)

    def _store(self, records: list[Record]) -> None:
        try:
            self._spool.append(records)
        except (SpoolFullError, OSError) as error:
            self._complain("the spool takes no more; queries are refused while the queue is full", str(error))
            return
        self._held = []
        EVENTS_SPOOLED.inc(sum(record.rows for record in records))
        SPOOL_BYTES.set(self._spool.bytes)

    def _replay(self) -> None:
        """Send the oldest of the spool."""
        if self._link is None or self._spool.empty:
            return
        records = self._spool.peek(REPLAY_BYTES)
        undelivered = {id(record) for record in self._send(records)}
        # Only a beginning can be forgotten; what arrived after the first failure is sent again, and dropped there.
        first_left = next((i for i, record in enumerate(records) if id(record) in undelivered), len(records))
        self._spool.advance(first_left)
        SPOOL_BYTES.set(self._spool.bytes)
        if self._spool.empty:
            log.info("spool is empty again")

    def _send(self, records: Sequence[Record]) -> Sequence[Record]:
        """Records that Kafka has not acknowledged, in order; if there are any, the link is given up."""
        assert self._link is not None
        delivery = self._link.deliver(records)
        lost = sum(record.rows for record in delivery.refused)
        left = sum(record.rows for record in delivery.undelivered)
        EVENTS_PUBLISHED.inc(sum(record.rows for record in records) - lost - left)
        if delivery.refused:
            EVENTS_FAILED.inc(lost)
            log.error("kafka refuses records for good", records=len(delivery.refused), rows=lost, error=delivery.error)
        if delivery.undelivered:
            self._complain("kafka is away, events go to the spool", delivery.error)
            self._link.close()
            self._link = None
            self._connect_at = self._clock.monotonic()
        return delivery.undelivered

    def _sync(self) -> None:
        now = self._clock.monotonic()
        if now >= self._sync_at and not self._spool.empty:
            self._spool.sync()
            self._sync_at = now + SYNC_SECONDS

    def _complain(self, event: str, error: str) -> None:
        """Say it once, not at every attempt."""
        if error != self._complained:
            log.warning(event, error=error)
            self._complained = error

    def _leave(self) -> None:
        lost = self._unsettled
        if lost:
            EVENTS_FAILED.inc(lost)
            log.error("queries are lost: neither kafka nor the spool took them", rows=lost)
        if self._link is not None:
            self._link.close()
        if self._connecting is not None:
            self._connecting.add_done_callback(_close_late_link)
        self._spool.close()


def _close_late_link(attempt: Future[Link]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
