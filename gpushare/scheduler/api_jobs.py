"""JobService: the servicer. Thin: a message becomes a command, an outcome becomes a message.

Imports the gate, the sessions (live figures), the watches, the log reads and the converters. Invariants: a job of a
tenant that the caller does not see answers NOT_FOUND without being looked up; what a job's reader may not see was left
out by `auth.view_of`; answers are bounded in bytes whatever the jobs hold.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from gpushare.core.admission import check_job
from gpushare.core.commands import (
    Call,
    CancelJob,
    Command,
    ExtendJob,
    OpenConnection,
    Outcome,
    RawJob,
    RequeueJob,
    SubmitJobs,
)
from gpushare.core.decide_connections import connectable
from gpushare.core.explain import Explanation
from gpushare.core.kinds import AttemptState, JobState
from gpushare.core.model import Attempt, Job
from gpushare.core.notices import NEVER_STARTS
from gpushare.core.run_limits import run_limits
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.scheduler import api_sizes, convert
from gpushare.scheduler.api_gate import StreamEnd, call_of, commit
from gpushare.scheduler.api_paging import PAGE_BYTES_MAX, Cursor, Place, page_size
from gpushare.scheduler.auth import Caller, JobView, view_of
from gpushare.scheduler.channels import Channels, first_start, target_of
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.journal import job_from_history
from gpushare.scheduler.logs import LogReads
from gpushare.scheduler.sessions import Sessions
from gpushare.scheduler.watch import Watches
from gpushare.store.port import HistoryCursor, HistoryRow
from gpushare.v1 import agent_pb2, job_pb2

_LOG_STREAMS = (job_pb2.OUTPUT_STREAM_UNSPECIFIED, job_pb2.OUTPUT_STREAM_STDOUT, job_pb2.OUTPUT_STREAM_STDERR)
# A page of the history is looked for in this many steps at most; then the next page goes on.
_HISTORY_STEPS = 5
_HISTORY_STEP_ROWS = 1000


class _Listing(NamedTuple):
    """What a listing is of; "" and None are "any"."""

    tenant: str
    state: JobState | None
    user: str
    show_ended: bool
    array_id: str
    job_name: str

    def has(self, job: Job) -> bool:
        return (
            self.tenant in ("", job.tenant)
            and (self.state is None or job.state is self.state)
            and (self.show_ended or not job.is_ended)
            and self.user in ("", job.created_by.user)
            and self.array_id in ("", job.array_id)
            and self.job_name in ("", job.spec.name)
        )

    def finds_in(self, caller: Caller, tenant: str) -> bool:
        """What is not shown is not searched: another tenant's jobs are not found by the names that they were given."""
        return caller.sees_tenant(tenant) if self.job_name else caller.sees_jobs_of(tenant)


