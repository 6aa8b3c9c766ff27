"""Command + state + now -> outcome or Rejection: the front door of the core.

Pure. `decide` changes nothing; the engine applies what it returns. A request id that is known returns what it did the
first time, or REQUEST_ID_REUSED when the body differs. `expand` splits a command that concerns many attempts into
steps that are decided one after the other, each on the state that the step before left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from gpushare import names
from gpushare.core import (
    decide_attempts,
    decide_connections,
    decide_ends,
    decide_logins,
    decide_nodes,
    decide_people,
    decide_repack,
    decide_reservations,
)
from gpushare.core.admission import check_jobs, dropped_env
from gpushare.core.commands import (
    ApplyRepack,
    Bootstrap,
    Call,
    CancelJob,
    Command,
    CordonNode,
    CoreSettings,
    CreateJoinToken,
    CreateReservation,
    CreateTenant,
    CreateToken,
    DeclareNodeDead,
    DeleteReservation,
    DeleteTenant,
    EndAttempt,
    EnrollNode,
    ExtendJob,
    Housekeep,
    IssueLoginToken,
    NodeLeaseExpired,
    NodeLeaseLapsed,
    NodeSessionClosed,
    OpenConnection,
    Outcome,
    Rejection,
    ReportAttempt,
    ReportConditions,
    ReportPower,
    ReportRebooted,
    RequeueJob,
    RevokeToken,
    SetNode,
    SubmitJobs,
    SyncNode,
    UncordonNode,
    UpdateTenant,
)
from gpushare.core.events import (
    AttemptStopRequested,
    Event,
    JobCancelRequested,
    JobEnded,
    JobsArchived,
    JobsCreated,
    RequestCompleted,
    RequestsForgotten,
    TokensForgotten,
)
from gpushare.core.kinds import JobState
from gpushare.core.lifecycle import SIGTERM
from gpushare.core.model import Job
from gpushare.core.notices import NEVER_STARTS, never_starts
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason

Decision = Outcome | Rejection


def request_key(call: Call) -> str:
    """Request ids are apart per caller: another tenant's same id is another request."""
    return f"{call.principal.tenant}|{call.principal.user}|{call.request_id}"


def decide(state: ClusterState, command: Command, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    """What `command` does at `now_ms`. Nothing is changed; a Rejection stands for no events at all."""
    if not call.request_id:
        return _HANDLERS[type(command)](state, command, call, now_ms, settings)
    bad_id = _check_request_id(call, settings)
    if bad_id is not None:
        return bad_id
    known = state.requests.get(request_key(call))
    if known is not None:
        if (known.method, known.body_sha256) == (call.method, call.body_sha256):
            return Outcome(names=known.names, is_repeated=True)
        return Rejection(
            Reason.REQUEST_ID_REUSED,
            f"request_id {names.shown(call.request_id)} was used for another request; use a new one for a new request",
            field="request_id",
            metadata={"known_body_sha256": known.body_sha256, "body_sha256": call.body_sha256},
        )
    outcome = _HANDLERS[type(command)](state, command, call, now_ms, settings)
    if isinstance(outcome, Rejection) or (isinstance(command, SubmitJobs) and command.validate_only):
        return outcome
    jobs = sum(len(e.ids()) for e in outcome.events if isinstance(e, JobsCreated))
    record = RequestCompleted(
        key=request_key(call), method=call.method, body_sha256=call.body_sha256, names=outcome.names, jobs=jobs
    )
    return msgspec.structs.replace(outcome, events=(record, *outcome.events))


def _check_request_id(call: Call, settings: CoreSettings) -> Rejection | None:
    try:
        names.check_text(call.request_id, "request_id", max_bytes=settings.request_id_max_chars)
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field="request_id")
    return None


def expand(state: ClusterState, command: Command) -> list[Command]:
    """The steps that follow `command` once it was accepted, from the state before it."""
    if isinstance(command, SyncNode):
        return decide_nodes.steps_of_sync(state, command)
    if isinstance(command, NodeLeaseLapsed):
        return decide_nodes.steps_of_lapse(state, command)
    if isinstance(command, DeclareNodeDead):
        return decide_nodes.steps_of_death(state, command)
    return []


# -- jobs


