"""A small scheduler for tests of the client and the command line: the API's surface over dictionaries, in threads.

It holds what a test puts in, answers as the API promises, keeps every request, and fails on order. No policy, no store.
"""

# ruff: noqa: N802 (the names of the methods are those of the API)

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from gpushare.errors import GpushareError, error_of, to_status
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2 as j
from gpushare.v1 import job_pb2_grpc, node_pb2_grpc, tenant_pb2_grpc, usage_pb2_grpc
from gpushare.v1 import node_pb2 as n
from gpushare.v1 import tenant_pb2 as t
from gpushare.v1 import usage_pb2 as u

ENDED = {j.JOB_STATE_SUCCEEDED, j.JOB_STATE_FAILED, j.JOB_STATE_CANCELLED}
CARD = "GPU-00000000-0000-0000-0000-000000000001"


class FakeCluster(
    job_pb2_grpc.JobServiceServicer,
    node_pb2_grpc.NodeServiceServicer,
    node_pb2_grpc.ReservationServiceServicer,
    tenant_pb2_grpc.TenantServiceServicer,
    usage_pb2_grpc.UsageServiceServicer,
):
    """`user` of tenant `tenant` calls. `faults[method]` holds what to fail with next; `requests[method]` what came."""

    tenant = "vision"
    user = "ada"
    role = "user"

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.jobs: dict[str, j.Job] = {}
        self.history: list[j.Job] = []
        self.logs: dict[tuple[str, int, int, int], bytes] = defaultdict(bytes)
        self.log_ended: set[tuple[str, int, int, int]] = set()
        self.answers: dict[str, j.CreateJobResponse] = {}
        self.notices: list[str] = []
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self.faults: dict[str, list[GpushareError]] = defaultdict(list)
        self.tenants = {"vision": t.Tenant(name="tenants/vision", max_queued_jobs=10_000)}
        self.audit = [u.AuditEvent(sequence=7, kind="JobCreated", subject="tenants/vision/jobs/1", detail_json="{}")]
        self.nodes = {"node-1": a_node()}
        self.reservations: dict[str, n.Reservation] = {}
        self.in_the_way: list[str] = []
        self.repack = n.RepackPlan()
        self.explained = j.JobExplanation()
        self.previewed: list[t.PreviewedJob] = []
        self.drop_stream_after = 0  # messages of a stream, then UNAVAILABLE; once
        self.run_jobs = True
        self.default_run_s = 0
        self.exit_code = 0
        self.address = ""
        self.open_streams = 0

    # -- what a test does to it

    def add(self, job_id: str, state: int = j.JOB_STATE_RUNNING, **fields: Any) -> j.Job:
        job = j.Job(
            name=f"tenants/{self.tenant}/jobs/{job_id}",
            tenant=self.tenant,
            id=job_id,
            state=state,
            created_by=j.Principal(user=self.user, role="user", tenant=self.tenant),
            **fields,
        )
        if "_" in job_id:
            job.array_id, index = job_id.split("_")
            job.array_index = int(index)
        job.create_time.GetCurrentTime()
        self.put(job)
        return job

    def put(self, job: j.Job) -> None:
        with self.changed:
            self.jobs[job.name] = job
            copy = j.Job()
            copy.CopyFrom(job)
            self.history.append(copy)
            self.changed.notify_all()

    def start(self, job: j.Job, task_index: int = 0, number: int = 1) -> None:
        job.state = j.JOB_STATE_RUNNING
        attempt = job.tasks.add(
            attempt_id=f"{job.tenant}.{job.id}.{task_index}.{number}",
            task_index=task_index,
            number=number,
            state=j.ATTEMPT_STATE_RUNNING,
            node="node-1",
            gpu_uuids=[CARD],
            gpu_milli=250,
            gpu_memory_mib=20389,
            tier="timeslice",
            enforcement=j.ENFORCEMENT_SOFT,
        )
        attempt.start_time.GetCurrentTime()
        job.start_time.GetCurrentTime()
        self.put(job)

    def write(self, job: j.Job, data: bytes, *, task_index: int = 0, number: int = 1, stderr: bool = False) -> None:
        stream = j.OUTPUT_STREAM_STDERR if stderr else j.OUTPUT_STREAM_STDOUT
        with self.changed:
            self.logs[job.name, task_index, number, stream] += data
            self.changed.notify_all()

    def end(self, job: j.Job, state: int = j.JOB_STATE_SUCCEEDED, code: int = 0, reason: str = "COMPLETED") -> None:
        with self.changed:
            for attempt in job.tasks:
                for stream in (j.OUTPUT_STREAM_STDOUT, j.OUTPUT_STREAM_STDERR):
                    self.log_ended.add((job.name, attempt.task_index, attempt.number, stream))
        job.state, job.exit_code, job.reason = state, code, reason
        job.end_time.GetCurrentTime()
        self.put(job)

    def seen(self, method: str) -> list[Any]:
        """Every request of a method so far."""
        return self.requests[method]

    # -- the API

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        with self.changed:
            self.requests[method].append(request)
            fault = self.faults[method].pop(0) if self.faults[method] else None
        if fault is not None:
            context.abort_with_status(to_status(fault))

    def _job(self, name: str, context: grpc.ServicerContext) -> j.Job:
        job = self.jobs.get(name)
        if job is None:
            context.abort_with_status(to_status(error_of(Reason.NOT_FOUND, f"There is no {name}.")))
            raise AssertionError
        return job

    def CreateJob(self, request: j.CreateJobRequest, context: grpc.ServicerContext) -> j.CreateJobResponse:
        self._enter("CreateJob", request, context)
        if request.request_id in self.answers:
            return self.answers[request.request_id]
        answer = j.CreateJobResponse(notices=self.notices)
        resources = request.job.resources
        answer.default_request_used = not any(
            resources.HasField(field) for field in ("gpus", "gpu_milli", "gpu_memory_mib")
        )
        if answer.default_request_used:
            request.job.resources.gpus = 1
        if self.default_run_s and not request.job.HasField("max_run_duration"):
            request.job.max_run_duration.FromSeconds(self.default_run_s)
        number = 1 + max((int(job.id.split("_")[0]) for job in self.jobs.values()), default=0)
        ids = [f"{number}_{index}" for index in request.job.array_indexes] or [str(number)]
        for job_id in ids:
            if request.validate_only:
                answer.jobs.add(tenant=self.tenant, spec=request.job)
                continue
            job = self.add(job_id, j.JOB_STATE_QUEUED, spec=request.job)
            answer.jobs.add().CopyFrom(job)
            if self.run_jobs:
                threading.Thread(target=self._run, args=(job,), daemon=True).start()
        self.answers[request.request_id] = answer
        return answer

    def _run(self, job: j.Job) -> None:
        for task_index in range(max(job.spec.tasks, 1)):
            self.start(job, task_index)
            self.write(job, f"out {task_index} of {job.id}\n".encode(), task_index=task_index)
            self.write(job, b"err\n", task_index=task_index, stderr=True)
        failed = self.exit_code != 0
        state = j.JOB_STATE_FAILED if failed else j.JOB_STATE_SUCCEEDED
        self.end(job, state, self.exit_code, "EXIT_CODE" if failed else "COMPLETED")

    def GetJob(self, request: j.GetJobRequest, context: grpc.ServicerContext) -> j.Job:
        self._enter("GetJob", request, context)
        return self._job(request.name, context)

    def ListJobs(self, request: j.ListJobsRequest, context: grpc.ServicerContext) -> j.ListJobsResponse:
        self._enter("ListJobs", request, context)
        found = [
            job
            for job in reversed(self.jobs.values())
            if request.parent in ("tenants/-", f"tenants/{job.tenant}")
            and (request.show_ended or job.state not in ENDED)
            and request.state in (0, job.state)
            and request.user in ("", job.created_by.user)
            and request.array_id in ("", job.array_id)
            and request.job_name in ("", job.spec.name)
        ]
        start = int(request.page_token or 0)
        size = min(request.page_size or 100, 100)
        more = str(start + size) if start + size < len(found) else ""
        return j.ListJobsResponse(jobs=found[start : start + size], next_page_token=more)

    def CancelJob(self, request: j.CancelJobRequest, context: grpc.ServicerContext) -> j.Job:
        self._enter("CancelJob", request, context)
        job = self._job(request.name, context)
        if job.state not in ENDED:
            self.end(job, j.JOB_STATE_CANCELLED, 143, "CANCELLED")
        return job

    def ExtendJob(self, request: j.ExtendJobRequest, context: grpc.ServicerContext) -> j.Job:
        self._enter("ExtendJob", request, context)
        job = self._job(request.name, context)
        limit = job.spec.max_run_duration
        job.submitted_run_duration.CopyFrom(limit)
        whole = request.HasField("max_run_duration")
        longer = request.max_run_duration if whole else request.longer_by
        limit.FromMilliseconds(longer.ToMilliseconds() + (0 if whole else limit.ToMilliseconds()))
        return job

    def RequeueJob(self, request: j.RequeueJobRequest, context: grpc.ServicerContext) -> j.Job:
        self._enter("RequeueJob", request, context)
        job = self._job(request.name, context)
        job.state, job.reason = j.JOB_STATE_QUEUED, "REQUEUED"
        return job

    def ResubmitJob(self, request: j.ResubmitJobRequest, context: grpc.ServicerContext) -> j.Job:
        self._enter("ResubmitJob", request, context)
        old = self._job(request.name, context)
        return self.add("9", j.JOB_STATE_QUEUED, spec=old.spec)

    def ExplainJob(self, request: j.ExplainJobRequest, context: grpc.ServicerContext) -> j.JobExplanation:
        self._enter("ExplainJob", request, context)
        job = self._job(request.name, context)
        return j.JobExplanation(
            name=job.name,
            state=job.state,
            stage="capacity",
            wait=job.wait,
            filters=[j.FilterCount(reason="NO_CAPACITY", detail="in use", gpus=8, nodes=["node-1"])],
            suggestion="--gpus 0.5 would start now",
            counterfactuals=self.explained.counterfactuals,
            expected_start_time=self.explained.expected_start_time if self.explained.counterfactuals else None,
            ahead_jobs=self.explained.ahead_jobs,
            ahead_count=self.explained.ahead_count,
            claimant=self.explained.claimant,
        )

    def WatchJobs(self, request: j.WatchJobsRequest, context: grpc.ServicerContext) -> Iterator[j.WatchJobsResponse]:
        self._enter("WatchJobs", request, context)
        sent = 0
        with self.changed:
            position = len(self.history)
            present = [] if request.resume_token else list(self.jobs.values())
        if request.resume_token:
            position = int(request.resume_token)
        for job in present:
            if job.state not in ENDED and self._watched(job, request):
                yield j.WatchJobsResponse(job=job, resume_token=b"")
        yield j.WatchJobsResponse(caught_up=True, resume_token=str(position).encode())
        while context.is_active():
            with self.changed:
                if position >= len(self.history):
                    self.changed.wait(0.05)
                    continue
                job = self.history[position]
            position += 1
            if self._watched(job, request):
                yield j.WatchJobsResponse(job=job, resume_token=str(position).encode())
                sent += 1
                self._maybe_drop(sent, context)

    def _watched(self, job: j.Job, request: j.WatchJobsRequest) -> bool:
        return request.parent in ("tenants/-", f"tenants/{job.tenant}") and request.id in ("", job.id, job.array_id)

    def StreamLogs(self, request: j.StreamLogsRequest, context: grpc.ServicerContext) -> Iterator[j.StreamLogsResponse]:
        self._enter("StreamLogs", request, context)
        job = self._job(request.name, context)
        self._count_stream(1)
        context.add_callback(lambda: self._count_stream(-1))
        key = (job.name, request.task_index, request.attempt or 1, request.stream)
        offset, sent = request.offset, 0
        while context.is_active():
            with self.changed:
                data = self.logs[key][offset : offset + 8]
                if not data:
                    if not request.follow or key in self.log_ended:
                        return
                    self.changed.wait(0.05)
                    continue
            yield j.StreamLogsResponse(offset=offset, data=data)
            offset += len(data)
            sent += 1
            self._maybe_drop(sent, context)

    def _count_stream(self, change: int) -> None:
        with self.changed:
            self.open_streams += change

    def _maybe_drop(self, sent: int, context: grpc.ServicerContext) -> None:
        if self.drop_stream_after and sent >= self.drop_stream_after:
            self.drop_stream_after = 0
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def ListNodes(self, request: n.ListNodesRequest, context: grpc.ServicerContext) -> n.ListNodesResponse:
        self._enter("ListNodes", request, context)
        return n.ListNodesResponse(nodes=self.nodes.values())

    def CordonNode(self, request: n.CordonNodeRequest, context: grpc.ServicerContext) -> n.Node:
        self._enter("CordonNode", request, context)
        node = self.nodes[request.name.removeprefix("nodes/")]
        node.cordoned = True
        return node

    def GetNode(self, request: n.GetNodeRequest, context: grpc.ServicerContext) -> n.Node:
        self._enter("GetNode", request, context)
        return self.nodes[request.name.removeprefix("nodes/")]

    def DrainNode(self, request: n.DrainNodeRequest, context: grpc.ServicerContext) -> n.Node:
        self._enter("DrainNode", request, context)
        node = self.nodes[request.name.removeprefix("nodes/")]
        node.cordoned, node.state, node.drained = True, n.NODE_STATE_DRAINING, not node.task_count
        return node

    def UpdateNode(self, request: n.UpdateNodeRequest, context: grpc.ServicerContext) -> n.Node:
        self._enter("UpdateNode", request, context)
        node = self.nodes[request.name.removeprefix("nodes/")]
        node.compute_overcommit_milli = request.compute_overcommit_milli
        return node

    def PlanRepack(self, request: n.PlanRepackRequest, context: grpc.ServicerContext) -> n.RepackPlan:
        self._enter("PlanRepack", request, context)
        return self.repack

    def ApplyRepack(self, request: n.ApplyRepackRequest, context: grpc.ServicerContext) -> n.RepackPlan:
        self._enter("ApplyRepack", request, context)
        return n.RepackPlan(moves=[move for move in self.repack.moves if move.job in request.jobs])

    def CreateReservation(
        self, request: n.CreateReservationRequest, context: grpc.ServicerContext
    ) -> n.CreateReservationResponse:
        self._enter("CreateReservation", request, context)
        made = n.Reservation(
            name=f"reservations/{request.reservation_id}",
            tenant=request.tenant,
            maintenance=request.maintenance,
            nodes=request.nodes,
            next_start_time=request.start_time,
            next_end_time=request.end_time,
        )
        self.reservations[request.reservation_id] = made
        return n.CreateReservationResponse(reservation=made, jobs_in_the_way=self.in_the_way)

    def ListReservations(
        self, request: n.ListReservationsRequest, context: grpc.ServicerContext
    ) -> n.ListReservationsResponse:
        self._enter("ListReservations", request, context)
        return n.ListReservationsResponse(reservations=self.reservations.values())

    def DeleteReservation(
        self, request: n.DeleteReservationRequest, context: grpc.ServicerContext
    ) -> n.DeleteReservationResponse:
        self._enter("DeleteReservation", request, context)
        self.reservations.pop(request.name.removeprefix("reservations/"), None)
        return n.DeleteReservationResponse()

    def PreviewQuota(self, request: t.PreviewQuotaRequest, context: grpc.ServicerContext) -> t.PreviewQuotaResponse:
        self._enter("PreviewQuota", request, context)
        return t.PreviewQuotaResponse(jobs=self.previewed)

    def CreateJoinToken(
        self, request: n.CreateJoinTokenRequest, context: grpc.ServicerContext
    ) -> n.CreateJoinTokenResponse:
        self._enter("CreateJoinToken", request, context)
        return n.CreateJoinTokenResponse(join="gps-join-v1.xyz")

    def CreateTenant(self, request: t.CreateTenantRequest, context: grpc.ServicerContext) -> t.Tenant:
        self._enter("CreateTenant", request, context)
        made = t.Tenant(name=f"tenants/{request.tenant_id}")
        if request.settings.HasField("limit_milli"):
            made.limit_milli = request.settings.limit_milli
        self.tenants[request.tenant_id] = made
        return made

    def WhoAmI(self, request: t.WhoAmIRequest, context: grpc.ServicerContext) -> j.Principal:
        self._enter("WhoAmI", request, context)
        return j.Principal(user=self.user, role=self.role, tenant=self.tenant)

    def GetTenant(self, request: t.GetTenantRequest, context: grpc.ServicerContext) -> t.Tenant:
        self._enter("GetTenant", request, context)
        return self.tenants[request.name.removeprefix("tenants/")]

    def ListTenants(self, request: t.ListTenantsRequest, context: grpc.ServicerContext) -> t.ListTenantsResponse:
        self._enter("ListTenants", request, context)
        return t.ListTenantsResponse(tenants=self.tenants.values())

    def UpdateTenant(self, request: t.UpdateTenantRequest, context: grpc.ServicerContext) -> t.Tenant:
        self._enter("UpdateTenant", request, context)
        return self.tenants[request.name.removeprefix("tenants/")]

    def CreateToken(self, request: t.CreateTokenRequest, context: grpc.ServicerContext) -> t.CreateTokenResponse:
        self._enter("CreateToken", request, context)
        token = t.Token(name="tokens/k1", user=request.user, role=request.role, tenant=request.tenant)
        return t.CreateTokenResponse(token=token, secret="gps_secret", join="gps-join-v1.abc")

    def ListTokens(self, request: t.ListTokensRequest, context: grpc.ServicerContext) -> t.ListTokensResponse:
        self._enter("ListTokens", request, context)
        return t.ListTokensResponse(tokens=[t.Token(name="tokens/k1", user="ada", role=t.ROLE_USER)])

    def GetUsage(self, request: u.GetUsageRequest, context: grpc.ServicerContext) -> u.GetUsageResponse:
        self._enter("GetUsage", request, context)
        return u.GetUsageResponse(rows=[u.UsageRow(tenant="vision", charge_milli_seconds=12_345, attempts=2)])

    def ListAuditEvents(
        self, request: u.ListAuditEventsRequest, context: grpc.ServicerContext
    ) -> u.ListAuditEventsResponse:
        self._enter("ListAuditEvents", request, context)
        return u.ListAuditEventsResponse(events=self.audit)


