"""Which moves a job and an attempt may make, and what follows when an attempt ends.

Pure. The transition tables are literal; the diagrams in the docs are generated from them. `consequences` is policy: it
returns the outcomes that the journal stores, so replay never runs it. A gang ends as one: its first own failure says
how, else that it was preempted, else its first loss to the infrastructure.
"""

from __future__ import annotations

from gpushare.core.commands import CoreSettings
from gpushare.core.events import AttemptEnded, AttemptStopRequested, Event, JobEnded, JobRequeued
from gpushare.core.kinds import AttemptState, JobState, OnTaskFailure, PreemptionMode
from gpushare.core.model import Attempt, Job
from gpushare.reasons import Reason

_J = JobState
JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    _J.QUEUED: frozenset({_J.STARTING, _J.CANCELLING, _J.FAILED}),
    _J.STARTING: frozenset({_J.RUNNING, _J.QUEUED, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    _J.RUNNING: frozenset({_J.SUSPENDED, _J.QUEUED, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
    _J.SUSPENDED: frozenset({_J.RUNNING, _J.QUEUED, _J.CANCELLING, _J.SUCCEEDED, _J.FAILED, _J.CANCELLED}),
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

# Told for these, a job gives up its place on a node and not its place in the queue.
MAKES_WAY = frozenset({Reason.PREEMPTED, Reason.REQUEUED})

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
    if others:
        if job.state is JobState.CANCELLING or _goes_on(job, ended, others):
            return []
        return [
            AttemptStopRequested(attempt=a.id, reason=Reason.PEER_FAILED, detail=f"{ended.attempt}: {ended.reason}")
            for a in others
            if not a.desired_stop
        ]
    if job.state is JobState.CANCELLING:
        return [_cancelled(job, [_end_of(a, ended) for a in job.current()])]
    return [_outcome(job, ended, now_ms, settings)]


def _goes_on(job: Job, ended: AttemptEnded, others: list[Attempt]) -> bool:
    """Whether the gang may do without the task that has just ended."""
    if ended.state is AttemptState.SUCCEEDED:
        return True
    if job.spec.on_task_failure is OnTaskFailure.STOP or _asks_for_requeue(job, ended):
        return False
    staying = sum(not a.desired_stop for a in others)
    done = sum(a.state is AttemptState.SUCCEEDED for a in job.current())
    return staying + done >= job.spec.least_tasks


def _outcome(job: Job, ended: AttemptEnded, now_ms: int, settings: CoreSettings) -> Event:
    """The last task has ended: the job's end, or its next round."""
    bad = [
        (attempt, end)
        for attempt in job.current()
        if (end := _end_of(attempt, ended)).state is not AttemptState.SUCCEEDED
        and attempt.stop_reason is not Reason.PEER_FAILED
    ]
    if not bad:
        return JobEnded(job=job.key, state=JobState.SUCCEEDED, reason=Reason.COMPLETED, exit_code=0)
    culprit, end = min(bad, key=lambda each: (_weight(*each), _ended_ms(each[0], each[1], now_ms), each[0].task))
    if _weight(culprit, end) == _MADE_WAY:
        if culprit.stop_reason is Reason.REQUEUED:
            return _queued_again(job, Reason.REQUEUED, end.detail, now_ms)
        return _after_preemption(job, culprit, end, now_ms)
    return _after_failure(job, end, _retries_used(job, ended), now_ms, settings)


_OWN_FAILURE, _MADE_WAY, _LOSS = range(3)


def _weight(attempt: Attempt, end: AttemptEnded) -> int:
    """What one task's bad end is for the whole job; the smallest decides."""
    if end.reason not in INFRA_REASONS and end.reason not in MAKES_WAY:
        return _OWN_FAILURE
    # Lost while it was making way: it was to end anyway.
    making_way = attempt.desired_stop and attempt.stop_reason in MAKES_WAY
    return _MADE_WAY if making_way or end.reason in MAKES_WAY else _LOSS


def _ended_ms(attempt: Attempt, end: AttemptEnded, now_ms: int) -> int:
    told = end.ended_ms if attempt.is_live else attempt.ended_ms
    return now_ms if told is None else told


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


def _after_preemption(job: Job, attempt: Attempt, end: AttemptEnded, now_ms: int) -> Event:
    """It made way: queued again at its old place, free of every retry, unless it asked to be cancelled instead."""
    if job.spec.preemption is not PreemptionMode.CANCEL:
        return JobRequeued(
            job=job.key,
            infra=False,
            reason=Reason.PREEMPTED,
            detail=end.detail,
            not_before_ms=now_ms,
            preempted_for=attempt.claimant or "scheduler",
        )
    signal = end.signal
    return JobEnded(
        job=job.key,
        state=JobState.CANCELLED,
        reason=Reason.PREEMPTED,
        detail=end.detail,
        exit_code=128 + (signal if signal is not None else SIGTERM),
        signal=signal,
    )


def _asks_for_requeue(job: Job, end: AttemptEnded) -> bool:
    """The task's code says so, also where it was given in the grace after its time limit."""
    own_end = end.state is AttemptState.FAILED and end.reason in (Reason.EXIT_CODE, Reason.TIME_LIMIT)
    return own_end and end.exit_code in job.spec.requeue_exit_codes


def _queued_again(job: Job, reason: Reason, detail: str, not_before_ms: int) -> JobRequeued:
    return JobRequeued(job=job.key, infra=False, reason=reason, detail=detail, not_before_ms=not_before_ms, asked=True)


def _after_failure(job: Job, end: AttemptEnded, retries_used: int, now_ms: int, settings: CoreSettings) -> Event:
    if _asks_for_requeue(job, end):
        if job.code_requeues < settings.requeues_max:
            # At once: a pause would give its place to those behind it.
            return _queued_again(job, end.reason, end.detail, now_ms)
        return _failed(
            job, end, f"queued again {job.code_requeues} times, which is all that a job may be; last: {end.detail}"
        )
    if end.reason in INFRA_REASONS:
        if job.infra_retries < settings.infra_retries:
            wait_ms = min(settings.infra_backoff_ms << job.infra_retries, settings.infra_backoff_max_ms)
            return JobRequeued(
                job=job.key, infra=True, reason=end.reason, detail=end.detail, not_before_ms=now_ms + wait_ms
            )
        tries = job.infra_retries + 1
        times = f"{tries} times" if tries > 1 else "once"
        return _failed(job, end, f"lost {times} to the infrastructure, not retried again; last: {end.detail}")
    if end.reason in RETRYABLE_REASONS and retries_used < job.spec.max_retries:
        return JobRequeued(
            job=job.key,
            infra=False,
            reason=end.reason,
            detail=end.detail,
            not_before_ms=now_ms + settings.retry_backoff_ms,
        )
    return _failed(job, end, end.detail)


def _retries_used(job: Job, ended: AttemptEnded) -> int:
    """Of `spec.max_retries`. Where a gang goes on without a failed task, each task's own failure uses one, and the one
    that is to be answered now has not used its own yet."""
    if job.spec.on_task_failure is OnTaskFailure.STOP:
        return job.retries
    new = ended.state is AttemptState.FAILED and ended.reason in RETRYABLE_REASONS
    return max(0, len(own_failures(job)) + new - 1)


def own_failures(job: Job) -> list[Attempt]:
    """Its ended attempts that failed by themselves in a way that another try can mend, first end first."""
    codes = job.spec.requeue_exit_codes
    failed = [
        a
        for a in job.attempts
        if a.state is AttemptState.FAILED and a.reason in RETRYABLE_REASONS and a.exit_code not in codes
    ]
    return sorted(failed, key=lambda a: (a.ended_ms or 0, a.number, a.task))


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
