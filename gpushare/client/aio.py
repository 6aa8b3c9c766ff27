"""The asynchronous client: one method an RPC, typed by the messages of the API.

Imports grpc through `gpushare.rpc` and the generated stubs; never `gpushare.core`. Invariants: every call that changes
something carries a request id that is kept over its retries, so that it is done at most once; only UNAVAILABLE is tried
again, with jittered waits inside the caller's time limit; everything that fails raises a
`gpushare.errors.GpushareError`.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from gpushare import rpc
from gpushare.client import messages as m
from gpushare.client.connect import Connection
from gpushare.client.retry import Backoff, may_pass
from gpushare.client.settings import ConnectionSettings
from gpushare.client.streams import RECONNECT_LIMIT_S, RENEW_AGAIN_S, OnReconnect, read_log, watch
from gpushare.client.waiting import wait_jobs
from gpushare.errors import InvalidArgumentError, from_rpc_error
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2_grpc, node_pb2_grpc, tenant_pb2_grpc, usage_pb2_grpc

DEFAULT_TIMEOUT_S = 30.0
PAGE_SIZE = 500
ALL_TENANTS = "tenants/-"

_Answer = TypeVar("_Answer")


def job_name(tenant: str, job_id: str) -> str:
    """ "tenants/vision/jobs/42": how the API names a job; `job_id` is "42", or "42_3" for a child of an array."""
    return f"tenants/{tenant}/jobs/{job_id}"


class AsyncClient:
    """A connection to one scheduler: `async with AsyncClient(load_settings()) as client`.

    `settings` come from `gpushare.client.settings`. `timeout_s` bounds each unary call with all its retries. Jobs,
    tenants, nodes and tokens are named by resource names ("tenants/vision"); listings are iterators that fetch page
    by page. `request_id` may be given where the caller itself repeats a call; otherwise each call has a new one.
    """

    def __init__(self, settings: ConnectionSettings, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.settings = settings
        self.timeout_s = timeout_s
        self._renewing = asyncio.Lock()
        self._renewed_s = -math.inf
        self._open_channel: grpc.aio.Channel | None = None
        self._stubs: dict[type[Any], Any] = {}

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection and every open stream."""
        if self._open_channel is not None:
            channel, self._open_channel = self._open_channel, None
            self._stubs.clear()
            await channel.close()

    # -- jobs

    async def create_job(
        self, spec: m.JobSpec, *, tenant: str = "", request_id: str = "", validate_only: bool = False
    ) -> m.CreateJobResponse:
        """Admits one job, or one per array index. `tenant` "" is the caller's own."""
        await self.know_caller(tenant)
        request = m.CreateJobRequest(
            parent=self.parent(tenant), job=spec, request_id=request_id, validate_only=validate_only
        )
        return await self._call(self._jobs.CreateJob, request, m.CreateJobResponse)

    async def batch_create_jobs(
        self, specs: Sequence[m.JobSpec], *, tenant: str = "", request_id: str = ""
    ) -> m.BatchCreateJobsResponse:
        """Admits all of these jobs or none."""
        await self.know_caller(tenant)
        request = m.BatchCreateJobsRequest(parent=self.parent(tenant), jobs=specs, request_id=request_id)
        return await self._call(self._jobs.BatchCreateJobs, request, m.BatchCreateJobsResponse)

    async def get_job(self, name: str) -> m.Job:
        return await self._call(self._jobs.GetJob, m.GetJobRequest(name=name), m.Job)

    def list_jobs(
        self,
        *,
        parent: str = ALL_TENANTS,
        state: m.JobState | str = m.JobState.JOB_STATE_UNSPECIFIED,
        user: str = "",
        show_ended: bool = False,
        array_id: str = "",
        named: str = "",
        page_size: int = PAGE_SIZE,
    ) -> AsyncGenerator[m.Job, None]:
        """Jobs that the caller may see, newest first; ended ones only with `show_ended`."""
        request = m.ListJobsRequest(
            parent=parent,
            page_size=page_size,
            state=state,
            user=user,
            show_ended=show_ended,
            array_id=array_id,
            job_name=named,
        )
        return self._pages(self._jobs.ListJobs, request, m.ListJobsResponse, "jobs", m.Job)

    async def cancel_job(self, name: str, *, request_id: str = "") -> m.Job:
        """The job as it is now: a job that runs ends later, one that has ended keeps its end."""
        request = m.CancelJobRequest(name=name, request_id=request_id)
        return await self._call(self._jobs.CancelJob, request, m.Job)

    async def extend_job(
        self, name: str, *, longer_by_ms: int | None = None, max_run_ms: int | None = None, request_id: str = ""
    ) -> m.Job:
        """A longer time limit: by so much, or so much in all; give one of the two."""
        request = m.ExtendJobRequest(name=name, request_id=request_id)
        if longer_by_ms is not None:
            request.longer_by.FromMilliseconds(longer_by_ms)
        if max_run_ms is not None:
            request.max_run_duration.FromMilliseconds(max_run_ms)
        return await self._call(self._jobs.ExtendJob, request, m.Job)

    async def requeue_job(self, name: str, *, request_id: str = "") -> m.Job:
        """Stops it and queues it again, with its id and its place; refused for a job that has ended."""
        request = m.RequeueJobRequest(name=name, request_id=request_id)
        return await self._call(self._jobs.RequeueJob, request, m.Job)

    async def resubmit_job(self, name: str, *, request_id: str = "") -> m.Job:
        """A new job that asks for the same; the old one may have ended long ago."""
        request = m.ResubmitJobRequest(name=name, request_id=request_id)
        return await self._call(self._jobs.ResubmitJob, request, m.Job)

    async def explain_job(self, name: str) -> m.JobExplanation:
        return await self._call(self._jobs.ExplainJob, m.ExplainJobRequest(name=name), m.JobExplanation)

    def watch_jobs(
        self,
        *,
        parent: str = ALL_TENANTS,
        job_id: str = "",
        resume_token: bytes = b"",
        limit_s: float = RECONNECT_LIMIT_S,
        on_reconnect: OnReconnect | None = None,
    ) -> AsyncGenerator[m.WatchJobsResponse, None]:
        """Every durable change, over as many connections as it takes; never ends by itself.

        Without a token the present jobs come first, and a message with `caught_up` follows them. `job_id` may name
        one job or one array. `limit_s` bounds each outage.
        """

        def start(token: bytes) -> Any:
            return self._jobs.WatchJobs(m.WatchJobsRequest(parent=parent, resume_token=token, id=job_id))

        return watch(
            start,
            address=self.settings.server,
            resume_token=resume_token,
            limit_s=limit_s,
            on_reconnect=on_reconnect,
            renew=self._renew,
        )

    async def wait_jobs(
        self, names: Iterable[str], *, on_change: Callable[[m.Job], None] | None = None
    ) -> dict[str, m.Job]:
        """The jobs as they ended, by name."""
        return await wait_jobs(self, names, on_change=on_change)

    def stream_logs(
        self,
        name: str,
        *,
        task_index: int = 0,
        attempt: int = 0,
        stream: m.OutputStream = m.OutputStream.OUTPUT_STREAM_STDOUT,
        offset: int = 0,
        follow: bool = False,
        limit_s: float | None = None,
        on_reconnect: OnReconnect | None = None,
    ) -> AsyncGenerator[m.StreamLogsResponse, None]:
        """One output stream of one task from byte `offset` to its end; with `follow` that is when the task has ended.

        `attempt` 0 is the newest. A lost connection goes on where it was; `limit_s` bounds each outage.
        """

        def start(position: int) -> Any:
            request = m.StreamLogsRequest(
                name=name, task_index=task_index, attempt=attempt, stream=stream, offset=position, follow=follow
            )
            return self._jobs.StreamLogs(request)

        return read_log(
            start,
            address=self.settings.server,
            offset=offset,
            follow=follow,
            limit_s=limit_s if limit_s is not None else (RECONNECT_LIMIT_S if follow else self.timeout_s),
            on_reconnect=on_reconnect,
            renew=self._renew,
        )

    def connect(self, start: m.ConnectionStart) -> Connection:
        """To the input of a running task, to a process beside it, or to a port: `async with client.connect(start)`."""
        return Connection(self._jobs.Connect(), start, self.settings.server)

    # -- nodes

    async def get_node(self, name: str) -> m.Node:
        return await self._call(self._nodes.GetNode, m.GetNodeRequest(name=name), m.Node)

    def list_nodes(self) -> AsyncGenerator[m.Node, None]:
        request = m.ListNodesRequest(page_size=PAGE_SIZE)
        return self._pages(self._nodes.ListNodes, request, m.ListNodesResponse, "nodes", m.Node)

    async def cordon_node(self, name: str, *, detail: str = "", request_id: str = "") -> m.Node:
        """No new task starts there; running ones stay."""
        request = m.CordonNodeRequest(name=name, detail=detail, request_id=request_id)
        return await self._call(self._nodes.CordonNode, request, m.Node)

    async def uncordon_node(self, name: str, *, request_id: str = "") -> m.Node:
        request = m.UncordonNodeRequest(name=name, request_id=request_id)
        return await self._call(self._nodes.UncordonNode, request, m.Node)

    async def drain_node(self, name: str, *, detail: str = "", request_id: str = "") -> m.Node:
        """Cordons it; `drained` says when its last task has ended."""
        request = m.DrainNodeRequest(name=name, detail=detail, request_id=request_id)
        return await self._call(self._nodes.DrainNode, request, m.Node)

    async def declare_node_dead(self, name: str, *, request_id: str = "") -> m.Node:
        """Frees what a silent node holds. Its tasks may still run there: only for a machine that is known to be off."""
        request = m.DeclareNodeDeadRequest(name=name, request_id=request_id)
        return await self._call(self._nodes.DeclareNodeDead, request, m.Node)

    async def update_node(
        self,
        name: str,
        *,
        compute_overcommit_milli: int | None = None,
        trust_logins: bool | None = None,
        request_id: str = "",
    ) -> m.Node:
        """Changes what is given: how many thousandths shares on each of its cards may have together, and whether its
        word about who is logged in there counts."""
        request = m.UpdateNodeRequest(
            name=name,
            compute_overcommit_milli=compute_overcommit_milli,
            trust_logins=trust_logins,
            request_id=request_id,
        )
        return await self._call(self._nodes.UpdateNode, request, m.Node)

    async def create_join_token(
        self, node: str, *, ttl_ms: int | None = None, request_id: str = ""
    ) -> m.CreateJoinTokenResponse:
        """A single-use line with which one agent enrols as `node` (its plain name)."""
        request = m.CreateJoinTokenRequest(node=node, request_id=request_id)
        if ttl_ms is not None:
            request.ttl.FromMilliseconds(ttl_ms)
        return await self._call(self._nodes.CreateJoinToken, request, m.CreateJoinTokenResponse)

    async def plan_repack(self) -> m.RepackPlan:
        """Which suspendable jobs could move so that larger pieces come free; nothing moves."""
        return await self._call(self._nodes.PlanRepack, m.PlanRepackRequest(), m.RepackPlan)

    async def apply_repack(self, jobs: Sequence[str], *, request_id: str = "") -> m.RepackPlan:
        """Moves these jobs of the plan, all or none; they are suspended meanwhile. The answer has the moves alone."""
        request = m.ApplyRepackRequest(jobs=jobs, request_id=request_id)
        return await self._call(self._nodes.ApplyRepack, request, m.RepackPlan)

    # -- reservations

    async def create_reservation(self, request: m.CreateReservationRequest) -> m.CreateReservationResponse:
        """Capacity for a tenant, or nodes closed for maintenance, in a window of time."""
        return await self._call(self._reservations.CreateReservation, request, m.CreateReservationResponse)

    def list_reservations(self) -> AsyncGenerator[m.Reservation, None]:
        request = m.ListReservationsRequest(page_size=PAGE_SIZE)
        list_ = self._reservations.ListReservations
        return self._pages(list_, request, m.ListReservationsResponse, "reservations", m.Reservation)

    async def delete_reservation(self, name: str, *, request_id: str = "") -> None:
        """Ends it now; jobs that run in it run on."""
        request = m.DeleteReservationRequest(name=name, request_id=request_id)
        await self._call(self._reservations.DeleteReservation, request, m.DeleteReservationResponse)

    # -- tenants and tokens

    async def create_tenant(
        self, tenant_id: str, settings: m.TenantSettings | None = None, *, request_id: str = ""
    ) -> m.Tenant:
        request = m.CreateTenantRequest(tenant_id=tenant_id, settings=settings, request_id=request_id)
        return await self._call(self._tenants.CreateTenant, request, m.Tenant)

    async def get_tenant(self, name: str) -> m.Tenant:
        return await self._call(self._tenants.GetTenant, m.GetTenantRequest(name=name), m.Tenant)

    async def who_am_i(self) -> m.Principal:
        """Whom this client's token stands for: user, role, tenant."""
        return await self._call(self._tenants.WhoAmI, m.WhoAmIRequest(), m.Principal)

    def list_tenants(self) -> AsyncGenerator[m.Tenant, None]:
        request = m.ListTenantsRequest(page_size=PAGE_SIZE)
        return self._pages(self._tenants.ListTenants, request, m.ListTenantsResponse, "tenants", m.Tenant)

    async def update_tenant(self, name: str, settings: m.TenantSettings, *, request_id: str = "") -> m.Tenant:
        """Changes the fields that are set in `settings` and no other."""
        request = m.UpdateTenantRequest(name=name, settings=settings, request_id=request_id)
        return await self._call(self._tenants.UpdateTenant, request, m.Tenant)

    async def delete_tenant(self, name: str, *, request_id: str = "") -> None:
        """Refused while it has jobs that have not ended."""
        request = m.DeleteTenantRequest(name=name, request_id=request_id)
        await self._call(self._tenants.DeleteTenant, request, m.DeleteTenantResponse)

    async def preview_quota(self, changes: Mapping[str, m.TenantSettings]) -> m.PreviewQuotaResponse:
        """Who would wait, start or be reclaimed with these settings (by tenant's resource name); changes nothing."""
        request = m.PreviewQuotaRequest(
            changes=[m.QuotaChange(name=name, settings=settings) for name, settings in changes.items()]
        )
        return await self._call(self._tenants.PreviewQuota, request, m.PreviewQuotaResponse)

    async def create_token(
        self,
        user: str,
        role: m.Role | str,
        *,
        tenant: str = "",
        unix_user: str = "",
        ttl_ms: int | None = None,
        request_id: str = "",
    ) -> m.CreateTokenResponse:
        """The secret is in this answer only. `tenant` is a plain name."""
        request = m.CreateTokenRequest(user=user, role=role, tenant=tenant, unix_user=unix_user, request_id=request_id)
        if ttl_ms is not None:
            request.ttl.FromMilliseconds(ttl_ms)
        return await self._call(self._tenants.CreateToken, request, m.CreateTokenResponse)

    def list_tokens(self, *, tenant: str = "") -> AsyncGenerator[m.Token, None]:
        request = m.ListTokensRequest(page_size=PAGE_SIZE, tenant=tenant)
        return self._pages(self._tenants.ListTokens, request, m.ListTokensResponse, "tokens", m.Token)

    async def get_own_token(self) -> m.Token:
        """The token that this client calls with; never its secret."""
        return await self._call(self._tenants.GetOwnToken, m.GetOwnTokenRequest(), m.Token)

    async def revoke_token(self, name: str, *, request_id: str = "") -> m.Token:
        """Effective within a second, on open streams too."""
        request = m.RevokeTokenRequest(name=name, request_id=request_id)
        return await self._call(self._tenants.RevokeToken, request, m.Token)

    # -- usage and audit

    async def get_usage(self, group: m.UsageGroup | str, *, tenant: str = "") -> m.GetUsageResponse:
        request = m.GetUsageRequest(group=group, tenant=tenant)
        return await self._call(self._usage.GetUsage, request, m.GetUsageResponse)

    def list_audit_events(
        self,
        *,
        user: str = "",
        tenant: str = "",
        kind: str = "",
        denials: bool = False,
        page_size: int = PAGE_SIZE,
    ) -> AsyncGenerator[m.AuditEvent, None]:
        """Newest first; with `denials` the refused calls in place of the events."""
        request = m.ListAuditEventsRequest(page_size=page_size, user=user, tenant=tenant, kind=kind, denials=denials)
        return self._pages(self._usage.ListAuditEvents, request, m.ListAuditEventsResponse, "events", m.AuditEvent)

    # -- how a call is made

    async def know_caller(self, tenant: str = "") -> None:
        """Ask once whose token this is, where nobody has said (a token from the environment) and no `tenant` is
        named."""
        if not (tenant or self.settings.tenant):
            who = await self.who_am_i()
            self.settings = replace(self.settings, tenant=who.tenant, user=who.user)

    def parent(self, tenant: str = "") -> str:
        """ "tenants/{tenant}"; the caller's own where none is named. Raises InvalidArgumentError where that is
        unknown."""
        if not (tenant or self.settings.tenant):
            raise InvalidArgumentError(
                Reason.INVALID_FIELD,
                "tenant: none is named, and this connection does not know your own.",
                what_to_do="Name it, as with --tenant, or log in with --tenant.",
            )
        return f"tenants/{tenant or self.settings.tenant}"

    async def _call(self, method: Callable[..., Any], request: Any, answer: type[_Answer]) -> _Answer:
        """One unary call, tried until it gets through, is refused, or `timeout_s` is over."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = str(uuid.uuid4())
        backoff = Backoff(self.timeout_s)
        renewed = False
        while True:
            token = self.settings.token
            try:
                return cast(_Answer, await method(request, timeout=max(backoff.remaining_s, 0.001)))
            except grpc.aio.AioRpcError as err:
                error = from_rpc_error(err, self.settings.server)
            if error.reason == Reason.UNAUTHENTICATED and not renewed and await self._renew(token):
                renewed = True
            elif not may_pass(error) or not await backoff.wait():
                raise error

    async def _renew(self, refused: str = "") -> bool:
        """Another token in place of the one that was `refused`, where somebody gives one; streams that are open go on.
        Calls and streams whose token ended together ask once."""
        if self.settings.renew is None:
            return False
        async with self._renewing:
            is_old = time.monotonic() - self._renewed_s > RENEW_AGAIN_S
            if is_old and refused in ("", self.settings.token):
                fresh = await asyncio.to_thread(self.settings.renew)
                self.settings = replace(self.settings, token=fresh.token)
                self._renewed_s = time.monotonic()
        return True

    async def _pages(
        self,
        method: Callable[..., Any],
        request: Any,
        answer: type[Any],
        field: str,
        item: type[_Answer],
    ) -> AsyncGenerator[_Answer, None]:
        while True:
            page = await self._call(method, request, answer)
            for each in getattr(page, field):
                yield each
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _stub(self, kind: type[Any]) -> Any:
        """Made at the first call, because a channel belongs to the event loop that runs then."""
        if self._open_channel is None:
            self._open_channel = rpc.aio_channel(
                self.settings.server, ca_pem=self.settings.ca_pem, token=lambda: self.settings.token
            )
        if kind not in self._stubs:
            self._stubs[kind] = kind(self._open_channel)
        return self._stubs[kind]

    @property
    def _jobs(self) -> Any:
        return self._stub(job_pb2_grpc.JobServiceStub)

    @property
    def _nodes(self) -> Any:
        return self._stub(node_pb2_grpc.NodeServiceStub)

    @property
    def _reservations(self) -> Any:
        return self._stub(node_pb2_grpc.ReservationServiceStub)

    @property
    def _tenants(self) -> Any:
        return self._stub(tenant_pb2_grpc.TenantServiceStub)

    @property
    def _usage(self) -> Any:
        return self._stub(usage_pb2_grpc.UsageServiceStub)
