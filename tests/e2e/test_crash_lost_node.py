"""A node out of reach: what runs there either goes on and is found again, or has ended before it runs elsewhere."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from live_cluster import LiveCluster, attempt_of, live_cluster, run, state_of, states, until
from tcp_proxy import TcpProxy
from witness import boot_s, hold

from gpushare.client.messages import NodeState

LEASE_S = 3
# What the scheduler waits after the last renewal before it runs a task elsewhere, and how late it may look.
LAPSE_S = 1.01 * LEASE_S + 5
LATE_S = 3.0


async def lost_nodes(home: Path) -> None:
    """n1's agent is stopped, n2's connection is cut; each has a job to keep and one to run elsewhere, n3 is well."""
    async with live_cluster(home, lease_ttl_s=LEASE_S) as cluster, TcpProxy(cluster.port) as proxy:
        gate = home / "gate"
        await cluster.add_agent("n1", "2xH100-80GB")
        await cluster.add_agent("n2", "2xH100-80GB", server=proxy.address)
        await cluster.ready()
        keep, move = await fill(cluster, gate)
        await cluster.add_agent("n3", "2xH100-80GB")
        await cluster.ready("n3")

        cut_s = boot_s()
        cluster.agents["n1"].freeze()
        proxy.cut()
        for job in await cluster.in_state(keep, "RUNNING"):
            await unreachable(cluster, job.tasks[0].node)
        await all_unknown(cluster, [*keep, *move])
        for name in move:
            second = attempt_of(name, 2)
            await until(lambda second=second: second in cluster.witness.lives(), f"{second} has begun")
        check_moved(cluster, move, cut_s)
        for life in cluster.witness.lives().values():
            assert life.alive == (not life.ended and not superseded(cluster, life.attempt_id)), life

        cluster.agents["n1"].thaw()
        proxy.heal()
        for node in ("n1", "n2"):
            await cluster.settled(node)
        back = await cluster.in_state(keep, "RUNNING")
        assert [job.tasks[0].number for job in back] == [1, 1]
        await no_longer_unknown(cluster, keep)
        gate.touch()
        ended = await cluster.ended([*keep, *move])
        assert [job.exit_code for job in ended.values()] == [5, 6, 7, 8]
        assert [job.infra_retries for job in ended.values()] == [0, 0, 1, 1]
        once = [attempt_of(name, 1) for name in keep]
        twice = [attempt_of(name, number) for name in move for number in (1, 2)]
        assert sorted(cluster.witness.starts()) == sorted(once + twice)


async def fill(cluster: LiveCluster, gate: Path) -> tuple[list[str], list[str]]:
    """On n1 and on n2 one job of each kind: whole cards, so that all four fit and no fifth."""
    specs = []
    for code, choice in ((5, "keep"), (6, "keep"), (7, "stop-and-requeue"), (8, "stop-and-requeue")):
        specs.append(cluster.shell(hold(gate, f"exit {code}"), gpus=1, on_disconnect=choice, grace="1s"))
    names = await cluster.submit(*[specs[place] for place in (0, 2)])
    names += await cluster.submit(*[specs[place] for place in (1, 3)])
    jobs = await cluster.running(names)
    assert [job.tasks[0].node for job in jobs] == ["n1", "n1", "n2", "n2"]
    return [names[0], names[2]], [names[1], names[3]]


async def unreachable(cluster: LiveCluster, node: str) -> None:
    deadline_s = time.monotonic() + LEASE_S + LATE_S
    while (await cluster.node(node)).state != NodeState.NODE_STATE_UNREACHABLE:
        assert time.monotonic() < deadline_s, f"{node} is not UNREACHABLE"
        await asyncio.sleep(0.05)


async def all_unknown(cluster: LiveCluster, names: list[str]) -> None:
    """Silence proves nothing: no task is ended by it, and its cards stay its own."""
    for name in names:
        job = await cluster.job(name)
        assert states(job)[0][0] == "UNKNOWN", job
        node = await cluster.node(job.tasks[0].node)
        assert sum(gpu.allocated_milli for gpu in node.gpus) == 2000


async def no_longer_unknown(cluster: LiveCluster, names: list[str]) -> None:
    for name in names:
        assert states(await cluster.job(name)) == [("RUNNING", "")]


def check_moved(cluster: LiveCluster, names: list[str], cut_s: float) -> None:
    """The shim ended it within the lease, the scheduler began it elsewhere later than that, and the witness agrees."""
    lives = cluster.witness.lives()
    for name in names:
        first, second = lives[attempt_of(name, 1)], lives[attempt_of(name, 2)]
        assert not first.alive
        assert first.last_s - cut_s <= LEASE_S, f"it lived {first.last_s - cut_s:.2f} s beyond the cut"
        assert second.node == "n3" != first.node
        gap_s = second.start_s - cut_s
        assert LAPSE_S - LEASE_S / 3 - 0.5 <= gap_s <= LAPSE_S + LATE_S, f"begun elsewhere {gap_s:.2f} s after the cut"


def superseded(cluster: LiveCluster, attempt_id: str) -> bool:
    task, _, number = attempt_id.rpartition(".")
    return f"{task}.{int(number) + 1}" in cluster.witness.lives()


def test_a_lost_node_keeps_its_jobs_or_stops_them_before_they_run_elsewhere(tmp_path: Path) -> None:
    run(lambda: lost_nodes(tmp_path / "c"))


async def declared_dead(home: Path) -> None:
    async with live_cluster(home, lease_ttl_s=LEASE_S) as cluster:
        gate = home / "gate"
        await cluster.add_agent("n1", "1xH100-80GB")
        await cluster.ready()
        (name,) = await cluster.submit(cluster.shell(hold(gate, "exit 4"), gpus=1))
        await cluster.running([name])
        cluster.agents["n1"].freeze()
        await unreachable(cluster, "n1")
        cluster.agents["n1"].kill()
        # The host is off, so the admin says: here the shim is ended as the power cut would have.
        await cluster.end_attempt("n1", attempt_of(name, 1))
        await cluster.add_agent("n2", "1xH100-80GB")
        await cluster.ready("n2")
        await cluster.admin.declare_node_dead("nodes/n1")
        (job,) = await cluster.in_state([name], "RUNNING")
        assert (job.tasks[0].node, job.tasks[0].number, job.infra_retries) == ("n2", 2, 1)
        gate.touch()
        assert (await cluster.ended([name]))[name].exit_code == 4

        cluster.agents["n1"].start()
        await cluster.settled("n1")
        (again,) = await cluster.submit(cluster.shell("exit 0", gpus=1))
        assert state_of((await cluster.ended([again]))[again]) == "SUCCEEDED"


def test_a_node_declared_dead_gives_up_its_jobs_and_may_come_back(tmp_path: Path) -> None:
    run(lambda: declared_dead(tmp_path / "c"))
