"""Every field of every listing, and who sees it: `docs/visibility.txt` against what the API really answers.

The records hold something in every field (`filled`), so a field shows wherever it is not hidden. That the table knows
every field that there is, is for `tests/core/test_docs_generated.py`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from api_cluster import ApiCluster, WireAgent, api_cluster, run, until
from filled import HIDDEN, filled, made
from google.protobuf.message import Message

from gpushare.core.commands import Call, CreateReservation, CreateTenant, CreateToken, RevokeToken, UpdateTenant
from gpushare.core.explain import Explanation
from gpushare.core.kinds import GpuState, JobState, Role
from gpushare.core.model import SYSTEM, Account, TenantSettings
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, from_rpc_error
from gpushare.reasons import Reason
from gpushare.v1 import agent_pb2, job_pb2, node_pb2, tenant_pb2, usage_pb2

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)

TABLE = generate.visibility_table()
# Callers, and the column of the table that is theirs; the tenant of each but nlp's is vision, or none.
COLUMN_OF = {
    "ann": "own",
    "bob": "mate",
    "vera": "mate",
    "tina": "tenant-admin",
    "olga": "operator",
    "root": "admin",
    "nina": "other",
    "nick": "other",
    "nora": "other",
}
# What is set: the cluster's visibility, and the tenant that is isolated.
SETTINGS = (("cluster", ""), ("tenant", ""), ("cluster", "vision"), ("cluster", "nlp"), ("cluster", "lab"))
FAR_MS = 3_600_000

Seen = dict[str, set[str]]


def set_fields(root: str, message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        inner = field.message_type
        if inner is None or inner.file.package != "gpushare.v1" or inner.GetOptions().map_entry:
            yield f"{root}.{field.name}"
        else:
            for each in value if field.is_repeated else [value]:
                yield from set_fields(f"{root}.{field.name}", each)


# -- the answers


async def a_full_cluster(cluster: ApiCluster) -> WireAgent:
    """vision, below lab, with a job that runs on the one card and one that waits for it."""
    system = Call(SYSTEM)
    await cluster.engine.execute(CreateTenant("lab", TenantSettings()), system)
    await cluster.engine.execute(UpdateTenant("vision", TenantSettings(parent="lab")), system)
    for who, role in (("nick", Role.TENANT_ADMIN), ("nora", Role.VIEWER)):
        await cluster.add_token(who, role, "nlp")
    ends = CreateToken("ends", "sha", "carl", Role.USER, "vision", unix_user=HIDDEN, ttl_ms=FAR_MS)
    await cluster.engine.execute(ends, system)
    await cluster.engine.execute(RevokeToken("ends"), system)
    now_ms = cluster.engine.now_ms()
    await cluster.enroll("n1")
    agent = WireAgent(cluster, "n1")
    agent.hello.wall_time.FromMilliseconds(now_ms + FAR_MS)
    await agent.connect()
    await agent.sync(
        labels={"rack": "r1"},
        driver_version="1",
        address="10.0.0.1",
        gpus=[card_with_everything()],
    )
    whole = job_pb2.Resources(gpus=1)
    limit = {"max_run_duration": {"seconds": 3600}}
    await cluster.submit("ann", resources=whole, **limit)
    start = await agent.order("start_attempt")
    await agent.run(start.attempt_id)
    window = {"start_ms": now_ms + 10 * FAR_MS, "end_ms": now_ms + 11 * FAR_MS}
    await cluster.engine.execute(CreateReservation(name="lesson", tenant="vision", gpus=1, **window), system)
    await cluster.submit("ann", resources=job_pb2.Resources(gpu_milli=250, gpu_memory_mib=1024), **limit)
    await until(functools.partial(planned, cluster), "the waiting job has its start planned")
    report = agent_pb2.GpuReport()
    report.samples["GPU-n1-0"].CopyFrom(
        node_pb2.GpuSample(used_mib=1, free_mib=1, sm_percent=1, power_mw=1, energy_mj=1, temperature_c=1)
    )
    report.samples["GPU-n1-0"].sample_time.FromMilliseconds(now_ms)
    report.attempt_use[start.attempt_id].CopyFrom(agent_pb2.AttemptUse(used_mib=1, sm_percent=1))
    await agent.call.write(agent_pb2.AgentMessage(gpu_report=report))
    await until(functools.partial(measured, cluster), "its use is measured")
    return agent


def card_with_everything() -> agent_pb2.GpuInventory:
    from api_cluster import card

    offers = [
        node_pb2.TierOffer(tier="exclusive", enforcement=job_pb2.ENFORCEMENT_HARD, can_suspend=True),
        node_pb2.TierOffer(tier="mps-v2", enforcement=job_pb2.ENFORCEMENT_SERVER, absent_because=HIDDEN),
        node_pb2.TierOffer(tier="timeslice", enforcement=job_pb2.ENFORCEMENT_SOFT),
    ]
    inventory: agent_pb2.GpuInventory = card("n1", index=1, domain="d", tiers=offers)
    return inventory


async def planned(cluster: ApiCluster) -> bool:
    job = await cluster.jobs("root").GetJob(job_pb2.GetJobRequest(name="tenants/vision/jobs/2"))
    return bool(job.HasField("expected_start_time"))


async def measured(cluster: ApiCluster) -> bool:
    job = await cluster.jobs("root").GetJob(job_pb2.GetJobRequest(name="tenants/vision/jobs/1"))
    return bool(job.tasks[0].HasField("used_mib"))


@contextmanager
def everything_filled(cluster: ApiCluster) -> Iterator[None]:
    """For reading alone: nothing is dirty, so no pass decides on it, and at the end all is as it was."""
    state = cluster.engine.state
    before = [dict(records) for records in (state.jobs, state.nodes, state.tenants, state.reservations)]
    fill_up(state)
    try:
        yield
    finally:
        state.jobs, state.nodes, state.tenants, state.reservations = before  # type: ignore[assignment]


def fill_up(state: ClusterState) -> None:
    node, tenant = state.nodes["n1"], state.tenants["vision"]
    running, waiting = state.jobs["vision/1"], state.jobs["vision/2"]
    (attempt,) = running.attempts
    kept = ("tenant", "created_by", "id", "job_id", "task", "created_ms", "submit_seq", "not_before_ms", "base_round")
    attempt = filled(attempt, *kept, "suspended_ms", reason=Reason.TIME_LIMIT, charged_milli_ms=FAR_MS)
    other = filled(attempt, *kept, job_id="2")
    spec = filled(running.spec, resources=filled(running.spec.resources, "gpu_milli", "gpu_memory_mib"))
    state.jobs[running.key] = filled(running, *kept, spec=spec, attempts=[attempt], reason=Reason.TIME_LIMIT)
    # Its request stays, since the last pass has judged it by that.
    waits = {"spec": waiting.spec, "attempts": [other], "base_round": 1, "reason": Reason.TIME_LIMIT}
    state.jobs[waiting.key] = filled(waiting, *kept, "array_id", "shared_path", **waits)
    (card,) = node.gpus.values()
    card = msgspec.structs.replace(card, condition=filled(card.condition, state=GpuState.DEGRADED))
    state.nodes["n1"] = filled(node, "power", cordoned=True, drain=True, gpus={card.uuid: card})
    state.nodes["n2"] = filled(node, "power", name="n2", gpus={}, attempts=set(), drain=True)
    settings, account = filled(tenant.settings, "isolated"), Account(1e15, 1000, state.at_ms)
    state.tenants["vision"] = filled(tenant, "deleted", settings=settings, account=account)
    lesson = state.reservations["lesson"]
    repeats = {"repeat_ms": 24 * FAR_MS, "until_ms": lesson.start_ms + 100 * FAR_MS}
    state.reservations["lesson"] = filled(lesson, "maintenance", **repeats)


async def answers(cluster: ApiCluster, who: str) -> Seen:
    """What `who` is told of vision's: "list" by listings, watches and single answers; "get" by GetJob."""
    jobs, nodes, tenants, usage = cluster.jobs(who), cluster.nodes(who), cluster.tenants(who), cluster.usage(who)
    seen: Seen = {"list": set(), "get": set()}

    def note(kind: str, messages: Any) -> None:
        for message in messages:
            seen[kind].update(set_fields(message.DESCRIPTOR.name, message))

    listed = await asked(jobs.ListJobs(job_pb2.ListJobsRequest(parent="tenants/-", show_ended=True)))
    note("list", listed.jobs if listed else [])
    note("list", [job async for job in watched(jobs)])
    for number in (1, 2):
        name = f"tenants/vision/jobs/{number}"
        note("get", filter(None, [await asked(jobs.GetJob(job_pb2.GetJobRequest(name=name)))]))
    note("list", filter(None, [await asked(jobs.ExplainJob(job_pb2.ExplainJobRequest(name=name)))]))
    note("list", (await nodes.ListNodes(node_pb2.ListNodesRequest())).nodes)
    note("list", [await nodes.GetNode(node_pb2.GetNodeRequest(name="nodes/n1"))])
    reserved = await cluster.reservations(who).ListReservations(node_pb2.ListReservationsRequest())
    note("list", reserved.reservations)
    told = [await asked(tenants.GetTenant(tenant_pb2.GetTenantRequest(name="tenants/vision")))]
    told += (await tenants.ListTenants(tenant_pb2.ListTenantsRequest())).tenants
    note("list", [each for each in told if each and each.name == "tenants/vision"])
    tokens = await asked(tenants.ListTokens(tenant_pb2.ListTokensRequest()))
    note("list", [each for each in tokens.tokens if each.tenant != "nlp"] if tokens else [])
    for group in (1, 2, 3):
        answer = await asked(usage.GetUsage(usage_pb2.GetUsageRequest(group=group, tenant="vision")))
        note("list", answer.rows if answer else [])
    for denials in (False, True):
        audit = await asked(usage.ListAuditEvents(usage_pb2.ListAuditEventsRequest(denials=denials)))
        note("list", audit.events if audit else [])
    return seen


