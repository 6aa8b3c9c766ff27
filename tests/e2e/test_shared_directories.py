"""Directories that only some nodes have, over the whole way: agent.toml, Sync, placement, the listing, `explain`."""

from __future__ import annotations

from pathlib import Path

from live_cluster import LiveCluster, live_cluster, run, until
from witness import hold

from gpushare.client.messages import JobSpec
from gpushare.client.spec import job_spec


async def body(home: Path) -> None:
    async with live_cluster(home) as cluster:
        shared = home / "shared"
        (shared / "proj").mkdir(parents=True)
        await cluster.add_agent("n1", "1xH100-80GB", shared_paths=(str(shared),))
        await cluster.add_agent("n2", "1xH100-80GB")
        await cluster.ready()
        assert list((await cluster.node("n1")).shared_paths) == [str(shared)]
        assert list((await cluster.node("n2")).shared_paths) == []

        gate = home / "gate"
        here, elsewhere = (from_there(cluster, hold(gate), path) for path in (shared / "proj", home))
        names = await cluster.submit(here, here, elsewhere)
        (first,) = await cluster.running(names[:1])
        (third,) = await cluster.running(names[2:])
        assert [job.tasks[0].node for job in (first, third)] == ["n1", "n2"]
        told = await cluster.client.explain_job(names[1])
        assert told.wait.reason == "NO_CAPACITY"
        assert {each.reason: list(each.nodes) for each in told.filters} == {
            "NO_CAPACITY": ["n1"],
            "PATH_MISSING": ["n2"],
        }

        # The next word of the node counts for what waits: nobody says any more that the directory is special.
        await cluster.client.cancel_job(third.name)
        agent = cluster.agents["n1"]
        await agent.stop()
        text = agent.config.read_text()
        agent.config.write_text("".join(line for line in text.splitlines(True) if "shared_paths" not in line))
        agent.start()
        await cluster.settled("n1")
        (second,) = await cluster.running(names[1:2])
        assert second.tasks[0].node == "n2"
        gate.touch()
        await until(lambda: ended(cluster, names[:2]), "both have ended")


async def ended(cluster: LiveCluster, names: list[str]) -> bool:
    return all([bool((await cluster.job(name)).HasField("end_time")) for name in names])


def from_there(cluster: LiveCluster, text: str, directory: Path) -> JobSpec:
    env = {"WITNESS": str(cluster.witness.path)}
    return job_spec(["/bin/sh", "-c", text], working_directory=str(directory), env=env, gpus=1)


def test_jobs_go_where_their_directory_is(tmp_path: Path) -> None:
    run(lambda: body(tmp_path / "c"))
