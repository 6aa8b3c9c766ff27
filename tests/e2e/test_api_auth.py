"""Identity through the API: every RPC for every role, tokens that end, names that are not one's own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from api_cluster import ApiCluster, api_cluster, create, refusal, run, until

from gpushare import rpc
from gpushare.core.commands import Call, Housekeep, RevokeToken
from gpushare.core.kinds import Role
from gpushare.core.model import SYSTEM
from gpushare.errors import GpushareError, from_rpc_error
from gpushare.scheduler.server import SERVICES
from gpushare.scheduler.tokens import new_token
from gpushare.v1 import agent_pb2, job_pb2, node_pb2, tenant_pb2, usage_pb2

both_settings = pytest.mark.parametrize("setting", ["cluster", "tenant"])

# Who may call what: written out by hand, not taken from the table that the scheduler uses.
ALLOWED = """
CreateJob        admin user
BatchCreateJobs  admin user
GetJob           admin operator user viewer tenant-admin
ListJobs         admin operator user viewer tenant-admin
CancelJob        admin operator user tenant-admin
ExtendJob        admin operator user tenant-admin
RequeueJob       admin operator user tenant-admin
ResubmitJob      admin user
ExplainJob       admin operator user viewer tenant-admin
WatchJobs        admin operator user viewer tenant-admin
StreamLogs       admin user
Connect          admin user
CreateTenant     admin tenant-admin
GetTenant        admin operator user viewer tenant-admin
ListTenants      admin operator user viewer tenant-admin
UpdateTenant     admin tenant-admin
DeleteTenant     admin
CreateToken      admin tenant-admin
ListTokens       admin tenant-admin
RevokeToken      admin operator user viewer tenant-admin
GetOwnToken      admin operator user viewer tenant-admin
WhoAmI           admin operator user viewer tenant-admin
GetNode          admin operator user viewer tenant-admin
ListNodes        admin operator user viewer tenant-admin
CordonNode       admin operator
UncordonNode     admin operator
DrainNode        admin operator
DeclareNodeDead  admin
CreateJoinToken  admin
PreviewQuota     admin
UpdateNode       admin
PlanRepack       admin
ApplyRepack      admin
CreateReservation admin operator
ListReservations admin operator user viewer tenant-admin
DeleteReservation admin operator
GetUsage         admin operator user viewer tenant-admin
ListAuditEvents  admin
Enroll           anonymous admin operator user viewer agent tenant-admin
Session          agent
SendLogs         agent
IssueLoginToken  agent
Channel          agent
"""
CALLERS = {
    "admin": "root",
    "operator": "olga",
    "tenant-admin": "tina",
    "user": "ann",
    "viewer": "vera",
    "agent": "n1",
}


async def status_of_empty_call(channel: grpc.aio.Channel, path: str, client_streams: bool, server_streams: bool) -> str:
    """How the scheduler answers an empty request; an answer counts as OK without waiting for a stream's end."""
    while True:
        found = await _ask(channel, path, client_streams, server_streams)
        # grpc.aio forgets the answer that it has when a write fails after it (grpc/grpc#36066): ask once more.
        if found != ("INTERNAL", "Internal error from Core"):
            return found[0]


async def _ask(channel: grpc.aio.Channel, path: str, client_streams: bool, server_streams: bool) -> tuple[str, str]:
    try:
        if client_streams:
            call = channel.stream_stream(path)()
            await call.write(b"")
            await call.done_writing()
            await call.read()
            return await _outcome(call)
        if server_streams:
            call = channel.unary_stream(path)(b"")
            await asyncio.wait_for(call.read(), 5)
            return await _outcome(call)
        await channel.unary_unary(path)(b"")
    except grpc.aio.AioRpcError as err:
        return err.code().name, err.details() or ""
    return "OK", ""


async def _outcome(call: Any) -> tuple[str, str]:
    return ((await call.code()).name, await call.details()) if call.done() else ("OK", "")


