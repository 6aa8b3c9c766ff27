"""Nobody takes what all share: not by calls without a token, not by many tokens, not by long lists, not by large
messages."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from api_cluster import ApiCluster, api_cluster, create, refusal, run

from gpushare.core.kinds import Role
from gpushare.core.model import Principal
from gpushare.errors import GpushareError
from gpushare.reasons import Reason
from gpushare.rpc import RPCS_MAX
from gpushare.scheduler import api_gate, convert, places, server, watch
from gpushare.scheduler.api_jobs import JobApi
from gpushare.scheduler.auth import Caller, Reach
from gpushare.v1 import job_pb2

CREATE_JOB = "/gpushare.v1.JobService/CreateJob"


def silent_call(cluster: ApiCluster, who: str) -> Any:
    """It begins, and never says what it asks."""
    return cluster.channel(who).stream_unary(CREATE_JOB)()


async def code_of(call: Any, within_s: float = 10.0) -> str:
    return (await asyncio.wait_for(call.code(), within_s)).name


def test_a_call_without_a_token_is_refused_before_it_says_anything(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            assert await code_of(silent_call(cluster, "")) == "UNAUTHENTICATED"
            assert await code_of(silent_call(cluster, "gps_" + "A" * 43)) == "UNAUTHENTICATED"

    run(test)


def test_a_call_that_never_says_what_it_asks_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_gate, "MESSAGE_TIMEOUT_S", 0.2)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            assert await code_of(silent_call(cluster, "ann")) == "DEADLINE_EXCEEDED"

    run(test)


def test_silent_calls_of_the_health_take_no_place_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_gate, "MESSAGE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(server, "HEALTH_ASKING_MAX", 1)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            check = "/grpc.health.v1.Health/Check"
            silent = cluster.channel("").stream_unary(check)()
            second = cluster.channel("").stream_unary(check)()
            codes = sorted([await code_of(silent), await code_of(second)])
            assert codes == ["DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"]
            assert await cluster.channel("").unary_unary(check)(b"") == b"\x08\x01"  # SERVING

    run(test)


def test_a_call_without_a_message_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            call = silent_call(cluster, "ann")
            await call.done_writing()
            assert await code_of(call) == "INVALID_ARGUMENT"

    run(test)


def test_one_tenant_cannot_take_the_places_of_others_with_many_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "TENANT_MAX", 6)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            watches = []
            for who in ("ann", "bob", "vera"):
                for _ in range(2):
                    watches.append(cluster.jobs(who).WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/vision")))
                    await asyncio.wait_for(watches[-1].read(), 10)
            one_more = cluster.jobs("tina").ListJobs(job_pb2.ListJobsRequest(parent="tenants/vision"))
            assert (await refusal(one_more)).reason is Reason.BUSY
            # Others, and those who could end it, are served.
            await cluster.jobs("nina").ListJobs(job_pb2.ListJobsRequest(parent="tenants/nlp"))
            await cluster.jobs("root").ListJobs(job_pb2.ListJobsRequest(parent="tenants/vision"))
            watches[0].cancel()
            await asyncio.wait_for(_until_served(cluster, "tina"), 10)
            for watch in watches:
                watch.cancel()

    run(test)


async def _until_served(cluster: ApiCluster, who: str) -> None:
    while True:
        try:
            await cluster.jobs(who).ListJobs(job_pb2.ListJobsRequest(parent="tenants/vision"))
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.02)
        else:
            return


def caller(role: Role, tenant: str, token_id: str = "t") -> Caller:
    return Caller("rpc", Principal(user="u", role=role, tenant=tenant), token_id, Reach.TENANT, "")


def test_all_tenants_together_leave_places_to_agents_and_admins() -> None:
    taken = places.Places()
    mine: list[str | None] = []
    refusals: list[Reason] = []
    for tenant in ("a", "b", "c", "d"):
        for _ in range(places.TENANT_MAX):
            try:
                mine.append(taken.take(caller(Role.USER, tenant)))
            except GpushareError as err:
                refusals.append(err.reason)
    assert len(mine) == RPCS_MAX - places.RESERVED
    assert refusals == [Reason.BUSY] * (4 * places.TENANT_MAX - len(mine))
    with pytest.raises(GpushareError, match="try again later"):
        taken.take(caller(Role.USER, "", token_id=""))
    for role in (Role.ADMIN, Role.OPERATOR, Role.AGENT):
        assert taken.take(caller(role, "a")) is None
    for each in mine:
        taken.give(each)
    assert taken.take(caller(Role.USER, "d")) == "d"


def test_of_each_tenant_one_list_is_made_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = asyncio.Event()
    busy: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def list_jobs(_self: JobApi, _request: job_pb2.ListJobsRequest, who: Caller) -> job_pb2.ListJobsResponse:
        busy[who.tenant] += 1
        most[who.tenant] = max(most[who.tenant], busy[who.tenant])
        await made.wait()
        busy[who.tenant] -= 1
        return job_pb2.ListJobsResponse()

    monkeypatch.setattr(JobApi, "list_jobs", list_jobs)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            request = job_pb2.ListJobsRequest(parent="tenants/-")
            asked = [asyncio.ensure_future(cluster.jobs(who).ListJobs(request)) for who in ("ann", "bob", "nina")]
            while set(busy) != {"vision", "nlp"}:
                await asyncio.sleep(0.01)
            made.set()
            await asyncio.wait_for(asyncio.gather(*asked), 10)
            assert most == {"vision": 1, "nlp": 1}

    run(test)


def test_many_lists_of_one_tenant_leave_the_scheduler_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()

    async def list_jobs(_self: JobApi, _request: job_pb2.ListJobsRequest, who: Caller) -> job_pb2.ListJobsResponse:
        time.sleep(0.02)
        made[who.tenant] += 1
        return job_pb2.ListJobsResponse()

    monkeypatch.setattr(JobApi, "list_jobs", list_jobs)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.channel("nina").channel_ready()
            request = job_pb2.ListJobsRequest(parent="tenants/-")
            asked = [asyncio.ensure_future(cluster.jobs("ann").ListJobs(request)) for _ in range(90)]
            while not made["vision"]:
                await asyncio.sleep(0.001)
            await cluster.jobs("nina").ListJobs(request)
            assert made["vision"] < 30
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    run(test)


def test_many_watches_of_one_tenant_leave_the_scheduler_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[str] = Counter()

    def listed(_self: watch.Watches, _jobs: object, who: Caller) -> dict[str, job_pb2.Job]:
        time.sleep(0.02)
        made[who.tenant] += 1
        return {}

    monkeypatch.setattr(watch.Watches, "_listed", listed)
    monkeypatch.setattr(watch, "FEW_JOBS", 0)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.submit()
            await cluster.channel("nina").channel_ready()
            open_ones = [cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-")) for _ in range(90)]
            asked = [asyncio.ensure_future(each.read()) for each in open_ones]
            while not made["vision"]:
                await asyncio.sleep(0.001)
            await cluster.jobs("nina").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
            assert made["vision"] < 30
            for each in open_ones:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    run(test)


def test_how_a_stream_failed_whose_caller_has_gone_is_nobodys_trouble() -> None:
    async def broken() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError("the connection is gone")

    async def test() -> None:
        troubles: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, trouble: troubles.append(trouble))
        serving = asyncio.create_task(api_gate._until_ended(broken(), api_gate.StreamEnd()))
        await asyncio.sleep(0.01)
        serving.cancel()
        await asyncio.wait({serving})
        del serving
        gc.collect()
        assert not troubles

    run(test)


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("argv", {"argv": [""] * 65_537}),
        ("env", {"env": {f"V{n}": "" for n in range(257)}}),
        ("captured_env", {"captured_env": {f"CUDA_{n}": "" for n in range(513)}}),
        ("labels", {"labels": {f"l{n}": "" for n in range(65)}}),
        ("resources.node_labels", {"resources": {"node_labels": {f"l{n}": "" for n in range(65)}}}),
        ("after", {"after": [{"job": "tenants/vision/jobs/1"}] * 1025}),
        ("array_indexes", {"array_indexes": range(1001)}),
        ("requeue_exit_codes", {"requeue_exit_codes": [1] * 257}),
        ("jobs", None),
    ],
)
def test_what_has_too_many_entries_is_refused_before_anything_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, spec: dict[str, Any] | None
) -> None:
    def never(_spec: job_pb2.JobSpec) -> None:
        raise AssertionError("the job was converted")

    monkeypatch.setattr(convert, "raw_job", never)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            parent = "tenants/vision"
            several = [job_pb2.JobSpec()] * 1001 if spec is None else [job_pb2.JobSpec(**{"argv": ["x"], **spec})]
            batch = job_pb2.BatchCreateJobsRequest(parent=parent, request_id="b", jobs=several)
            error = await refusal(cluster.jobs("ann").BatchCreateJobs(batch))
            assert error.violations[0].field == (field if spec is None else f"jobs[0].{field}")
            if spec is not None:
                single = job_pb2.CreateJobRequest(parent=parent, request_id="c", job=several[0])
                error = await refusal(cluster.jobs("ann").CreateJob(single))
                assert error.violations[0].field == field

    run(test)


def test_an_ordinary_job_is_none_of_these(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            answer = await cluster.jobs("ann").CreateJob(create(env={f"V{n}": "" for n in range(256)}))
            assert len(answer.jobs) == 1

    run(test)
