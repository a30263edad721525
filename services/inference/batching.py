"""Dynamic batching: requests that arrive while the model works share the next forward pass.

An idle model never waits for company: under load the running pass is the wait. Accounts take turns, and what waits is
bounded, for each of them and in all: one that floods the server waits for itself, and fills nobody's memory.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from numpy.typing import NDArray

from services.inference.model import Outputs
from services.inference.refusal import RETRY_SECONDS, RefusedError, server_is_busy
from shared.metrics import MODEL_BATCH_ROWS

Forward = Callable[[NDArray[np.uint8]], Outputs]
_Waiting = tuple[NDArray[np.uint8], "asyncio.Future[Outputs]"]

ACCOUNT_SHARE = 4
"""Of what may wait, one account may fill a quarter."""


class _Queue:
    """What waits of one account, oldest first."""

    def __init__(self) -> None:
        self.requests: deque[_Waiting] = deque()
        self.rows = 0


class Batcher:
    """Runs one function in one thread, on the rows of several requests at a time. Lives in one event loop."""

    def __init__(self, forward: Forward, most_rows: int, most_waiting: int) -> None:
        """
        Args:
            forward: from [n, ...] uint8 to n rows of outputs.
            most_rows: rows of one pass, unless a single request holds more.
            most_waiting: rows that may wait for a pass. A single request may always wait, however large: alone, and
                as its account's only one.
        """
        self._forward = forward
        self._most_rows = most_rows
        self._most_waiting = most_waiting
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._queues: OrderedDict[str, _Queue] = OrderedDict()
        self._rows = 0
        self._running: asyncio.Task[None] | None = None

    async def infer(self, inputs: NDArray[np.uint8], account: str) -> Outputs:
        """What the model makes of the [n, ...] rows of one request of an account.

        Raises:
            RefusedError: too many rows wait, of the account or in all.
            Exception: whatever the function raised for the pass that the rows were in.
        """
        future: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self._enqueue(account, inputs, future)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    def _enqueue(self, account: str, inputs: NDArray[np.uint8], future: asyncio.Future[Outputs]) -> None:
        queue = self._queues.get(account)
        if queue is not None and queue.rows + len(inputs) > self._most_waiting // ACCOUNT_SHARE:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many queries at a time, send fewer", RETRY_SECONDS
            )
        if self._rows and self._rows + len(inputs) > self._most_waiting:
            raise server_is_busy()
        if queue is None:
            queue = self._queues[account] = _Queue()
        queue.requests.append((inputs, future))
        queue.rows += len(inputs)
        self._rows += len(inputs)

    async def close(self) -> None:
        """Wait for the pass that runs, and free the thread."""
        if self._running is not None:
            await self._running
        self._executor.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queues:
                batch = self._take()
                if not batch:
                    continue
                rows = np.concatenate([inputs for inputs, _ in batch]) if len(batch) > 1 else batch[0][0]
                MODEL_BATCH_ROWS.observe(len(rows))
                try:
                    results = await loop.run_in_executor(self._executor, self._forward, rows)
                except Exception as error:  # noqa: BLE001  it belongs to those who wait for the pass
                    _settle(batch, error)
                else:
                    _settle(batch, results)
        finally:
            self._running = None

    def _take(self) -> list[_Waiting]:
        """The next requests that fit into one pass, accounts in turn, without those whose client has gone."""
        batch: list[_Waiting] = []
        rows = 0
        while self._queues and (not batch or rows + len(self._next()[0]) <= self._most_rows):
            inputs, future = self._dequeue()
            if not future.done():
                batch.append((inputs, future))
                rows += len(inputs)
        return batch

    def _next(self) -> _Waiting:
        return next(iter(self._queues.values())).requests[0]

    def _dequeue(self) -> _Waiting:
        """The oldest request of the account whose turn it is."""
        account, queue = next(iter(self._queues.items()))
        request = queue.requests.popleft()
        queue.rows -= len(request[0])
        self._rows -= len(request[0])
        if queue.requests:
            self._queues.move_to_end(account)
        else:
            del self._queues[account]
        return request


def _settle(batch: list[_Waiting], outcome: Outputs | Exception) -> None:
    start = 0
    for inputs, future in batch:
        end = start + len(inputs)
        if not future.done():
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome[start:end])
        start = end
