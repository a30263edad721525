"""What lies between an account and the model: its verdict, its answers, and the record of its queries."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import grpc
import numpy as np
from numpy.typing import NDArray

from services.inference.image_hash import ImageHash
from services.inference.model import Outputs, softmax
from services.inference.publisher import AcceptedQueries, Publisher
from services.inference.refusal import RefusedError, server_is_busy
from services.inference.responses.catalogue import Catalogue
from services.inference.responses.interface import AnswerMode, Queries, Told, truth
from services.inference.responses.looking import looked
from services.inference.topic_reader import Entry
from services.inference.verdicts import VerdictTable
from shared.bundle import ModelSection
from shared.clock import Clock
from shared.codec import CodecError, decode_perturbed, decode_response_note, decode_verdict
from shared.events import Action, PerturbedAnswer, ResponseNote, Verdict
from shared.log import get_logger
from shared.metrics import (
    INFERENCE_QUERIES,
    PERTURBED_ANSWERS,
    VERDICT_LATENCY_SECONDS,
    VERDICTS_HELD,
)

log = get_logger(__name__)


class Defence:
    """Obeys verdicts, spoils answers, publishes queries. All of it in the event loop, but for the hashing."""

    def __init__(
        self,
        model: ModelSection,
        mode: AnswerMode,
        responses: Catalogue,
        image_hash: ImageHash,
        publisher: Publisher,
        clock: Clock,
    ) -> None:
        """
        Args:
            model: whose verdicts and answers these are.
            mode: what the model answers.
            responses: the ways to answer accounts under PERTURB.
            image_hash: by which queries are known again.
            publisher: takes what was answered.
            clock: for event time and expiry.
        """
        self._model = model
        self._mode = mode
        self._responses = responses
        self._image_hash = image_hash
        self._publisher = publisher
        self._clock = clock
        self._table = VerdictTable(model.name)
        self.live = False
        """Set once the topics are read: only then does a verdict's arrival say how fast verdicts are."""

    def admit(self, account: str, queries: int) -> Verdict | None:
        """The verdict under which an account's queries are answered, if any.

        Raises:
            RefusedError: the account is banned or too fast, or its queries could not be recorded.
        """
        verdict = self._table.in_force(account, self._clock.now())
        action = verdict.action if verdict else Action.ALLOW
        if verdict and action is Action.BAN:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, "access denied")
        if verdict and action is Action.THROTTLE:
            wait = self._table.wait_of(verdict, queries, self._clock.monotonic())
            if wait > 0.0:
                raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests", retry_after=wait)
        self._require_room(queries)
        return verdict

    async def answer(
        self,
        account: str,
        request_id: str,
        verdict: Verdict | None,
        inputs: NDArray[np.uint8],
        outputs: Outputs,
    ) -> NDArray[np.float32]:
        """What n queries of an account are answered, published: [n, classes].

        Raises:
            RefusedError: the queries cannot be recorded, and so must not be answered.
        """
        request = uuid.uuid4().hex
        query_ids = [f"{request}-{row}" for row in range(len(inputs))]
        action = verdict.action if verdict else Action.ALLOW
        if verdict is not None and action is Action.PERTURB:
            response = self._responses.of(verdict.response)
            queries, seen = await looked(response.policy, self._image_hash, account, query_ids, inputs, outputs)
            # From here on nothing waits: the account's state, its answers and their record change together.
            self._require_room(len(inputs))
            told = response.policy.answer(queries, seen)
            now = self._clock.now()
            spoiled = tuple(self._spoiled(response.policy.name, queries, told, row, now) for row in told.spoiled)
            note = self._note(response.text, account, told.note, now) if told.note else None
            PERTURBED_ANSWERS.labels(response.policy.name).inc(int(told.perturbed.sum()))
        else:
            self._require_room(len(inputs))
            now = self._clock.now()
            told = Told(truth(softmax(outputs.logits), self._mode), np.zeros(len(inputs), dtype=np.bool_))
            spoiled, note = (), None
        self._publisher.offer(
            AcceptedQueries(
                account=account,
                request_id=request_id,
                query_ids=query_ids,
                accepted_at=now,
                inputs=inputs,
                logits=outputs.logits,
                answers=told.answers,
                action=action,
                perturbed=told.perturbed,
                spoiled=spoiled,
                note=note,
            )
        )
        INFERENCE_QUERIES.labels(action.name.lower()).inc(len(inputs))
        return told.answers

    def apply_verdicts(self, entries: Sequence[Entry]) -> None:
        """Take in records of the topic `verdicts`."""
        for account, value in entries:
            try:
                verdict = decode_verdict(value) if value is not None else None
            except CodecError as error:
                log.error("verdict not understood, the account's earlier one stays", error=str(error))
                continue
            name = verdict.account if verdict else account
            if self._table.apply(name, verdict) and verdict is not None and self.live:
                self._announce(verdict)
        VERDICTS_HELD.set(self._table.held(self._clock.now()))

    def apply_perturbed(self, entries: Sequence[Entry]) -> None:
        """Take in records of the topic `perturbed`: what any replica has spoiled."""
        for _, value in entries:
            if value is None:
                continue
            try:
                spoiled = decode_perturbed(value)
            except CodecError as error:
                log.error("perturbed answer not understood and not remembered", error=str(error))
                continue
            same_model = (spoiled.model_name, spoiled.model_version) == (self._model.name, self._model.version)
            if same_model and spoiled.answer.shape == (len(self._model.classes),):
                self._responses.memory.record(spoiled.query_id, self._hash_of(spoiled), spoiled.answer)

    def apply_notes(self, entries: Sequence[Entry]) -> None:
        """Take in records of the topic `response-notes`: what any replica's response policies must remember."""
        for _, value in entries:
            if value is None:
                continue
            try:
                note = decode_response_note(value)
                if (note.model_name, note.model_version) == (self._model.name, self._model.version):
                    self._responses.of(note.response).policy.recall(note.account, note.note)
            except ValueError as error:
                log.error("response note not understood and not remembered", error=str(error))

    def _hash_of(self, spoiled: PerturbedAnswer) -> int:
        if spoiled.hash_kind == self._image_hash.kind or spoiled.input.shape != tuple(self._model.input_shape):
            return spoiled.perceptual_hash
        # Of the same model, and of an earlier bundle of it.
        return int(self._image_hash.hashes(spoiled.input[None])[0])

    def _spoiled(self, response: str, queries: Queries, told: Told, row: int, now: int) -> PerturbedAnswer:
        return PerturbedAnswer(
            query_id=queries.ids[row],
            account=queries.account,
            model_name=self._model.name,
            model_version=self._model.version,
            answered_at=now,
            response=response,
            perceptual_hash=int(queries.perceptual[row]),
            hash_kind=self._image_hash.kind,
            similar_bits=self._image_hash.similar_bits,
            input=queries.inputs[row],
            logits=queries.logits[row],
            answer=told.answers[row],
        )

    def _note(self, response: str, account: str, note: bytes, now: int) -> ResponseNote:
        return ResponseNote(account, self._model.name, self._model.version, response, now, note)

    def _announce(self, verdict: Verdict) -> None:
        latency = (self._clock.now() - verdict.cause_accepted_at) / 1e6 if verdict.cause_accepted_at else None
        if latency is not None:
            VERDICT_LATENCY_SECONDS.observe(latency)
        log.info(
            "verdict enforced",
            account=verdict.account,
            action=verdict.action.name.lower(),
            latency_seconds=latency,
            at_query=verdict.at_query,
        )

    def _require_room(self, queries: int) -> None:
        if not self._publisher.has_room(queries):
            raise server_is_busy()
