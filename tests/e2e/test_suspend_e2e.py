"""A job that makes way without ending: another runs on its card, and then it goes on where it was, whoever died in
between. Real daemons and processes on a simulated card."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from live_cluster import LiveCluster, attempt_of, live_cluster, run, state_of, until
from witness import pid_alive

NODE = {"n1": "1xH100-80GB"}
SIMWORK = (sys.executable, "-m", "gpushare_agent.gpus.simwork")
# What is suspended keeps its part of the host, so there must be room for two.
SMALL = {"cpus": 1, "host_memory": "1GiB"}
# How long nothing may happen before it counts as nothing happening.
STILL_S = 0.5


class Counting:
    """A job of one card that can be suspended and counts in a file as long as it runs."""

    def __init__(self, cluster: LiveCluster, name: str, home: Path) -> None:
        self.cluster = cluster
        self.name = name
        self._home = home

    @classmethod
    async def start(cls, cluster: LiveCluster) -> Counting:
        home = cluster.home / "counting"
        home.mkdir()
        text = (
            f"cd {home}; echo $$ > pid; i=0; trap 'exit 9' TERM; "
            "while [ ! -e gate ]; do i=$((i+1)); echo $i > part; mv part count; sleep 0.02; done; exit 5"
        )
        (name,) = await cluster.submit(cluster.shell(text, gpus=1, preemption="suspend", **SMALL))
        job = cls(cluster, name, home)
        await job.goes_on()
        return job

    @property
    def pid(self) -> int:
        return int((self._home / "pid").read_text())

    def count(self) -> int:
        path = self._home / "count"
        return int(path.read_text() or 0) if path.exists() else 0

    async def goes_on(self) -> None:
        before = self.count()
        await until(lambda: self.count() > before, f"{self.name} counts")
        await self.cluster.in_state([self.name], "RUNNING")

    async def stands_still(self) -> None:
        await self.cluster.in_state([self.name], "SUSPENDED")
        before = self.count()
        await asyncio.sleep(STILL_S)
        assert self.count() == before
        assert pid_alive(self.pid)

    def open(self) -> None:
        (self._home / "gate").touch()


async def urgent(cluster: LiveCluster, gate: Path) -> str:
    """A job of higher priority on the same card, until `gate` is there; its name once it runs."""
    text = f"while [ ! -e {gate} ]; do sleep 0.05; done; exit 6"
    (name,) = await cluster.submit(cluster.shell(text, gpus=1, priority=5, **SMALL))
    await cluster.in_state([name], "RUNNING")
    return name


def test_a_job_gives_its_card_up_for_another_and_goes_on_where_it_was(tmp_path: Path) -> None:
    async def body() -> None:
        async with live_cluster(tmp_path, NODE) as cluster:
            job = await Counting.start(cluster)
            for turn in (1, 2):
                # A new claimant each time: nobody makes way twice in a row for the same one.
                gate = cluster.home / f"gate-{turn}"
                other = await urgent(cluster, gate)
                await job.stands_still()
                gate.touch()
                assert (await cluster.ended([other]))[other].exit_code == 6
                await job.goes_on()
            job.open()
            end = (await cluster.ended([job.name]))[job.name]
            assert (end.exit_code, end.retries, end.infra_retries) == (5, 0, 0)
            assert end.tasks[0].attempt_id == attempt_of(job.name, 1)

    run(body)


def test_a_suspended_job_outlives_kill_9_of_agent_and_scheduler(tmp_path: Path) -> None:
    async def body() -> None:
        async with live_cluster(tmp_path, NODE) as cluster:
            job = await Counting.start(cluster)
            gate = cluster.home / "gate"
            other = await urgent(cluster, gate)
            await job.stands_still()
            cluster.agents["n1"].kill()
            cluster.agents["n1"].start()
            await cluster.settled("n1")
            await job.stands_still()
            cluster.scheduler.kill()
            cluster.scheduler.start()
            await cluster.settled("n1")
            await job.stands_still()
            pid = job.pid
            gate.touch()
            assert (await cluster.ended([other]))[other].exit_code == 6
            await job.goes_on()
            job.open()
            assert (await cluster.ended([job.name]))[job.name].exit_code == 5
            assert job.pid == pid

    run(body)


def test_a_job_is_resumed_although_its_agent_was_dead_when_its_card_became_free(tmp_path: Path) -> None:
    async def body() -> None:
        async with live_cluster(tmp_path, NODE) as cluster:
            job = await Counting.start(cluster)
            gate = cluster.home / "gate"
            other = await urgent(cluster, gate)
            await job.stands_still()
            cluster.agents["n1"].kill()
            gate.touch()
            cluster.agents["n1"].start()
            await job.goes_on()
            assert (await cluster.ended([other]))[other].exit_code == 6

    run(body)


def test_a_suspended_job_that_is_cancelled_hears_it_and_its_cards_holder_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with live_cluster(tmp_path, NODE) as cluster:
            job = await Counting.start(cluster)
            gate = cluster.home / "gate"
            other = await urgent(cluster, gate)
            await job.stands_still()
            await cluster.client.cancel_job(job.name)
            end = (await cluster.ended([job.name]))[job.name]
            assert state_of(end) == "CANCELLED"
            assert "with code 9" in end.detail
            assert not pid_alive(job.pid)
            await cluster.in_state([other], "RUNNING")
            gate.touch()
            assert (await cluster.ended([other]))[other].exit_code == 6

    run(body)


def test_two_jobs_that_fill_the_same_card_take_turns(tmp_path: Path) -> None:
    """The memory of the one that is suspended counts against nobody."""

    async def body() -> None:
        async with live_cluster(tmp_path, NODE) as cluster:
            fills = (*SIMWORK, "--memory", "70G", "--seconds")
            (first,) = await cluster.submit(cluster.spec(*fills, "600", gpus="0.9", preemption="suspend", **SMALL))
            await cluster.in_state([first], "RUNNING")
            (second,) = await cluster.submit(cluster.spec(*fills, "3", gpus="0.9", priority=5, **SMALL))
            assert state_of((await cluster.ended([second]))[second]) == "SUCCEEDED"
            (job,) = await cluster.in_state([first], "RUNNING")
            assert job.tasks[0].number == 1

    run(body)
