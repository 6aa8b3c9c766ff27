"""kill -9 of the agent at random moments under load: no job is killed, none starts twice, every exit code is true."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from live_cluster import LiveCluster, live_cluster, run, state_of
from witness import MARK, work

SLICES = 8
WAVE = 12
DAMAGE_S = 1.5


def ending(draw: random.Random) -> tuple[str, int]:
    """(how a job ends, the code that its owner must see)."""
    code = draw.choice([0, 0, 1, 3, 42, 99])
    return draw.choice([(f"exit {code}", code), (f"exit {code}", code), ("kill -9 $$", 137), ("kill -15 $$", 143)])


class Load:
    """Jobs of a few hundredths to a second and a half, always more than fit."""

    def __init__(self, cluster: LiveCluster, draw: random.Random) -> None:
        self.cluster = cluster
        self.draw = draw
        self.codes: dict[str, int] = {}
        self._stop = asyncio.Event()

    async def run(self) -> None:
        while not self._stop.is_set():
            queued = [job async for job in self.cluster.client.list_jobs()]
            if len(queued) < 2 * SLICES:
                await self._wave()
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        self._stop.set()

    async def _wave(self) -> None:
        specs, codes = [], []
        for _ in range(WAVE):
            how, code = ending(self.draw)
            seconds = self.draw.choice([0.02, 0.1, 0.3, 0.7, 1.2])
            specs.append(self.cluster.shell(work(seconds, how), gpus="0.5"))
            codes.append(code)
        names = await self.cluster.submit(*specs)
        self.codes.update(zip(names, codes, strict=True))


async def moment(cluster: LiveCluster, draw: random.Random) -> str:
    """Wait for a moment at which to kill the agent; what it was."""
    kind = draw.choice(["launching", "running", "exiting", "any time"])
    attempts = cluster.node_home("n1") / "state" / "attempts"
    deadline_s = time.monotonic() + 10
    known = {path.name for path in attempts.glob("*/exit")} if kind == "exiting" else set(_names(attempts))
    while kind in ("launching", "exiting") and time.monotonic() < deadline_s:
        now = {path.name for path in attempts.glob("*/exit")} if kind == "exiting" else set(_names(attempts))
        if now - known:
            break
        known &= now
        await asyncio.sleep(0.001)
    await asyncio.sleep(draw.uniform(0, {"launching": 0.03, "exiting": 0.03, "running": 1.0, "any time": 2.5}[kind]))
    return kind


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


async def agent_dies_under_load(home: Path, kills: int) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw = random.Random(seed)
    print(f"seed {seed}")
    async with live_cluster(home, {"n1": "4xH100-80GB"}, infra_backoff_ms=50) as cluster:
        agent = cluster.agents["n1"]
        load = Load(cluster, draw)
        loading = asyncio.create_task(load.run())
        moments = []
        for _ in range(kills):
            moments.append(await moment(cluster, draw))
            agent.kill()
            await asyncio.sleep(draw.choice([0.0, 0.0, 0.5, DAMAGE_S]))
            agent.start()
            if draw.random() < 0.7:
                await cluster.settled("n1")
        load.stop()
        await loading
        ended = await cluster.ended(load.codes, 100)
        counts = {kind: moments.count(kind) for kind in sorted(set(moments))}
        retried = sum(job.infra_retries for job in ended.values())
        print(f"{kills} kills {counts}, {len(ended)} jobs, {retried} launches repeated that had not begun")
        wrong = {name: job.exit_code for name, job in ended.items() if job.exit_code != load.codes[name]}
        assert not wrong, f"{wrong}; {[ended[name] for name in wrong]}"
        for name, job in ended.items():
            assert state_of(job) == ("FAILED" if load.codes[name] else "SUCCEEDED")
        starts = [attempt_id.rsplit(".", 1)[0] for attempt_id in cluster.witness.starts()]
        assert len(starts) == len(set(starts)) == len(load.codes), "a job began twice, or never"
        assert all(life.ended for life in cluster.witness.lives().values()), "a job was killed"


def test_kill_9_of_the_agent_kills_no_job_and_starts_none_twice(tmp_path: Path) -> None:
    run(lambda: agent_dies_under_load(tmp_path / "c", kills=5))


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_kill_9_of_the_agent_at_50_random_moments(tmp_path: Path) -> None:
    run(lambda: agent_dies_under_load(tmp_path / "c", kills=50), 880)


async def gone_for_longer_than_a_lease(home: Path) -> None:
    async with live_cluster(home, {"n1": "1xH100-80GB"}, lease_ttl_s=3) as cluster:
        agent = cluster.agents["n1"]
        (name,) = await cluster.submit(cluster.shell(f"{MARK} mark start; sleep 4; mark end; exit 7", gpus=1))
        await cluster.running([name])
        agent.kill()
        await asyncio.sleep(5)
        agent.start()
        job = (await cluster.ended([name]))[name]
        assert (job.exit_code, state_of(job), job.tasks[0].number) == (7, "FAILED", 1)


def test_a_job_that_ended_while_its_agent_was_dead_and_its_node_given_up_keeps_its_code(tmp_path: Path) -> None:
    run(lambda: gone_for_longer_than_a_lease(tmp_path / "c"))
