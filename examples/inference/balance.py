"""Sends requests to all workers, each to the one that has the least to do for its size, and counts who answered.

A worker that goes away costs no request: what it had not answered goes to another, and when it is back under
workers/, on another port, it is used again.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path

WORKERS = Path("workers")
NOBODY_LIMIT_S = 60.0


class Worker:
    """A connection to one worker, with what waits there."""

    def __init__(self, said: dict) -> None:
        self.said = said
        self.waiting = 0
        self.alive = True
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, value: int) -> dict:
        self.waiting += 1
        try:
            async with self._turn:
                if not self.alive:
                    raise ConnectionResetError("it went away")
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self.said["host"], self.said["port"])
                reader, writer = self._streams
                writer.write(json.dumps({"value": value}).encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
            if not line:
                raise ConnectionResetError("it went away")
            return json.loads(line)
        except OSError:
            self.alive = False
            raise
        finally:
            self.waiting -= 1


class Balancer:
    """Chooses among the workers that are there now."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}

    def look(self) -> list[Worker]:
        for path in WORKERS.glob("*.json"):
            said = json.loads(path.read_text())
            known = self.workers.get(said["name"])
            if known is None or known.said["port"] != said["port"]:
                self.workers[said["name"]] = Worker(said)
        return [worker for worker in self.workers.values() if worker.alive]

    async def ask(self, value: int) -> dict:
        give_up = time.monotonic() + NOBODY_LIMIT_S
        while True:
            alive = self.look()
            if alive:
                least = min(alive, key=lambda worker: (worker.waiting + 1) / worker.said["milli"])
                try:
                    return await least.ask(value)
                except OSError:
                    continue
            if time.monotonic() > give_up:
                raise SystemExit("no worker is left")
            await asyncio.sleep(0.05)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--workers", type=int, default=3, help="wait for so many before the first request")
    given = parser.parse_args()
    balancer, answered = Balancer(), Counter()
    give_up = time.monotonic() + NOBODY_LIMIT_S
    while len(balancer.look()) < given.workers and time.monotonic() < give_up:
        await asyncio.sleep(0.05)

    values = iter(range(given.requests))

    async def one_after_the_other() -> None:
        for value in values:
            answered[(await balancer.ask(value))["worker"]] += 1
            if answered.total() == 1:
                print("first answer", flush=True)

    began = time.monotonic()
    await asyncio.gather(*(one_after_the_other() for _ in range(given.at_once)))
    took = time.monotonic() - began
    for name, count in sorted(answered.items()):
        milli = balancer.workers[name].said["milli"]
        print(f"worker {name}: {milli} thousandths, {count} answers, {count / took:.0f} a second")
    print(f"answered {sum(answered.values())} of {given.requests}")


if __name__ == "__main__":
    asyncio.run(main())