async def asked(call: Any) -> Any:
    """The answer; None for what the caller may not ask, or see."""
    import grpc.aio

    try:
        return await call
    except grpc.aio.AioRpcError as err:
        error: GpushareError = from_rpc_error(err)
        assert error.status in ("NOT_FOUND", "PERMISSION_DENIED"), error
        return None


async def watched(jobs: Any) -> Any:
    watch = jobs.WatchJobs(job_pb2.WatchJobsRequest(parent="tenants/-"))
    while not (message := await watch.read()).caught_up:
        yield message.job
    watch.cancel()


def expected(column: str, is_open: bool, own_is_open: bool) -> Seen:
    """What the table says of one column. `own_is_open`: the reader's tenant is not isolated, nor is the cluster."""
    codes = {path: row[column] for path, row in TABLE.items()}
    listed = {
        path for path, code in codes.items() if code == "y" or (code, True) in (("c", is_open), ("p", own_is_open))
    }
    single = {path for path, code in codes.items() if code in ("y", "g") and path.startswith("Job.")}
    return {"list": listed, "get": set() if column == "other" else single}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Seen]:
    """By visibility, isolated tenant and caller."""
    found: dict[tuple[str, str, str], Seen] = {}

    async def under(visibility: str, isolated: str) -> None:
        state_dir = tmp_path_factory.mktemp("visibility")
        async with api_cluster(state_dir, visibility=visibility, lease_ttl_ms=FAR_MS) as cluster:
            agent = await a_full_cluster(cluster)
            explanation = made(Explanation, job="vision/2", state=JobState.QUEUED)
            explanation = msgspec.structs.replace(explanation, **dict.fromkeys(KEYS, ("vision/1",)))

            async def explained(key: str, sees: Any) -> Explanation:
                return explanation

            cluster.engine.explain = explained  # type: ignore[method-assign]
            with everything_filled(cluster):
                if isolated:
                    tenants = cluster.engine.state.tenants
                    settings = msgspec.structs.replace(tenants[isolated].settings, isolated=True)
                    tenants[isolated] = msgspec.structs.replace(tenants[isolated], settings=settings)
                for who in COLUMN_OF:
                    found[visibility, isolated, who] = await answers(cluster, who)
            await agent.close()

    async def test() -> None:
        for visibility, isolated in SETTINGS:
            await under(visibility, isolated)

    run(test)
    return found


