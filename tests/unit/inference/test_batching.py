"""Dynamic batching."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.batching import Batcher, Forward
from services.inference.model import Outputs
from services.inference.refusal import RefusedError


class Gate:
    """A forward pass that waits until it is let through, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.opened = threading.Event()

    def __call__(self, inputs: NDArray[np.uint8]) -> Outputs:
        self.sizes.append(len(inputs))
        assert self.opened.wait(10)
        return Outputs(inputs.astype(np.float32), inputs.astype(np.float32) * 2)


def rows(*values: int) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8)[:, None]


def batcher_of(forward: Forward, most_rows: int = 1, most_waiting: int = 100) -> Batcher:
    return Batcher(forward, most_rows, most_waiting)


async def busy(gate: Gate, **limits: int) -> tuple[Batcher, asyncio.Task[Any]]:
    """A batcher whose model works on a request of nobody's, until the gate is opened."""
    batcher = batcher_of(gate, **limits)
    first = asyncio.create_task(batcher.infer(rows(0), "nobody"))
    while not gate.sizes:
        await asyncio.sleep(0.001)
    return batcher, first


async def test_an_idle_model_takes_a_request_at_once_and_later_ones_share_the_next_pass() -> None:
    gate = Gate()
    batcher = batcher_of(gate, most_rows=64)
    first = asyncio.create_task(batcher.infer(rows(1), "alice"))
    while not gate.sizes:
        await asyncio.sleep(0.001)
    others = [asyncio.create_task(batcher.infer(rows(value, value + 1), "alice")) for value in (2, 4, 6)]
    await asyncio.sleep(0.01)
    gate.opened.set()
    results = [await task for task in (first, *others)]
    assert gate.sizes == [1, 6]
    assert [result.logits[:, 0].tolist() for result in results] == [[2], [4, 6], [8, 10], [12, 14]]
    await batcher.close()


async def test_a_pass_holds_no_more_rows_than_allowed_unless_one_request_does() -> None:
    gate = Gate()
    batcher = batcher_of(gate, most_rows=4)
    tasks = [asyncio.create_task(batcher.infer(rows(*range(size)), "alice")) for size in (1, 3, 2, 9, 1)]
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

    batcher = batcher_of(fail_once, most_rows=4)
    with pytest.raises(RuntimeError, match="out of memory"):
        await batcher.infer(rows(1), "alice")
    assert (await batcher.infer(rows(7), "alice")).tolist() == [[7.0]]
    await batcher.close()


async def test_a_client_that_has_gone_costs_no_pass() -> None:
    gate = Gate()
    batcher = batcher_of(gate, most_rows=4)
    first = asyncio.create_task(batcher.infer(rows(1), "alice"))
    gone = asyncio.create_task(batcher.infer(rows(2), "alice"))
    while not gate.sizes:
        await asyncio.sleep(0.001)
    later = asyncio.create_task(batcher.infer(rows(3), "alice"))
    await asyncio.sleep(0.01)
    later.cancel()
    gate.opened.set()
    await asyncio.gather(first, gone)
    await batcher.close()
    assert gate.sizes == [2]


async def test_accounts_take_turns_and_one_that_floods_waits_for_itself() -> None:
    gate, order = Gate(), []
    batcher, first = await busy(gate)

    async def ask(account: str) -> None:
        await batcher.infer(rows(1), account)
        order.append(account)

    waiting = [asyncio.create_task(ask(account)) for account in ("mallory", "mallory", "mallory", "alice", "bob")]
    await asyncio.sleep(0.01)
    gate.opened.set()
    await asyncio.gather(first, *waiting)
    await batcher.close()
    assert order == ["mallory", "alice", "bob", "mallory", "mallory"]


async def test_what_waits_of_one_account_is_bounded_and_others_notice_nothing() -> None:
    gate = Gate()
    batcher, first = await busy(gate, most_waiting=16)
    waiting = [asyncio.create_task(batcher.infer(rows(1, 2), "mallory")) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(RefusedError) as refused:
        await batcher.infer(rows(1), "mallory")
    waiting.append(asyncio.create_task(batcher.infer(rows(1), "alice")))
    gate.opened.set()
    await asyncio.gather(first, *waiting)
    await batcher.infer(rows(1), "mallory")
    await batcher.close()
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.retry_after


async def test_what_waits_of_all_accounts_is_bounded() -> None:
    gate = Gate()
    batcher, first = await busy(gate, most_waiting=16)
    waiting = [asyncio.create_task(batcher.infer(rows(*range(4)), f"account-{number}")) for number in range(4)]
    await asyncio.sleep(0.01)
    with pytest.raises(RefusedError) as refused:
        await batcher.infer(rows(1), "alice")
    gate.opened.set()
    await asyncio.gather(first, *waiting)
    await batcher.close()
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_request_above_every_bound_passes_where_nothing_else_waits() -> None:
    gate = Gate()
    batcher, first = await busy(gate, most_waiting=4)
    large = asyncio.create_task(batcher.infer(rows(*range(9)), "alice"))
    await asyncio.sleep(0.01)
    gate.opened.set()
    await first
    assert len(await large) == 9
    await batcher.close()


async def test_room_is_given_back_by_those_who_have_gone() -> None:
    gate = Gate()
    batcher, first = await busy(gate, most_waiting=4)
    gone = asyncio.create_task(batcher.infer(rows(1), "alice"))
    await asyncio.sleep(0.01)
    gone.cancel()
    gate.opened.set()
    await first
    await batcher.infer(rows(1), "alice")
    await batcher.infer(rows(*range(4)), "bob")
    await batcher.close()
