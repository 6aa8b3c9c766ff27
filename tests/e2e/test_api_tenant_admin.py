"""A tenant's own admin through the API: the own tenant and those below it, and nothing beyond."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from api_cluster import ApiCluster, api_cluster, refusal, run, until

from gpushare.core.kinds import Role
from gpushare.v1 import job_pb2, node_pb2, tenant_pb2, usage_pb2

S = tenant_pb2.TenantSettings


async def a_tree(cluster: ApiCluster) -> None:
    """vision > team > squad, with tess over team, and nlp beside them; a job in each of team, squad and nlp."""
    for tenant, parent in (("team", "vision"), ("squad", "team")):
        request = tenant_pb2.CreateTenantRequest(tenant_id=tenant, settings=S(parent=f"tenants/{parent}"))
        request.request_id = tenant
        await cluster.tenants("root").CreateTenant(request)
        await cluster.add_token(f"user-{tenant}", Role.USER, tenant)
        await cluster.submit(f"user-{tenant}", tenant, argv=["train", "--now"], env={"KEY": "secret"})
    await cluster.submit("nina", "nlp")
    await cluster.submit("ann")
    await cluster.add_token("tess", Role.TENANT_ADMIN, "team")


def tree_test(tmp_path: Path, body: Any, visibility: str = "tenant") -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=visibility) as cluster:
            await a_tree(cluster)
            await body(cluster)

    run(test)


def test_sees_the_jobs_of_its_tenants_with_their_commands_and_no_others(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        jobs = cluster.jobs("tess")
        listed = await jobs.ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
        assert sorted(job.tenant for job in listed.jobs) == ["squad", "team"]
        found = await jobs.GetJob(job_pb2.GetJobRequest(name="tenants/squad/jobs/1"))
        assert (list(found.spec.argv), found.redacted) == (["train", "--now"], False)
        # What others put into their jobs' environment stays theirs.
        assert (dict(found.spec.env), found.spec.script) == ({}, b"")
        assert (await jobs.ExplainJob(job_pb2.ExplainJobRequest(name=found.name))).wait.reason == "NO_NODES"
        for tenant in ("vision", "nlp"):
            for call in (
                jobs.GetJob(job_pb2.GetJobRequest(name=f"tenants/{tenant}/jobs/1")),
                jobs.ListJobs(job_pb2.ListJobsRequest(parent=f"tenants/{tenant}")),
                jobs.WatchJobs(job_pb2.WatchJobsRequest(parent=f"tenants/{tenant}")),
            ):
                assert (await refusal(call)).status == "NOT_FOUND"

    tree_test(tmp_path, body)


def test_beyond_its_tenants_it_sees_what_everybody_sees(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        jobs = cluster.jobs("tess")
        listed = await jobs.ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
        shown = {(job.tenant, job.foreign, tuple(job.spec.argv)) for job in listed.jobs}
        own = {("squad", False, ("train", "--now")), ("team", False, ("train", "--now"))}
        assert shown == {*own, ("vision", True, ()), ("nlp", True, ())}
        for tenant in ("vision", "nlp"):
            get = jobs.GetJob(job_pb2.GetJobRequest(name=f"tenants/{tenant}/jobs/1"))
            assert (await refusal(get)).status == "NOT_FOUND"
        # Whoever may change tenants below their own does not say what the cluster sees of these.
        update = tenant_pb2.UpdateTenantRequest(name="tenants/squad", settings=S(isolated=True), request_id="i1")
        assert (await refusal(cluster.tenants("tess").UpdateTenant(update))).status == "PERMISSION_DENIED"
        update.name, update.request_id = "tenants/team", "i2"
        assert (await cluster.tenants("root").UpdateTenant(update)).isolated
        # What is below it is isolated with it, and other settings of it can be changed as before.
        listed = await jobs.ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
        assert {(job.tenant, job.foreign) for job in listed.jobs} == {("squad", False), ("team", False)}
        listed = await cluster.jobs("user-squad").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
        assert {job.tenant for job in listed.jobs} == {"squad"}
        update = tenant_pb2.UpdateTenantRequest(name="tenants/squad", settings=S(weight=2), request_id="i3")
        assert (await cluster.tenants("tess").UpdateTenant(update)).weight == 2

    tree_test(tmp_path, body, visibility="cluster")


def test_watches_them_all_while_the_tree_changes(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        watch = cluster.jobs("tess").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
        seen = []
        while not (message := await watch.read()).caught_up:
            seen.append(message.job.tenant)
        assert sorted(seen) == ["squad", "team"]
        await cluster.submit("nina", "nlp")
        await cluster.submit("user-squad", "squad")
        assert (await asyncio.wait_for(watch.read(), 5)).job.tenant == "squad"
        # A tenant that is moved away is not seen any longer, one that comes is.
        move = tenant_pb2.UpdateTenantRequest(name="tenants/squad", settings=S(parent=""), request_id="m1")
        await cluster.tenants("root").UpdateTenant(move)
        move = tenant_pb2.UpdateTenantRequest(name="tenants/nlp", settings=S(parent="tenants/team"), request_id="m2")
        await cluster.tenants("root").UpdateTenant(move)
        await cluster.submit("user-squad", "squad")
        await cluster.submit("nina", "nlp")
        assert (await asyncio.wait_for(watch.read(), 5)).job.tenant == "nlp"

    tree_test(tmp_path, body)


def test_cancels_them_and_neither_submits_nor_reads_output(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        jobs = cluster.jobs("tess")
        cancel = job_pb2.CancelJobRequest(name="tenants/squad/jobs/1", request_id="c1")
        assert (await jobs.CancelJob(cancel)).cancelled_by.user == "tess"
        cancel = job_pb2.CancelJobRequest(name="tenants/nlp/jobs/1", request_id="c2")
        assert (await refusal(jobs.CancelJob(cancel))).status == "NOT_FOUND"
        assert cluster.engine.state.jobs["nlp/1"].state == "QUEUED"
        for call in (
            jobs.CreateJob(job_pb2.CreateJobRequest(parent="tenants/team", request_id="s")),
            jobs.StreamLogs(job_pb2.StreamLogsRequest(name="tenants/team/jobs/1")),
        ):
            assert (await refusal(call)).status == "PERMISSION_DENIED"

    tree_test(tmp_path, body)


def test_makes_and_sets_tenants_below_its_own(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        tenants = cluster.tenants("tess")
        update = tenant_pb2.UpdateTenantRequest(name="tenants/team", settings=S(limit_milli=2000), request_id="u0")
        await cluster.tenants("root").UpdateTenant(update)
        made = await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="new", request_id="t1"))
        assert (made.parent, made.max_queued_jobs) == ("tenants/team", 10_000)
        update = tenant_pb2.UpdateTenantRequest(
            name="tenants/new", settings=S(limit_milli=1500, parent="tenants/squad"), request_id="u1"
        )
        changed = await tenants.UpdateTenant(update)
        assert (changed.parent, changed.limit_milli) == ("tenants/squad", 1500)
        for status, settings in (("INVALID_ARGUMENT", S(limit_milli=2001)), ("NOT_FOUND", S(parent="tenants/nlp"))):
            update = tenant_pb2.UpdateTenantRequest(name="tenants/new", settings=settings, request_id="u2")
            assert (await refusal(tenants.UpdateTenant(update))).status == status
        for name, status in (("team", "PERMISSION_DENIED"), ("vision", "NOT_FOUND"), ("nlp", "NOT_FOUND")):
            update = tenant_pb2.UpdateTenantRequest(name=f"tenants/{name}", settings=S(weight=9), request_id="u3")
            assert (await refusal(tenants.UpdateTenant(update))).status == status
        for parent in ("", "tenants/vision", "tenants/nlp"):
            request = tenant_pb2.CreateTenantRequest(tenant_id="x", settings=S(parent=parent), request_id="t2")
            assert (await refusal(tenants.CreateTenant(request))).status in ("INVALID_ARGUMENT", "NOT_FOUND")
        listed = await tenants.ListTenants(tenant_pb2.ListTenantsRequest())
        assert [t.name for t in listed.tenants] == ["tenants/new", "tenants/squad", "tenants/team"]
        used = await cluster.usage("tess").GetUsage(usage_pb2.GetUsageRequest(group=usage_pb2.USAGE_GROUP_JOB))
        assert {row.tenant for row in used.rows} <= {"new", "squad", "team"}

    tree_test(tmp_path, body)


def test_gives_and_takes_the_tokens_of_its_tenants(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        admins = await cluster.add_token("boss", Role.ADMIN, "team")
        foreign = await cluster.add_token("nick", Role.USER, "nlp")
        tenants = cluster.tenants("tess")
        for place, (role, tenant) in enumerate(
            [(tenant_pb2.ROLE_USER, "squad"), (tenant_pb2.ROLE_VIEWER, ""), (tenant_pb2.ROLE_TENANT_ADMIN, "squad")]
        ):
            request = tenant_pb2.CreateTokenRequest(user=f"u{place}", role=role, tenant=tenant, request_id=f"k{place}")
            made = await tenants.CreateToken(request)
            assert made.token.tenant == (tenant or "team")
        for place, (role, tenant) in enumerate(
            [(tenant_pb2.ROLE_ADMIN, "team"), (tenant_pb2.ROLE_OPERATOR, ""), (tenant_pb2.ROLE_USER, "nlp")]
        ):
            request = tenant_pb2.CreateTokenRequest(user="eve", role=role, tenant=tenant, request_id=f"x{place}")
            error = await refusal(tenants.CreateToken(request))
            assert error.status in ("PERMISSION_DENIED", "NOT_FOUND", "INVALID_ARGUMENT")
        listed = await tenants.ListTokens(tenant_pb2.ListTokensRequest())
        assert {t.tenant for t in listed.tokens} == {"team", "squad"}
        assert "boss" not in {t.user for t in listed.tokens}
        for token_id in (admins, foreign):
            revoke = tenant_pb2.RevokeTokenRequest(name=f"tokens/{token_id}", request_id=f"r{token_id}")
            assert (await refusal(tenants.RevokeToken(revoke))).status == "NOT_FOUND"
        name = next(t.name for t in listed.tokens if t.user == "user-squad")
        await tenants.RevokeToken(tenant_pb2.RevokeTokenRequest(name=name, request_id="r1"))
        call = cluster.jobs("user-squad").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
        assert (await refusal(call)).status == "UNAUTHENTICATED"

    tree_test(tmp_path, body)


@pytest.mark.parametrize("kind", ["user", "tess"])
def test_sees_of_a_card_whose_attempts_are_below_it(tmp_path: Path, kind: str) -> None:
    async def body(cluster: ApiCluster) -> None:
        await cluster.agent("n1")

        async def started() -> bool:
            return all(job.attempts for job in cluster.engine.state.jobs.values())

        await until(started, "all jobs started")
        who = "user-squad" if kind == "user" else "tess"
        nodes = await cluster.nodes(who).ListNodes(node_pb2.ListNodesRequest())
        seen = {attempt.partition(".")[0] for gpu in nodes.nodes[0].gpus for attempt in gpu.attempt_ids}
        assert seen == ({"squad"} if kind == "user" else {"team", "squad"})

    tree_test(tmp_path, body)
