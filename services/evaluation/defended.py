"""The whole system in one process: the victim as attackers meet it, with its detectors, its decision and its responses.

Every part is the very one that the services run; what is left out is the way between them. Verdicts lag behind by a
number of queries, as they do behind Kafka.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.decision.policy import Event, Sighting, decide
from services.decision.record import Record
from services.decision.rules import Policy
from services.inference.image_hash import ImageHash
from services.inference.model import Model, Outputs, softmax
from services.inference.response_networks import ResponseNetworks
from services.inference.responses.catalogue import Catalogue
from services.inference.responses.interface import AnswerMode, truth
from services.inference.responses.looking import look
from services.inference.responses.memory import PerturbedMemory, Promises
from services.redteam.attack import Banned
from services.redteam.substitute import Images, Probabilities
from services.training.tracing import DETECTORS
from shared.bundle import Bundle
from shared.detection import Detector
from shared.events import Action, Override, Verdict
from shared.responses import Response, response_text
from shared.stage import signal_of

LAG = 16
"""Queries of an account between the one that condemns it and the first whose answer is spoiled. In the demo, with a
broker and every service on two cores, it is about as many."""
SECONDS_BETWEEN = 0.01
"""Between two queries of an account; times matter to what expires alone."""
START = 1_700_000_000_000_000
MEMORY = 50_000
"""Spoiled answers, and true ones of an account, that the responses remember: more than one attacker gets."""


@dataclass(slots=True)
class Served:
    """What one account was told.

    Attributes:
        queries: answered.
        perturbed: of these, answered otherwise than by the model alone.
        verdicts: in order; `at_query` is the number of queries that the decision had seen.
        marks: answers that the registry would hold, by the query's number from 0: [classes] each.
        inputs: of the marks.
        logits: of the marks, the model's own: [classes] each.
        hashes: of the marks' inputs.
    """

    queries: int = 0
    perturbed: int = 0
    verdicts: list[Verdict] = field(default_factory=list)
    marks: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    inputs: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    logits: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    hashes: dict[int, int] = field(default_factory=dict)

    def first(self, action: Action) -> int | None:
        """Queries that the decision had seen when it first took this action; None where it never did."""
        return next((verdict.at_query for verdict in self.verdicts if verdict.action is action), None)


class _Responder:
    """Spoils answers as inference does."""

    def __init__(self, bundle: Bundle, model: Model, mode: AnswerMode) -> None:
        self._image_hash = ImageHash.of_bundle(bundle)
        memory, promises = PerturbedMemory(MEMORY, self._image_hash.similar_bits), Promises(10 * MEMORY, MEMORY)
        self._catalogue = Catalogue(
            mode, len(bundle.manifest.model.classes), bundle.fingerprint.encode(), memory, promises,
            ResponseNetworks(bundle, model),
        )  # fmt: skip

    def answer(self, account: str, served: Served, response: str, inputs: Images, outputs: Outputs) -> Probabilities:
        ids = [f"{account}-{served.queries + row}" for row in range(len(inputs))]
        policy = self._catalogue.of(response).policy
        queries, seen = look(policy, self._image_hash, account, ids, inputs, outputs)
        told = policy.answer(queries, seen)
        for row in told.spoiled:
            served.marks[served.queries + row] = told.answers[row]
            served.inputs[served.queries + row] = inputs[row]
            served.logits[served.queries + row] = outputs.logits[row]
            served.hashes[served.queries + row] = int(queries.perceptual[row])
        served.perturbed += int(told.perturbed.sum())
        return told.answers


class RespondingVictim:
    """A served model that answers every account by one response, from the first query on; nobody judges."""

    def __init__(self, bundle: Bundle, response: Response, mode: AnswerMode) -> None:
        """
        Args:
            bundle: of the model, and of the networks that the response needs.
            response: see `shared.responses`.
            mode: what clients are told.
        """
        self._model = Model(bundle)
        self._responder = _Responder(bundle, self._model, mode)
        self._response = response_text(response)
        self._served: dict[str, Served] = {}

    def served(self, account: str) -> Served:
        """What an account was told so far."""
        return self._served.setdefault(account, Served())

    def ask(self, account: str, inputs: Images) -> Probabilities:
        """Answers [n, classes] to n queries of an account."""
        served = self.served(account)
        answers = self._responder.answer(account, served, self._response, inputs, self._model.outputs(inputs))
        served.queries += len(inputs)
        return answers


@dataclass(slots=True)
class _Account:
    name: str
    record: Record
    states: list[Any]
    served: Served = field(default_factory=Served)
    asked: int = 0
    """Queries, the refused ones included: by them its clock goes."""
    verdict: Verdict | None = None
    inputs: list[NDArray[np.uint8]] = field(default_factory=list)
    """Answered and not yet seen by the detectors."""
    logits: list[NDArray[np.float32]] = field(default_factory=list)


class DefendedVictim:
    """A served model under a policy."""

    def __init__(
        self,
        bundle: Bundle,
        policy: Policy,
        mode: AnswerMode,
        lag: int = LAG,
        seconds_between: float = SECONDS_BETWEEN,
    ) -> None:
        """
        Args:
            bundle: of the model and the detectors.
            policy: by which accounts are judged, with the bundle's threshold.
            mode: what clients are told.
            lag: see `LAG`; 1 is none.
            seconds_between: of simulated time, between two queries of an account: a thief may have months.
        """
        self._bundle = bundle
        self._model = Model(bundle)
        self._detectors: Sequence[Detector[Any]] = [kind.from_bundle(bundle) for kind in DETECTORS]
        self._policy = policy
        self._mode = mode
        self._lag = lag
        self._interval = round(1e6 * seconds_between)
        self._responder = _Responder(bundle, self._model, mode)
        self._accounts: dict[str, _Account] = {}

    def served(self, account: str) -> Served:
        """What an account was told so far."""
        return self._account(account).served

    def ask(self, account: str, inputs: Images) -> Probabilities:
        """Answers [n, classes] to n queries of an account.

        Raises:
            Banned: the account is.
        """
        held = self._account(account)
        held.asked += len(inputs)
        if held.verdict is not None and 0 < held.verdict.expires_at <= self._now(held):
            held.verdict = None
        if held.verdict is not None and held.verdict.action is Action.BAN:
            raise Banned
        outputs = self._model.outputs(inputs)
        answers = self._answer(held, inputs, outputs)
        held.served.queries += len(inputs)
        held.inputs += list(inputs)
        held.logits += list(outputs.logits)
        while len(held.inputs) >= self._lag:
            self._judge(held)
        return answers

    def obey(self, override: Override) -> None:
        """A person's word on an account, taken in at once."""
        held = self._account(override.account)
        self._decide(held, override, max(override.issued_at, held.record.now))

    def _now(self, held: _Account) -> int:
        return START + held.asked * self._interval

    def _account(self, name: str) -> _Account:
        if name not in self._accounts:
            record = Record(account=name, model_name=self._bundle.manifest.model.name)
            self._accounts[name] = _Account(name, record, [detector.initial() for detector in self._detectors])
        return self._accounts[name]

    def _answer(self, held: _Account, inputs: Images, outputs: Outputs) -> Probabilities:
        if held.verdict is None or held.verdict.action is not Action.PERTURB:
            return truth(softmax(outputs.logits), self._mode)
        return self._responder.answer(held.name, held.served, held.verdict.response, inputs, outputs)

    def _judge(self, held: _Account) -> None:
        """What the detectors and the decision make of the account's next `lag` queries."""
        inputs, logits = np.stack(held.inputs[: self._lag]), np.stack(held.logits[: self._lag])
        del held.inputs[: self._lag], held.logits[: self._lag]
        number = held.record.queries
        now = self._now(held)
        batch_id = number.to_bytes(16, "big")
        for index, detector in enumerate(self._detectors):
            features = detector.features(inputs, logits)
            held.states[index], seen = detector.step(held.states[index], features, np.arange(len(inputs)))
            signal = signal_of(seen, held.name, now, f"{held.name}-{number + len(inputs) - 1}")
            sighting = Sighting(detector.name, batch_id, 0, number, signal)
            self._decide(held, sighting, now)

    def _decide(self, held: _Account, event: Event, now: int) -> None:
        held.record, verdict, _ = decide(held.record, event, self._policy, now)
        if verdict is not None:
            held.verdict = verdict
            held.served.verdicts.append(verdict)
