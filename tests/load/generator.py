"""The clients of a load, in a process of their own: sends what it is told, when it is told, and keeps what came of it.

    python -m tests.load.generator FOLDER HOST:PORT MODEL open|closed CONCURRENT

Open: every query is sent at its moment, whether or not earlier ones were answered, and its latency counts from that
moment: a server that stalls is charged for everybody who waits (no coordinated omission). Closed: so many queries are
under way at any time, in the same order, until the time is up. Either ends early where standard input ends.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import numpy as np

from shared.pb.open_inference import open_inference_grpc_pb2_grpc as rpc
from tests.bench.client import requests

CONNECTIONS = 8
ANSWERED = grpc.StatusCode.OK.value[0]
TIMEOUT_SECONDS = 60.0


def request_id(number: int) -> str:
    """Names the query of that number to the server."""
    return f"load-{number}"


class Clients:
    """All accounts' requests, over a few connections."""

    def __init__(self, folder: Path, address: str, model: str) -> None:
        self._images = np.load(folder / "images.npy", mmap_mode="r")
        traffic = np.load(folder / "traffic.npz")
        self.at, self._account, self._image = traffic["at"], traffic["account"], traffic["image"]
        self._keys: list[str] = json.loads((folder / "keys.json").read_text())
        self._model = model
        self._stubs = [rpc.GRPCInferenceServiceStub(grpc.aio.insecure_channel(address)) for _ in range(CONNECTIONS)]
        self.results: list[tuple[int, float, float, int]] = []
        """Of each query: its number, when it was due or sent, its latency in seconds, and gRPC's status."""
        self.over = asyncio.Event()
        """Nothing more is to be sent."""

    async def ask(self, number: int, due: float, clock: Callable[[], float]) -> None:
        """Send one query and keep what became of it; `due` is when its latency begins."""
        image = self._image[number]
        (request,) = requests(self._model, self._images[image : image + 1], 1)
        request.id = request_id(number)
        account = int(self._account[number])
        stub = self._stubs[account % CONNECTIONS]
        try:
            metadata = (("authorization", f"Bearer {self._keys[account]}"),)
            await stub.ModelInfer(request, metadata=metadata, timeout=TIMEOUT_SECONDS)
            outcome = ANSWERED
        except grpc.aio.AioRpcError as error:
            outcome = error.code().value[0]
        self.results.append((number, due, clock() - due, outcome))

    async def open_loop(self, clock: Callable[[], float]) -> None:
        """Everything at its moment."""
        under_way: set[asyncio.Task[None]] = set()
        for number, due in enumerate(self.at.tolist()):
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            if self.over.is_set():
                break
            task = asyncio.create_task(self.ask(number, due, clock))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)

    async def closed_loop(self, clock: Callable[[], float], concurrent: int) -> None:
        """As fast as answers come, for as long as the traffic lasts."""
        numbers, end = itertools.count(), float(self.at[-1])

        async def one_after_another() -> None:
            while (now := clock()) < end and not self.over.is_set():
                await self.ask(next(numbers) % len(self.at), now, clock)

        await asyncio.gather(*(one_after_another() for _ in range(concurrent)))


async def _run(arguments: Sequence[str]) -> None:
    folder, address, model, loop, concurrent = arguments
    clients = Clients(Path(folder), address, model)
    await clients.ask(0, 0.0, time.monotonic)
    clients.results.clear()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    begin, began_at = time.monotonic(), time.time()
    running = asyncio.get_running_loop()

    def listen() -> None:
        # Not by sys.stdin, whose lock a thread that still waits would hold when the process ends.
        while os.read(sys.stdin.fileno(), 1024):
            pass
        running.call_soon_threadsafe(clients.over.set)

    threading.Thread(target=listen, name="listen", daemon=True).start()

    def clock() -> float:
        return time.monotonic() - begin

    if loop == "open":
        await clients.open_loop(clock)
    else:
        await clients.closed_loop(clock, int(concurrent))
    number, at, latency, outcome = zip(*clients.results, strict=True)
    np.savez(
        Path(folder) / "results.npz", number=np.array(number), at=np.array(at), latency=np.array(latency),
        outcome=np.array(outcome), began_at=began_at,
    )  # fmt: skip


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1:]))
