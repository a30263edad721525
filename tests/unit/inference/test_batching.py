"""Dynamic batching."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.batching import Batcher


class Gate:
    """A forward pass that waits until it is let through, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.opened = threading.Event()

    def __call__(self, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.sizes.append(len(inputs))
        assert self.opened.wait(10)
        return inputs.astype(np.float32) * 2


def rows(*values: int) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8)[:, None]


async def test_an_idle_model_takes_a_request_at_once_and_later_ones_share_the_next_pass() -> None:
    gate = Gate()
    batcher = Batcher(gate, most_rows=64)
    first = asyncio.create_task(batcher.infer(rows(1)))
    while not gate.sizes:
        await asyncio.sleep(0.001)
    others = [asyncio.create_task(batcher.infer(rows(value, value + 1))) for value in (2, 4, 6)]
    await asyncio.sleep(0.01)
    gate.opened.set()
    results = [await task for task in (first, *others)]
    assert gate.sizes == [1, 6]
    assert [result[:, 0].tolist() for result in results] == [[2], [4, 6], [8, 10], [12, 14]]
    await batcher.close()


async def test_a_pass_holds_no_more_rows_than_allowed_unless_one_request_does() -> None:
    gate = Gate()
    batcher = Batcher(gate, most_rows=4)
    tasks = [asyncio.create_task(batcher.infer(rows(*range(size)))) for size in (1, 3, 2, 9, 1)]
    await asyncio.sleep(0.01)
    gate.opened.set()
    assert [len(await task) for task in tasks] == [1, 3, 2, 9, 1]
    assert gate.sizes == [4, 2, 9, 1]
    await batcher.close()


async def test_a_failing_pass_fails_its_requests_and_no_later_one() -> None:
    calls = []

    def fail_once(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(inputs))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return inputs.astype(np.float32)

    batcher = Batcher(fail_once, most_rows=4)
    with pytest.raises(RuntimeError, match="out of memory"):
        await batcher.infer(rows(1))
    assert (await batcher.infer(rows(7))).tolist() == [[7.0]]
    await batcher.close()


async def test_a_client_that_has_gone_costs_no_pass() -> None:
    gate = Gate()
    batcher = Batcher(gate, most_rows=4)
    first = asyncio.create_task(batcher.infer(rows(1)))
    gone = asyncio.create_task(batcher.infer(rows(2)))
    while not gate.sizes:
        await asyncio.sleep(0.001)
    later = asyncio.create_task(batcher.infer(rows(3)))
    await asyncio.sleep(0.01)
    later.cancel()
    gate.opened.set()
    await asyncio.gather(first, gone)
    await batcher.close()
    assert gate.sizes == [2]
