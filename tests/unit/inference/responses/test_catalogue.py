"""A verdict names a response, and gets one even where it names none that there is."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from services.inference.responses.catalogue import DEFAULT_RESPONSE, MOST_RESPONSES, Catalogue
from services.inference.responses.interface import AnswerMode
from services.inference.responses.memory import PerturbedMemory, Promises
from shared.responses import AmaoResponse, response_text


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(AnswerMode.LABEL, PerturbedMemory(10, 0), Promises(10, 10))


def test_the_same_response_is_built_once(catalogue: Catalogue) -> None:
    text = response_text(AmaoResponse(group=4))
    assert catalogue.of(text) is catalogue.of(text)
    assert catalogue.of(text) is not catalogue.of(response_text(AmaoResponse(group=8)))


@pytest.mark.parametrize("text", ["amao", "{", '{"policy":"charm"}', '{"policy":"amao","group":0}', "[]", "null"])
def test_a_response_that_there_is_not_is_said_once_and_answered_by_the_default(catalogue: Catalogue, text: str) -> None:
    with capture_logs() as logs:
        chosen = catalogue.of(text)
        assert catalogue.of(text) is chosen
    assert chosen.policy.name == DEFAULT_RESPONSE.policy
    assert [entry["log_level"] for entry in logs] == ["error"]


def test_a_verdict_without_a_response_gets_the_default_in_silence(catalogue: Catalogue) -> None:
    with capture_logs() as logs:
        assert catalogue.of("").policy.name == DEFAULT_RESPONSE.policy
    assert not logs


def test_responses_are_bounded(catalogue: Catalogue) -> None:
    first = catalogue.of(response_text(AmaoResponse(group=1)))
    for group in range(2, MOST_RESPONSES + 2):
        catalogue.of(response_text(AmaoResponse(group=group)))
    assert catalogue.of(response_text(AmaoResponse(group=1))) is not first
