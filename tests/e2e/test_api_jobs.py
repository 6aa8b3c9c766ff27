"""Jobs through the API: submit, look, list page by page, cancel, explain, and what is counted of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_cluster import ApiCluster, WireAgent, api_cluster, create, refusal, run, until

from gpushare.client.aio import AsyncClient
from gpushare.client.settings import ConnectionSettings
from gpushare.client.spec import job_spec
from gpushare.core.commands import Call, Housekeep, UpdateTenant
from gpushare.core.model import SYSTEM, TenantSettings
from gpushare.v1 import job_pb2, tenant_pb2, usage_pb2


async def get(cluster: ApiCluster, name: str, who: str = "ann") -> job_pb2.Job:
    return await cluster.jobs(who).GetJob(job_pb2.GetJobRequest(name=name))


async def all_pages(cluster: ApiCluster, who: str = "ann", **fields: Any) -> list[str]:
    """Ids over all pages; every page but the last is full or followed."""
    request = job_pb2.ListJobsRequest(**{"parent": "tenants/-", **fields})
    ids: list[str] = []
    while True:
        page = await cluster.jobs(who).ListJobs(request)
        ids += [job.id for job in page.jobs]
        if not page.next_page_token:
            return ids
        request.page_token = page.next_page_token


async def ended_job(cluster: ApiCluster, agent: WireAgent, exit_code: int = 0, **spec: Any) -> job_pb2.Job:
    job = await cluster.submit(**spec)
    start = await agent.order("start_attempt")
    await agent.run(start.attempt_id)
    await agent.finish(start.attempt_id, exit_code)
    await agent.order("forget_attempt")
    return job


async def archive(cluster: ApiCluster) -> None:
    await cluster.engine.execute(Housekeep(archive_before_ms=cluster.engine.now_ms() + 1000), Call(SYSTEM))
    assert not any(job.is_ended for job in cluster.engine.state.jobs.values())


def test_a_job_is_submitted_started_and_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            job = await cluster.submit(argv=["sleep", "1"], env={"A": "1"}, captured_env={"B": "2", "A": "0"})
            assert (job.name, job.state) == ("tenants/vision/jobs/1", job_pb2.JOB_STATE_QUEUED)
            assert job.wait.reason == "SCHEDULING"
            start = await agent.order("start_attempt")
            assert (start.attempt_id, start.term, list(start.argv)) == ("vision.1.0.1", 1, ["sleep", "1"])
            assert dict(start.env) == {"A": "1", "B": "2"}
            assert (start.gpu_milli, start.whole, list(start.gpu_uuids)) == (250, False, ["GPU-n1-0"])
            await agent.run(start.attempt_id)

            async def state_is(state: str) -> bool:
                return job_pb2.JobState.Name((await get(cluster, job.name)).state) == f"JOB_STATE_{state}"

            await until(lambda: state_is("RUNNING"), "running")
            await agent.finish(start.attempt_id, 3)
            await until(lambda: state_is("FAILED"), "failed")
            found = await get(cluster, job.name)
            assert (found.exit_code, found.reason) == (3, "EXIT_CODE")
            assert (await agent.order("forget_attempt")).attempt_id == start.attempt_id

    run(test)


def test_what_was_left_out_and_what_was_assumed_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            request = create(captured_env={"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3", "GPUSHARE_X": "1"})
            request.job.ClearField("resources")
            answer = await cluster.jobs("ann").CreateJob(request)
            assert list(answer.dropped_env) == ["CUDA_VISIBLE_DEVICES", "GPUSHARE_X"]
            assert answer.default_request_used
            assert answer.jobs[0].spec.resources.gpus == 1

    run(test)


def test_what_would_wait_for_ever_is_told_at_the_submit(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            request = create(qos=job_pb2.QOS_GUARANTEED, resources=job_pb2.Resources(gpus=2))
            batch = job_pb2.BatchCreateJobsRequest(parent=request.parent, jobs=[request.job] * 2, request_id="b")
            said = [*(await cluster.jobs("ann").CreateJob(request)).notices]
            said += (await cluster.jobs("ann").BatchCreateJobs(batch)).notices
            request.validate_only = True
            request.request_id = "v"
            said += (await cluster.jobs("ann").CreateJob(request)).notices
            assert len(said) == 3
            assert len(set(said)) == 1
            assert said[0].startswith("QUOTA_NEVER: it needs 2 cards")

    run(test)


def test_a_dry_run_checks_everything_and_admits_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            before = cluster.engine.state.encode()
            request = create(name="x", tasks=3)
            request.validate_only = True
            answer = await cluster.jobs("ann").CreateJob(request)
            assert [(job.id, job.name, job.spec.tasks) for job in answer.jobs] == [("", "", 3)]
            request.job.argv[:] = []
            assert (await refusal(cluster.jobs("ann").CreateJob(request))).status == "INVALID_ARGUMENT"
            assert cluster.engine.state.encode() == before

    run(test)


def test_an_array_is_one_batch_of_jobs_under_one_number(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.submit()
            answer = await cluster.jobs("ann").CreateJob(create(array_indexes=[0, 3, 7]))
            assert [(j.id, j.array_id, j.array_index) for j in answer.jobs] == [
                ("2_0", "2", 0),
                ("2_3", "2", 3),
                ("2_7", "2", 7),
            ]
            assert not (await cluster.submit()).HasField("array_index")
            listed = await all_pages(cluster, array_id="2", page_size=2)
            assert listed == ["2_7", "2_3", "2_0"]

    run(test)


def test_a_large_array_of_large_jobs_is_answered_in_a_bounded_message(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            for argv in (["echo", "x" * 900_000], ["echo", "x" * 15_000]):
                request = create(array_indexes=list(range(1000)), argv=argv)
                answer = await cluster.jobs("ann").CreateJob(request)
                assert len(answer.jobs) == 1000
                assert answer.ByteSize() < 4 << 20
            assert list(answer.jobs[0].spec.argv) == argv
            page = await cluster.jobs("ann").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-", page_size=1000))
            assert page.ByteSize() < 4 << 20
            assert page.next_page_token
            assert (await get(cluster, "tenants/vision/jobs/1_0")).spec.argv[1] == "x" * 900_000

    run(test)


def test_a_batch_is_all_or_nothing_and_names_the_job_at_fault(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            good = create().job
            batch = job_pb2.BatchCreateJobsRequest(parent="tenants/vision", jobs=[good] * 100, request_id="b1")
            answer = await cluster.jobs("ann").BatchCreateJobs(batch)
            assert list(answer.names) == [f"tenants/vision/jobs/{n}" for n in range(1, 101)]
            assert await cluster.jobs("ann").BatchCreateJobs(batch) == answer
            bad = job_pb2.JobSpec()
            bad.CopyFrom(good)
            bad.max_run_duration.nanos = 1
            batch = job_pb2.BatchCreateJobsRequest(parent="tenants/vision", jobs=[good, bad], request_id="b2")
            error = await refusal(cluster.jobs("ann").BatchCreateJobs(batch))
            assert (error.status, error.violations[0].field) == ("INVALID_ARGUMENT", "jobs[1].max_run_duration")
            assert len(cluster.engine.state.jobs) == 100

    run(test)


# -- repeated requests


def test_a_thousand_parallel_repetitions_make_one_job(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            request = create(name="once")

            async def repeat() -> job_pb2.CreateJobResponse:
                while True:
                    try:
                        return await cluster.jobs("ann").CreateJob(request)
                    except grpc.aio.AioRpcError as err:
                        # Streams beyond the connection's limit are refused; a client sends them again.
                        if err.code() is not grpc.StatusCode.UNAVAILABLE:
                            raise

            answers = await asyncio.gather(*(repeat() for _ in range(1000)))
            assert {answer.jobs[0].name for answer in answers} == {"tenants/vision/jobs/1"}
            assert list(cluster.engine.state.jobs) == ["vision/1"]

    run(test)


def test_the_same_request_id_with_another_body_or_call_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            request = create(name="one")
            await cluster.jobs("ann").CreateJob(request)
            other = create(name="two")
            other.request_id = request.request_id
            error = await refusal(cluster.jobs("ann").CreateJob(other))
            assert (error.status, error.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
            assert error.metadata["body_sha256"] != error.metadata["known_body_sha256"]
            cancel = job_pb2.CancelJobRequest(name="tenants/vision/jobs/1", request_id=request.request_id)
            assert (await refusal(cluster.jobs("ann").CancelJob(cancel))).reason == "REQUEST_ID_REUSED"
            assert [job.state for job in cluster.engine.state.jobs.values()] == ["QUEUED"]

    run(test)


def test_the_order_of_maps_and_unknown_fields_do_not_make_another_body(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            names = [f"V{n}" for n in range(50)]
            one = create(env=dict.fromkeys(names, "x"))
            two = create(env=dict.fromkeys(reversed(names), "x"))
            two.request_id = one.request_id
            first = await cluster.jobs("ann").CreateJob(one)
            second = await cluster.jobs("ann").CreateJob(two)
            assert first.jobs[0].name == second.jobs[0].name

    run(test)


def test_a_repeated_request_finds_its_jobs_after_their_end_and_after_they_left_memory(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            request = create()
            await cluster.jobs("ann").CreateJob(request)
            start = await agent.order("start_attempt")
            await agent.finish(start.attempt_id)
            await agent.order("forget_attempt")
            for step in ("ended", "archived"):
                again = await cluster.jobs("ann").CreateJob(request)
                assert [(j.id, j.state) for j in again.jobs] == [("1", job_pb2.JOB_STATE_SUCCEEDED)], step
                await archive(cluster)

    run(test)


@pytest.mark.parametrize("request_id", ["", "x" * (1 << 20), "a\0b", "a\nb"])
def test_no_request_id_or_a_strange_one_is_refused(tmp_path: Path, request_id: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            job = await cluster.submit()
            before = cluster.engine.state.encode()
            submit = create()
            submit.request_id = request_id
            for call in (
                cluster.jobs("ann").CreateJob(submit),
                cluster.jobs("ann").CancelJob(job_pb2.CancelJobRequest(name=job.name, request_id=request_id)),
                cluster.tenants("root").CreateTenant(
                    tenant_pb2.CreateTenantRequest(tenant_id="new", request_id=request_id)
                ),
                cluster.tenants("root").RevokeToken(
                    tenant_pb2.RevokeTokenRequest(name="tokens/token2", request_id=request_id)
                ),
            ):
                error = await refusal(call)
                assert error.status == "INVALID_ARGUMENT"
                assert error.reason == ("INVALID_FIELD" if request_id else "REQUEST_ID_REQUIRED")
            assert cluster.engine.state.encode() == before

    run(test)


# -- listings


def test_a_listing_is_newest_first_and_whole_over_its_pages(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility="tenant") as cluster:
            batch = job_pb2.BatchCreateJobsRequest(parent="tenants/vision", jobs=[create().job] * 25, request_id="b1")
            await cluster.jobs("ann").BatchCreateJobs(batch)
            await cluster.submit("nina", "nlp")
            newest_first = [str(n) for n in range(25, 0, -1)]
            for size in (0, 1, 7, 25, 1000, 10**9):
                assert await all_pages(cluster, page_size=size) == newest_first
            for size in (-1, -(2**31)):
                request = job_pb2.ListJobsRequest(parent="tenants/-", page_size=size)
                assert (await refusal(cluster.jobs("ann").ListJobs(request))).status == "INVALID_ARGUMENT"

    run(test)


def test_a_page_is_clamped_to_a_thousand(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, batch_max=2000) as cluster:
            batch = job_pb2.BatchCreateJobsRequest(parent="tenants/vision", jobs=[create().job] * 1000, request_id="b1")
            await cluster.jobs("ann").BatchCreateJobs(batch)
            await cluster.submit()
            page = await cluster.jobs("ann").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-", page_size=10**9))
            assert (len(page.jobs), bool(page.next_page_token)) == (1000, True)

    run(test)


def test_ended_jobs_are_listed_on_request_from_memory_and_history_alike(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1", cards=4)
            for exit_code in (0, 1, 0):
                await ended_job(cluster, agent, exit_code)
            await archive(cluster)
            for _ in range(2):
                await ended_job(cluster, agent)
            await cluster.submit(name="train")
            assert await all_pages(cluster) == ["6"]
            for size in (1, 2, 3, 100):
                assert await all_pages(cluster, show_ended=True, page_size=size) == ["6", "5", "4", "3", "2", "1"]
            assert await all_pages(cluster, state=job_pb2.JOB_STATE_FAILED, page_size=1) == ["2"]
            assert (await get(cluster, "tenants/vision/jobs/2")).exit_code == 1
            seen = await get(cluster, "tenants/vision/jobs/2", "bob")
            assert (seen.redacted, list(seen.spec.argv)) == (True, [])
            # Others see that they were there, page by page; what their names are is not found.
            assert await all_pages(cluster, "nina", show_ended=True, page_size=2) == list("654321")
            assert await all_pages(cluster, "nina", show_ended=True, job_name="train") == []
            assert await all_pages(cluster, show_ended=True, job_name="train") == ["6"]
            isolate = TenantSettings(isolated=True)
            await cluster.engine.execute(UpdateTenant("vision", isolate), Call(SYSTEM))
            assert await all_pages(cluster, "nina", show_ended=True, page_size=2) == []
            assert await all_pages(cluster, "olga", show_ended=True, user="ann", page_size=2) == list("654321")
            explained = await cluster.jobs("ann").ExplainJob(job_pb2.ExplainJobRequest(name="tenants/vision/jobs/2"))
            assert (explained.state, explained.stage) == (job_pb2.JOB_STATE_FAILED, "")

    run(test)


@pytest.mark.parametrize("text", ["' OR 1=1--", "%", "*", "ann' --", "a" * 10_000, "é", '"; DROP TABLE jobs; --'])
def test_filters_match_literally(tmp_path: Path, text: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            await ended_job(cluster, agent)
            await archive(cluster)
            await cluster.submit()
            for field in ("user", "array_id", "job_name"):
                assert await all_pages(cluster, show_ended=True, **{field: text}) == []
            assert await all_pages(cluster, show_ended=True, user="ann") == ["2", "1"]

    run(test)


def test_a_page_token_is_good_for_its_own_caller_and_filter_alone(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            for _ in range(3):
                await cluster.submit()
            first = await cluster.jobs("ann").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-", page_size=1))
            token = first.next_page_token
            for who, fields in (
                ("bob", {}),
                ("nina", {}),
                ("olga", {}),
                ("ann", {"user": "ann"}),
                ("ann", {"show_ended": True}),
                ("ann", {"page_token": token[:-2]}),
                ("ann", {"page_token": "A" + token[1:]}),
                ("ann", {"page_token": "x"}),
            ):
                request = job_pb2.ListJobsRequest(**{"parent": "tenants/-", "page_token": token, **fields})
                error = await refusal(cluster.jobs(who).ListJobs(request))
                assert (error.status, error.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID"), (who, fields)
            request = usage_pb2.ListAuditEventsRequest(page_token=token)
            assert (await refusal(cluster.usage("root").ListAuditEvents(request))).reason == "PAGE_TOKEN_INVALID"

    run(test)


# -- cancelling


def test_cancelling_is_idempotent_and_an_end_is_kept(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            done = await ended_job(cluster, agent)
            for request_id in ("c1", "c1", "c2"):
                cancel = job_pb2.CancelJobRequest(name=done.name, request_id=request_id)
                kept = await cluster.jobs("ann").CancelJob(cancel)
                assert (kept.state, kept.HasField("cancelled_by")) == (job_pb2.JOB_STATE_SUCCEEDED, False)
            await archive(cluster)
            cancel = job_pb2.CancelJobRequest(name=done.name, request_id="c3")
            assert (await cluster.jobs("ann").CancelJob(cancel)).state == job_pb2.JOB_STATE_SUCCEEDED
            assert (await refusal(cluster.jobs("bob").CancelJob(cancel))).status == "PERMISSION_DENIED"
            running = await cluster.submit()
            start = await agent.order("start_attempt")
            await agent.run(start.attempt_id)
            for request_id in ("c4", "c5"):
                cancel = job_pb2.CancelJobRequest(name=running.name, request_id=request_id)
                assert (await cluster.jobs("ann").CancelJob(cancel)).state == job_pb2.JOB_STATE_CANCELLING
            stop = await agent.order("stop_attempt")
            assert (stop.attempt_id, stop.reason) == (start.attempt_id, "CANCELLED")
            await agent.report(start.attempt_id, "STOPPED", reason="CANCELLED", signal=15)

            async def cancelled() -> bool:
                return (await get(cluster, running.name)).state == job_pb2.JOB_STATE_CANCELLED

            await until(cancelled, "cancelled")
            assert (await get(cluster, running.name)).cancelled_by.user == "ann"

    run(test)


# -- explaining, counting, auditing


@pytest.mark.parametrize("setting", ["cluster", "tenant"])
def test_a_wait_is_explained_without_naming_jobs_that_are_not_shown(tmp_path: Path, setting: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=setting) as cluster:
            agent = await cluster.agent("n1")
            await cluster.submit("nina", "nlp", resources=job_pb2.Resources(gpus=1))
            await agent.order("start_attempt")
            job = await cluster.submit()

            async def explained(who: str) -> job_pb2.JobExplanation:
                return await cluster.jobs(who).ExplainJob(job_pb2.ExplainJobRequest(name=job.name))

            async def judged() -> bool:
                return (await get(cluster, job.name)).wait.reason == "NO_CAPACITY"

            await until(judged, "judged")
            mine = await explained("ann")
            named = ["tenants/nlp/jobs/1"] if setting == "cluster" else []
            assert (mine.stage, mine.wait.reason, list(mine.blocking_jobs)) == ("capacity", "NO_CAPACITY", named)
            assert [(f.reason, f.gpus, list(f.nodes)) for f in mine.filters] == [("NO_CAPACITY", 1, ["n1"])]
            assert list((await explained("olga")).blocking_jobs) == ["tenants/nlp/jobs/1"]

    run(test)


def test_usage_is_counted_from_allocations_and_shown_within_reach(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            await cluster.submit("ann")
            await cluster.submit("bob")
            await cluster.submit("nina", "nlp")
            starts = [await agent.order("start_attempt") for _ in range(3)]
            await agent.finish(starts[0].attempt_id)
            await agent.order("forget_attempt")

            async def rows(who: str, group: str, **fields: str) -> set[tuple[str, str, str, int]]:
                request = usage_pb2.GetUsageRequest(group=f"USAGE_GROUP_{group}", **fields)  # type: ignore[arg-type]
                answer = await cluster.usage(who).GetUsage(request)
                return {(row.tenant, row.user, row.job, row.attempts) for row in answer.rows}

            assert await rows("olga", "TENANT") == {("vision", "", "", 2), ("nlp", "", "", 1)}
            assert await rows("ann", "USER") == {("vision", "ann", "", 1), ("vision", "bob", "", 1)}
            assert await rows("root", "JOB", tenant="nlp") == {("nlp", "nina", "tenants/nlp/jobs/1", 1)}
            assert await rows("nina", "TENANT") == {("nlp", "", "", 1)}
            error = await refusal(cluster.usage("ann").GetUsage(usage_pb2.GetUsageRequest()))
            assert error.violations[0].field == "group"

    run(test)


def test_the_audit_says_who_did_what_without_environment_script_or_hashes(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            request = create(
                env={"KEY": "hidden-env"},
                captured_env={"B": "hidden-env"},
                script=b"hidden-script",
                labels={"env": "prod"},
            )
            await cluster.jobs("ann").CreateJob(request)
            cancel = job_pb2.CancelJobRequest(name="tenants/vision/jobs/1", request_id="c1")
            await cluster.jobs("olga").CancelJob(cancel)
            audit = cluster.usage("root").ListAuditEvents
            answer = await audit(usage_pb2.ListAuditEventsRequest(kind="JobsCreated"))
            event = answer.events[0]
            assert (event.principal.user, event.request_id, event.subject) == (
                "ann",
                request.request_id,
                "tenants/vision/jobs/1",
            )
            assert json.loads(event.detail_json)["spec"]["labels"] == {"env": "prod"}
            by_olga = await audit(usage_pb2.ListAuditEventsRequest(user="olga"))
            assert [e.kind for e in by_olga.events] == ["JobEnded", "JobCancelRequested", "RequestCompleted"]
            page = usage_pb2.ListAuditEventsRequest(page_size=3)
            seen: list[int] = []
            while True:
                found = await audit(page)
                seen += [e.sequence for e in found.events]
                if not found.next_page_token:
                    break
                page.page_token = found.next_page_token
            assert seen == list(range(cluster.engine.durable_seq, 0, -1))
            everything = await audit(usage_pb2.ListAuditEventsRequest(page_size=1000))
            said = everything.SerializeToString().decode("latin-1")
            hashes = [token.sha256 for token in cluster.engine.state.tokens.values()]
            for hidden in ("hidden-env", "hidden-script", "aGlkZGVuLXNjcmlwdA", *hashes, *cluster.tokens.values()):
                assert hidden not in said

    run(test)


# -- tenants


def test_only_the_named_settings_of_a_tenant_change(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, queued_per_tenant=77) as cluster:
            tenants = cluster.tenants("root")
            made = await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="lab", request_id="t1"))
            assert (made.HasField("limit_milli"), made.max_queued_jobs, made.default_request.gpus) == (False, 77, 1)

            async def update(request_id: str, **fields: Any) -> tenant_pb2.Tenant:
                settings = tenant_pb2.TenantSettings(**fields)
                request = tenant_pb2.UpdateTenantRequest(name="tenants/lab", settings=settings, request_id=request_id)
                return await tenants.UpdateTenant(request)

            assert (await update("t2", limit_milli=500)).limit_milli == 500
            changed = await update("t3", max_priority=5, default_request=job_pb2.Resources(gpu_milli=100))
            assert (changed.limit_milli, changed.max_priority, changed.default_request.gpu_milli) == (500, 5, 100)
            assert not (await update("t4", no_limit=True)).HasField("limit_milli")
            for request_id, fields in (
                ("t5", {"limit_milli": -1}),
                ("t6", {"limit_milli": 2**63 - 1}),
                ("t7", {"limit_milli": 1, "no_limit": True}),
                ("t8", {"max_queued_jobs": -1}),
                ("t9", {"default_request": job_pb2.Resources()}),
                ("t10", {"default_request": job_pb2.Resources(gpu_milli=1001)}),
                ("t11", {"default_request": job_pb2.Resources(gpus=1, gpu_milli=5)}),
                ("t12", {"display_name": "a\u202eb"}),
            ):
                assert (await refusal(update(request_id, **fields))).status == "INVALID_ARGUMENT", fields
            # Changes that come at the same time are both kept.
            await asyncio.gather(
                *(update(f"p{n}", **f) for n, f in enumerate(({"limit_milli": 9}, {"max_priority": 9})))
            )
            both = await tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/lab"))
            assert (both.limit_milli, both.max_priority) == (9, 9)
            gone = tenant_pb2.DeleteTenantRequest(name="tenants/lab", request_id="t13")
            await tenants.DeleteTenant(gone)
            await tenants.DeleteTenant(gone)
            error = await refusal(tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/lab")))
            assert error.status == "NOT_FOUND"
            # Else its jobs, and what they hold, would be the newcomer's.
            again = tenant_pb2.CreateTenantRequest(tenant_id="lab", request_id="t14")
            assert (await refusal(tenants.CreateTenant(again))).status == "ALREADY_EXISTS"

    run(test)


def test_a_token_by_itself_is_enough_for_its_own_tenant(tmp_path: Path) -> None:
    """As one in the environment, with nothing that says whose it is."""

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            settings = ConnectionSettings(cluster.address, cluster.tokens["nina"])
            async with AsyncClient(settings) as client:
                spec = job_spec(["true"], working_directory="/")
                assert (await client.create_job(spec)).jobs[0].tenant == "nlp"
                assert (await client.batch_create_jobs([spec])).names == ["tenants/nlp/jobs/2"]
                assert (client.settings.tenant, client.settings.user) == ("nlp", "nina")

    run(test)