class JobApi:
    def __init__(
        self,
        engine: Engine,
        sessions: Sessions,
        watches: Watches,
        logs: LogReads,
        channels: Channels,
        page_max: int,
    ) -> None:
        self._engine = engine
        self._channels = channels
        self._sessions = sessions
        self._watches = watches
        self._logs = logs
        self._page_max = page_max

    # -- submitting

    async def create_job(self, request: job_pb2.CreateJobRequest, caller: Caller) -> job_pb2.CreateJobResponse:
        tenant = _submit_tenant(request.parent, caller)
        api_sizes.check_spec(request.job, self._engine.settings)
        raw = convert.raw_job(request.job)
        command = SubmitJobs(tenant, (raw,), request.validate_only)
        view = functools.partial(self._created, caller, tenant, raw)
        answer, missing = await commit(self._engine, command, call_of(caller, request), view)
        if missing:
            # A repeated request whose jobs have left memory since.
            answer.jobs.extend([await self._archived(key, caller, JobView.BASIC) for key in missing])
        return answer

    def _created(
        self, caller: Caller, tenant: str, raw: RawJob, state: ClusterState, outcome: Outcome
    ) -> tuple[job_pb2.CreateJobResponse, list[str]]:
        answer = job_pb2.CreateJobResponse(
            dropped_env=outcome.notices.get("dropped_env", ()),
            default_request_used="default_request_used" in outcome.notices,
            notices=outcome.notices.get(NEVER_STARTS, ()),
        )
        if not outcome.names:
            limits = run_limits(state.tenants, tenant)
            spec = check_job(raw, state.tenants[tenant], limits, caller.principal, self._engine.settings)
            answer.jobs.add(tenant=tenant, spec=convert.job_spec(spec, JobView.FULL))
            return answer, []
        view = JobView.FULL if len(outcome.names) == 1 else JobView.BASIC
        answer.jobs.extend(self._shown(state.jobs[key], view, caller) for key in outcome.names if key in state.jobs)
        if answer.jobs and len(answer.jobs) * answer.jobs[0].spec.ByteSize() > PAGE_BYTES_MAX:
            # The children of an array share one spec, which the caller has just sent: the first one shows it.
            for child in answer.jobs[1:]:
                child.ClearField("spec")
        return answer, [key for key in outcome.names if key not in state.jobs]

    async def batch_create_jobs(
        self, request: job_pb2.BatchCreateJobsRequest, caller: Caller
    ) -> job_pb2.BatchCreateJobsResponse:
        tenant = _submit_tenant(request.parent, caller)
        api_sizes.check_batch(request, self._engine.settings)
        command = SubmitJobs(tenant, tuple(_raw_of_batch(place, spec) for place, spec in enumerate(request.jobs)))
        outcome = await commit(self._engine, command, call_of(caller, request), lambda _state, outcome: outcome)
        return job_pb2.BatchCreateJobsResponse(
            names=[convert.job_name(key) for key in outcome.names], notices=outcome.notices.get(NEVER_STARTS, ())
        )

    # -- looking

    async def get_job(self, request: job_pb2.GetJobRequest, caller: Caller) -> job_pb2.Job:
        key = _visible_key(request.name, caller)
        found = await self._engine.read(lambda state: self._look(state, key, caller))
        return found or await self._archived(key, caller, None)

    def _look(self, state: ClusterState, key: str, caller: Caller) -> job_pb2.Job | None:
        job = state.jobs.get(key)
        view = None if job is None else view_of(caller, job)
        if job is None or view is None:
            return None
        shown = self._shown(job, view, caller)
        for attempt, task in zip(job.current(), shown.tasks, strict=True):
            use = self._sessions.use_of(attempt)
            if use is not None:
                task.used_mib = use.used_mib
                if use.HasField("sm_percent"):
                    task.sm_percent = use.sm_percent
        return shown

    async def list_jobs(self, request: job_pb2.ListJobsRequest, caller: Caller) -> job_pb2.ListJobsResponse:
        listing = self._listing(request, caller)
        size = page_size(request.page_size, self._page_max)
        place = Place(caller.rpc, caller.principal, [*listing[:1], str(listing.state), *listing[2:]])
        cursor = place.cursor(request.page_token, (str, int, str, str)) if request.page_token else None
        page = _Page(size)
        if cursor is None or cursor[0] == "memory":
            before = None if cursor is None else int(cursor[1])
            await self._engine.read(lambda state: self._list_memory(state, listing, before, caller, page))
        if not page.more_at and listing.show_ended:
            await self._list_history(listing, _history_cursor(cursor), caller, page)
        token = place.token(page.more_at) if page.more_at else ""
        return job_pb2.ListJobsResponse(jobs=page.jobs, next_page_token=token)

    def _listing(self, request: job_pb2.ListJobsRequest, caller: Caller) -> _Listing:
        tenant = convert.parse_parent(request.parent, wildcard=True)
        if tenant == convert.ALL_TENANTS:
            tenant = caller.tenant if caller.is_confined else ""
        elif tenant not in self._engine.state.tenants or not caller.sees_jobs_of(tenant):
            raise convert.not_found(convert.tenant_name(tenant))
        state = convert.job_state_in(request.state)
        ended = state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
        return _Listing(tenant, state, request.user, request.show_ended or ended, request.array_id, request.job_name)

    def _list_memory(
        self, state: ClusterState, listing: _Listing, before: int | None, caller: Caller, page: _Page
    ) -> None:
        """Newest first; `before` is the submit sequence of the last job shown."""
        finds = functools.cache(functools.partial(listing.finds_in, caller))
        fitting = (
            job
            for job in state.jobs.values()
            if (before is None or job.submit_seq < before) and listing.has(job) and finds(job.tenant)
        )
        for job in heapq.nlargest(page.size + 1, fitting, key=lambda each: each.submit_seq):
            view = view_of(caller, job, listing=True)
            if view and not page.add(self._shown(job, view, caller), ["memory", job.submit_seq, "", ""]):
                return

    async def _list_history(self, listing: _Listing, after: HistoryCursor | None, caller: Caller, page: _Page) -> None:
        """Those that left memory, newest end first."""
        for _ in range(_HISTORY_STEPS):
            rows = await self._engine.store_call(
                lambda store, cursor=after: store.history_list(  # type: ignore[misc]
                    listing.tenant or None,
                    cursor,
                    min(page.size + 1, _HISTORY_STEP_ROWS),
                    user=listing.user or None,
                    state=listing.state,
                )
            )
            for row in rows:
                job = job_from_history(row)
                fits = listing.has(job) and listing.finds_in(caller, job.tenant)
                view = view_of(caller, job, listing=True) if fits else None
                if view and not page.add(self._shown(job, view, caller), ["history", *row.cursor]):
                    return
                after = row.cursor
            if not rows:
                return
        if after is not None:
            page.more_at = ["history", *after]

    async def explain_job(self, request: job_pb2.ExplainJobRequest, caller: Caller) -> job_pb2.JobExplanation:
        key = _visible_key(request.name, caller)
        found = await self._engine.explain(key, caller.sees_jobs_of)
        if found is not None:
            return _explanation(found, caller)
        archived = await self._archived(key, caller, JobView.REDACTED)
        return job_pb2.JobExplanation(name=archived.name, state=archived.state)

    def watch_jobs(
        self, request: job_pb2.WatchJobsRequest, caller: Caller, end: StreamEnd
    ) -> AsyncGenerator[job_pb2.WatchJobsResponse, None]:
        return self._watches.watch(request, caller, end)

    # -- changing

    async def cancel_job(self, request: job_pb2.CancelJobRequest, caller: Caller) -> job_pb2.Job:
        call = call_of(caller, request)
        job = await self._touchable(request.name, caller, "cancel it")
        if job.key not in self._engine.state.jobs:
            # It ended long ago and keeps its end.
            return await self._archived(job.key, caller, None)
        return await self._change(CancelJob(job.key), call, job.key, caller)

    async def extend_job(self, request: job_pb2.ExtendJobRequest, caller: Caller) -> job_pb2.Job:
        call = call_of(caller, request)
        longer_ms, limit_ms = (
            convert.duration_ms(getattr(request, field), field) if request.HasField(field) else None
            for field in ("longer_by", "max_run_duration")
        )
        job = self._in_memory(await self._touchable(request.name, caller, "extend it"))
        return await self._change(ExtendJob(job.key, longer_ms, limit_ms), call, job.key, caller)

    async def requeue_job(self, request: job_pb2.RequeueJobRequest, caller: Caller) -> job_pb2.Job:
        call = call_of(caller, request)
        job = self._in_memory(await self._touchable(request.name, caller, "have it queued again"))
        return await self._change(RequeueJob(job.key), call, job.key, caller)

    async def resubmit_job(self, request: job_pb2.ResubmitJobRequest, caller: Caller) -> job_pb2.Job:
        call = call_of(caller, request)
        job = await self._found(request.name, caller)
        if not (caller.may_touch(job) and caller.submitted(job)):
            raise error_of(
                Reason.PERMISSION_DENIED,
                f"Job {job.id} was submitted by {job.created_by.user}; its script would run as your account now.",
                what_to_do="Have them submit it anew, or read it first and submit it yourself.",
            )

        def view(state: ClusterState, outcome: Outcome) -> tuple[str, job_pb2.Job | None]:
            return outcome.names[0], self._look(state, outcome.names[0], caller)

        key, found = await commit(self._engine, SubmitJobs(job.tenant, (_same_again(job),)), call, view)
        return found or await self._archived(key, caller, None)

    async def _found(self, name: str, caller: Caller) -> Job:
        """The job of that name, wherever it is kept, of a tenant that the caller sees."""
        key = _visible_key(name, caller)
        return self._engine.state.jobs.get(key) or job_from_history(await self._history_row(key))

    async def _touchable(self, name: str, caller: Caller, act: str) -> Job:
        """The job of that name, wherever it is kept, for a caller who may change it."""
        job = await self._found(name, caller)
        if not caller.may_touch(job):
            raise _not_yours(job, act)
        return job

    def _in_memory(self, job: Job) -> Job:
        if job.key not in self._engine.state.jobs:
            raise error_of(Reason.JOB_ENDED, f"Job {job.id} has ended ({job.state}) and was put away.")
        return job

    async def _change(self, command: Command, call: Call, key: str, caller: Caller) -> job_pb2.Job:
        def view(state: ClusterState, outcome: Outcome) -> job_pb2.Job | None:
            return self._look(state, key, caller)

        return await commit(self._engine, command, call, view) or await self._archived(key, caller, None)

    # -- output

    async def stream_logs(
        self, request: job_pb2.StreamLogsRequest, caller: Caller, end: StreamEnd
    ) -> AsyncGenerator[job_pb2.StreamLogsResponse, None]:
        _check_logs_request(request)
        job = await self._touchable(request.name, caller, "read what it prints")
        key = job.key
        if request.task_index >= job.spec.tasks:
            raise error_of(Reason.NOT_FOUND, f"Job {job.id} has {job.spec.tasks} tasks, counted from 0.")
        if key in self._engine.state.jobs:
            attempt = await self._attempt_to_read(key, request, caller, end)
        else:
            attempt = _wanted_attempt(job, request)
        if attempt is None or (attempt.started_ms is None and not attempt.is_live and not attempt.seen):
            return
        stream = request.stream or job_pb2.OUTPUT_STREAM_STDOUT
        order = agent_pb2.ReadLogs(attempt_id=attempt.id, stream=stream, offset=request.offset, follow=request.follow)
        async for piece in self._logs.read(attempt.slice.node, order, caller.principal, end):
            yield piece

    async def _attempt_to_read(
        self, key: str, request: job_pb2.StreamLogsRequest, caller: Caller, end: StreamEnd
    ) -> Attempt | None:
        """The attempt meant, once its node knows it; None where there is nothing to read and nothing to wait for."""

        def ready(state: ClusterState) -> tuple[Attempt | None] | None:
            job = state.jobs.get(key)
            if job is None:
                return (None,)
            attempt = _wanted_attempt(job, request)
            if attempt is None or (attempt.state is AttemptState.ALLOCATED and not attempt.seen):
                return (None,) if job.is_ended or not request.follow else None
            return (msgspec.structs.replace(attempt),)

        return (await self._watches.until(key, caller, end, ready))[0]

    # -- connections

    async def connect(
        self, requests: AsyncIterator[job_pb2.ConnectRequest], caller: Caller, end: StreamEnd
    ) -> AsyncGenerator[job_pb2.ConnectResponse, None]:
        start = await first_start(requests)
        kind, target = target_of(start)
        job = await self._touchable(start.name, caller, "connect to it")
        key = job.key
        if key not in self._engine.state.jobs:
            raise error_of(Reason.NOT_RUNNING, f"Job {job.id} has ended.")

        def view(state: ClusterState, outcome: Outcome) -> tuple[str, str]:
            return outcome.names[0], state.attempts[outcome.names[0]].slice.node

        # What cannot come about is not in the audit as if it had.
        attempt = connectable(self._engine.state.jobs[key], start.task_index)
        if attempt is not None:
            self._channels.check(attempt.slice.node, caller.principal)
            self._channels.count(caller.principal)
        command = OpenConnection(key, start.task_index, kind, target)
        call = Call(principal=caller.principal, method="Connect")
        attempt_id, node = await commit(self._engine, command, call, view)
        order = agent_pb2.OpenChannel(attempt_id=attempt_id, start=start)
        async with aclosing(self._channels.connect(node, order, requests, caller.principal, end)) as answers:
            async for answer in answers:
                yield answer

    # -- shared

    def _shown(self, job: Job, view: JobView, caller: Caller) -> job_pb2.Job:
        sees = caller.sees_jobs_of
        return convert.job(job, view, self._engine.now_ms(), self._engine.wait_of(job, sees), sees)

    async def _history_row(self, key: str) -> HistoryRow:
        tenant, _, job_id = key.partition("/")
        # A job that just left memory is in the history only once that is durable.
        await self._engine.read(lambda state: None)
        row = await self._engine.store_call(lambda store: store.history_get(tenant, job_id))
        if row is None:
            raise convert.not_found(convert.job_name(key))
        return row

    async def _archived(self, key: str, caller: Caller, view: JobView | None) -> job_pb2.Job:
        job = job_from_history(await self._history_row(key))
        view = view or view_of(caller, job)
        if view is None:
            raise convert.not_found(convert.job_name(key))
        return self._shown(job, view, caller)


