"""One scheduling pass: the queue in order, each job tried on a scratch plan, whole gangs only.

Pure: `schedule` returns events and changes nothing. Order: priority, then submit time. A job that does not fit is
passed over and the next is tried, so no capacity idles that a queued job could use. Equal requests of one tenant are
judged once per pass: what did not fit does not fit again a moment later in the same pass.
"""

from __future__ import annotations

from typing import NamedTuple

from gpushare.core.capacity import least_charge
from gpushare.core.commands import CoreSettings
from gpushare.core.events import AttemptsAllocated, Event, JobEnded
from gpushare.core.lifecycle import INFRA_REASONS, OWN_FAILURE_CODE
from gpushare.core.model import Job, JobState, Slice, TaskRequest
from gpushare.core.placement import POLICIES, Policy
from gpushare.core.placement.filters import Refusals, candidates
from gpushare.core.plan import Plan
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason

# Jobs of one tenant with equal requests share their fate within a pass.
Shape = tuple[str, TaskRequest, int]


class Pass(NamedTuple):
    """What a pass decided. `wake_ms`: when a job's backoff ends, or None. `more`: the bound was reached, run again."""

    events: list[Event]
    waits: dict[Shape, Reason]
    wake_ms: int | None
    more: bool


def shape_of(job: Job) -> Shape:
    return (job.tenant, job.spec.resources, job.spec.tasks)


def schedule(state: ClusterState, now_ms: int, settings: CoreSettings) -> Pass:
    """Place what fits now. At most `settings.placements_per_cycle` jobs, so that one pass stays short."""
    plan = Plan(state)
    policy = POLICIES[settings.policy]
    events: list[Event] = []
    waits: dict[Shape, Reason] = {}
    wake_ms: int | None = None
    waiting = (state.jobs[key] for key in state.lines)
    for job in sorted(waiting, key=lambda j: (-j.spec.priority, j.submit_seq)):
        if job.not_before_ms > now_ms:
            wake_ms = job.not_before_ms if wake_ms is None else min(wake_ms, job.not_before_ms)
            continue
        shape = shape_of(job)
        if shape in waits:
            continue
        if len(events) == settings.placements_per_cycle:
            return Pass(events, waits, now_ms, more=True)
        verdict = _try(plan, job, policy)
        if isinstance(verdict, Reason):
            waits[shape] = verdict
        else:
            events.append(verdict)
    return Pass(events, waits, wake_ms, more=False)


def _try(plan: Plan, job: Job, policy: Policy) -> Event | Reason:
    """Its allocation, or why it waits. A job that breaks the placing of it fails alone: the pass goes on."""
    checkpoint = plan.checkpoint()
    refusals = Refusals()
    try:
        slices = place(plan, job, policy, refusals)
        if slices is None:
            return wait_reason(plan.state, job, refusals)
    except Exception as err:
        plan.rollback(checkpoint)
        return JobEnded(
            job=job.key,
            state=JobState.FAILED,
            reason=Reason.INTERNAL,
            detail=f"placing this job failed ({type(err).__name__}: {err}); report it with the job's id",
            exit_code=OWN_FAILURE_CODE,
        )
    return AttemptsAllocated(job=job.key, round=job.round + 1, slices=tuple(slices))


def place(plan: Plan, job: Job, policy: Policy, refusals: Refusals) -> list[Slice] | None:
    """All tasks of `job` on `plan`, which then holds them; or None and the plan as it was."""
    checkpoint = plan.checkpoint()
    tenant = plan.state.tenants[job.tenant]
    slices: list[Slice] = []
    # A node that lost this job before is taken last: one bad host must not burn all its tries.
    burnt = {a.slice.node for a in job.attempts if a.reason in INFRA_REASONS}
    for task in range(job.spec.tasks):
        found = candidates(plan, job.spec.resources, job.tenant, task, tenant.settings.limit_milli, refusals)
        best = min(found, key=lambda c: (c.slice.node in burnt, policy(c), c.slice.node, c.card_index), default=None)
        if best is None:
            plan.rollback(checkpoint)
            return None
        plan.take(job.tenant, best.slice)
        slices.append(best.slice)
    return slices


def wait_reason(state: ClusterState, job: Job, refusals: Refusals) -> Reason:
    """The one reason that stands between a job and a card."""
    limit = state.tenants[job.tenant].settings.limit_milli
    if limit is not None:
        least = least_charge(state, job.spec.resources)
        if least is not None and least * job.spec.tasks > limit:
            return Reason.TENANT_LIMIT_NEVER
    return refusals.strongest()
