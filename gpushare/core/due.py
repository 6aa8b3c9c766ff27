"""What has become of a queued job without any placing: a dependency that can never hold, a start that came too late.

Pure. Facts about one job each, for the pass to act on.
"""

from __future__ import annotations

from enum import Enum

from gpushare.core.events import JobEnded
from gpushare.core.kinds import DependencyKind, JobState
from gpushare.core.lifecycle import OWN_FAILURE_CODE
from gpushare.core.model import Dependency, Job
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason


class Readiness(Enum):
    READY = "ready"
    WAITS = "waits"
    NEVER = "never"


def readiness(state: ClusterState, dependency: Dependency) -> Readiness:
    """Of one dependency; of an array's children all must hold."""
    keys = state.arrays.get(dependency.job, [dependency.job])
    worst = Readiness.READY
    for key in keys:
        found = _of_job(state.jobs.get(key), dependency.kind)
        if found is Readiness.NEVER:
            return found
        if found is Readiness.WAITS:
            worst = found
    return worst


def _of_job(other: Job | None, kind: DependencyKind) -> Readiness:
    if other is None:
        # Jobs that others wait for stay in memory; one that is gone had ended before it was named.
        return Readiness.NEVER if kind is DependencyKind.AFTEROK else Readiness.READY
    if other.is_ended:
        failed = kind is DependencyKind.AFTEROK and other.state is not JobState.SUCCEEDED
        return Readiness.NEVER if failed else Readiness.READY
    # It has begun also where it was taken back since.
    begun = kind is DependencyKind.AFTER and other.started_ms is not None
    return Readiness.READY if begun else Readiness.WAITS


def waits_for(state: ClusterState, job: Job) -> tuple[Readiness, Dependency | None]:
    """The first dependency that stands in the way, and how; (READY, None) when there is none."""
    first: Dependency | None = None
    for dependency in job.spec.after:
        found = readiness(state, dependency)
        if found is Readiness.NEVER:
            return found, dependency
        if found is Readiness.WAITS and first is None:
            first = dependency
    return (Readiness.READY, None) if first is None else (Readiness.WAITS, first)


def never_starts(job: Job, dependency: Dependency) -> JobEnded:
    return JobEnded(
        job=job.key,
        state=JobState.FAILED,
        reason=Reason.DEPENDENCY_FAILED,
        detail=f"it was to start only if {dependency.job} succeeded, which it did not",
        exit_code=OWN_FAILURE_CODE,
    )


def too_late(job: Job) -> JobEnded:
    seconds = job.spec.start_within_ms / 1000
    return JobEnded(
        job=job.key,
        state=JobState.FAILED,
        reason=Reason.START_DEADLINE,
        detail=f"it had not started within the {seconds:g} s that it was given",
        exit_code=OWN_FAILURE_CODE,
    )


def overdue(state: ClusterState, now_ms: int) -> list[JobEnded]:
    """The ends of all queued jobs that have never started and whose time to do so has passed."""
    late = (state.jobs[key] for key in state.lines.overdue(now_ms))
    return [too_late(job) for job in late if job.state is JobState.QUEUED and job.started_ms is None]
