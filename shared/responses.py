"""How the answers of an account under PERTURB are spoiled: names and parameters.

The policy file names one, a verdict carries it, inference builds it (`services.inference.responses`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.validation import first_mistake

PHASH = "phash"
"""Kind of perceptual hash that needs no training (imagehash's)."""
SIMILAR_BITS = 8
"""pHashes (64 bits) that differ in no more are of similar images: they get the same wrong answer, and count as one
proof."""

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Distance = Annotated[float, Field(gt=0.0, le=2.0)]
"""L1 distance between two probability vectors: 2 at most."""
Positive = Annotated[float, Field(gt=0.0)]


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AmaoResponse(_Response):
    """AMAO, section 4.4: one answer of a group is wrong, and similar queries get the same answer."""

    policy: Literal["amao"] = "amao"
    group: Annotated[int, Field(ge=1, le=4096)] = 16
    """M: one query in M is answered wrongly."""
    doubtful: bool = False
    """Whether every query whose answer TMSP calls doubtful is answered wrongly too, with the bundle's T and lambda. Few
    photographs are doubtful, most crafted and foreign images are; so whoever checks the answers with images that he
    knows sees little more than one wrong in M."""


class DawnResponse(_Response):
    """DAWN (Szyller et al. 2021): a keyed share of all inputs is answered wrongly, chosen by hash."""

    policy: Literal["dawn"] = "dawn"
    share: Share = 0.005
    """r_w of the paper."""


class ReverseSigmoidResponse(_Response):
    """Deceptive perturbation (Lee et al. 2019): probabilities bent by a reverse sigmoid; the label stays."""

    policy: Literal["reverse-sigmoid"] = "reverse-sigmoid"
    beta: Positive = 1.0
    gamma: Positive = 0.1


class RandomPerturbationResponse(_Response):
    """Probabilities moved in a random direction (Orekondy et al. 2020, baseline `random-noise`); the label stays."""

    policy: Literal["random-perturbation"] = "random-perturbation"
    epsilon: Distance = 1.0
    """L1 distance to the true probabilities, at most."""


class PredictionPoisoningResponse(_Response):
    """MAD (Orekondy et al. 2020): the answer whose gradient points farthest from the true one's; the label stays."""

    policy: Literal["prediction-poisoning"] = "prediction-poisoning"
    epsilon: Distance = 1.0


class GradientRedirectionResponse(_Response):
    """GRAD^2 (Mazeika et al. 2022): the answer whose gradient points most against the true one's."""

    policy: Literal["gradient-redirection"] = "gradient-redirection"
    epsilon: Distance = 1.0


class TopKResponse(_Response):
    """Only the k largest probabilities; the rest is spread evenly."""

    policy: Literal["top-k"] = "top-k"
    k: Annotated[int, Field(ge=1)] = 1


class RoundingResponse(_Response):
    """Probabilities rounded to a number of decimals."""

    policy: Literal["rounding"] = "rounding"
    decimals: Annotated[int, Field(ge=0, le=6)] = 1


class AdaptiveMisinformationResponse(_Response):
    """Adaptive misinformation (Kariyappa and Qureshi 2020): what the model doubts is answered by a misleading one."""

    policy: Literal["adaptive-misinformation"] = "adaptive-misinformation"
    tau: Share = 0.9
    """Maximum softmax probability at which both models count half."""
    nu: Positive = 1000.0
    """How sharply the one gives way to the other."""


class MecoResponse(_Response):
    """MeCo (Wang et al. 2023): the model is asked at an input to which a trained network has added a perturbation."""

    policy: Literal["meco"] = "meco"
    keyed: bool = True
    """The noise depends on the account and the perceptual hash alone: repeating a query averages nothing away."""


class QueenResponse(_Response):
    """QUEEN (Chen et al. 2024): answers to sensitive queries make a copy unlearn."""

    policy: Literal["queen"] = "queen"
    threshold: Positive = 0.5
    """Cumulative query sensitivity of a class from which on gradients are reversed."""
    radius: Positive = 0.02
    """Of the ball around a recorded query within which others add nothing; in mean distances of the class."""
    alpha: Positive = 1.0
    """Steepness of the sensitivity."""
    beta: Positive = 1.0
    """Radius of the sensitive region of a class, in mean distances to its centre."""


Response: TypeAlias = Annotated[
    AmaoResponse
    | DawnResponse
    | ReverseSigmoidResponse
    | RandomPerturbationResponse
    | AdaptiveMisinformationResponse
    | PredictionPoisoningResponse
    | GradientRedirectionResponse
    | TopKResponse
    | RoundingResponse
    | MecoResponse
    | QueenResponse,
    Field(discriminator="policy"),
]

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Response)


class ResponseError(ValueError):
    """A text names no response; the message says what is wrong with it."""


def response_text(response: Response) -> str:
    """A response as a verdict carries it: JSON, the same text for the same parameters."""
    return json.dumps(response.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def parse_response(text: str) -> Response:
    """The inverse of `response_text`.

    Raises:
        ResponseError: it is none.
    """
    try:
        response: Response = _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise ResponseError(first_mistake(error)) from error
    return response
