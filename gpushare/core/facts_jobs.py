"""What each fact about jobs and attempts changes: the second half of `state.apply`.

Pure. A handler raises BrokenInvariant when its fact cannot follow from the present state; no policy runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from gpushare.core import ledger
from gpushare.core.events import (
    AttemptChanged,
    AttemptEnded,
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
    CapacityHeld,
    ConnectionOpened,
    Entry,
    HoldReleased,
    JobCancelRequested,
    JobEnded,
    JobExtended,
    JobRequeued,
    JobsArchived,
    JobsCreated,
)
from gpushare.core.facts import REQUEST_RETENTION_MS
from gpushare.core.kinds import AttemptState, JobState, OnTaskFailure
from gpushare.core.lifecycle import BrokenInvariant, check_attempt_move
from gpushare.core.model import Attempt, Job

if TYPE_CHECKING:
    from gpushare.core.state import ClusterState
from gpushare.reasons import Reason


def _jobs_created(state: ClusterState, event: JobsCreated, entry: Entry) -> None:
    tenant = state.tenants[event.tenant]
    if event.number != tenant.next_number:
        raise BrokenInvariant(f"job number {event.tenant}/{event.number} is not the next, {tenant.next_number}")
    tenant.next_number += 1
    array_id = str(event.number) if event.array_indexes else ""
    for place, job_id in enumerate(event.ids()):
        state.submit_seq += 1
        state.add_job(
            Job(
                tenant=event.tenant,
                id=job_id,
                spec=event.spec,
                created_ms=entry.at_ms,
                created_by=entry.principal,
                submit_seq=state.submit_seq,
                array_id=array_id,
                array_index=event.array_indexes[place] if array_id else None,
                request_key=event.request_key,
            )
        )


def _job_cancel_requested(state: ClusterState, event: JobCancelRequested, entry: Entry) -> None:
    job = state.own_job(event.job)
    job.cancelled_by = entry.principal
    state.holds.pop(job.key, None)
    state.set_job_state(job, JobState.CANCELLING)


def _job_extended(state: ClusterState, event: JobExtended, entry: Entry) -> None:
    job = state.own_job(event.job)
    if job.submitted_run_ms is None:
        job.submitted_run_ms = job.spec.max_run_ms
    state.set_spec(job, msgspec.structs.replace(job.spec, max_run_ms=event.max_run_ms))
    # When it surely ends is known anew.
    for attempt in job.live():
        state.index_end(attempt)
        state.move(attempt.slice.node, ())


def _attempts_allocated(state: ClusterState, event: AttemptsAllocated, entry: Entry) -> None:
    job = state.own_job(event.job)
    least = 1 if event.grow else job.spec.least_tasks
    if event.round != job.round + 1 or not least <= len(event.slices) <= job.spec.tasks:
        raise BrokenInvariant(f"job {job.key}: round {event.round} of {len(event.slices)} cannot follow {job.round}")
    if not event.grow and job.live():
        raise BrokenInvariant(f"job {job.key}: round {event.round} begins while an attempt lives")
    job.round = event.round
    if not event.grow:
        job.base_round, job.master_port = event.round, event.master_port
        # Why it had to run again is its last attempts' to say now.
        job.reason, job.detail = None, ""
    for piece in event.slices:
        attempt = Attempt(
            tenant=job.tenant,
            job_id=job.id,
            task=piece.task,
            number=event.round,
            slice=piece,
            term=entry.term,
            allocated_ms=entry.at_ms,
        )
        job.attempts.append(attempt)
        state.attempts[attempt.id] = attempt
        node = state.own_node(piece.node)
        node.idle_since_ms = 0
        state.move(piece.node, piece.gpu_uuids)
        ledger.hold(node, state.tenants[job.tenant], job, attempt, entry.at_ms, state.half_life_ms)
        state.index_end(attempt)
    state.holds.pop(job.key, None)
    if not event.grow:
        state.set_job_state(job, JobState.STARTING)


def _capacity_held(state: ClusterState, event: CapacityHeld, entry: Entry) -> None:
    state.holds[event.hold.job] = event.hold


def _hold_released(state: ClusterState, event: HoldReleased, entry: Entry) -> None:
    state.holds.pop(event.job, None)


def _attempt_stop_requested(state: ClusterState, event: AttemptStopRequested, entry: Entry) -> None:
    attempt = state.own_attempt(event.attempt)
    attempt.desired_stop, attempt.stop_reason, attempt.stop_detail = True, event.reason, event.detail
    attempt.claimant, attempt.told_ms = event.claimant, entry.at_ms
    state.index_end(attempt)
    state.move(attempt.slice.node, ())


def _attempt_suspend_requested(state: ClusterState, event: AttemptSuspendRequested, entry: Entry) -> None:
    attempt = state.own_attempt(event.attempt)
    attempt.desired_suspend, attempt.stop_reason, attempt.stop_detail = True, event.reason, event.detail
    attempt.claimant, attempt.told_ms = event.claimant, entry.at_ms
    state.index_end(attempt)
    state.move(attempt.slice.node, ())


def _attempt_resumed(state: ClusterState, event: AttemptResumed, entry: Entry) -> None:
    """Cards are held for it again; it is RUNNING once its agent says so."""
    attempt = state.own_attempt(event.attempt)
    if attempt.suspended_ms is None or event.slice.node != attempt.slice.node:
        raise BrokenInvariant(f"attempt {attempt.id} cannot resume as {event.slice}")
    job = state.jobs[attempt.job_key]
    attempt.slice = event.slice
    attempt.desired_suspend, attempt.stop_reason, attempt.stop_detail, attempt.claimant = False, None, "", ""
    attempt.suspended_ms, attempt.held_since_ms, attempt.told_ms = None, entry.at_ms, None
    state.index_end(attempt)
    node = state.own_node(event.slice.node)
    state.move(node.name, event.slice.gpu_uuids)
    ledger.hold_cards(node, state.tenants[job.tenant], job, attempt, entry.at_ms, state.half_life_ms)
    state.holds.pop(job.key, None)


def _suspended(state: ClusterState, job: Job, attempt: Attempt, at_ms: int) -> None:
    node = state.own_node(attempt.slice.node)
    attempt.charged_milli_ms = ledger.held_charge_milli_ms(attempt, at_ms)
    ledger.release_cards(node, state.tenants[job.tenant], job, attempt, at_ms, state.half_life_ms)
    attempt.suspended_ms = at_ms
    job.preemptions += 1
    job.preempted_for = attempt.claimant
    state.move(node.name, attempt.slice.gpu_uuids)


def _attempt_changed(state: ClusterState, event: AttemptChanged, entry: Entry) -> None:
    attempt = state.own_attempt(event.attempt)
    check_attempt_move(attempt, event.state)
    attempt.state, attempt.seen = event.state, True
    attempt.containment = event.containment or attempt.containment
    if event.started_ms is not None:
        attempt.started_ms = event.started_ms
    # When it surely ends is known anew.
    state.move(attempt.slice.node, ())
    job = state.jobs[attempt.job_key]
    if event.state is AttemptState.SUSPENDED and attempt.suspended_ms is None:
        _suspended(state, job, attempt, entry.at_ms)
    if job.state is JobState.STARTING:
        _begin_if_whole(state, job, entry.at_ms)
    elif job.state is JobState.RUNNING and event.state is AttemptState.SUSPENDED:
        state.set_job_state(job, JobState.SUSPENDED)
    elif job.state is JobState.SUSPENDED and event.state is AttemptState.RUNNING:
        state.set_job_state(job, JobState.RUNNING)


def _begin_if_whole(state: ClusterState, job: Job, at_ms: int) -> None:
    """A gang runs once every task that lives does; one may have ended by then."""
    if all(a.state is AttemptState.RUNNING and not a.desired_stop for a in job.live()):
        job.started_ms = at_ms if job.started_ms is None else job.started_ms
        state.set_job_state(job, JobState.RUNNING)


def _attempt_ended(state: ClusterState, event: AttemptEnded, entry: Entry) -> None:
    attempt = state.own_attempt(event.attempt)
    check_attempt_move(attempt, event.state)
    attempt.state, attempt.reason, attempt.detail = event.state, event.reason, event.detail
    attempt.exit_code, attempt.signal = event.exit_code, event.signal
    attempt.ended_ms = entry.at_ms if event.ended_ms is None else event.ended_ms
    if event.started_ms is not None:
        attempt.started_ms = event.started_ms
    state.index_end(attempt)
    job, tenant = state.jobs[attempt.job_key], state.tenants[attempt.tenant]
    if job.started_ms is None and attempt.started_ms is not None:
        job.started_ms = min(entry.at_ms, max(attempt.started_ms, job.created_ms))
    node = state.own_node(attempt.slice.node)
    ledger.release(node, tenant, job, attempt, entry.at_ms, state.half_life_ms)
    ledger.meter(tenant, job.created_by.user, attempt)
    state.move(node.name, attempt.slice.gpu_uuids)
    if not node.attempts:
        node.idle_since_ms = entry.at_ms
    goes_on = event.state is AttemptState.SUCCEEDED or job.spec.on_task_failure is OnTaskFailure.CONTINUE
    if job.state is JobState.STARTING and goes_on and job.live():
        _begin_if_whole(state, job, entry.at_ms)


def _job_requeued(state: ClusterState, event: JobRequeued, entry: Entry) -> None:
    job = state.own_job(event.job)
    if job.live():
        raise BrokenInvariant(f"job {job.key} is requeued while an attempt lives")
    if event.asked:
        job.requeues += 1
        job.code_requeues += event.reason is not Reason.REQUEUED
    elif event.preempted_for:
        job.preemptions += 1
        job.preempted_for = event.preempted_for
    elif event.infra:
        job.infra_retries += 1
    else:
        job.retries += 1
    job.not_before_ms, job.reason, job.detail = event.not_before_ms, event.reason, event.detail
    state.set_job_state(job, JobState.QUEUED)


def _job_ended(state: ClusterState, event: JobEnded, entry: Entry) -> None:
    job = state.own_job(event.job)
    if job.live():
        raise BrokenInvariant(f"job {job.key} ended while an attempt lives")
    state.set_job_state(job, event.state)
    state.holds.pop(job.key, None)
    job.reason, job.detail = event.reason, event.detail
    # Cancelled is when somebody said so, maybe long after the last try; else it ended with its last task.
    told = [] if event.state is JobState.CANCELLED else [a.ended_ms for a in job.current() if a.ended_ms is not None]
    job.ended_ms = max(told, default=entry.at_ms)
    job.exit_code, job.signal = event.exit_code, event.signal
    state.ended[job.key] = entry.at_ms
    record = state.requests.get(job.request_key)
    if record is not None:
        record.open_jobs -= 1
        if record.open_jobs == 0:
            record.expires_ms = entry.at_ms + REQUEST_RETENTION_MS


def _jobs_archived(state: ClusterState, event: JobsArchived, entry: Entry) -> None:
    for key in event.jobs:
        if not state.jobs[key].is_ended:
            raise BrokenInvariant(f"job {key} is archived before its end")
        state.remove_job(key)


def _connection_opened(state: ClusterState, event: ConnectionOpened, entry: Entry) -> None:
    """For the audit alone."""


HANDLERS: dict[type[Any], Callable[[ClusterState, Any, Entry], None]] = {
    JobsCreated: _jobs_created,
    JobCancelRequested: _job_cancel_requested,
    JobExtended: _job_extended,
    AttemptsAllocated: _attempts_allocated,
    CapacityHeld: _capacity_held,
    HoldReleased: _hold_released,
    AttemptSuspendRequested: _attempt_suspend_requested,
    AttemptResumed: _attempt_resumed,
    AttemptStopRequested: _attempt_stop_requested,
    AttemptChanged: _attempt_changed,
    AttemptEnded: _attempt_ended,
    JobRequeued: _job_requeued,
    JobEnded: _job_ended,
    ConnectionOpened: _connection_opened,
    JobsArchived: _jobs_archived,
}