def test_every_rpc_for_every_role(tmp_path: Path) -> None:
    allowed = {line.split()[0]: set(line.split()[1:]) for line in ALLOWED.strip().splitlines()}
    methods = [method for service in SERVICES for method in service.methods]
    assert sorted(allowed) == sorted(method.name for method in methods)

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.enroll("n1")
            wrong = []
            for method in methods:
                path = f"/{method.containing_service.full_name}/{method.name}"
                for role, who in {**CALLERS, "anonymous": "", "unknown": new_token()}.items():
                    status = await status_of_empty_call(
                        cluster.channel(who), path, method.client_streaming, method.server_streaming
                    )
                    if "anonymous" in allowed[method.name]:
                        # Its secret is judged, not a token.
                        expected = {"INVALID_ARGUMENT"}
                    elif role in ("anonymous", "unknown"):
                        expected = {"UNAUTHENTICATED"}
                    elif role in allowed[method.name]:
                        expected = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
                    else:
                        expected = {"PERMISSION_DENIED"}
                    if status not in expected:
                        wrong.append(f"{method.name} as {role}: {status}, expected {expected}")
            assert wrong == []

    run(test)


def test_no_reflection_and_nothing_else_beside_the_services_but_health(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            for path in (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                "/gpushare.v1.JobService/StealJob",
                "/grpc.channelz.v1.Channelz/GetServers",
            ):
                for who in ("", "root"):
                    assert await status_of_empty_call(cluster.channel(who), path, True, True) == "UNIMPLEMENTED"
            health = await cluster.channel("").unary_unary("/grpc.health.v1.Health/Check")(b"")
            assert health == b"\x08\x01"  # SERVING

    run(test)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer x", "Bearer gps_" + "A" * 43, "Basic cm9vdA==", "Bearer " + "A" * 10_000],
)
def test_no_or_garbage_tokens_are_unauthenticated_everywhere(tmp_path: Path, header: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            jobs = cluster.jobs("")
            metadata = (("authorization", header),) if header else ()
            for call in (
                jobs.GetJob(job_pb2.GetJobRequest(name="tenants/vision/jobs/1"), metadata=metadata),
                jobs.CreateJob(create(), metadata=metadata),
                jobs.WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"), metadata=metadata),
            ):
                error = await refusal(call)
                assert error.status == "UNAUTHENTICATED"
                assert header[7:] not in str(error) or not header[7:]
            assert not cluster.engine.state.jobs

    run(test)


def test_a_token_of_a_mebibyte_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            call = cluster.jobs("").ListJobs(
                job_pb2.ListJobsRequest(parent="tenants/-"),
                metadata=(("authorization", "Bearer gps_" + "A" * (1 << 20)),),
            )
            assert (await refusal(call)).status in ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
            assert await cluster.jobs("ann").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-")) is not None

    run(test)


def test_an_expired_and_a_revoked_token_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            await cluster.add_token("short", Role.USER, "vision", ttl_ms=1)
            token_id = await cluster.add_token("gone", Role.USER, "vision")
            revoke = tenant_pb2.RevokeTokenRequest(name=f"tokens/{token_id}", request_id="r1")
            revoked = await cluster.tenants("root").RevokeToken(revoke)
            assert revoked.HasField("revoke_time")
            again = await cluster.tenants("root").RevokeToken(revoke)
            assert again == revoked
            for who, word in (("short", "expired"), ("gone", "revoked")):
                error = await refusal(cluster.jobs(who).ListJobs(job_pb2.ListJobsRequest(parent="tenants/-")))
                assert (error.status, word in error.message) == ("UNAUTHENTICATED", True)

    run(test)


def test_refused_calls_are_in_the_audit_at_a_bounded_rate_and_without_the_token(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            stolen = new_token()
            for _ in range(50):
                await refusal(cluster.jobs(stolen).ListJobs(job_pb2.ListJobsRequest(parent="tenants/-")))
            await refusal(cluster.tenants("ann").CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="x")))
            answer = await cluster.usage("root").ListAuditEvents(usage_pb2.ListAuditEventsRequest(denials=True))
            denied = [(e.principal.user, e.subject.rpartition("/")[2], e.reason) for e in answer.events]
            assert ("ann", "CreateTenant", "PERMISSION_DENIED") in denied
            unknown = denied.count(("", "ListJobs", "UNAUTHENTICATED"))
            assert 1 <= unknown <= 5
            assert "127.0.0.1" in answer.events[-1].detail_json
            said = str(answer) + repr(await cluster.engine.store_call(lambda store: store.read(0, 1000)))
            for secret in (stolen, *cluster.tokens.values()):
                assert secret not in said
                assert secret[4:] not in said

    run(test)


