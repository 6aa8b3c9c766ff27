"""Extending, queueing again and submitting anew through the API: who may, whose job it is, what repeats."""

from __future__ import annotations

from pathlib import Path

from api_cluster import ApiCluster, WireAgent, api_cluster, refusal, run
from google.protobuf.duration_pb2 import Duration
from test_api_jobs import archive, ended_job

from gpushare.v1 import agent_pb2, job_pb2, tenant_pb2

HOUR = Duration(seconds=3600)


def extend(name: str, request_id: str = "e1", **fields: Duration) -> job_pb2.ExtendJobRequest:
    return job_pb2.ExtendJobRequest(name=name, request_id=request_id, **(fields or {"longer_by": HOUR}))


async def cap(cluster: ApiCluster, seconds: int) -> None:
    settings = tenant_pb2.TenantSettings(max_run=Duration(seconds=seconds))
    request = tenant_pb2.UpdateTenantRequest(name="tenants/vision", settings=settings, request_id=f"cap-{seconds}")
    await cluster.tenants("root").UpdateTenant(request)


def test_only_the_owner_and_those_above_extend_and_only_an_admin_beyond_the_cap(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cap(cluster, 4 * 3600)
            job = await cluster.submit("ann", max_run_duration=HOUR)
            assert (await refusal(cluster.jobs("bob").ExtendJob(extend(job.name)))).status == "PERMISSION_DENIED"
            assert (await refusal(cluster.jobs("nina").ExtendJob(extend(job.name)))).status == "NOT_FOUND"
            for who in ("ann", "tina", "olga"):
                answer = await cluster.jobs(who).ExtendJob(extend(job.name, who))
            # Said twice under one request id it is done once.
            answer = await cluster.jobs("olga").ExtendJob(extend(job.name, "olga"))
            assert answer.spec.max_run_duration.seconds == 4 * 3600
            assert answer.submitted_run_duration == HOUR
            for who in ("ann", "tina", "olga"):
                error = await refusal(cluster.jobs(who).ExtendJob(extend(job.name, f"more-{who}")))
                assert (error.status, error.reason) == ("INVALID_ARGUMENT", "RUN_LIMIT")
                assert error.metadata["cap_ms"] == str(4 * 3600 * 1000)
            answer = await cluster.jobs("root").ExtendJob(extend(job.name, "root"))
            assert answer.spec.max_run_duration.seconds == 5 * 3600

    run(test)


def test_a_running_tasks_node_is_told_and_told_again_when_it_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            job = await cluster.submit("ann", max_run_duration=HOUR)
            start = await agent.order("start_attempt")
            await agent.run(start.attempt_id)
            answer = await cluster.jobs("ann").ExtendJob(extend(job.name))
            limit = await agent.order("set_run_limit")
            assert (limit.attempt_id, limit.max_run_ms) == (start.attempt_id, 2 * 3600 * 1000)
            ends_s = answer.expected_end_time.seconds - answer.tasks[0].allocate_time.seconds
            assert 7200 <= ends_s < 7300
            again = WireAgent(cluster, "n1", counter=2)
            await again.connect()
            told = agent_pb2.AttemptReport(attempt_id=start.attempt_id, state=job_pb2.ATTEMPT_STATE_RUNNING)
            await again.sync(attempts=[told])
            assert (await again.order("set_run_limit")).max_run_ms == 2 * 3600 * 1000

    run(test)


def test_a_job_that_was_put_away_is_submitted_anew_with_all_it_had(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            fields = {"script": b"#!/bin/sh\n", "env": {"A": "1"}, "captured_env": {"B": "2"}, "array_indexes": [7]}
            done = await ended_job(cluster, agent, max_run_duration=HOUR, requeue_exit_codes=[85], **fields)
            await archive(cluster)
            request = job_pb2.ResubmitJobRequest(name=done.name, request_id="r1")
            for who, status in (("bob", "PERMISSION_DENIED"), ("olga", "PERMISSION_DENIED"), ("nina", "NOT_FOUND")):
                assert (await refusal(cluster.jobs(who).ResubmitJob(request))).status == status
            # It would run ann's script as the admin's own account.
            assert "would run as your account" in str(await refusal(cluster.jobs("root").ResubmitJob(request)))
            new = await cluster.jobs("ann").ResubmitJob(request)
            assert (new.name, new.array_index) == ("tenants/vision/jobs/2_7", 7)
            assert new.spec == done.spec
            assert (await cluster.jobs("ann").ResubmitJob(request)).name == new.name
            for call, message in (
                (cluster.jobs("ann").ExtendJob, extend(done.name)),
                (cluster.jobs("ann").RequeueJob, job_pb2.RequeueJobRequest(name=done.name, request_id="q1")),
            ):
                error = await refusal(call(message))
                assert (error.status, error.reason) == ("FAILED_PRECONDITION", "JOB_ENDED")
                assert "resubmit" in str(error)

    run(test)


def test_a_job_is_stopped_and_starts_again_under_its_name(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            job = await cluster.submit("ann")
            first = await agent.order("start_attempt")
            await agent.run(first.attempt_id)
            request = job_pb2.RequeueJobRequest(name=job.name, request_id="q1")
            assert (await refusal(cluster.jobs("bob").RequeueJob(request))).status == "PERMISSION_DENIED"
            await cluster.jobs("ann").RequeueJob(request)
            stop = await agent.order("stop_attempt")
            assert (stop.attempt_id, stop.reason) == (first.attempt_id, "REQUEUED")
            await agent.report(first.attempt_id, "STOPPED", reason="REQUEUED", exit_code=0)
            second = await agent.order("start_attempt")
            assert (second.job_id, second.number) == (first.job_id, 2)

    run(test)
