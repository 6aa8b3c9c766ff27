"""Cards that others use, that fall off the bus, whose driver hangs or does not match, on a whole cluster.

The agent is the real one on the unmodified `pynvml`, which loads a stand-in for the driver's library.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from live_cluster import LiveCluster, attempt_of, live_cluster, run, state_of, states, until
from standins.fake_nvml import FakeNvml, uuid_of
from witness import hold

from gpushare.client.messages import Gpu, GpuState, Job, NodeState
from gpushare.client.messages import Node as NodeMessage

CARDS = 8
LEASE_S = 3
# Renewals leave every third of a lease: one may be late on a machine that is busy with other tests.
HEARTBEAT_S = LEASE_S * 2 / 3
BUSY_HEARTBEAT_S = LEASE_S * 0.9
STRANGER_MIB = 20_000
USABLE_MIB = 143_771 - 600 - 512
GPU_IS_LOST, VERSION_MISMATCH = 15, 18
ME = pwd.getpwuid(os.geteuid()).pw_name


@asynccontextmanager
async def nvml_cluster(home: Path) -> AsyncIterator[tuple[LiveCluster, FakeNvml]]:
    """One node with eight cards."""
    async with live_cluster(home, lease_ttl_s=LEASE_S, infra_backoff_ms=50) as cluster:
        fake = FakeNvml.with_cards(home / "driver", CARDS)
        await add_node(cluster, fake)
        await cluster.ready()
        cluster.note_descriptors()
        yield cluster, fake
        assert fake.setters() == [], "a setting of a card was changed"


async def add_node(cluster: LiveCluster, fake: FakeNvml) -> None:
    names = ("LD_LIBRARY_PATH", "GPUSHARE_FAKE_NVML_STATE")
    environ = {name: value for name, value in fake.environ().items() if name in names}
    await cluster.add_agent("n1", environ=environ, nvml_deadline_ms=1000, watchdog_interval_ms=200)


async def gpus(cluster: LiveCluster) -> dict[str, Gpu]:
    return {gpu.uuid: gpu for gpu in (await cluster.node("n1")).gpus}


async def gpu_in(cluster: LiveCluster, card: int, state: str) -> Gpu:
    """The card, once it is in that state."""
    wanted = GpuState.Value(f"GPU_STATE_{state}")

    async def found() -> Gpu | None:
        gpu = (await gpus(cluster))[uuid_of(card)]
        return gpu if gpu.state == wanted else None

    gpu = await until(found, f"card {card} is {state}")
    assert gpu is not None
    return gpu


async def waits_for(cluster: LiveCluster, name: str, reason: str) -> Job:
    async def found() -> Job | None:
        job = await cluster.job(name)
        return job if state_of(job) == "QUEUED" and job.wait.reason == reason else None

    try:
        job = await until(found, f"{name} waits with {reason}", 20)
    except AssertionError:
        print(await cluster.job(name))
        raise
    assert job is not None
    return job


# -- a stranger


async def stranger_on_a_card(home: Path) -> None:
    async with nvml_cluster(home) as (cluster, fake):
        with contextlib.ExitStack() as stack:
            stranger = subprocess.Popen(["sleep", "1000"])
            stack.callback(stranger.wait)
            stack.callback(stranger.kill)
            fake.process(3, stranger.pid, STRANGER_MIB)
            fake.cards[3].used_mib = STRANGER_MIB
            fake.write()

            async def seen() -> bool:
                return bool((await gpus(cluster))[uuid_of(3)].strangers)

            await until(seen, "the stranger is seen")
            (row,) = (await gpus(cluster))[uuid_of(3)].strangers
            assert (row.pid, row.user, row.memory_mib) == (stranger.pid, ME, STRANGER_MIB)

            gate, share_gate = home / "gate", home / "share_gate"
            whole = await cluster.submit(*(cluster.shell(hold(gate), gpus=1) for _ in range(CARDS)))
            seven = await cluster.running(whole[:-1])
            assert {job.tasks[0].gpu_uuids[0] for job in seven} == {uuid_of(n) for n in range(CARDS) if n != 3}
            eighth = await waits_for(cluster, whole[-1], "OCCUPIED")
            for client in (cluster.client, cluster.admin):
                explained = await client.explain_job(eighth.name)
                told = f"{explained.wait.detail} {[each.detail for each in explained.filters]}"
                assert f"pid {stranger.pid} of {ME} ({STRANGER_MIB} MiB on {uuid_of(3)}" in told, explained

            room_mib = USABLE_MIB - STRANGER_MIB
            (too_much,) = await cluster.submit(cluster.shell("exit 0", gpus="0.1", gpu_memory=f"{room_mib + 1}M"))
            await until(lambda: _queued(cluster, too_much), "the larger share waits")
            (share,) = await cluster.submit(cluster.shell(hold(share_gate), gpus="0.1", gpu_memory=f"{room_mib}M"))
            (job,) = await cluster.running([share])
            assert list(job.tasks[0].gpu_uuids) == [uuid_of(3)]
            assert state_of(await cluster.job(too_much)) == "QUEUED"
            share_gate.touch()
            await cluster.ended([share])
            assert stranger.poll() is None, "a stranger was killed"
        fake.rows.clear()
        fake.cards[3].used_mib = 0
        fake.write()
        await cluster.client.cancel_job(too_much)
        (last,) = await cluster.running(whole[-1:])
        assert list(last.tasks[0].gpu_uuids) == [uuid_of(3)]
        gate.touch()
        assert {state_of(job) for job in (await cluster.ended(whole)).values()} == {"SUCCEEDED"}


async def _queued(cluster: LiveCluster, name: str) -> bool:
    job = await cluster.job(name)
    return state_of(job) == "QUEUED" and bool(job.wait.reason)


def test_a_stranger_shrinks_its_card_and_whole_card_requests_wait_for_it(tmp_path: Path) -> None:
    run(lambda: stranger_on_a_card(tmp_path / "c"))


# -- a card that goes


async def card_falls_off(home: Path) -> None:
    async with nvml_cluster(home) as (cluster, fake):
        gate = home / "gate"
        names = await cluster.submit(*(cluster.shell(hold(gate, f"exit {n}"), gpus=1, grace="1s") for n in range(7)))
        jobs = await cluster.running(names)
        hit = next(job for job in jobs if list(job.tasks[0].gpu_uuids) == [uuid_of(2)])
        (spare,) = {uuid_of(n) for n in range(CARDS)} - {job.tasks[0].gpu_uuids[0] for job in jobs}
        fake.fault("*", GPU_IS_LOST, card=2)
        fake.write()
        lost = await gpu_in(cluster, 2, "LOST")
        assert lost.reason == "GPU_LOST"
        assert lost.detail
        second = attempt_of(hit.name, 2)
        await until(lambda: second in cluster.witness.lives(), "the job of the lost card runs again")
        assert not cluster.witness.lives()[attempt_of(hit.name, 1)].alive
        assert cluster.witness.lives()[second].gpus == (spare,)
        again = await cluster.job(hit.name)
        assert (again.infra_retries, again.retries) == (1, 0)

        (waiting,) = await cluster.submit(cluster.shell("exit 0", gpus=1))
        await until(lambda: _queued(cluster, waiting), "no job is placed on a lost card")
        for uuid, gpu in (await gpus(cluster)).items():
            assert (gpu.state == GpuState.GPU_STATE_LOST) == (uuid == uuid_of(2))
        for job in await cluster.in_state([name for name in names if name != hit.name], "RUNNING"):
            assert job.tasks[0].number == 1
            assert cluster.witness.lives()[job.tasks[0].attempt_id].alive
        gate.touch()
        ended = await cluster.ended([*names, waiting])
        assert [ended[name].exit_code for name in names] == list(range(7))
        entries = [event async for event in cluster.admin.list_audit_events(kind="AttemptEnded")]
        assert any("GPU_LOST" in str(event) for event in entries)


def test_a_card_falls_off_the_bus_its_job_moves_and_seven_go_on(tmp_path: Path) -> None:
    run(lambda: card_falls_off(tmp_path / "c"))


# -- a driver that hangs


class Heartbeats:
    """The longest time for which the scheduler heard nothing of the node."""

    def __init__(self, cluster: LiveCluster) -> None:
        self._cluster = cluster
        self._seen: list[float] = []

    async def listen(self, seconds: float) -> float:
        """The longest silence within the next seconds."""
        self._seen.clear()
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            node: NodeMessage = await self._cluster.node("n1")
            assert node.state == NodeState.NODE_STATE_ACTIVE
            seen_s = node.last_seen_time.ToMicroseconds() / 1e6
            if not self._seen or self._seen[-1] != seen_s:
                self._seen.append(seen_s)
            await asyncio.sleep(0.02)
        self._seen.append(max(self._seen[-1], time.time()))
        return max(after - before for before, after in zip(self._seen, self._seen[1:], strict=False))


async def driver_hangs(home: Path, seconds: float, heartbeat_s: float) -> None:
    async with nvml_cluster(home) as (cluster, fake):
        gate = home / "gate"
        agent = cluster.agents["n1"]
        names = await cluster.submit(
            cluster.shell(hold(gate, "exit 3"), gpus=1), cluster.shell(hold(gate, "exit 4"), gpus="0.5")
        )
        before = await cluster.running(names)
        beats = Heartbeats(cluster)
        fake.hang("nvmlDeviceGetMemoryInfo_v2", 3600)
        fake.write()
        silences_s = [await beats.listen(seconds / 2)]
        gpu = await gpu_in(cluster, 0, "DRAINED")
        assert gpu.reason == "NVML_HUNG"
        (waiting,) = await cluster.submit(cluster.shell("exit 0", gpus=1))
        await until(lambda: _queued(cluster, waiting), "nothing is placed on cards that cannot be read")

        took_s = await agent.stop()
        assert took_s < 4, f"the agent took {took_s:.1f} s to stop"
        assert all(life.alive for life in cluster.witness.lives().values())
        agent.start()
        restarted_s = time.monotonic()
        await cluster.settled("n1")
        silences_s.append(await beats.listen(max(2.0, seconds / 2 - (time.monotonic() - restarted_s))))
        print(f"hung {seconds:g} s: longest silence {max(silences_s):.2f} s, the agent stopped in {took_s:.2f} s")
        assert max(silences_s) < heartbeat_s
        after = await cluster.in_state(names, "RUNNING")
        assert [job.tasks[0].attempt_id for job in after] == [job.tasks[0].attempt_id for job in before]
        assert state_of(await cluster.job(waiting)) == "QUEUED"
        assert (await gpus(cluster))[uuid_of(0)].reason == "NVML_HUNG"

        fake.faults.clear()
        fake.write()
        await gpu_in(cluster, 0, "HEALTHY")
        await cluster.ended([waiting])
        gate.touch()
        ended = await cluster.ended(names)
        assert [ended[name].exit_code for name in names] == [3, 4]
        assert sorted(cluster.witness.starts()) == [attempt_of(name, 1) for name in names]


def test_a_hanging_driver_delays_no_heartbeat_and_touches_no_job(tmp_path: Path) -> None:
    run(lambda: driver_hangs(tmp_path / "c", 6, BUSY_HEARTBEAT_S))


@pytest.mark.prove
@pytest.mark.timeout(200)
def test_a_driver_that_hangs_for_a_minute_delays_no_heartbeat_and_touches_no_job(tmp_path: Path) -> None:
    run(lambda: driver_hangs(tmp_path / "c", 60, HEARTBEAT_S), 190)


# -- a driver that does not match


async def driver_mismatch(home: Path) -> None:
    async with nvml_cluster(home) as (cluster, fake):
        agent = cluster.agents["n1"]
        check_fences_listed(agent.log(), starts=1)
        gate = home / "gate"
        (name,) = await cluster.submit(cluster.shell(hold(gate, "exit 6"), gpus=1))
        await cluster.running([name])
        await agent.stop()
        fake.fault("nvmlInitWithFlags", VERSION_MISMATCH)
        fake.write()
        agent.start()
        gpu = await gpu_in(cluster, 0, "DRAINED")
        assert gpu.reason == "DRIVER_MISMATCH"
        assert "version" in gpu.detail
        (waiting,) = await cluster.submit(cluster.shell("exit 0", gpus=1))
        await until(lambda: _queued(cluster, waiting), "it waits")
        explained = await cluster.client.explain_job(waiting)
        assert explained.wait.detail.endswith("8 on n1 (DRIVER_MISMATCH)"), explained
        assert "the cards cannot be read" in agent.log()
        (job,) = await cluster.in_state([name], "RUNNING")
        assert states(job) == [("RUNNING", "")]
        assert cluster.witness.lives()[attempt_of(name, 1)].alive

        fake.faults.clear()
        fake.write()
        await gpu_in(cluster, 0, "HEALTHY")
        await cluster.ended([waiting])
        gate.touch()
        assert (await cluster.ended([name]))[name].exit_code == 6
        check_fences_listed(agent.log(), starts=2)


def check_fences_listed(log: str, starts: int) -> None:
    """At every start one line a card: what it can fence, and why it cannot fence more."""
    lines = [line for line in log.splitlines() if "fences" in line]
    assert len(lines) == starts * CARDS
    for place, line in enumerate(lines):
        n = place % CARDS
        assert f"card {n} {uuid_of(n)} NVIDIA H200, {USABLE_MIB} of 143771 MiB usable" in line
        assert "fences exclusive (hard), timeslice (soft); not mps-v2: nvidia-cuda-mps-control" in line


def test_a_driver_mismatch_is_a_clear_state_and_passes_without_a_restart(tmp_path: Path) -> None:
    run(lambda: driver_mismatch(tmp_path / "c"))


async def first_start_with_mismatch(home: Path) -> None:
    async with live_cluster(home) as cluster:
        fake = FakeNvml.with_cards(home / "driver", CARDS)
        fake.fault("nvmlInitWithFlags", VERSION_MISMATCH)
        fake.write()
        await add_node(cluster, fake)
        await cluster.ready(gpus=False)
        agent = cluster.agents["n1"]
        await until(lambda: "are of different versions: the driver was upgraded" in agent.log(), "the log says so")
        assert list((await cluster.node("n1")).gpus) == []
        fake.faults.clear()
        fake.write()
        await cluster.ready()
        (name,) = await cluster.submit(cluster.shell("exit 0", gpus=CARDS))
        assert state_of((await cluster.ended([name]))[name]) == "SUCCEEDED"


def test_an_agent_that_first_starts_beside_a_mismatched_driver_finds_its_cards_later(tmp_path: Path) -> None:
    run(lambda: first_start_with_mismatch(tmp_path / "c"))