# -- streams end with their token


async def ended(call: grpc.aio.UnaryStreamCall) -> GpushareError:
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as err:
        return from_rpc_error(err)
    raise AssertionError("the stream ended without an error")


async def revoked_streams(cluster: ApiCluster) -> list[grpc.aio.Call]:
    """A watch and a log that is followed, both open, with the token "streams"."""
    agent = await cluster.agent("n1")
    job = await cluster.submit("streams")
    start = await agent.order("start_attempt")
    await agent.run(start.attempt_id)
    watch = cluster.jobs("streams").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/vision"))
    while not (await watch.read()).caught_up:
        pass
    logs = cluster.jobs("streams").StreamLogs(job_pb2.StreamLogsRequest(name=job.name, follow=True))
    await agent.order("read_logs")
    return [watch, logs]


def test_revocation_ends_open_watches_and_logs_within_a_second(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            token_id = await cluster.add_token("streams", Role.USER, "vision")
            streams = await revoked_streams(cluster)
            await cluster.engine.execute(RevokeToken(token_id), Call(SYSTEM))
            errors = await asyncio.wait_for(asyncio.gather(*(ended(call) for call in streams)), 1.0)
            assert {error.status for error in errors} == {"UNAUTHENTICATED"}

    run(test)


def test_expiry_ends_open_watches_and_logs_within_a_second(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            token_id = await cluster.add_token("streams", Role.USER, "vision", ttl_ms=1_500)
            streams = await revoked_streams(cluster)
            expires_ms = cluster.engine.state.tokens[token_id].expires_ms
            errors = await asyncio.wait_for(asyncio.gather(*(ended(call) for call in streams)), 10)
            assert {error.status for error in errors} == {"UNAUTHENTICATED"}
            assert 0 <= cluster.engine.now_ms() - expires_ms < 1_000

    run(test)


def test_a_new_enrolment_ends_the_older_session_of_its_node(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            await cluster.enroll("n1")
            assert (await asyncio.wait_for(agent.ended(), 2)).status == "UNAUTHENTICATED"

    run(test)


# -- names that are not one's own


@both_settings
def test_another_tenants_job_answers_exactly_like_none(tmp_path: Path, setting: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=setting) as cluster:
            foreign = (await cluster.submit("nina", "nlp")).name
            answers = set()
            for name in (foreign, "tenants/nlp/jobs/999", "tenants/vision/jobs/999", "tenants/nowhere/jobs/1"):
                jobs = cluster.jobs("ann")
                for call in (
                    jobs.GetJob(job_pb2.GetJobRequest(name=name)),
                    jobs.CancelJob(job_pb2.CancelJobRequest(name=name, request_id="r")),
                    jobs.ExplainJob(job_pb2.ExplainJobRequest(name=name)),
                    jobs.StreamLogs(job_pb2.StreamLogsRequest(name=name)),
                ):
                    error = await refusal(call)
                    answers.add((error.status, error.reason, error.message.replace(name, "NAME"), error.what_to_do))
            assert len(answers) == 1
            assert answers.pop()[0] == "NOT_FOUND"
            for parent in ("tenants/nlp", "tenants/nowhere"):
                listings = (
                    cluster.jobs("ann").ListJobs(job_pb2.ListJobsRequest(parent=parent)),
                    cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent=parent)),
                )
                is_listed = setting == "cluster" and parent == "tenants/nlp"
                for call in (
                    *(() if is_listed else listings),
                    cluster.jobs("ann").CreateJob(create(parent[8:])),
                    cluster.tenants("ann").GetTenant(tenant_pb2.GetTenantRequest(name=parent)),
                    cluster.usage("ann").GetUsage(usage_pb2.GetUsageRequest(group=1, tenant=parent[8:])),  # type: ignore[arg-type]
                ):
                    assert (await refusal(call)).status == "NOT_FOUND"
            assert [job.state for job in cluster.engine.state.jobs.values()] == ["QUEUED"]

    run(test)


@pytest.mark.parametrize("job_id", ["", "4", "%", "*", "1*", "1%", "1_", "?", "01", " 1", "1 ", "1/", "' OR 1=1--"])
def test_a_part_or_a_pattern_of_an_id_is_not_found(tmp_path: Path, job_id: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            for _ in range(1):
                await cluster.submit()
            name = f"tenants/vision/jobs/{job_id}"
            assert (await refusal(cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=name)))).status == "NOT_FOUND"
            cancel = job_pb2.CancelJobRequest(name=name, request_id="r")
            assert (await refusal(cluster.jobs("ann").CancelJob(cancel))).status == "NOT_FOUND"
            assert cluster.engine.state.jobs["vision/1"].state == "QUEUED"

    run(test)


