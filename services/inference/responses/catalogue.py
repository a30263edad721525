"""Which response policy a verdict means: each is built once, when the first verdict names it."""

from __future__ import annotations

from dataclasses import dataclass

from services.inference.responses.amao import Amao
from services.inference.responses.interface import AnswerMode, ResponsePolicy
from services.inference.responses.memory import PerturbedMemory, Promises
from shared.log import get_logger
from shared.responses import AmaoResponse, Response, ResponseError, parse_response

log = get_logger(__name__)

DEFAULT_RESPONSE = AmaoResponse()
"""Where a verdict names none, or one that cannot be had here: an account under PERTURB never gets the plain truth."""

MOST_RESPONSES = 64
"""Responses that are held; a policy file has a few, and each edit of it may bring others."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A response, ready to answer."""

    text: str
    """As verdicts and notes name it."""
    policy: ResponsePolicy


class Catalogue:
    """Builds response policies and keeps them; what they remember of all accounts they share."""

    def __init__(self, mode: AnswerMode, memory: PerturbedMemory, promises: Promises) -> None:
        """
        Args:
            mode: what the model answers.
            memory: of spoiled answers.
            promises: of true ones.
        """
        self.memory = memory
        self._promises = promises
        self._mode = mode
        self._chosen: dict[str, Chosen] = {}

    def of(self, text: str) -> Chosen:
        """The response that a verdict names by `shared.responses.response_text`."""
        chosen = self._chosen.get(text)
        if chosen is None:
            if len(self._chosen) >= MOST_RESPONSES:
                del self._chosen[next(iter(self._chosen))]
            chosen = self._chosen[text] = Chosen(text, self._build(self._read(text)))
        return chosen

    def _read(self, text: str) -> Response:
        try:
            return parse_response(text) if text else DEFAULT_RESPONSE
        except ResponseError as error:
            log.error("a verdict's response is none of this build's, the default stands in", error=str(error))
            return DEFAULT_RESPONSE

    def _build(self, response: Response) -> ResponsePolicy:
        match response:
            case AmaoResponse():
                return Amao(self._mode, response.group, self.memory, self._promises)
