"""Reservations, node settings and quota previews through the API: who may, what they are told, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from api_cluster import ApiCluster, api_cluster, card, refusal, run, until

from gpushare.v1 import job_pb2, node_pb2, tenant_pb2, usage_pb2

HOUR_MS = 3_600_000


def reserve(cluster: ApiCluster, name: str = "lesson", **fields: Any) -> node_pb2.CreateReservationRequest:
    """One card for vision, for an hour from an hour on; fields as ms from now where they are times."""
    now_ms = cluster.engine.now_ms()
    start_ms, end_ms = fields.pop("start_ms", HOUR_MS), fields.pop("end_ms", 2 * HOUR_MS)
    base: dict[str, Any] = {"tenant": "vision", "gpus": 1, "request_id": f"r-{name}"}
    request = node_pb2.CreateReservationRequest(reservation_id=name, **{**base, **fields})
    if start_ms is not None:
        request.start_time.FromMilliseconds(now_ms + start_ms)
    if end_ms is not None:
        request.end_time.FromMilliseconds(now_ms + end_ms)
    return request


def maintain(cluster: ApiCluster, **fields: Any) -> node_pb2.CreateReservationRequest:
    request = reserve(cluster, "fans", tenant="", maintenance=True, nodes=["n1"], detail="new fans", **fields)
    request.ClearField("gpus")
    return request


def api_test(tmp_path: Path, body: Any, visibility: str = "cluster") -> None:
    async def test() -> None:
        async with api_cluster(tmp_path, visibility=visibility) as cluster:
            await cluster.agent("n1", cards=2)
            await body(cluster)

    run(test)


def test_a_reservation_is_made_listed_and_deleted(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        made = await cluster.reservations("root").CreateReservation(
            reserve(cluster, users=["ann"], detail="the course", gpu_model="A100|H100-80GB")
        )
        found = made.reservation
        assert (found.name, found.tenant, list(found.users)) == ("reservations/lesson", "vision", ["ann"])
        assert [(c.node, c.gpu_milli) for c in found.cards] == [("n1", 1000)]
        assert found.next_start_time == found.start_time
        assert (found.created_by, found.detail, found.HasField("repeat")) == ("root", "the course", False)
        listed = await cluster.reservations("root").ListReservations(node_pb2.ListReservationsRequest())
        assert list(listed.reservations) == [found]
        delete = node_pb2.DeleteReservationRequest(name=found.name, request_id="d1")
        await cluster.reservations("root").DeleteReservation(delete)
        await cluster.reservations("root").DeleteReservation(delete)
        listed = await cluster.reservations("root").ListReservations(node_pb2.ListReservationsRequest())
        assert list(listed.reservations) == []
        audit = await cluster.usage("root").ListAuditEvents(usage_pb2.ListAuditEventsRequest(kind="ReservationDeleted"))
        assert [(e.principal.user, e.subject) for e in audit.events] == [("root", found.name)]
        audit = await cluster.usage("root").ListAuditEvents(usage_pb2.ListAuditEventsRequest(kind="ReservationCreated"))
        assert [(e.principal.user, e.subject) for e in audit.events] == [("root", found.name)]

    api_test(tmp_path, body)


@pytest.mark.parametrize("setting", ["cluster", "tenant"])
def test_others_see_that_room_is_promised_and_not_what_for(tmp_path: Path, setting: str) -> None:
    async def body(cluster: ApiCluster) -> None:
        await cluster.reservations("root").CreateReservation(reserve(cluster, users=["ann"], detail="secret"))
        await cluster.reservations("olga").CreateReservation(
            maintain(cluster, start_ms=3 * HOUR_MS, end_ms=4 * HOUR_MS)
        )
        for who, hidden in (("ann", False), ("vera", False), ("tina", False), ("olga", False), ("nina", True)):
            listed = await cluster.reservations(who).ListReservations(node_pb2.ListReservationsRequest())
            fans, lesson = listed.reservations
            assert (fans.maintenance, fans.redacted, fans.detail) == (True, False, "new fans")
            assert lesson.redacted is hidden
            tenant = "" if hidden and setting == "tenant" else "vision"
            assert ("secret" in str(lesson), lesson.tenant) == (not hidden, tenant)
            assert (list(lesson.users), lesson.created_by) == (([], "") if hidden else (["ann"], "root"))
            assert lesson.HasField("next_start_time")
            assert lesson.cards[0].gpu_milli == 1000

    api_test(tmp_path, body, visibility=setting)


def test_an_operator_closes_nodes_and_gives_nobody_anything(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        api = cluster.reservations("olga")
        assert (await refusal(api.CreateReservation(reserve(cluster)))).status == "PERMISSION_DENIED"
        await cluster.reservations("root").CreateReservation(reserve(cluster))
        delete = node_pb2.DeleteReservationRequest(name="reservations/lesson", request_id="d1")
        assert (await refusal(api.DeleteReservation(delete))).status == "PERMISSION_DENIED"
        assert list(cluster.engine.state.reservations) == ["lesson"]
        later = maintain(cluster, start_ms=3 * HOUR_MS, end_ms=4 * HOUR_MS)
        assert (await api.CreateReservation(later)).reservation.maintenance
        delete = node_pb2.DeleteReservationRequest(name="reservations/fans", request_id="d2")
        await api.DeleteReservation(delete)

    api_test(tmp_path, body)


def test_jobs_that_may_still_be_there_are_named(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        agent_job = await cluster.submit()
        await until(
            lambda: cluster.engine.read(lambda state: bool(state.jobs["vision/1"].live())), "the job has its place"
        )
        made = await cluster.reservations("olga").CreateReservation(maintain(cluster, start_ms=0))
        assert len(made.jobs_in_the_way) == 1
        assert agent_job.id in made.jobs_in_the_way[0]

    api_test(tmp_path, body)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"start_ms": None}, "start_time"),
        ({"end_ms": None}, "end_time"),
        ({"end_ms": HOUR_MS}, "end_time"),
        ({"end_ms": -HOUR_MS, "start_ms": -2 * HOUR_MS}, "end_time"),
        ({"tenant": "nobody"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"nodes": ["n9"]}, "nodes"),
        ({"gpus": 0}, "gpus"),
        ({"gpus": -1}, "gpus"),
        ({"gpus": 2**63 - 1}, "gpus"),
        ({"gpus": 1, "gpu_milli": 500}, "gpus"),
        ({"gpus": None, "gpu_milli": 1001}, "gpu_milli"),
        ({"gpus": None, "gpu_memory_mib": 2**62}, "gpu_memory_mib"),
        ({"name": "../x"}, "name"),
        ({"name": ""}, "name"),
        ({"users": ["Ann Smith"]}, "users"),
        ({"end_ms": 10**13}, "end_time"),
    ],
)
def test_what_cannot_be_reserved_is_refused_by_field(tmp_path: Path, fields: dict[str, Any], field: str) -> None:
    async def body(cluster: ApiCluster) -> None:
        error = await refusal(cluster.reservations("root").CreateReservation(reserve(cluster, **fields)))
        assert error.status in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION")
        assert [violation.field for violation in error.violations] == [field]
        assert not cluster.engine.state.reservations

    api_test(tmp_path, body)


def test_pages_of_reservations(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        for place in range(3):
            start_ms = (1 + 2 * place) * HOUR_MS
            request = reserve(cluster, f"r{place}", start_ms=start_ms, end_ms=start_ms + HOUR_MS)
            await cluster.reservations("root").CreateReservation(request)
        seen, token = [], ""
        for _ in range(2):
            request = node_pb2.ListReservationsRequest(page_size=2, page_token=token)
            page = await cluster.reservations("ann").ListReservations(request)
            seen += [each.name for each in page.reservations]
            token = page.next_page_token
        assert (seen, token) == ([f"reservations/r{place}" for place in range(3)], "")

    api_test(tmp_path, body)


def test_a_node_is_overcommitted_by_an_admin(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        update = node_pb2.UpdateNodeRequest(name="nodes/n1", compute_overcommit_milli=1500, request_id="u1")
        assert (await refusal(cluster.nodes("olga").UpdateNode(update))).status == "PERMISSION_DENIED"
        changed = await cluster.nodes("root").UpdateNode(update)
        assert changed.compute_overcommit_milli == 1500
        assert [gpu.capacity_milli for gpu in changed.gpus] == [1500, 1500]
        update = node_pb2.UpdateNodeRequest(name="nodes/n1", compute_overcommit_milli=999, request_id="u2")
        error = await refusal(cluster.nodes("root").UpdateNode(update))
        assert [violation.field for violation in error.violations] == ["compute_overcommit_milli"]

    api_test(tmp_path, body)


def test_a_preview_names_who_would_wait_and_changes_nothing(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        jobs = [await cluster.submit(resources=job_pb2.Resources(gpus=1)) for _ in range(3)]
        before = cluster.engine.state.seq
        change = tenant_pb2.QuotaChange(name="tenants/vision", settings=tenant_pb2.TenantSettings(limit_milli=500))
        answer = await cluster.tenants("root").PreviewQuota(tenant_pb2.PreviewQuotaRequest(changes=[change]))
        told = [(job.name, job.effect) for job in answer.jobs]
        assert (jobs[2].name, tenant_pb2.QUOTA_EFFECT_WOULD_WAIT) in told
        assert cluster.engine.state.tenants["vision"].settings.limit_milli is None
        assert all(e.principal.user != "root" for e in await events_since(cluster, before))
        for name, settings, status in (
            ("tenants/nobody", {}, "NOT_FOUND"),
            ("tenants/vision", {"weight": 0}, "INVALID_ARGUMENT"),
            ("tenants/vision", {"parent": "tenants/vision"}, "INVALID_ARGUMENT"),
        ):
            change = tenant_pb2.QuotaChange(name=name, settings=tenant_pb2.TenantSettings(**settings))
            call = cluster.tenants("root").PreviewQuota(tenant_pb2.PreviewQuotaRequest(changes=[change]))
            assert (await refusal(call)).status == status

    api_test(tmp_path, body)


async def events_since(cluster: ApiCluster, seq: int) -> list[Any]:
    answer = await cluster.usage("root").ListAuditEvents(usage_pb2.ListAuditEventsRequest())
    return [event for event in answer.events if event.sequence > seq]


def test_an_unknown_kind_of_event_is_refused_with_those_that_are_near(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        request = usage_pb2.ListAuditEventsRequest(kind="JobCreated")
        error = await refusal(cluster.usage("root").ListAuditEvents(request))
        assert [violation.field for violation in error.violations] == ["kind"]
        assert "JobsCreated" in error.message

    api_test(tmp_path, body)


def test_the_fields_of_a_job_go_there_and_back(tmp_path: Path) -> None:
    async def body(cluster: ApiCluster) -> None:
        first = await cluster.submit()
        spec = job_pb2.JobSpec(
            tasks=4,
            min_tasks=2,
            qos=job_pb2.QOS_BURST,
            preemption=job_pb2.PREEMPTION_CANCEL,
            on_task_failure=job_pb2.ON_TASK_FAILURE_CONTINUE,
            topology=job_pb2.TOPOLOGY_NODE,
            after=[job_pb2.Dependency(job=first.name, kind=job_pb2.DEPENDENCY_KIND_AFTERANY)],
        )
        spec.start_within.FromMilliseconds(90_000)
        fields = {field.name: value for field, value in spec.ListFields()}
        job = await cluster.submit(**fields)
        for field, value in fields.items():
            assert getattr(job.spec, field) == value, field

        async def waits() -> bool:
            again = await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=job.name))
            assert again.spec == job.spec
            return again.wait.reason == "DEPENDENCY"

        await until(waits, "it waits for the first job")

    api_test(tmp_path, body)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"qos": 9}, "INVALID_ARGUMENT"),
        ({"preemption": 9}, "INVALID_ARGUMENT"),
        ({"on_task_failure": 9}, "INVALID_ARGUMENT"),
        ({"topology": 9}, "INVALID_ARGUMENT"),
        ({"after": [job_pb2.Dependency(job="tenants/vision/jobs/99")]}, "NOT_FOUND"),
        ({"after": [job_pb2.Dependency(job="tenants/nlp/jobs/1")]}, "NOT_FOUND"),
        ({"after": [job_pb2.Dependency(job="train")]}, "NOT_FOUND"),
        ({"after": [job_pb2.Dependency(job="tenants/vision/jobs/1", kind=9)]}, "INVALID_ARGUMENT"),
    ],
)
def test_what_no_job_can_say_is_refused(tmp_path: Path, fields: dict[str, Any], status: str) -> None:
    async def body(cluster: ApiCluster) -> None:
        await cluster.submit("nina", "nlp")
        before = len(cluster.engine.state.jobs)
        with pytest.raises(Exception, match=status):
            await cluster.submit(**fields)
        assert len(cluster.engine.state.jobs) == before

    api_test(tmp_path, body)


def test_a_repack_is_planned_and_carried_out_on_command_alone(tmp_path: Path) -> None:
    """Two jobs lie on two cards where one card would do: the plan says so, and the command moves one of them."""

    async def body(cluster: ApiCluster) -> None:
        parks = node_pb2.TierOffer(tier="timeslice", enforcement=job_pb2.ENFORCEMENT_SOFT, can_suspend=True)
        agent = await cluster.agent("n2")
        await agent.sync(gpus=[card("n2", place, tiers=[parks], model="A100") for place in range(2)])
        jobs = []
        for milli in (600, 500, 300):
            resources = job_pb2.Resources(gpu_milli=milli, gpu_model="A100", cpu_milli=100, memory_mib=100)
            job = await cluster.submit(resources=resources, preemption=job_pb2.PREEMPTION_SUSPEND)
            await agent.run((await agent.order("start_attempt")).attempt_id)
            jobs.append(job)
        await agent.finish("vision.1.0.1")
        api = cluster.nodes("root")

        async def planned() -> node_pb2.RepackPlan | None:
            plan = await api.PlanRepack(node_pb2.PlanRepackRequest())
            return plan if plan.moves else None

        plan = await until(planned, "there is something to move")
        assert [(each.node, each.gpus) for each in plan.opened] == [("n2", 1)]
        assert plan.moves[0].from_gpu_uuids != plan.moves[0].to_gpu_uuids
        assert plan.moves[0].gpu_memory_mib > 0
        unknown = node_pb2.ApplyRepackRequest(jobs=["tenants/vision/jobs/1"], request_id="a0")
        assert (await refusal(api.ApplyRepack(unknown))).status == "INVALID_ARGUMENT"
        apply = node_pb2.ApplyRepackRequest(jobs=[move.job for move in plan.moves], request_id="a1")
        moving = await api.ApplyRepack(apply)
        assert list(moving.moves) == list(plan.moves)
        assert await api.ApplyRepack(apply) == moving
        suspend = await agent.order("suspend_attempt")
        await agent.report(suspend.attempt_id, "SUSPENDED")
        resume = await agent.order("resume_attempt")
        assert list(resume.gpu_uuids) == list(plan.moves[0].to_gpu_uuids)
        await agent.report(resume.attempt_id, "RUNNING")
        found = await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=plan.moves[0].job))
        assert found.preempted_for == ""

    api_test(tmp_path, body)
