"""A client process of the benchmark: one account, several requests under way at a time, latencies out.

    python -m tests.bench.client HOST:PORT KEY MODEL IMAGES FIRST ROWS SECONDS CONCURRENT

Waits for a line on standard input, so that all clients begin together, and prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc
import numpy as np

from shared.pb.open_inference import open_inference_grpc_pb2 as pb
from shared.pb.open_inference import open_inference_grpc_pb2_grpc as rpc

PREPARED = 8192
"""Images of one run, from the FIRST on."""


def requests(model: str, images: np.ndarray, rows: int) -> list[pb.ModelInferRequest]:
    """Requests ready to send: what is measured is the server, not numpy."""
    return [
        pb.ModelInferRequest(
            model_name=model,
            inputs=[
                pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[rows, *images.shape[1:]])
            ],
            raw_input_contents=[images[start : start + rows].tobytes()],
        )
        for start in range(0, len(images) - rows + 1, rows)
    ]


async def run(
    address: str, key: str, prepared: list[pb.ModelInferRequest], seconds: float, concurrent: int
) -> list[float]:
    """Latencies in seconds of all requests that began in time; a refused request ends the run with its error."""
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),)
        await stub.ModelInfer(prepared[-1], metadata=metadata)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        end = time.perf_counter() + seconds

        async def one_after_another(first: int) -> None:
            turn = first
            while (started := time.perf_counter()) < end:
                await stub.ModelInfer(prepared[turn % len(prepared)], metadata=metadata)
                latencies.append(time.perf_counter() - started)
                turn += concurrent

        await asyncio.gather(*(one_after_another(first) for first in range(concurrent)))
    return latencies


if __name__ == "__main__":
    address, key, model, path, first, rows, seconds, concurrent = sys.argv[1:]
    images = np.load(path, mmap_mode="r")
    prepared = requests(model, images[np.arange(int(first), int(first) + PREPARED) % len(images)], int(rows))
    found = asyncio.run(run(address, key, prepared, float(seconds), int(concurrent)))
    print(json.dumps([round(value, 6) for value in sorted(found)]), flush=True)