@both_settings
def test_similar_tenant_names_do_not_mix(tmp_path: Path, setting: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=setting) as cluster:
            for tenant in ("acme", "acme-2"):
                request = tenant_pb2.CreateTenantRequest(tenant_id=tenant, request_id=tenant)
                await cluster.tenants("root").CreateTenant(request)
                await cluster.add_token(f"user-{tenant}", Role.USER, tenant)
                await cluster.submit(f"user-{tenant}", tenant)
            for tenant in ("acme", "acme-2"):
                answer = await cluster.jobs(f"user-{tenant}").ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
                assert [job.tenant for job in answer.jobs if not job.foreign] == [tenant]
                assert len(answer.jobs) == (2 if setting == "cluster" else 1)
                listed = await cluster.tenants(f"user-{tenant}").ListTenants(tenant_pb2.ListTenantsRequest())
                assert [t.name for t in listed.tenants] == [f"tenants/{tenant}"]

    run(test)


def test_within_a_tenant_others_see_that_a_job_is_there_and_not_what_it_runs(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            job = await cluster.submit("ann", argv=["secret"], script=b"secret", env={"A": "secret"})
            request = job_pb2.GetJobRequest(name=job.name)
            for who in ("ann", "root"):
                seen = await cluster.jobs(who).GetJob(request)
                assert (list(seen.spec.argv), seen.spec.script, seen.redacted) == (["secret"], b"secret", False)
            for who in ("bob", "vera", "olga"):
                seen = await cluster.jobs(who).GetJob(request)
                assert seen.redacted
                assert seen.created_by.user == "ann"
                assert b"secret" not in seen.SerializeToString()
                listed = await cluster.jobs(who).ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
                assert b"secret" not in listed.SerializeToString()
                watch = cluster.jobs(who).WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
                first = await watch.read()
                assert (first.job.name, b"secret" in first.SerializeToString()) == (job.name, False)
                watch.cancel()

    run(test)


def test_a_user_cancels_and_reads_only_their_own_jobs(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            job = await cluster.submit("ann")
            cancel = job_pb2.CancelJobRequest(name=job.name, request_id="r1")
            logs = job_pb2.StreamLogsRequest(name=job.name)
            error = await refusal(cluster.jobs("bob").CancelJob(cancel))
            assert (error.status, "ann" in error.message) == ("PERMISSION_DENIED", True)
            for who in ("bob", "vera", "olga"):
                assert (await refusal(cluster.jobs(who).StreamLogs(logs))).status == "PERMISSION_DENIED"
            assert (await refusal(cluster.jobs("nina").CancelJob(cancel))).status == "NOT_FOUND"
            assert cluster.engine.state.jobs["vision/1"].state == "QUEUED"
            ended = await cluster.jobs("olga").CancelJob(cancel)
            assert (ended.state, ended.cancelled_by.user) == (job_pb2.JOB_STATE_CANCELLED, "olga")
            assert ended.redacted

    run(test)


def test_a_tenants_watch_shows_its_own_events_only(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility="tenant") as cluster:
            await cluster.submit("nina", "nlp")
            watch = cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
            assert (await watch.read()).caught_up
            await cluster.submit("nina", "nlp")
            mine = await cluster.submit("ann")
            await cluster.submit("nina", "nlp")
            assert (await watch.read()).job.name == mine.name
            everything = cluster.jobs("olga").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
            seen = [await everything.read() for _ in range(5)]
            assert [m.job.tenant for m in seen] == ["nlp", "nlp", "vision", "nlp", ""]
            watch.cancel()
            everything.cancel()

    run(test)


def test_where_the_cluster_is_open_a_watch_of_all_tenants_shows_others_events_without_what_they_hide(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            hidden = {"argv": ["secret"], "env": {"A": "secret"}, "name": "secret", "labels": {"secret": "1"}}
            await cluster.submit("nina", "nlp", **hidden)
            for parent in ("tenants/-", "tenants/nlp"):
                watch = cluster.jobs("ann").WatchJobs(job_pb2.WatchJobsRequest(parent=parent))
                first = await watch.read()
                assert (first.job.name, first.job.created_by.user) == ("tenants/nlp/jobs/1", "nina")
                assert (await watch.read()).caught_up
                made = await cluster.submit("nina", "nlp", **hidden)
                cancel = job_pb2.CancelJobRequest(name=made.name, request_id=parent)
                await cluster.jobs("nina").CancelJob(cancel)
                told = [first, await watch.read(), await watch.read()]
                assert [m.job.state for m in told[1:]] == [job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_CANCELLED]
                assert all(m.job.foreign and b"secret" not in m.SerializeToString() for m in told)
                watch.cancel()
                await cluster.engine.execute(Housekeep(cluster.engine.now_ms() + 1000), Call(SYSTEM))

    run(test)


def test_an_isolated_tenant_is_gone_from_open_watches_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            watch = cluster.jobs("nina").WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
            assert (await watch.read()).caught_up
            await cluster.submit("ann")
            assert (await watch.read()).job.tenant == "vision"
            for isolated in (True, False):
                settings = tenant_pb2.TenantSettings(isolated=isolated)
                request = tenant_pb2.UpdateTenantRequest(name="tenants/vision", settings=settings)
                request.request_id = f"i{isolated}"
                await cluster.tenants("root").UpdateTenant(request)
                await cluster.submit("ann", display_name=str(isolated))
                await cluster.submit("nina", "nlp", display_name=str(isolated))
            seen = [(await watch.read()).job for _ in range(3)]
            assert [(job.tenant, job.id) for job in seen] == [("nlp", "1"), ("vision", "3"), ("nlp", "2")]
            watch.cancel()

    run(test)


def test_only_an_admin_submits_for_another_tenant(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            job = await cluster.submit("root", "nlp")
            assert (job.tenant, job.created_by.user, job.created_by.tenant) == ("nlp", "root", "vision")
            error = await refusal(cluster.jobs("olga").CreateJob(create("vision")))
            assert error.status == "PERMISSION_DENIED"

    run(test)


@both_settings
def test_nodes_are_open_to_all_and_whose_work_is_on_them_to_those_who_see_it(tmp_path: Path, setting: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=setting) as cluster:
            agent = await cluster.agent("n1")
            stranger = node_pb2.Stranger(pid=77, user="mallory", memory_mib=100)
            await agent.sync(
                conditions=[
                    agent_pb2.GpuCondition(uuid="GPU-n1-0", state=node_pb2.GPU_STATE_HEALTHY, strangers=[stranger])
                ]
            )
            for who, tenant in (("ann", "vision"), ("nina", "nlp")):
                await cluster.submit(who, tenant)
                await agent.order("start_attempt")
            seen = {}
            for who in ("root", "olga", "ann", "vera", "nina"):
                node = await cluster.nodes(who).GetNode(node_pb2.GetNodeRequest(name="nodes/n1"))
                listed = await cluster.nodes(who).ListNodes(node_pb2.ListNodesRequest())
                assert list(listed.nodes) == [node]
                assert (node.gpus[0].allocated_milli, node.gpus[0].strangers[0].memory_mib) == (500, 100)
                seen[who] = (sorted(node.gpus[0].attempt_ids), node.gpus[0].strangers[0].user)
            both = ["nlp.1.0.1", "vision.1.0.1"]
            assert seen == {
                "root": (both, "mallory"),
                "olga": (both, "mallory"),
                "ann": (both, "mallory") if setting == "cluster" else (["vision.1.0.1"], ""),
                "vera": (both, "mallory") if setting == "cluster" else (["vision.1.0.1"], ""),
                "nina": (both, "mallory") if setting == "cluster" else (["nlp.1.0.1"], ""),
            }

    run(test)


# -- tokens and enrolment through the API


def test_a_token_is_shown_once_and_a_repeated_call_makes_no_second_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            request = tenant_pb2.CreateTokenRequest(
                user="carl", role=tenant_pb2.ROLE_USER, tenant="vision", unix_user="carl", request_id="r1"
            )
            made = await cluster.tenants("root").CreateToken(request)
            assert made.secret.startswith("gps_")
            assert made.secret not in made.token.SerializeToString().decode("latin-1")
            listed = await cluster.jobs(made.secret).ListJobs(job_pb2.ListJobsRequest(parent="tenants/-"))
            assert list(listed.jobs) == []
            count = len(cluster.engine.state.tokens)
            error = await refusal(cluster.tenants("root").CreateToken(request))
            assert (error.status, error.reason) == ("ALREADY_EXISTS", "ALREADY_EXISTS")
            assert made.token.name in error.message
            assert made.token.name in error.what_to_do
            assert len(cluster.engine.state.tokens) == count
            tokens = await cluster.tenants("root").ListTokens(tenant_pb2.ListTokensRequest(tenant="vision"))
            assert made.token in tokens.tokens
            assert made.secret.encode() not in tokens.SerializeToString()

    run(test)


def test_an_agent_enrols_once_with_a_join_line_and_speaks_for_its_node_alone(tmp_path: Path) -> None:
    from gpushare.join import decode_join

    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            ask = node_pb2.CreateJoinTokenRequest(node="n7", request_id="r1")
            made = await cluster.nodes("root").CreateJoinToken(ask)
            join = decode_join(made.join)
            assert (join.address, join.is_for_agent) == (cluster.address, True)
            assert (await refusal(cluster.nodes("root").CreateJoinToken(ask))).status == "ALREADY_EXISTS"
            enroll = agent_pb2.EnrollRequest(secret=join.secret, instance_id="i1")
            enrolled = await cluster.agents("").Enroll(enroll)
            assert enrolled.node == "n7"
            again = await refusal(cluster.agents("").Enroll(enroll))
            assert (again.status, again.reason) == ("UNAUTHENTICATED", "JOIN_SECRET_INVALID")
            assert join.secret not in str(again)
            cluster.tokens["n7"] = enrolled.token
            agent = await cluster.agent("n7")

            async def ready() -> bool:
                node = await cluster.nodes("ann").GetNode(node_pb2.GetNodeRequest(name="nodes/n7"))
                return bool(node.ready)

            await until(ready, "ready")
            await agent.close()

    run(test)


@pytest.mark.parametrize("secret", ["", "gpj_" + "A" * 43, "gps_" + "A" * 43, "x" * 100_000])
def test_a_wrong_join_secret_is_unauthenticated(tmp_path: Path, secret: str) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            error = await refusal(cluster.agents("").Enroll(agent_pb2.EnrollRequest(secret=secret, instance_id="i1")))
            assert (error.status, error.reason) == ("UNAUTHENTICATED", "JOIN_SECRET_INVALID")
            assert not cluster.engine.state.nodes

    run(test)


def test_two_callers_with_the_same_request_id_are_independent(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            made = []
            for who, tenant in (("ann", "vision"), ("bob", "vision"), ("nina", "nlp"), ("ann", "vision")):
                request = create(tenant)
                request.request_id = "same"
                made.append((await cluster.jobs(who).CreateJob(request)).jobs[0].name)
            assert made == ["tenants/vision/jobs/1", "tenants/vision/jobs/2", "tenants/nlp/jobs/1", made[0]]

    run(test)


def test_a_channel_to_another_machine_needs_tls() -> None:
    with pytest.raises(GpushareError, match="TLS"):
        rpc.aio_channel("192.0.2.1:7480", token=new_token())
