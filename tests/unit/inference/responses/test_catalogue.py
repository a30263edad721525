"""A verdict names a response, and gets one even where it names none that there is."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.inference.model import Model
from services.inference.response_networks import ResponseNetworks
from services.inference.responses.catalogue import DEFAULT_RESPONSE, MOST_RESPONSES, Catalogue
from services.inference.responses.interface import AnswerMode
from services.inference.responses.memory import PerturbedMemory, Promises
from shared.responses import AmaoResponse, response_text
from tests.support.bundles import untrained_bundle


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    bundle = untrained_bundle(tmp_path)
    networks = ResponseNetworks(bundle, Model(bundle))
    return Catalogue(AnswerMode.LABEL, 10, b"key", PerturbedMemory(10, 0), Promises(10, 10), networks)


def test_the_same_response_is_built_once(catalogue: Catalogue) -> None:
    text = response_text(AmaoResponse(group=4))
    assert catalogue.of(text) is catalogue.of(text)
    assert catalogue.of(text) is not catalogue.of(response_text(AmaoResponse(group=8)))


NONE = ["amao", "{", '{"policy":"charm"}', '{"policy":"amao","group":0}', "[]", "null"]
NOT_IN_THE_BUNDLE = ['{"policy":"meco"}', '{"policy":"queen"}', '{"policy":"adaptive-misinformation"}']


@pytest.mark.parametrize("text", NONE + NOT_IN_THE_BUNDLE)
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
