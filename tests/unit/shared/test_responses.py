"""A response goes through a verdict as text and comes back; what is none is refused with the field."""

from __future__ import annotations

import pytest

from shared.responses import AmaoResponse, Response, ResponseError, parse_response, response_text


@pytest.mark.parametrize("response", [AmaoResponse(), AmaoResponse(group=2)])
def test_a_response_comes_back_from_its_text(response: Response) -> None:
    assert parse_response(response_text(response)) == response


def test_equal_responses_have_equal_texts_whether_or_not_a_default_was_written_out() -> None:
    assert response_text(parse_response('{"policy": "amao"}')) == response_text(AmaoResponse(group=16))


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("amao", "field \\(top level\\): Invalid JSON"),
        ('{"policy": "charm"}', "field policy: "),
        ('{"policy": "amao", "group": 0}', "field group: "),
        ('{"policy": "amao", "groups": 4}', "field groups: Extra inputs"),
    ],
)
def test_what_is_no_response_is_refused_with_the_field(text: str, mistake: str) -> None:
    with pytest.raises(ResponseError, match=mistake):
        parse_response(text)
