"""Everything dies at once and again: scheduler, agents and shims, under a load that is submitted all the while.

A safety phase with faults, then everything heals and must come to an end: every accepted job once, with its own code,
unless its shim was killed, and then with its own code at a later attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from pathlib import Path

import pytest
from live_cluster import LiveCluster, live_cluster, run, state_of
from witness import work

NODES = {"n1": "2xH100-80GB", "n2": "2xH100-80GB"}
LEASE_S = 5


class Submitter:
    """Submits for as long as it may; a call that fails is tried again under its own request id by the client."""

    def __init__(self, cluster: LiveCluster, draw: random.Random) -> None:
        self.cluster = cluster
        self.draw = draw
        self.codes: dict[str, int] = {}
        self.over = asyncio.Event()

    async def run(self) -> None:
        while not self.over.is_set():
            code = self.draw.choice([0, 0, 1, 7, 64])
            text = work(self.draw.choice([0.02, 0.2, 0.6, 1.2]), f"exit {code}")
            gpus = self.draw.choice(["0.25", "0.5", "1"])
            (name,) = await self.cluster.submit(self.cluster.shell(text, gpus=gpus, time="60s"))
            self.codes[name] = code
            await asyncio.sleep(self.draw.uniform(0, 0.1))


async def strike(cluster: LiveCluster, draw: random.Random) -> str:
    """One fault, and what mends it; returns what it was."""
    kind = draw.choice(["scheduler", "agent", "agent", "frozen agent", "shim", "scheduler and agents"])
    agents = list(cluster.agents.values())
    agent = draw.choice(agents)
    pause_s = draw.choice([0.0, 0.0, 0.3, 1.0])
    if kind == "shim":
        return kind if kill_a_shim(cluster, draw) else "nothing"
    if kind == "frozen agent":
        agent.freeze()
        await asyncio.sleep(draw.uniform(0.2, 1.5))
        agent.thaw()
        return kind
    struck = {
        "scheduler": [cluster.scheduler],
        "agent": [agent],
        "scheduler and agents": draw.sample([cluster.scheduler, *agents], 1 + len(agents)),
    }[kind]
    for daemon in struck:
        daemon.kill()
        await asyncio.sleep(draw.uniform(0, 0.05))
    await asyncio.sleep(pause_s)
    for daemon in draw.sample(struck, len(struck)):
        daemon.start()
    return kind


def kill_a_shim(cluster: LiveCluster, draw: random.Random) -> bool:
    records = [path for node in NODES for path in cluster.records(node, "").glob("*/exec")]
    draw.shuffle(records)
    for record in records:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if not (record.parent / "exit").exists():
                pid = int(json.loads(record.read_text())["shim_pid"])
                if "gpushare-shim" in Path(f"/proc/{pid}/comm").read_text():
                    os.kill(pid, signal.SIGKILL)
                    return True
    return False


async def chaos(home: Path, strikes: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    print(f"seed {seed}")
    settings = {"lease_ttl_s": LEASE_S, "infra_retries": 50, "infra_backoff_ms": 20, "infra_backoff_max_ms": 200}
    async with live_cluster(home, NODES, **settings) as cluster:
        load = Submitter(cluster, draw)
        loading = asyncio.create_task(load.run())
        done = []
        for _ in range(strikes):
            await asyncio.sleep(draw.uniform(0.1, 1.5))
            done.append(await strike(cluster, draw))
        load.over.set()
        await loading
        for node in NODES:
            await cluster.settled(node)
        ended = await cluster.ended(load.codes, 100)
        lost = sum(job.infra_retries for job in ended.values())
        kinds = {kind: done.count(kind) for kind in sorted(set(done))}
        print(f"{strikes} strikes {kinds}, {len(ended)} jobs, {lost} attempts repeated")
        assert set(await cluster.jobs()) == set(load.codes), "an accepted job is missing, or one came twice"
        for name, job in ended.items():
            assert job.exit_code == load.codes[name], job
            assert state_of(job) == ("FAILED" if load.codes[name] else "SUCCEEDED")
        finished = [life.task for life in cluster.witness.lives().values() if life.ended]
        shims = done.count("shim")
        assert len(finished) - len(set(finished)) <= shims, "a job came to its end twice though no shim of it died"


def test_daemons_and_shims_die_under_load(tmp_path: Path) -> None:
    run(lambda: chaos(tmp_path / "c", strikes=6))


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_daemons_and_shims_die_a_hundred_times_under_load(tmp_path: Path) -> None:
    run(lambda: chaos(tmp_path / "c", strikes=100), 880)