class _Page:
    """Jobs until the page is full in number or bytes; `more_at` is then where the next begins."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.jobs: list[job_pb2.Job] = []
        self.more_at: Cursor = []
        self._bytes = 0
        self._last: Cursor = []

    def add(self, job: job_pb2.Job, at: Cursor) -> bool:
        """False when there was no room: `more_at` then names the last one that had."""
        size_bytes = job.ByteSize()
        if len(self.jobs) >= self.size or (self.jobs and self._bytes + size_bytes > PAGE_BYTES_MAX):
            self.more_at = self._last
            return False
        self.jobs.append(job)
        self._bytes += size_bytes
        self._last = at
        return True


def _history_cursor(cursor: Cursor | None) -> HistoryCursor | None:
    if cursor is None or cursor[0] != "history":
        return None
    return HistoryCursor(int(cursor[1]), str(cursor[2]), str(cursor[3]))


def _same_again(job: Job) -> RawJob:
    """What was asked for at first. Whom it waited for is over by now; a child of an array keeps its index."""
    raw = convert.raw_job(convert.job_spec(job.spec, JobView.FULL))
    first_ms = raw.max_run_ms if job.submitted_run_ms is None else job.submitted_run_ms
    indexes = () if job.array_index is None else (job.array_index,)
    return msgspec.structs.replace(raw, max_run_ms=first_ms, after=(), array_indexes=indexes)


def _submit_tenant(parent: str, caller: Caller) -> str:
    tenant = convert.parse_parent(parent)
    if not caller.sees_tenant(tenant):
        raise convert.not_found(parent)
    return tenant


def _raw_of_batch(place: int, spec: job_pb2.JobSpec) -> RawJob:
    try:
        return convert.raw_job(spec)
    except GpushareError as err:
        first = err.violations[0]
        raise invalid_field(f"jobs[{place}].{first.field}", first.description) from err


def _visible_key(name: str, caller: Caller) -> str:
    """The key of a job whose tenant the caller sees. The same answer for a foreign tenant's job and for none."""
    tenant, job_id = convert.parse_job_name(name)
    if not caller.sees_tenant(tenant):
        raise convert.not_found(name)
    return f"{tenant}/{job_id}"