def _submit(state: ClusterState, command: SubmitJobs, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    specs = check_jobs(state, command, call.principal, settings)
    if isinstance(specs, Rejection):
        return specs
    notices: dict[str, tuple[str, ...]] = {}
    dropped = sorted({name for raw in command.jobs if raw.captured_env for name in dropped_env(raw)})
    if dropped:
        notices["dropped_env"] = tuple(dropped)
    if any(r.resources.gpus is r.resources.gpu_milli is r.resources.gpu_memory_mib is None for r in command.jobs):
        notices["default_request_used"] = ()
    waits = never_starts(state, command.tenant, specs, call.principal)
    if waits:
        notices[NEVER_STARTS] = waits
    if command.validate_only:
        return Outcome(notices=notices)
    number = state.tenants[command.tenant].next_number
    key = request_key(call) if call.request_id else ""
    events = tuple(
        JobsCreated(
            tenant=command.tenant,
            number=number + place,
            spec=spec,
            array_indexes=raw.array_indexes,
            request_key=key,
        )
        for place, (spec, raw) in enumerate(zip(specs, command.jobs, strict=True))
    )
    made = tuple(f"{command.tenant}/{job_id}" for event in events for job_id in event.ids())
    return Outcome(events=events, names=made, notices=notices)


def _cancel(state: ClusterState, command: CancelJob, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    job = state.jobs.get(command.job)
    if job is None:
        return Rejection(Reason.NOT_FOUND, f"job {names.shown(command.job)} does not exist")
    if job.is_ended or job.state is JobState.CANCELLING:
        return Outcome(names=(job.key,))
    events: list[Event] = [JobCancelRequested(job=job.key)]
    by = f"cancelled by {call.principal.user}"
    if job.state is JobState.QUEUED:
        events.append(
            JobEnded(
                job=job.key,
                state=JobState.CANCELLED,
                reason=Reason.CANCELLED,
                detail=f"{by} before it started",
                exit_code=128 + SIGTERM,
            )
        )
    events += [
        AttemptStopRequested(attempt=a.id, reason=Reason.CANCELLED, detail=by) for a in job.live() if not a.desired_stop
    ]
    return Outcome(events=tuple(events), names=(job.key,))


def _housekeep(state: ClusterState, command: Housekeep, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    events: list[Event] = []
    old: list[str] = []
    kept = _NeededArrays(state)
    for key, ended_ms in state.ended.items():
        if ended_ms >= command.archive_before_ms or len(old) == command.most:
            break
        if not kept.needs(state.jobs[key]):
            old.append(key)
    if old:
        events.append(JobsArchived(jobs=tuple(old)))
    stale = [k for k, r in state.requests.items() if 0 < r.expires_ms < now_ms][: command.most]
    if stale:
        events.append(RequestsForgotten(keys=tuple(stale)))
    over = decide_logins.forgettable(state, now_ms, command.most)
    if over:
        events.append(TokensForgotten(token_ids=over))
    return Outcome(events=tuple(events), is_partial=command.most in (len(old), len(stale), len(over)))


class _NeededArrays:
    """What stays in memory although it has ended: jobs that others wait for, and children of an array that has not
    ended, so that whoever waits for the array sees all of it."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._open: dict[str, bool] = {}

    def needs(self, job: Job) -> bool:
        if job.key in self._state.dependents:
            return True
        if not job.array_id:
            return False
        array = job.array_key
        if array not in self._open:
            siblings = self._state.arrays.get(array, ())
            self._open[array] = array in self._state.dependents or not all(
                self._state.jobs[key].is_ended for key in siblings
            )
        return self._open[array]


_HANDLERS: dict[type[Command], Callable[[ClusterState, Any, Call, int, CoreSettings], Decision]] = {
    SubmitJobs: _submit,
    CancelJob: _cancel,
    ExtendJob: decide_ends.extend,
    RequeueJob: decide_ends.requeue,
    OpenConnection: decide_connections.open_connection,
    Housekeep: _housekeep,
    CreateTenant: decide_people.create_tenant,
    UpdateTenant: decide_people.update_tenant,
    DeleteTenant: decide_people.delete_tenant,
    CreateToken: decide_people.create_token,
    RevokeToken: decide_people.revoke_token,
    IssueLoginToken: decide_logins.issue,
    Bootstrap: decide_people.bootstrap,
    CreateJoinToken: decide_nodes.create_join_token,
    EnrollNode: decide_nodes.enroll,
    SyncNode: decide_nodes.sync,
    CordonNode: decide_nodes.cordon,
    UncordonNode: decide_nodes.uncordon,
    DeclareNodeDead: decide_nodes.declare_dead,
    SetNode: decide_nodes.set_node,
    CreateReservation: decide_reservations.create,
    DeleteReservation: decide_reservations.delete,
    ApplyRepack: decide_repack.apply,
    NodeLeaseExpired: decide_nodes.lease_expired,
    NodeLeaseLapsed: decide_nodes.lease_lapsed,
    NodeSessionClosed: decide_nodes.session_closed,
    ReportConditions: decide_nodes.report_conditions,
    ReportPower: decide_nodes.report_power,
    ReportAttempt: decide_attempts.report,
    ReportRebooted: decide_attempts.rebooted,
    EndAttempt: decide_attempts.end,
}
