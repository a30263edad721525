"""Honest accounts as the repository's own model answers them; apart from `streams`, whose workers need no torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from services.inference.model import Model, softmax
from shared.bundle import Bundle
from shared.events import Action, QueryBatch
from shared.topics import partition_of


def photograph_stream(
    bundle: Bundle, images: NDArray[np.uint8], records: int, rows: int, accounts: int, partitions: int, seed: int
) -> Iterator[tuple[int, QueryBatch]]:
    """Partition and batch, one partition after another, as the bundle's model answers honest accounts.

    Args:
        bundle: whose model answers.
        images: sent one after another, and again from the first where there are too few.
        records: how many batches.
        rows: of a batch.
        accounts: in all partitions together; each row is of any one of its partition.
        partitions: of the topic.
        seed: of the draw of accounts.
    """
    section, random = bundle.manifest.model, np.random.default_rng(seed)
    model = Model(bundle)
    logits = np.concatenate([model.logits(images[start : start + 256]) for start in range(0, len(images), 256)])
    answers = softmax(logits)
    names = [f"account-{number}" for number in range(accounts)]
    of_partition = [[name for name in names if partition_of(name, partitions) == p] for p in range(partitions)]
    for record in range(records):
        chosen = np.arange(record * rows, (record + 1) * rows) % len(images)
        yield (
            record % partitions,
            QueryBatch(
                batch_id=hashlib.blake2b(f"{seed}/{record}".encode(), digest_size=16).digest(),
                model_name=section.name,
                model_version=section.version,
                query_ids=[f"{record}-{row}" for row in range(rows)],
                accounts=random.choice(of_partition[record % partitions], rows).tolist(),
                request_ids=[""] * rows,
                accepted_at=np.full(rows, time.time_ns() // 1000, dtype=np.int64),
                inputs=images[chosen],
                logits=logits[chosen],
                answers=answers[chosen],
                actions=np.full(rows, Action.ALLOW, dtype=np.uint8),
                perturbed=np.zeros(rows, dtype=np.bool_),
            ),
        )
