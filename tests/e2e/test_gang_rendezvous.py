"""A gang of 16 tasks on four nodes meets as `torchrun` programs do, with real processes; one of them is killed, and the
gang ends, starts again, or goes on, as it said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from live_cluster import LiveCluster, live_cluster, run, state_of, states, until
from witness import pid_alive

PROGRAM = Path(__file__).parent / "rendezvous_program.py"
CARDS = "4xH100-80GB"
NODES = ("n1", "n2", "n3", "n4")
TASKS, PER_NODE = 16, 4
SUM = sum(range(TASKS))

Told = dict[str, Any]


class Gang:
    """One job of 16 tasks, each on a whole card; `opened` lets its programs end."""

    def __init__(self, cluster: LiveCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self._gate = _gate(cluster)
        self._directory = _directory(cluster)

    def told(self, attempt: int) -> dict[int, Told]:
        """What each task of that launch was told and what came of it, by rank."""
        found = {}
        for path in self._directory.glob(f"{attempt}-*.json"):
            found[int(path.stem.partition("-")[2])] = json.loads(path.read_text())
        return found

    async def met(self, attempt: int = 1) -> dict[int, Told]:
        """Once every task has heard the sum of all ranks."""
        await until(lambda: len(self.told(attempt)) == TASKS, f"all tasks of launch {attempt} have met", 90)
        found = self.told(attempt)
        assert {one["total"] for one in found.values()} == {SUM}
        return found

    def kill(self, rank: int, attempt: int = 1) -> None:
        os.kill(self.told(attempt)[rank]["pid"], signal.SIGKILL)

    def alive(self, attempt: int = 1) -> set[int]:
        """The ranks whose program runs."""
        return {rank for rank, one in self.told(attempt).items() if pid_alive(one["pid"])}

    def open(self) -> None:
        self._gate.touch()

    async def ended(self) -> Any:
        return (await self.cluster.ended([self.name], 90))[self.name]


def address_of(cluster: LiveCluster) -> str:
    """An address of the loopback for this cluster alone: another one on this host may give out the same ports."""
    high, low = divmod(cluster.port, 256)
    return f"127.9.{high}.{low}"


async def add_nodes(cluster: LiveCluster, *nodes: str) -> None:
    for node in nodes:
        await cluster.add_agent(node, CARDS, advertise_address=address_of(cluster))
    await cluster.ready()


@asynccontextmanager
async def gang_cluster(home: Path, *nodes: str) -> AsyncIterator[LiveCluster]:
    async with live_cluster(home) as cluster:
        await add_nodes(cluster, *nodes)
        cluster.note_descriptors()
        yield cluster


def _gate(cluster: LiveCluster) -> Path:
    return cluster.home / "gate"


def _directory(cluster: LiveCluster) -> Path:
    return cluster.home / "ranks"


async def start(cluster: LiveCluster, env: dict[str, str] | None = None, **options: Any) -> Gang:
    _directory(cluster).mkdir()
    spec = cluster.spec(
        sys.executable,
        "-I",
        "-S",
        str(PROGRAM),
        str(_directory(cluster)),
        str(_gate(cluster)),
        env=env,
        tasks=TASKS,
        gpus=1,
        cpus=1,
        captured_env={"RANK": "99", "MASTER_ADDR": "203.0.113.1"},
        **options,
    )
    (name,) = await cluster.submit(spec)
    return Gang(cluster, name)


def test_sixteen_tasks_on_four_nodes_meet_and_know_their_places(tmp_path: Path) -> None:
    async def body() -> None:
        async with gang_cluster(tmp_path, *NODES) as cluster:
            gang = await start(cluster)
            met = await gang.met()
            assert sorted(met) == list(range(TASKS))
            assert {(one["WORLD_SIZE"], one["tasks"], one["GROUP_WORLD_SIZE"]) for one in met.values()} == {(16, 16, 4)}
            assert len({one["MASTER_PORT"] for one in met.values()}) == 1
            assert {one["host"] for one in met.values()} == {address_of(cluster)}
            for node in NODES:
                here = [one for one in met.values() if one["node"] == node]
                assert sorted(one["LOCAL_RANK"] for one in here) == list(range(PER_NODE))
                assert {one["LOCAL_WORLD_SIZE"] for one in here} == {PER_NODE}
                assert len({one["NODE_RANK"] for one in here}) == 1
            assert max(Counter(one["cards"] for one in met.values()).values()) == 1
            gang.open()
            assert state_of(await gang.ended()) == "SUCCEEDED"

    run(body)


def test_a_killed_task_ends_its_gang(tmp_path: Path) -> None:
    async def body() -> None:
        async with gang_cluster(tmp_path, *NODES) as cluster:
            gang = await start(cluster)
            await gang.met()
            gang.kill(5)
            job = await gang.ended()
            assert (state_of(job), job.reason, job.exit_code) == ("FAILED", "SIGNALLED", 137)
            assert "task 5" in job.detail
            assert Counter(states(job)) == {("FAILED", "SIGNALLED"): 1, ("STOPPED", "PEER_FAILED"): 15}
            assert gang.alive() == set()

    run(body)


def test_a_killed_task_starts_its_gang_again_while_it_has_retries(tmp_path: Path) -> None:
    async def body() -> None:
        async with gang_cluster(tmp_path, *NODES) as cluster:
            gang = await start(cluster, max_retries=1)
            first = await gang.met()
            gang.kill(0)
            second = await gang.met(attempt=2)
            assert gang.alive() == set()
            assert second[0]["MASTER_PORT"] != first[0]["MASTER_PORT"]
            gang.open()
            job = await gang.ended()
            assert (state_of(job), job.retries) == ("SUCCEEDED", 1)

    run(body)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_killed_task_leaves_a_gang_that_can_do_without_it_running(tmp_path: Path, retries: int) -> None:
    async def body() -> None:
        async with gang_cluster(tmp_path, *NODES) as cluster:
            gang = await start(
                cluster,
                env={"LATE_ONES_JOIN_ALONE": "1"},
                min_tasks=12,
                on_task_failure="continue",
                max_retries=retries,
            )
            met = await gang.met()
            gang.kill(7)
            await until(lambda: gang.alive() == set(met) - {7}, "rank 7 has ended")
            if retries:
                await until(lambda: gang.alive(2) == {7}, "rank 7 is back, and nothing else was started")
                assert gang.told(2)[7]["WORLD_SIZE"] == TASKS
            else:
                job = await cluster.job(gang.name)
                await until(lambda: _count_failed(cluster, gang), "the scheduler knows that one has failed")
                assert state_of(job) == "RUNNING"
            await asyncio.sleep(0.5)
            assert gang.alive() == set(met) - {7}
            gang.open()
            job = await gang.ended()
            if retries:
                assert state_of(job) == "SUCCEEDED"
            else:
                assert (state_of(job), job.reason, job.exit_code) == ("FAILED", "SIGNALLED", 137)
                assert Counter(states(job)) == {("FAILED", "SIGNALLED"): 1, ("SUCCEEDED", "COMPLETED"): 15}

    run(body)


async def _count_failed(cluster: LiveCluster, gang: Gang) -> bool:
    return ("FAILED", "SIGNALLED") in states(await cluster.job(gang.name))


def test_what_is_left_of_a_gang_ends_when_too_few_are_left(tmp_path: Path) -> None:
    async def body() -> None:
        async with gang_cluster(tmp_path, *NODES) as cluster:
            gang = await start(cluster, min_tasks=15, on_task_failure="continue")
            await gang.met()
            gang.kill(3)
            await until(lambda: _count_failed(cluster, gang), "the scheduler knows that one has failed")
            assert len(gang.alive()) == TASKS - 1
            gang.kill(11)
            job = await gang.ended()
            assert (state_of(job), job.exit_code) == ("FAILED", 137)
            assert Counter(states(job))[("STOPPED", "PEER_FAILED")] == TASKS - 2

    run(body)


def test_a_gang_starts_small_and_grows_when_there_is_room(tmp_path: Path) -> None:
    async def body() -> None:
        async with gang_cluster(tmp_path, "n1") as cluster:
            gang = await start(cluster, env={"LATE_ONES_JOIN_ALONE": "1"}, min_tasks=4)
            await until(lambda: len(gang.told(1)) == PER_NODE, "four tasks have met")
            assert {(one["WORLD_SIZE"], one["total"]) for one in gang.told(1).values()} == {(4, 6)}
            await add_nodes(cluster, "n2", "n3")
            await until(lambda: len(gang.alive(2) | gang.alive(3)) == 2 * PER_NODE, "eight more have started")
            assert len(gang.alive(1)) == PER_NODE
            gang.open()
            job = await gang.ended()
            assert state_of(job) == "SUCCEEDED"
            assert len(job.tasks) == 3 * PER_NODE

    run(body)
