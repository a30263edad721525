"""Who looks at queries: the event loop itself where that is quick, another thread where it would hold others up."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from services.inference.image_hash import ImageHash
from services.inference.model import Outputs, softmax
from services.inference.perceptual_hash import perceptual_hashes
from services.inference.responses.interface import AnswerMode, Queries
from services.inference.responses.looking import looked
from services.inference.responses.stateless import Probabilities, TopK
from shared.detection import input_digests

PHASH = ImageHash("phash", perceptual_hashes, 8)


class Watched(TopK):
    """Remembers which thread it looked in."""

    def __init__(self, light: bool) -> None:
        super().__init__(AnswerMode.PROBABILITIES, 3)
        self.light = light

    def see(self, queries: Queries) -> Probabilities:
        self.thread = threading.get_ident()
        return super().see(queries)


@pytest.mark.parametrize(
    ("light", "queries", "here"),
    [(True, 1, True), (True, 100, False), (False, 1, False)],
    ids=["light, one image", "light, many images", "not light"],
)
async def test_the_event_loop_looks_itself_only_where_that_is_quick(light: bool, queries: int, here: bool) -> None:
    random, policy = np.random.default_rng(1), Watched(light)
    inputs = random.integers(0, 256, (queries, 1, 28, 28), dtype=np.uint8)
    outputs = Outputs(random.random((queries, 4), np.float32), random.random((queries, 10), np.float32))
    found, seen = await looked(policy, PHASH, "alice", [str(n) for n in range(queries)], inputs, outputs)
    assert (policy.thread == threading.get_ident()) is here
    assert len(found) == len(seen) == queries
    np.testing.assert_array_equal(found.perceptual, perceptual_hashes(inputs))
    np.testing.assert_array_equal(found.exact, input_digests(inputs))
    np.testing.assert_array_equal(found.probabilities, softmax(outputs.logits))
