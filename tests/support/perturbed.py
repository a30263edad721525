"""Spoiled answers as the inference service publishes them."""

from __future__ import annotations

import numpy as np

from shared.codec import encode_perturbed
from shared.events import PerturbedAnswer
from shared.responses import PHASH, SIMILAR_BITS


def spoiled(
    number: int, account: str = "mallory", model: str = "fashion", query_id: str = "", side: int = 8
) -> PerturbedAnswer:
    """The answer to the query `number` of an account: unlike any other number's, told the least likely class."""
    random = np.random.default_rng(number)
    logits = random.normal(size=10).astype(np.float32)
    answer = np.exp(logits) / np.exp(logits).sum()
    low, high = int(answer.argmin()), int(answer.argmax())
    answer[[low, high]] = answer[[high, low]]
    return PerturbedAnswer(
        query_id=query_id or f"{account}-{number}",
        account=account,
        model_name=model,
        model_version="1",
        answered_at=1_700_000_000_000_000 + number,
        response="amao",
        perceptual_hash=int(random.integers(0, 2**63)),
        hash_kind=PHASH,
        similar_bits=SIMILAR_BITS,
        input=random.integers(0, 256, (1, side, side), dtype=np.uint8),
        logits=logits,
        answer=answer,
    )


def record(number: int, account: str = "mallory", model: str = "fashion") -> bytes:
    """The same as a record's value."""
    return encode_perturbed(spoiled(number, account, model))