def _not_yours(job: Job, act: str) -> GpushareError:
    return error_of(
        Reason.PERMISSION_DENIED,
        f"Job {job.id} belongs to {job.created_by.user}; only they, or an admin, may {act}.",
    )


def _check_logs_request(request: job_pb2.StreamLogsRequest) -> None:
    for field in ("task_index", "attempt", "offset"):
        value = getattr(request, field)
        if value < 0:
            raise invalid_field(field, f"is {value}; accepted: 0 and above")
    if request.stream not in _LOG_STREAMS:
        raise invalid_field("stream", f"{request.stream} is no output stream; accepted: stdout, stderr")


def _wanted_attempt(job: Job, request: job_pb2.StreamLogsRequest) -> Attempt | None:
    """The attempt that a request names, or the newest of its task. Raises NOT_FOUND for one that will never be."""
    of_task = [a for a in job.attempts if a.task == request.task_index]
    if not request.attempt:
        return of_task[-1] if of_task else None
    if request.attempt > len(of_task):
        raise error_of(
            Reason.NOT_FOUND, f"Task {request.task_index} of job {job.id} had {len(of_task)} attempts so far."
        )
    return of_task[request.attempt - 1]


def _explanation(found: Explanation, caller: Caller) -> job_pb2.JobExplanation:
    def visible(keys: tuple[str, ...]) -> list[str]:
        return [convert.job_name(key) for key in keys if caller.sees_jobs_of(key.partition("/")[0])]

    made = job_pb2.JobExplanation(
        name=convert.job_name(found.job),
        state=convert.JOB_STATES[found.state],
        stage=found.stage,
        filters=[
            job_pb2.FilterCount(reason=each.reason.value, detail=each.detail, gpus=each.gpus, nodes=each.nodes)
            for each in found.filters
        ],
        blocking_jobs=visible(found.blocking_jobs),
        earliest_start_time=convert.timestamp(found.earliest_start_ms),
        suggestion=found.suggestion,
        counterfactuals=[
            job_pb2.Counterfactual(change=each.change, flag=each.flag, start_time=convert.timestamp(each.start_ms))
            for each in found.counterfactuals
        ],
        expected_start_time=convert.timestamp(found.expected_start_ms),
        ahead_jobs=visible(found.ahead),
        ahead_count=found.ahead_count,
        claimant=convert.claimant(found.claimant, caller.sees_jobs_of),
        victims=visible(found.victims),
        hold_time=convert.timestamp(found.hold_ms),
        unknown_because=found.unknown_because,
    )
    if found.wait is not None:
        made.wait.reason, made.wait.detail = found.wait.reason.value, found.wait.detail
    return made
