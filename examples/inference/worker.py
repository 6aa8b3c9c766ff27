"""One worker of a service: answers requests, one at a time, as fast as its slice of the card allows.

Needs numpy. It says where it listens in a file under workers/, named after its job. What a request costs stands in for
a model on a GPU: a worker with half the slice takes twice as long.
"""

import argparse
import asyncio
import json
import os
from pathlib import Path

import numpy as np

WORKERS = Path("workers")
# What one request takes on a whole card.
WHOLE_CARD_S = 0.005


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1", help="the name by which the balancer reaches this worker")
    host = parser.parse_args().host
    name, milli = os.environ["GPUSHARE_JOB_ID"], int(os.environ["GPUSHARE_GPU_MILLI"])
    weights = np.random.default_rng(0).normal(0, 1, (64, 8))
    turn = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            async with turn:
                answer = int((np.full(64, json.loads(line)["value"]) @ weights).argmax())
                await asyncio.sleep(WHOLE_CARD_S * 1000 / milli)
            writer.write(json.dumps({"answer": answer, "worker": name}).encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, host if host == "127.0.0.1" else None)
    port = server.sockets[0].getsockname()[1]
    WORKERS.mkdir(exist_ok=True)
    partial = WORKERS / f".{name}.partial"
    partial.write_text(json.dumps({"name": name, "host": host, "port": port, "milli": milli, "pid": os.getpid()}))
    partial.rename(WORKERS / f"{name}.json")
    print(f"worker {name}: {milli} thousandths of a card, try {os.environ['GPUSHARE_ATTEMPT']}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
