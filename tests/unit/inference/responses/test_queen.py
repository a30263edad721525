"""QUEEN: what an account has covered of a class decides, and nobody else's queries do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from services.inference.model import softmax
from services.inference.responses.interface import AnswerMode, Queries, Told
from services.inference.responses.memory import Promises
from services.inference.responses.queen import Atlas, Queen, QueenNetworks, unlearning
from shared.detection import input_digests
from shared.responses import QueenResponse

CLASSES = 3
CENTRES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=np.float32)


def logits_at(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The served model's last layer: the nearer a centre, the likelier its class."""
    logits: NDArray[np.float32] = (2 * points @ CENTRES.T - np.square(CENTRES).sum(axis=1)) / 30
    return logits


def points_of(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A world in which an image's first two pixels are its features and its point."""
    return inputs.reshape(len(inputs), -1)[:, :2].astype(np.float32) / 20


def shadows_of(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.tile(np.array([0.5, 0.3, 0.2], dtype=np.float32), (len(inputs), 1))


def queen(mode: AnswerMode = AnswerMode.PROBABILITIES, threshold: float = 0.2) -> Queen:
    atlas = Atlas(CENTRES, np.full(CLASSES, 2.0, dtype=np.float32), CENTRES)
    networks = QueenNetworks(atlas, logits_at(CENTRES), lambda points: points, shadows_of)
    return Queen(mode, networks, Promises(10_000, 10_000), QueenResponse(threshold=threshold, radius=0.2))


def asked(points: NDArray[np.float64] | list[list[float]], account: str = "thief") -> Queries:
    inputs = np.zeros((len(points), 1, 4, 4), dtype=np.uint8)
    inputs[:, 0, 0, :2] = np.clip(np.round(np.asarray(points) * 20), 0, 255)
    features, hashes = points_of(inputs), input_digests(inputs)
    logits = logits_at(features)
    ids = [str(digest) for digest in hashes]
    return Queries(account, ids, inputs, features, logits, softmax(logits), hashes, hashes)


def tell(policy: Queen, queries: Queries) -> Told:
    return policy.answer(queries, policy.see(queries))


def discs(seed: int, rows: int) -> NDArray[np.float64]:
    """Points in the disc of class 0, no two of them the same to a pixel."""
    grid = np.stack(np.meshgrid(np.arange(27), np.arange(27)), axis=-1).reshape(-1, 2) / 20
    points: NDArray[np.float64] = np.random.default_rng(seed).permutation(grid)[:rows]
    return points


def test_before_a_class_is_covered_answers_are_bent_and_keep_their_label() -> None:
    queries = asked([[0.5, 0.5], [9.0, 1.0], [4.0, 1.0]])
    told = tell(queen(threshold=100.0), queries)
    assert told.perturbed.all()
    assert told.spoiled == ()
    np.testing.assert_array_equal(told.answers.argmax(axis=1), queries.probabilities.argmax(axis=1))
    assert (told.answers.max(axis=1) < queries.probabilities.max(axis=1)).all()


def test_a_bent_answer_is_the_one_at_the_last_step_that_keeps_the_label() -> None:
    queries = asked([[0.5, 0.5], [9.0, 1.0], [4.0, 1.0]])
    told = tell(queen(threshold=100.0), queries).answers
    for row, label in enumerate(queries.probabilities.argmax(axis=1)):
        far = CENTRES[np.linalg.norm(CENTRES - CENTRES[label], axis=1).argmax()]
        way = queries.features[row] + np.linspace(0, 1, 21)[:, None] * (far - queries.features[row])
        said = softmax(logits_at(way.astype(np.float32)))
        last = np.flatnonzero(said.argmax(axis=1) == label).max()
        np.testing.assert_allclose(told[row], said[last], atol=1e-5)


def test_who_covers_a_class_is_told_the_reverse_and_another_account_is_not() -> None:
    policy, points = queen(), discs(1, 120)
    queries = asked(points)
    told = tell(policy, queries)
    reverse = np.array(
        [unlearning(p, s) for p, s in zip(queries.probabilities, shadows_of(queries.inputs), strict=True)]
    )
    reversed_rows = np.isclose(told.answers, reverse).all(axis=1)
    first = int(reversed_rows.argmax())
    assert 5 < first < 60
    assert reversed_rows[first:].all()
    assert not np.isclose(tell(policy, asked(points[:5], "honest")).answers, reverse[:5]).all(axis=1).any()


def test_the_same_query_again_covers_nothing_and_is_told_the_same() -> None:
    policy = queen()
    told = [tell(policy, asked([[0.5, 0.5]])) for _ in range(300)]
    assert told[0].note != b""
    assert all(again.note == b"" for again in told[1:])
    assert all((again.answers == told[0].answers).all() for again in told)


def test_a_query_that_was_answered_gently_stays_so_when_its_class_is_covered() -> None:
    policy, points = queen(), discs(2, 120)
    first = tell(policy, asked(points[:1])).answers
    # The others come under digests of their own.
    assert not np.array_equal(tell(policy, asked(points)).answers[-1], first[0])
    np.testing.assert_array_equal(tell(policy, asked(points[:1])).answers, first)


def test_what_lies_outside_the_discs_covers_nothing() -> None:
    told = tell(queen(threshold=1e-9), asked([[5.0, 0.0], [3.0, 3.0]]))
    assert told.note == b""
    assert told.spoiled == ()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 60))
def test_a_restart_at_any_query_changes_no_answer(seed: int, cut: int) -> None:
    points = discs(seed, 60)
    whole = tell(queen(), asked(points))
    before, after = queen(), queen()
    told = []
    if cut:
        told.append(tell(before, asked(points[:cut])))
        if told[0].note:
            after.recall("thief", told[0].note)
            after.recall("thief", told[0].note)  # read twice: by this process too
    if cut < 60:
        told.append(tell(after, asked(points[cut:])))
    np.testing.assert_array_equal(np.concatenate([part.answers for part in told]), whole.answers)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\x02" + bytes(8),
        b"\x01\x01" + bytes(7),
        b"\x01\x01" + bytes(7) + b"\x09\x00" + bytes(8),
        b"\x01" + bytes(9),
    ],
)
def test_what_is_no_note_of_queen_is_refused(note: bytes) -> None:
    with pytest.raises(ValueError, match="note"):
        queen().recall("thief", note)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_unlearning_answer_is_what_a_search_over_the_simplex_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    honest, shadow = random.dirichlet(np.ones(5), 2).astype(np.float32)
    target = 2.0 * shadow.astype(np.float64) - honest

    def cosine(vector: NDArray[np.float64]) -> float:
        return float(vector @ target / (np.linalg.norm(vector) * np.linalg.norm(target)))

    found = minimize(
        lambda vector: -cosine(vector),
        np.full(5, 0.2),
        bounds=[(0.0, 1.0)] * 5,
        constraints={"type": "eq", "fun": lambda vector: vector.sum() - 1.0},
        method="SLSQP",
    )
    mine = unlearning(honest, shadow).astype(np.float64)
    assert mine.sum() == pytest.approx(1.0, abs=1e-6)
    assert cosine(mine) >= cosine(found.x) - 1e-6
