"""Dynamic batching: requests that arrive while the model works share the next forward pass.

An idle model never waits for company: under load the running pass is the wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from shared.metrics import MODEL_BATCH_ROWS

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
_Waiting = tuple[NDArray[np.uint8], "asyncio.Future[NDArray[np.float32]]"]


class Batcher:
    """Runs one function in one thread, on the rows of several requests at a time. Lives in one event loop."""

    def __init__(self, forward: Forward, most_rows: int) -> None:
        """
        Args:
            forward: from [n, ...] uint8 to [n, k] float32.
            most_rows: rows of one pass, unless a single request holds more.
        """
        self._forward = forward
        self._most_rows = most_rows
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: deque[_Waiting] = deque()
        self._running: asyncio.Task[None] | None = None

    async def infer(self, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[n, k] results for the [n, ...] rows of one request.

        Raises:
            Exception: whatever the function raised for the pass that the rows were in.
        """
        future: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._waiting.append((inputs, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Wait for the pass that runs, and free the thread."""
        if self._running is not None:
            await self._running
        self._executor.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
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
        """The next requests that fit into one pass, without those whose client has gone."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting and (not batch or rows + len(self._waiting[0][0]) <= self._most_rows):
            inputs, future = self._waiting.popleft()
            if not future.done():
                batch.append((inputs, future))
                rows += len(inputs)
        return batch


def _settle(batch: list[_Waiting], outcome: NDArray[np.float32] | Exception) -> None:
    start = 0
    for inputs, future in batch:
        end = start + len(inputs)
        if not future.done():
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome[start:end])
        start = end
