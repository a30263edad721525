"""What a response needs to know of queries before it answers them: their hashes, and what its policy sees in them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.image_hash import ImageHash
from services.inference.model import Outputs, softmax
from services.inference.responses.interface import Queries, ResponsePolicy
from shared.detection import input_digests

FEW_PIXELS = 4_096
"""A light policy looks at so many sooner than another thread would hear of them."""


async def looked(
    policy: ResponsePolicy,
    image_hash: ImageHash,
    account: str,
    ids: Sequence[str],
    inputs: NDArray[np.uint8],
    outputs: Outputs,
) -> tuple[Queries, Any]:
    """As `look`, which may take its time, without keeping other requests waiting."""
    work = partial(look, policy, image_hash, account, ids, inputs, outputs)
    return work() if policy.light and inputs.size <= FEW_PIXELS else await asyncio.to_thread(work)


def look(
    policy: ResponsePolicy,
    image_hash: ImageHash,
    account: str,
    ids: Sequence[str],
    inputs: NDArray[np.uint8],
    outputs: Outputs,
) -> tuple[Queries, Any]:
    """Queries of an account under PERTURB as its policy wants them, and what it sees in them; any thread may ask.

    Args:
        policy: that will answer them.
        image_hash: by which they are known again.
        account: whose they are.
        ids: [n] of them.
        inputs: [n, channels, height, width].
        outputs: of the model.
    """
    queries = Queries(
        account=account,
        ids=ids,
        inputs=inputs,
        features=outputs.features,
        logits=outputs.logits,
        probabilities=softmax(outputs.logits),
        perceptual=image_hash.hashes(inputs),
        exact=input_digests(inputs),
    )
    return queries, policy.see(queries)
