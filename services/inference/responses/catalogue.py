"""Which response policy a verdict means: each is built once, when the first verdict names it."""

from __future__ import annotations

from dataclasses import dataclass

from services.inference.response_networks import ResponseNetworks
from services.inference.responses.amao import Amao
from services.inference.responses.dawn import Dawn
from services.inference.responses.interface import AnswerMode, ResponsePolicy
from services.inference.responses.memory import PerturbedMemory, Promises
from services.inference.responses.modelled import AdaptiveMisinformation, Meco
from services.inference.responses.queen import Queen
from services.inference.responses.stateless import (
    GradientRedirection,
    PredictionPoisoning,
    RandomPerturbation,
    ReverseSigmoid,
    Rounding,
    TopK,
)
from shared.bundle import BundleError
from shared.log import get_logger
from shared.responses import (
    AdaptiveMisinformationResponse,
    AmaoResponse,
    DawnResponse,
    GradientRedirectionResponse,
    MecoResponse,
    PredictionPoisoningResponse,
    QueenResponse,
    RandomPerturbationResponse,
    Response,
    ResponseError,
    ReverseSigmoidResponse,
    RoundingResponse,
    TopKResponse,
    parse_response,
)

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

    def __init__(
        self,
        mode: AnswerMode,
        classes: int,
        key: bytes,
        memory: PerturbedMemory,
        promises: Promises,
        networks: ResponseNetworks,
    ) -> None:
        """
        Args:
            mode: what the model answers.
            classes: of the model.
            key: secret; the same for all replicas.
            memory: of spoiled answers.
            promises: of true ones.
            networks: that some responses need.
        """
        self._classes = classes
        self._key = key
        self.memory = memory
        self._promises = promises
        self._networks = networks
        self._mode = mode
        self._chosen: dict[str, Chosen] = {}

    def of(self, text: str) -> Chosen:
        """The response that a verdict names by `shared.responses.response_text`."""
        chosen = self._chosen.get(text)
        if chosen is None:
            if len(self._chosen) >= MOST_RESPONSES:
                del self._chosen[next(iter(self._chosen))]
            chosen = self._chosen[text] = Chosen(text, self._make(text))
        return chosen

    def _make(self, text: str) -> ResponsePolicy:
        try:
            return self._build(parse_response(text) if text else DEFAULT_RESPONSE)
        except (ResponseError, BundleError) as error:
            log.error("a verdict's response cannot be had, the default stands in", response=text, error=str(error))
            return self._build(DEFAULT_RESPONSE)

    def _build(self, response: Response) -> ResponsePolicy:
        match response:
            case AmaoResponse():
                doubtful = self._networks.doubtful if response.doubtful else None
                return Amao(self._mode, response.group, self.memory, self._promises, doubtful)
            case DawnResponse():
                return Dawn(self._mode, response.share, self._key)
            case ReverseSigmoidResponse():
                return ReverseSigmoid(self._mode, response.beta, response.gamma)
            case RandomPerturbationResponse():
                return RandomPerturbation(self._mode, response.epsilon, self._key)
            case PredictionPoisoningResponse():
                return PredictionPoisoning(self._mode, response.epsilon, self._classes)
            case GradientRedirectionResponse():
                return GradientRedirection(self._mode, response.epsilon)
            case TopKResponse():
                return TopK(self._mode, response.k)
            case RoundingResponse():
                return Rounding(self._mode, response.decimals)
            case AdaptiveMisinformationResponse():
                return AdaptiveMisinformation(self._mode, self._networks.misleading(), response.tau, response.nu)
            case MecoResponse():
                return Meco(self._mode, self._networks.meco(), self._key if response.keyed else None)
            case QueenResponse():
                return Queen(self._mode, self._networks.queen(), self._promises, response)
