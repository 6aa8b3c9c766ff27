"""Which moves a job and an attempt may make, and what follows when an attempt ends.

Pure. The transition tables are literal; the diagrams in the docs are generated from them. `consequences` is policy: it
returns the outcomes that the journal stores, so replay never runs it.
"""

from __future__ import annotations

from gpushare.core.commands import CoreSettings
from gpushare.core.events import AttemptEnded, AttemptStopRequested, Event, JobEnded, JobRequeued
from gpushare.core.model import Attempt, AttemptState, Job, JobState
from gpushare.reasons import Reason

_J = JobState
JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    _J.QUEUED: frozenset({_J.STARTING, _J.CANCELLING, _J.FAILED}),
    _J.STARTING: frozenset({_J.RUNNING, _J.QUEUED, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED}),
    _J.RUNNING: frozenset({_J.SUSPENDED, _J.QUEUED, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED}),
    _J.SUSPENDED: frozenset({_J.RUNNING, _J.QUEUED, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED}),
    _J.CANCELLING: frozenset({_J.CANCELLED, _J.SUCCEEDED}),
    _J.SUCCEEDED: frozenset(),
    _J.FAILED: frozenset(),
    _J.CANCELLED: frozenset(),
}

_A = AttemptState
_ENDS = {_A.SUCCEEDED, _A.FAILED, _A.STOPPED}
ATTEMPT_MOVES: dict[AttemptState, frozenset[AttemptState]] = {
    _A.ALLOCATED: frozenset({_A.LAUNCHING, _A.RUNNING, _A.STOPPING, _A.UNKNOWN, *_ENDS}),
    _A.LAUNCHING: frozenset({_A.RUNNING, _A.STOPPING, _A.UNKNOWN, *_ENDS}),
    _A.RUNNING: frozenset({_A.SUSPENDED, _A.STOPPING, _A.UNKNOWN, *_ENDS}),
    _A.SUSPENDED: frozenset({_A.RUNNING, _A.STOPPING, _A.UNKNOWN, *_ENDS}),
    _A.STOPPING: frozenset({_A.UNKNOWN, *_ENDS}),
    _A.UNKNOWN: frozenset({_A.UNKNOWN, _A.LAUNCHING, _A.RUNNING, _A.SUSPENDED, _A.STOPPING, *_ENDS}),
    _A.SUCCEEDED: frozenset(),
    _A.FAILED: frozenset(),
    _A.STOPPED: frozenset(),
}

# Losses that are not the job's doing: run again, free of its own budget.
INFRA_REASONS = frozenset(
    {
        Reason.INFRA,
        Reason.NODE_REBOOTED,
        Reason.DECLARED_DEAD,
        Reason.LEASE_EXPIRED,
        Reason.GPU_LOST,
        Reason.NOT_STARTED,
        Reason.COLLATERAL,
        Reason.PREEMPTED,
        Reason.FENCE_FAILED,
        Reason.OCCUPIED,
        Reason.STALE,
    }
)
# The job's own failures that another try can mend; the others (a missing command, the time limit) it cannot.
RETRYABLE_REASONS = frozenset(
    {
        Reason.EXIT_CODE,
        Reason.SIGNALLED,
        Reason.MEMORY_LIMIT,
        Reason.HOST_MEMORY_LIMIT,
        Reason.LIMIT_BYPASS,
        Reason.APP_FAULT,
    }
)

OWN_FAILURE_CODE = 125
TIME_LIMIT_CODE = 124
SIGTERM = 15


class BrokenInvariant(AssertionError):
    """The state contradicts itself: the engine stops leading rather than limp on."""


class IllegalMove(BrokenInvariant):
    """A transition that no table has."""


def check_job_move(job: Job, to: JobState) -> None:
    """Raise IllegalMove unless JOB_MOVES has it."""
    if to not in JOB_MOVES[job.state]:
        raise IllegalMove(f"job {job.key}: {job.state} -> {to}")


def check_attempt_move(attempt: Attempt, to: AttemptState) -> None:
    """Raise IllegalMove unless ATTEMPT_MOVES has it."""
    if to not in ATTEMPT_MOVES[attempt.state]:
        raise IllegalMove(f"attempt {attempt.id}: {attempt.state} -> {to}")