# Names of other jobs in an explanation.
KEYS = ("blocking_jobs", "ahead", "victims")


@pytest.mark.parametrize(("visibility", "isolated"), SETTINGS)
@pytest.mark.parametrize("who", COLUMN_OF)
def test_nobody_is_told_more_than_the_table_says(
    told: dict[tuple[str, str, str], Seen], who: str, visibility: str, isolated: str
) -> None:
    is_open = visibility == "cluster"
    own = ("nlp",) if COLUMN_OF[who] == "other" else ("vision", "lab")
    allowed = expected(COLUMN_OF[who], is_open and not isolated, is_open and isolated not in own)
    for kind, fields in told[visibility, isolated, who].items():
        assert sorted(fields - allowed[kind]) == [], kind


@pytest.mark.parametrize("who", COLUMN_OF)
def test_and_everything_that_it_says(told: dict[tuple[str, str, str], Seen], who: str) -> None:
    """A field that no record here fills has a ~ in the table."""
    allowed = expected(COLUMN_OF[who], is_open=True, own_is_open=True)
    for kind, paths in allowed.items():
        seen = {path for (_, _, name), each in told.items() if name == who for path in each[kind]}
        filled_in = {path for path in paths if not TABLE[path]["unfilled"]}
        assert sorted(filled_in - seen) == [], kind
