"""Suspension: what is suspended does nothing, whatever it forked; it goes on where it was, and it can always be ended.
Real shims and processes, with control groups and without."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from executor_kit import BOTH_KINDS, Host, alive, eventually, host, python, run, shell

from gpushare.reasons import Reason

# Counts in two processes, the second in a session of its own.
COUNTERS = """
import os, sys, time
name = "child" if os.fork() == 0 else "parent"
if name == "child":
    os.setsid()
path = os.path.join({directory!r}, name)
number = 0
while True:
    number += 1
    with open(path + ".part", "w") as file:
        file.write(str(number))
    os.replace(path + ".part", path)
    time.sleep(0.005)
"""
# How long nothing may happen before it counts as nothing happening.
STILL_S = 0.3


class Counters:
    """An attempt whose processes count in files."""

    def __init__(self, here: Host, directory: Path, attempt_id: str = "t.1.0.1") -> None:
        self.here = here
        self.attempt_id = attempt_id
        self._directory = directory
        directory.mkdir()

    async def launch(self, **more: object) -> None:
        await self.here.executor.launch(
            python(self.attempt_id, COUNTERS.format(directory=str(self._directory)), **more)
        )
        await eventually(lambda: all(self.counts()), "both count")

    def counts(self) -> list[int]:
        return [int(path.read_text() or 0) if path.exists() else 0 for path in map(self._directory.joinpath, NAMES)]

    async def suspended(self) -> None:
        """Suspend it, and see that it is."""
        self.here.executor.suspend(self.attempt_id, True)
        await self.in_state("SUSPENDED")
        before = self.counts()
        await asyncio.sleep(STILL_S)
        assert self.counts() == before

    async def in_state(self, state: str) -> None:
        await eventually(lambda: self.here.status(self.attempt_id).state == state, f"{self.attempt_id} {state}")

    async def counting(self) -> None:
        before = self.counts()
        await eventually(lambda: all(now > then for now, then in zip(self.counts(), before, strict=True)), "it counts")


NAMES = ("parent", "child")


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_what_is_suspended_stands_still_with_all_it_forked_and_then_goes_on(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak) as here:
            job = Counters(here, tmp_path / "out")
            await job.launch()
            for _ in range(2):
                await job.suspended()
                here.executor.suspend(job.attempt_id, False)
                await job.in_state("RUNNING")
                await job.counting()
            assert [each.state for each in here.seen if each.attempt_id == job.attempt_id] == [
                "RUNNING",
                "SUSPENDED",
                "RUNNING",
                "SUSPENDED",
                "RUNNING",
            ]

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_suspended_attempt_is_still_suspended_after_the_agent_was_replaced(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak) as here:
            job = Counters(here, tmp_path / "out")
            await job.launch()
            await job.suspended()
            found = await here.restart()
            assert found[job.attempt_id].state == "SUSPENDED"
            here.executor.suspend(job.attempt_id, False)
            await job.in_state("RUNNING")
            await job.counting()

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_suspended_task_that_is_stopped_hears_it_and_has_its_grace(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak) as here:
            code = "trap 'echo heard; exit 7' TERM; echo up; while :; do sleep 0.02; done"
            await here.executor.launch(shell("t.1.0.1", code, grace_ms=20_000))
            await eventually(lambda: "up" in here.stdout("t.1.0.1"))
            here.executor.suspend("t.1.0.1", True)
            await eventually(lambda: here.status("t.1.0.1").state == "SUSPENDED")
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 20_000)
            end = await here.ended("t.1.0.1")
            assert (end.state, end.reason, end.exit_code) == ("STOPPED", Reason.CANCELLED, 7)
            assert "heard" in here.stdout("t.1.0.1")

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_suspended_task_without_grace_is_killed_with_all_it_forked(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak) as here:
            job = Counters(here, tmp_path / "out")
            await job.launch()
            await job.suspended()
            pids = here.executor.pids(job.attempt_id)
            assert len(pids) == 2
            await here.executor.stop(job.attempt_id, Reason.PREEMPTED, 0)
            end = await here.ended(job.attempt_id)
            assert (end.state, end.reason, end.signal) == ("STOPPED", Reason.PREEMPTED, signal.SIGKILL)
            assert not any(alive(pid) for pid in pids)

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_the_time_limit_goes_on_while_it_is_suspended(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak) as here:
            job = Counters(here, tmp_path / "out")
            await job.launch(run_limit_ms=2000, grace_ms=5000)
            await job.suspended()
            end = await here.ended(job.attempt_id)
            assert (end.state, end.reason, end.signal) == ("FAILED", Reason.TIME_LIMIT, signal.SIGTERM)

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_nothing_of_a_suspended_task_outlives_its_shim(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak) as here:
            job = Counters(here, tmp_path / "out")
            await job.launch()
            await job.suspended()
            pids = here.executor.pids(job.attempt_id)
            os.kill(here.shim_pid(job.attempt_id), signal.SIGKILL)
            end = await here.ended(job.attempt_id)
            assert (end.state, end.reason) == ("FAILED", Reason.INFRA)
            assert not any(alive(pid) for pid in pids)

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_suspension_that_comes_before_the_program_takes_hold_once_it_runs(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak) as here:
            launch = asyncio.ensure_future(here.executor.launch(shell("t.1.0.1", "exec sleep 60")))
            await eventually(lambda: "t.1.0.1" in here.executor.statuses())
            here.executor.suspend("t.1.0.1", True)
            await launch
            await eventually(lambda: here.status("t.1.0.1").state == "SUSPENDED")

    run(body())


def test_a_suspended_shim_costs_no_processor_time(tmp_path: Path) -> None:
    def ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    async def body() -> None:
        async with host(tmp_path / "state", weak=True) as here:
            job = Counters(here, tmp_path / "out")
            await job.launch()
            await job.suspended()
            shim = here.shim_pid(job.attempt_id)
            before, began_s = ticks(shim), time.monotonic()
            await asyncio.sleep(0.5)
            spent_s = (ticks(shim) - before) / os.sysconf("SC_CLK_TCK")
            assert spent_s < 0.1 * (time.monotonic() - began_s)

    run(body())