def a_node() -> n.Node:
    offers = [
        n.TierOffer(tier="exclusive", enforcement=j.ENFORCEMENT_HARD),
        n.TierOffer(tier="mps-v2", absent_because="no MPS binaries"),
    ]
    card = n.Gpu(uuid=CARD, model="H100-80GB", usable_mib=81559, state=n.GPU_STATE_HEALTHY, tiers=offers)
    return n.Node(name="nodes/node-1", state=n.NODE_STATE_ACTIVE, ready=True, gpus=[card], cpu_milli=4000)


def until(condition: Any, what: str, limit_s: float = 10.0) -> None:
    """Returns when `condition()` holds; fails, naming `what`, when it does not in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.01)


@contextmanager
def serving(cluster: FakeCluster, port: int = 0) -> Iterator[FakeCluster]:
    """Serves `cluster` on a free loopback port."""
    server = grpc.server(ThreadPoolExecutor(max_workers=40), options=[("grpc.so_reuseport", 0)])
    job_pb2_grpc.add_JobServiceServicer_to_server(cluster, server)
    node_pb2_grpc.add_NodeServiceServicer_to_server(cluster, server)
    node_pb2_grpc.add_ReservationServiceServicer_to_server(cluster, server)
    tenant_pb2_grpc.add_TenantServiceServicer_to_server(cluster, server)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(cluster, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    cluster.address = f"127.0.0.1:{bound}"
    server.start()
    try:
        yield cluster
    finally:
        server.stop(grace=None).wait(5)
