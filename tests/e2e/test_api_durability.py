"""Nothing leaves before it is durable: not an answer, not an order, not a watched change; and what fails never was."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from api_cluster import ApiCluster, api_cluster, create, refusal, run, until

from gpushare.scheduler.tokens import new_token
from gpushare.store.memory import MemoryDisk, MemoryStore
from gpushare.store.port import StoreUnavailable
from gpushare.store.sqlite import SqliteStore
from gpushare.v1 import job_pb2, node_pb2, tenant_pb2, usage_pb2

HELD_S = 0.5


async def settled(cluster: ApiCluster) -> bool:
    return cluster.engine.durable_seq == cluster.engine.state.seq


def test_while_the_append_is_held_nothing_leaves(tmp_path: Path) -> None:
    async def test() -> None:
        store = MemoryStore(MemoryDisk())
        async with api_cluster(tmp_path, store) as cluster:
            agent = await cluster.agent("n1")
            first = create()
            known = (await cluster.jobs("ann").CreateJob(first)).jobs[0]
            start = await agent.order("start_attempt")
            watch = cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
            while not (await watch.read()).caught_up:
                pass
            await until(lambda: settled(cluster), "settled")
            store.hold_appends()
            # Something is under way; from here on every answer has seen it.
            under_way = asyncio.ensure_future(cluster.jobs("ann").CreateJob(create()))
            while await settled(cluster):
                await asyncio.sleep(0.001)
            jobs, root = cluster.jobs("ann"), cluster.tenants("root")
            calls = {
                "submit": jobs.CreateJob(create()),
                "repeated request": jobs.CreateJob(first),
                "refusal by the core": jobs.CreateJob(create(argv=[])),
                "refusal by shape": jobs.ListJobs(job_pb2.ListJobsRequest(parent="tenants/-", page_size=-1)),
                "refusal by role": root.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/x")),
                "unknown token": cluster.jobs(new_token()).GetJob(job_pb2.GetJobRequest(name=known.name)),
                "foreign name": cluster.jobs("nina").GetJob(job_pb2.GetJobRequest(name=known.name)),
                "cancel": jobs.CancelJob(job_pb2.CancelJobRequest(name=known.name, request_id="c")),
                "get": jobs.GetJob(job_pb2.GetJobRequest(name=known.name)),
                "list": jobs.ListJobs(job_pb2.ListJobsRequest(parent="tenants/-")),
                "explain": jobs.ExplainJob(job_pb2.ExplainJobRequest(name=known.name)),
                "nodes": cluster.nodes("ann").ListNodes(node_pb2.ListNodesRequest()),
                "tenants": root.ListTenants(tenant_pb2.ListTenantsRequest()),
                "tokens": root.ListTokens(tenant_pb2.ListTokensRequest()),
                "audit": cluster.usage("root").ListAuditEvents(usage_pb2.ListAuditEventsRequest()),
                "usage": cluster.usage("ann").GetUsage(usage_pb2.GetUsageRequest(group=usage_pb2.USAGE_GROUP_USER)),
            }
            futures = {name: asyncio.ensure_future(_done(call)) for name, call in calls.items()}
            change = asyncio.ensure_future(watch.read())
            order = asyncio.ensure_future(agent.order("stop_attempt"))
            await agent.run(start.attempt_id)
            await asyncio.sleep(HELD_S)
            left = [name for name, future in futures.items() if future.done()]
            assert (left, change.done(), order.done(), under_way.done()) == ([], False, False, False)
            store.release_appends()
            await asyncio.wait_for(asyncio.gather(under_way, change, *futures.values()), 10)
            assert (await order).reason == "CANCELLED"
            watch.cancel()

    run(test)


async def _done(call: Any) -> None:
    try:
        await call
    except grpc.aio.AioRpcError as err:
        if err.code() is grpc.StatusCode.INTERNAL:
            raise


def test_when_the_append_fails_everybody_hears_unavailable_and_nothing_was_done(tmp_path: Path) -> None:
    async def test() -> None:
        disk = MemoryDisk()
        store = MemoryStore(disk)
        async with api_cluster(tmp_path, store) as cluster:
            agent = await cluster.agent("n1", counter=1)
            kept = await cluster.submit(tasks=1, resources=job_pb2.Resources(gpus=1))
            start = await agent.order("start_attempt")
            watch = cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
            token = b""
            while not token:
                token = (await watch.read()).resume_token
            await until(lambda: settled(cluster), "settled")
            store.hold_appends()
            requests = [create() for _ in range(20)]
            refusals = asyncio.gather(*(refusal(cluster.jobs("ann").CreateJob(r)) for r in requests))

            async def all_decided() -> bool:
                return len(cluster.engine.state.jobs) == 21

            await until(all_decided, "all are decided")
            store.fail_appends(StoreUnavailable("the disk said no"))
            store.release_appends()
            assert {error.status for error in await refusals} == {"UNAVAILABLE"}
            # Sessions and watches begin anew with the new term.
            assert (await agent.ended()).status == "UNAVAILABLE"
            assert (await refusal(watch)).status == "UNAVAILABLE"

            async def leads() -> bool:
                return cluster.engine.leading

            await until(leads, "it leads again")
            assert list(cluster.engine.state.jobs) == ["vision/1"]
            again = await cluster.agent("n1", counter=2)
            assert again.ack.term == 2
            assert (await again.order("start_attempt")).attempt_id == start.attempt_id
            made = await asyncio.gather(*(cluster.jobs("ann").CreateJob(r) for r in requests))
            assert sorted(int(a.jobs[0].id) for a in made) == list(range(2, 22))
            resumed = cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-", resume_token=token))
            seen = set()
            while not (message := await resumed.read()).caught_up:
                seen.add(message.job.id)
            assert seen == {str(n) for n in range(2, 22)}
            resumed.cancel()
            assert (await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=kept.name))).name == kept.name

    run(test)


def test_health_says_whether_this_scheduler_leads(tmp_path: Path) -> None:
    async def test() -> None:
        store = MemoryStore(MemoryDisk())
        async with api_cluster(tmp_path, store) as cluster:
            check = cluster.channel("").unary_unary("/grpc.health.v1.Health/Check")

            async def says(number: int) -> bool:
                """For the server as a whole, and for one service by its name."""
                name = b"gpushare.v1.JobService"
                answers = [await check(b""), await check(b"\x0a" + bytes([len(name)]) + name)]
                return answers == [bytes([8, number])] * 2

            assert await says(1)
            store.fail_appends(StoreUnavailable("the disk said no"), times=10_000)
            error = await refusal(cluster.jobs("ann").CreateJob(create()))
            assert (error.status, error.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
            await until(lambda: says(2), "NOT_SERVING")
            error = await refusal(cluster.jobs("ann").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-")))
            assert error.status == "UNAVAILABLE"
            store.heal()
            await until(lambda: says(1), "SERVING again")
            assert (await cluster.submit()).id == "1"

    run(test)


def test_after_a_restart_tokens_jobs_request_ids_pages_and_watches_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        first = create()
        tokens: dict[str, str] = {}
        async with api_cluster(tmp_path, SqliteStore(tmp_path / "journal.db")) as cluster:
            tokens = cluster.tokens
            await cluster.jobs("ann").CreateJob(first)
            for _ in range(12):
                await cluster.submit()
            page = await cluster.jobs("ann").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-", page_size=3))
            watch = cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
            token = b""
            while not token:
                token = (await watch.read()).resume_token
            watch.cancel()
            await cluster.submit()
        async with api_cluster(tmp_path, SqliteStore(tmp_path / "journal.db"), people=False) as cluster:
            cluster.tokens = tokens
            again = await cluster.jobs("ann").CreateJob(first)
            assert again.jobs[0].id == "1"
            request = job_pb2.ListJobsRequest(parent="tenants/-", page_size=4, page_token=page.next_page_token)
            rest = await cluster.jobs("ann").ListJobs(request)
            assert [job.id for job in rest.jobs] == ["10", "9", "8", "7"]
            watch = cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-", resume_token=token))
            assert (await watch.read()).job.id == "14"
            assert (await watch.read()).caught_up
            watch.cancel()
            assert (await cluster.submit()).id == "15"

    run(test)
