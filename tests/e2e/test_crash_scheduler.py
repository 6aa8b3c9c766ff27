"""kill -9 of the scheduler: what it had answered for is there again, running jobs do not notice, true ends arrive."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from live_cluster import LiveCluster, live_cluster, run, state_of, until
from witness import hold, work

CARDS = 8
IN_FLIGHT = 8


async def scheduler_dies_under_load(home: Path, queued: int, placed_within_s: float) -> None:
    async with live_cluster(home, {"n1": f"{CARDS}xH100-80GB"}) as cluster:
        gates = [home / f"gate{n}" for n in range(CARDS)]
        holders = await cluster.submit(
            *(cluster.shell(hold(gate, f"exit {10 + n}"), gpus=1) for n, gate in enumerate(gates))
        )
        before = await cluster.running(holders)
        waiting = await cluster.submit(*(cluster.shell(work(0, f"exit {n % 100}"), gpus=1) for n in range(queued)))
        begun = len(cluster.witness.starts())
        late = [asyncio.create_task(cluster.submit(cluster.shell(work(0, "exit 5"), gpus=1))) for _ in range(IN_FLIGHT)]
        await asyncio.sleep(0)
        cluster.scheduler.kill()

        # Half of what runs ends while nobody listens.
        for gate in gates[: CARDS // 2]:
            gate.touch()
        for job in before[: CARDS // 2]:
            record = cluster.records("n1", job.tasks[0].attempt_id) / "exit"
            await until(record.exists, f"the end of {job.name} is written down")
        restarted_s = time.monotonic()
        cluster.scheduler.start()
        await until(lambda: len(cluster.witness.starts()) > begun, "a new job is placed", 30)
        took_s = time.monotonic() - restarted_s
        print(f"first new start {took_s:.2f} s after the scheduler's start, {queued} queued")
        assert took_s < placed_within_s

        late_names = [name for names in await asyncio.gather(*late) for name in names]
        assert len(set(late_names)) == IN_FLIGHT
        everyone = [*holders, *waiting, *late_names]
        assert set(await cluster.jobs()) == set(everyone)
        for job in await cluster.in_state(holders[CARDS // 2 :], "RUNNING"):
            assert cluster.witness.lives()[job.tasks[0].attempt_id].alive
            assert job.tasks[0].number == 1
        for gate in gates[CARDS // 2 :]:
            gate.touch()
        await check_ends(cluster, holders, [10 + n for n in range(CARDS)])
        await check_ends(cluster, waiting, [n % 100 for n in range(queued)])
        await check_ends(cluster, late_names, [5] * IN_FLIGHT)
        assert len(cluster.witness.starts()) == len(everyone), "a job was started again"


async def check_ends(cluster: LiveCluster, names: list[str], codes: list[int]) -> None:
    """Each job ended by itself, with its own code, at its first attempt."""
    ended = await cluster.ended(names, 100)
    for name, code in zip(names, codes, strict=True):
        job = ended[name]
        assert job.exit_code == code, f"{name}: {job}"
        assert state_of(job) == ("FAILED" if code else "SUCCEEDED")
        assert (job.infra_retries, job.tasks[0].number) == (0, 1)


def test_kill_9_of_the_scheduler_loses_no_job_and_no_exit_code(tmp_path: Path) -> None:
    run(lambda: scheduler_dies_under_load(tmp_path / "c", queued=40, placed_within_s=20))


@pytest.mark.prove
@pytest.mark.timeout(240)
def test_kill_9_of_the_scheduler_with_200_queued_and_8_running(tmp_path: Path) -> None:
    run(lambda: scheduler_dies_under_load(tmp_path / "c", queued=200, placed_within_s=5), 230)
