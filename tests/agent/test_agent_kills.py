"""`kill -9` of the agent at random moments under load: no job is killed, none runs twice, every exit code arrives.

The judge is a witness file that the jobs themselves write, not what the agent says.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from pathlib import Path

import pytest
from standins.agent_process import AgentProcess
from standins.fake_scheduler import FakeScheduler, Switches, start_order

from gpushare.v1 import agent_pb2, job_pb2

AT_ONCE = 6
ENDED = (job_pb2.ATTEMPT_STATE_SUCCEEDED, job_pb2.ATTEMPT_STATE_FAILED, job_pb2.ATTEMPT_STATE_STOPPED)


class Load:
    """Keeps jobs coming, orders again what the agent has no trace of, starts anew what was proven not to have run."""

    def __init__(self, scheduler: FakeScheduler, root: Path, chance: random.Random) -> None:
        self.scheduler = scheduler
        self.witness = root / "witness"
        self.chance = chance
        self.number = 0
        self.codes: dict[str, int] = {}
        self.open: dict[str, agent_pb2.StartAttempt] = {}
        self.ended: dict[str, agent_pb2.AttemptReport] = {}
        self.stopping = False

    def _new(self) -> None:
        self.number += 1
        job = f"v.{self.number}.0"
        self.codes[job] = self.chance.randrange(0, 100)
        self._attempt(job, 1)

    def _attempt(self, job: str, number: int) -> None:
        attempt_id = f"{job}.{number}"
        code = self.codes[job]
        script = f"echo {attempt_id} >> {self.witness}; sleep {self.chance.uniform(0, 0.6):.2f}; exit {code}"
        self.open[attempt_id] = start_order(attempt_id, "sh", "-c", script)

    async def run(self) -> None:
        """Until told to stop and nothing is open."""
        ordered: dict[str, int] = {}
        while not (self.stopping and not self.open):
            while len(self.open) < AT_ONCE and not self.stopping:
                self._new()
            self._take_ends()
            session = self.scheduler.session
            if session.sync is not None and not session.over:
                known = {report.attempt_id for report in session.sync.attempts}
                for attempt_id, order in list(self.open.items()):
                    if ordered.get(attempt_id) != id(session) and attempt_id not in known:
                        ordered[attempt_id] = id(session)
                        with contextlib.suppress(Exception):  # the agent has just died: the next session is told again
                            await session.order(start_attempt=order)
            await asyncio.sleep(0.02)

    def _take_ends(self) -> None:
        for attempt_id in list(self.open):
            report = self.scheduler.last_report(attempt_id)
            if report is None or report.state not in ENDED:
                continue
            del self.open[attempt_id]
            self.ended[attempt_id] = report
            if report.reason == "NOT_STARTED":
                job, _, number = attempt_id.rpartition(".")
                self._attempt(job, int(number) + 1)


def scene(root: Path, kills: int, seed: int) -> None:
    async def run() -> None:
        chance = random.Random(seed)
        async with FakeScheduler(Switches(forgets=True)) as scheduler:
            agent = AgentProcess(root, scheduler.address, simulate="1xL40S")
            try:
                await agent.start()
                await scheduler.synced()
                load = Load(scheduler, root, chance)
                working = asyncio.create_task(load.run())
                for number in range(kills):
                    await asyncio.sleep(chance.uniform(0.05, 0.7))
                    await agent.kill()
                    await agent.start()
                    await scheduler.synced(number + 2)
                load.stopping = True
                await asyncio.wait_for(working, 30)
                judge(load)
            except BaseException:
                print(agent.log()[-8000:])
                raise
            finally:
                await agent.clean_up()

    asyncio.run(run())


def judge(load: Load) -> None:
    runs = Counter(load.witness.read_text().split())
    assert set(runs.values()) == {1}, f"started twice: {[a for a, n in runs.items() if n > 1]}"
    for attempt_id, report in load.ended.items():
        job = attempt_id.rpartition(".")[0]
        if report.reason == "NOT_STARTED":
            assert attempt_id not in runs, f"{attempt_id} ran, but was reported as never started"
        else:
            said = (report.reason, report.exit_code, report.signal)
            assert said[1:] == (load.codes[job], 0), f"{attempt_id}: {said}, its code is {load.codes[job]}"
            assert attempt_id in runs
    finished = {attempt_id.rpartition(".")[0] for attempt_id, r in load.ended.items() if r.reason != "NOT_STARTED"}
    assert finished == set(load.codes), "a job has no end"
    assert len(finished) > AT_ONCE, "there was hardly any load"


def test_an_agent_that_is_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    scene(tmp_path, kills=5, seed=1)


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_fifty_kills_lose_and_repeat_nothing(tmp_path: Path) -> None:
    scene(tmp_path, kills=50, seed=2)