def consequences(job: Job, ended: AttemptEnded, now_ms: int, settings: CoreSettings) -> list[Event]:
    """What follows from `ended`, which is not yet applied: peers to stop, another round, or the job's end."""
    others = [a for a in job.live() if a.id != ended.attempt]
    if job.state is not JobState.CANCELLING and ended.state is not AttemptState.SUCCEEDED and others:
        return [
            AttemptStopRequested(attempt=a.id, reason=Reason.PEER_FAILED, detail=f"{ended.attempt}: {ended.reason}")
            for a in others
            if not a.desired_stop
        ]
    if others:
        return []
    ends = [_end_of(a, ended) for a in job.current()]
    if job.state is JobState.CANCELLING:
        return [_cancelled(job, ends)]
    culprits = [
        end
        for end, attempt in zip(ends, job.current(), strict=True)
        if end.state is not AttemptState.SUCCEEDED and attempt.stop_reason is not Reason.PEER_FAILED
    ]
    if not culprits:
        return [JobEnded(job=job.key, state=JobState.SUCCEEDED, reason=Reason.COMPLETED, exit_code=0)]
    return [_after_failure(job, culprits[0], now_ms, settings)]


def _end_of(attempt: Attempt, ended: AttemptEnded) -> AttemptEnded:
    if attempt.id == ended.attempt:
        return ended
    return AttemptEnded(
        attempt=attempt.id,
        state=attempt.state,
        reason=attempt.reason or Reason.INFRA,
        detail=attempt.detail,
        exit_code=attempt.exit_code,
        signal=attempt.signal,
    )


def _cancelled(job: Job, ends: list[AttemptEnded]) -> JobEnded:
    """A job whose every task had succeeded before the cancel reached it keeps its success."""
    if all(end.state is AttemptState.SUCCEEDED for end in ends):
        return JobEnded(job=job.key, state=JobState.SUCCEEDED, reason=Reason.COMPLETED, exit_code=0)
    signal = next((end.signal for end in ends if end.signal is not None), None)
    # A task that heeds SIGTERM ends by its own exit: its words tell of the signal, too.
    stopped = sorted(ends, key=lambda end: end.signal is None)
    detail = next((end.detail for end in stopped if end.detail and end.state is not AttemptState.SUCCEEDED), "")
    return JobEnded(
        job=job.key,
        state=JobState.CANCELLED,
        reason=Reason.CANCELLED,
        detail=detail or "cancelled while running",
        exit_code=128 + (signal if signal is not None else SIGTERM),
        signal=signal,
    )


def _after_failure(job: Job, end: AttemptEnded, now_ms: int, settings: CoreSettings) -> Event:
    if end.reason in INFRA_REASONS:
        if job.infra_retries < settings.infra_retries:
            wait_ms = min(settings.infra_backoff_ms << job.infra_retries, settings.infra_backoff_max_ms)
            return JobRequeued(
                job=job.key, infra=True, reason=end.reason, detail=end.detail, not_before_ms=now_ms + wait_ms
            )
        tries = job.infra_retries + 1
        times = f"{tries} times" if tries > 1 else "once"
        return _failed(job, end, f"lost {times} to the infrastructure, not retried again; last: {end.detail}")
    if end.reason in RETRYABLE_REASONS and job.retries < job.spec.max_retries:
        return JobRequeued(
            job=job.key,
            infra=False,
            reason=end.reason,
            detail=end.detail,
            not_before_ms=now_ms + settings.retry_backoff_ms,
        )
    return _failed(job, end, end.detail)


def _failed(job: Job, end: AttemptEnded, detail: str) -> JobEnded:
    if job.spec.tasks > 1:
        detail = f"task {end.attempt.split('.')[2]}: {detail}"
    return JobEnded(
        job=job.key,
        state=JobState.FAILED,
        reason=end.reason,
        detail=detail,
        exit_code=job_exit_code(end),
        signal=end.signal,
    )


def job_exit_code(end: AttemptEnded) -> int:
    """The code that `gpushare run` returns: the program's own, 128+n for a signal, 124 for the time limit, else 125."""
    if end.reason is Reason.TIME_LIMIT:
        return TIME_LIMIT_CODE
    if end.reason in INFRA_REASONS:
        return OWN_FAILURE_CODE
    if end.exit_code is not None:
        return end.exit_code
    if end.signal is not None:
        return 128 + end.signal
    return OWN_FAILURE_CODE
