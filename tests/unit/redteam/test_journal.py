"""An attack that was cut anywhere goes on where it was, and asks nothing twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.redteam.attack import Banned
from services.redteam.journal import Journal, JournalError
from services.redteam.pool import RandomSelection
from services.redteam.substitute import Images, Probabilities

pytestmark = pytest.mark.usefixtures("careless")

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 1, 16, 16), dtype=np.uint8)
BUDGET = 40


class Endpoint:
    """Answers by the pixels, until it is cut."""

    def __init__(self, requests: int | None = None) -> None:
        self.asked: list[Images] = []
        self._left = requests

    def __call__(self, images: Images) -> Probabilities:
        if self._left is not None and len(self.asked) >= self._left:
            raise ConnectionError("cut")
        self.asked.append(images)
        answers: Probabilities = np.eye(4, dtype=np.float32)[images.sum(axis=(1, 2, 3)) % 4]
        return answers


def attack() -> RandomSelection:
    return RandomSelection(IMAGES, round_queries=15, request_rows=4)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 10), torn=st.integers(0, 24 + 4 * 16 - 1))
def test_it_asks_what_an_undisturbed_one_asks_and_nothing_twice(
    cut: int, torn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "thief.journal"
    undisturbed = Endpoint()
    expected = attack().run(undisturbed, BUDGET, np.random.default_rng(1))
    before, after = Endpoint(cut), Endpoint()
    try:
        attack().run(Journal(path).keeping(before), BUDGET, np.random.default_rng(1))
    except ConnectionError:
        # As if the machine had stopped in the middle of a record, like the first one of 4 answers of 4 classes.
        record = path.read_bytes()[:torn]
        with path.open("ab") as file:
            file.write(record)
    report = attack().run(Journal(path).keeping(after), BUDGET, np.random.default_rng(1))
    assert report.queries == expected.queries == BUDGET
    np.testing.assert_array_equal(np.concatenate(before.asked + after.asked), np.concatenate(undisturbed.asked))
    again = Endpoint()
    assert attack().run(Journal(path).keeping(again), BUDGET, np.random.default_rng(1)).queries == BUDGET
    assert again.asked == []


def test_another_attack_is_refused_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "thief.journal"
    attack().run(Journal(path).keeping(Endpoint()), BUDGET, np.random.default_rng(1))
    with pytest.raises(JournalError, match=r"thief\.journal is of other questions.*delete it"):
        attack().run(Journal(path).keeping(Endpoint()), BUDGET, np.random.default_rng(2))


def test_a_ban_is_met_again_after_what_was_answered(tmp_path: Path) -> None:
    def banned(images: Images) -> Probabilities:
        raise Banned

    path = tmp_path / "deep" / "thief.journal"
    first = Endpoint(3)
    with pytest.raises(ConnectionError):
        attack().run(Journal(path).keeping(first), BUDGET, np.random.default_rng(1))
    report = attack().run(Journal(path).keeping(banned), BUDGET, np.random.default_rng(1))
    assert report.banned
    assert report.queries == sum(map(len, first.asked))
