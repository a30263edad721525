"""How the answers of an account under PERTURB are spoiled: names and parameters.

The policy file names one, a verdict carries it, inference builds it (`services.inference.responses`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.validation import first_mistake


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AmaoResponse(_Response):
    """AMAO, section 4.4: one answer of a group is wrong, and similar queries get the same answer."""

    policy: Literal["amao"] = "amao"
    group: Annotated[int, Field(ge=1, le=4096)] = 16
    """M: one query in M is answered wrongly."""


Response: TypeAlias = AmaoResponse
"""Any of them; told apart by `policy`."""

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
