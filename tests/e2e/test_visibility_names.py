"""Sentences and explanations name jobs, tenants and processes to those who see them, and to nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from api_cluster import ApiCluster, api_cluster, run, until
from filled import made

from gpushare.core.commands import Call, CreateReservation, CreateTenant
from gpushare.core.explain import Explanation
from gpushare.core.kinds import JobState
from gpushare.core.model import SYSTEM, TenantSettings
from gpushare.v1 import agent_pb2, job_pb2, node_pb2

WHOLE = job_pb2.Resources(gpus=1)
settings = pytest.mark.parametrize("setting", ["cluster", "tenant"])


async def wait_as_told(cluster: ApiCluster, who: str, name: str, reason: str) -> set[str]:
    """Every sentence in which `who` is told why the job waits, once that is for `reason`."""
    jobs = cluster.jobs(who)

    async def judged() -> job_pb2.Job | None:
        job: job_pb2.Job = await jobs.GetJob(job_pb2.GetJobRequest(name=name))
        return job if job.wait.reason == reason else None

    single = await until(judged, f"{name} waits for {reason}")
    listed = await jobs.ListJobs(job_pb2.ListJobsRequest(parent="tenants/vision"))
    watch = jobs.WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/vision"))
    first = await watch.read()
    watch.cancel()
    explained = await jobs.ExplainJob(job_pb2.ExplainJobRequest(name=name))
    told = [single.wait, *(job.wait for job in listed.jobs), first.job.wait, explained.wait]
    assert {wait.reason for wait in told} == {reason}
    return {wait.detail for wait in told}


@settings
def test_whose_processes_hold_a_card_is_told_where_jobs_of_others_are_shown(tmp_path: Path, setting: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=setting) as cluster:
            agent = await cluster.agent("n1")
            stranger = node_pb2.Stranger(pid=77, user="mallory", memory_mib=100)
            condition = agent_pb2.GpuCondition(uuid="GPU-n1-0", state=node_pb2.GPU_STATE_HEALTHY, strangers=[stranger])
            await agent.sync(conditions=[condition])
            job = await cluster.submit(resources=WHOLE)
            is_open = setting == "cluster"
            for who, is_told in (("ann", is_open), ("bob", is_open), ("tina", is_open), ("olga", True), ("root", True)):
                told = await wait_as_told(cluster, who, job.name, "OCCUPIED")
                assert all("100 MiB on GPU-n1-0 of n1" in each for each in told)
                assert {("pid 77" in each, "mallory" in each) for each in told} == {(is_told, is_told)}, who

    run(test)


@settings
def test_whose_reservation_keeps_the_room_is_told_where_its_jobs_are_shown(tmp_path: Path, setting: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=setting) as cluster:
            await cluster.agent("n1")

            async def there() -> bool:
                return bool(cluster.engine.state.nodes["n1"].gpus)

            await until(there, "the node has synced")
            window = {"start_ms": cluster.engine.now_ms() + 60_000, "end_ms": cluster.engine.now_ms() + 120_000}
            reserved = CreateReservation(name="lesson", tenant="nlp", gpus=1, **window)
            await cluster.engine.execute(reserved, Call(SYSTEM))
            job = await cluster.submit(resources=WHOLE)
            request = job_pb2.ExplainJobRequest(name=job.name)
            for who, is_told in (("ann", setting == "cluster"), ("root", True)):
                told = (await cluster.jobs(who).ExplainJob(request)).wait
                whose = "tenant nlp" if is_told else "another tenant"
                assert told.detail.startswith(f"reservation lesson of {whose} has the room"), told

    run(test)


@settings
def test_an_explanation_names_the_jobs_that_its_reader_sees(tmp_path: Path, setting: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=setting) as cluster:
            await cluster.engine.execute(CreateTenant("acme", TenantSettings(isolated=True)), Call(SYSTEM))
            job = await cluster.submit()
            keys = ("vision/1", "nlp/1", "acme/1")
            claimants = iter(keys * 3)

            async def explained(key: str, sees: Any) -> Explanation:
                lists: dict[str, Any] = dict.fromkeys(("blocking_jobs", "ahead", "victims"), keys)
                fields = {"job": key, "state": JobState.QUEUED, "claimant": next(claimants), **lists}
                return made(Explanation, **fields)

            cluster.engine.explain = explained  # type: ignore[method-assign]
            open_to_ann = ["vision", "nlp"] if setting == "cluster" else ["vision"]
            for who, seen in (("ann", open_to_ann), ("tina", open_to_ann), ("root", ["vision", "nlp", "acme"])):
                names = [f"tenants/{tenant}/jobs/1" for tenant in seen]
                for key in keys:
                    told = await cluster.jobs(who).ExplainJob(job_pb2.ExplainJobRequest(name=job.name))
                    assert list(told.blocking_jobs) == list(told.ahead_jobs) == list(told.victims) == names
                    assert told.claimant == (f"tenants/{key.replace('/', '/jobs/')}" if key[:-2] in seen else "")
                    assert told.ahead_count == 7

    run(test)
