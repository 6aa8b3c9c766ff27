"""What people ask of a job's end: to extend its time limit, to stop it and queue it again. Pure.

A limit is only ever made longer. An extension is refused where it would break what is promised: a reservation's window,
or maintenance; what is merely planned (the start of the queue's head, a place kept free) adapts in the next pass.
"""

from __future__ import annotations

from gpushare import names
from gpushare.core.commands import Call, CoreSettings, ExtendJob, Outcome, Rejection, RequeueJob
from gpushare.core.events import AttemptStopRequested, JobExtended
from gpushare.core.kinds import AttemptState, JobState, PreemptionMode
from gpushare.core.model import Attempt, Job, Node
from gpushare.core.placement.bookings import Bookings
from gpushare.core.placement.claims import Claim, Claims, Owner, Shortfall
from gpushare.core.reservation_cards import listed, when
from gpushare.core.reservations import RESERVATION_CLAIM, claims, claims_between
from gpushare.core.run_limits import above_cap, run_limits
from gpushare.core.state import ClusterState
from gpushare.quantity import format_duration_ms
from gpushare.reasons import Reason

Decision = Outcome | Rejection


def extend(state: ClusterState, command: ExtendJob, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    """RUN_LIMIT: above the tenant's cap, which an admin may pass; RESERVATION_CONFLICT: it would still be there when a
    window opens; JOB_ENDED; INVALID_FIELD."""
    job = state.jobs.get(command.job)
    if job is None:
        return _no_job(command.job)
    if _is_over(job):
        return Rejection(Reason.JOB_ENDED, f"job {job.id} is {job.state}, and its time limit can count no more")
    bad = _bad_request(job, command, settings)
    if bad is not None:
        return bad
    old_ms = job.spec.max_run_ms
    new_ms = old_ms + command.longer_by_ms if command.longer_by_ms is not None else command.max_run_ms or 0
    if new_ms == old_ms:
        return Outcome(names=(job.key,))
    field = "longer_by" if command.longer_by_ms is not None else "max_run_duration"
    if not old_ms < new_ms <= settings.max_run_ms_max:
        least, most = format_duration_ms(old_ms), format_duration_ms(settings.max_run_ms_max)
        detail = f"{field}: a limit of {format_duration_ms(new_ms)}; accepted: above the present {least}, to {most}"
        return Rejection(Reason.INVALID_FIELD, detail, field=field)
    limits = run_limits(state.tenants, job.tenant)
    why = above_cap(new_ms, limits, call.principal)
    if why:
        cap = {"cap_ms": str(limits.cap_ms), "capped_by": limits.capped_by}
        return Rejection(Reason.RUN_LIMIT, f"{field}: {why}", field=field, metadata=cap)
    broken = _broken_promises(state, job, new_ms, now_ms)
    if broken:
        told = listed(dict.fromkeys(f"{_name_of(c)} (from {when(c.start_ms)})" for c in broken))
        detail = f"{field}: it would still run in a window that is promised: {told}"
        held = ", ".join(dict.fromkeys(_name_of(c) for c in broken))
        return Rejection(Reason.RESERVATION_CONFLICT, detail, field=field, metadata={"reservations": held})
    return Outcome(events=(JobExtended(job=job.key, max_run_ms=new_ms),), names=(job.key,))


def requeue(state: ClusterState, command: RequeueJob, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    """A job that is queued, or being stopped already to be queued again, stays as it is. JOB_ENDED also for one whose
    end is under way in another way: it would be untrue that it comes again."""
    job = state.jobs.get(command.job)
    if job is None:
        return _no_job(command.job)
    if job.is_ended or job.state is JobState.CANCELLING:
        return Rejection(Reason.JOB_ENDED, f"job {job.id} is {job.state}, and what has ended is not queued again")
    other = next((a for a in job.live() if _ends_otherwise(job, a)), None)
    if other is not None:
        why = f" ({other.stop_reason})" if other.desired_stop else ""
        detail = f"job {job.id} is being stopped already{why}, and whether it runs again follows from that"
        return Rejection(Reason.JOB_ENDED, detail)
    detail = f"queued again by {call.principal.user}"
    events = tuple(
        AttemptStopRequested(attempt=a.id, reason=Reason.REQUEUED, detail=detail)
        for a in job.live()
        if not a.desired_stop
    )
    return Outcome(events=events, names=(job.key,))


def _no_job(key: str) -> Rejection:
    return Rejection(Reason.NOT_FOUND, f"job {names.shown(key)} does not exist")


def _ends_otherwise(job: Job, attempt: Attempt) -> bool:
    """It is being stopped, and not in a way that has its job queued again at its place."""
    if not attempt.desired_stop:
        return attempt.state is AttemptState.STOPPING
    if attempt.stop_reason is Reason.PREEMPTED:
        return job.spec.preemption is PreemptionMode.CANCEL
    return attempt.stop_reason is not Reason.REQUEUED


def _is_over(job: Job) -> bool:
    """It has ended, or is ending of its own and not to run again."""
    ending = any(a.state is AttemptState.STOPPING and not a.desired_stop for a in job.live())
    return job.is_ended or job.state is JobState.CANCELLING or ending


def _bad_request(job: Job, command: ExtendJob, settings: CoreSettings) -> Rejection | None:
    given = [ms for ms in (command.longer_by_ms, command.max_run_ms) if ms is not None]
    if len(given) != 1:
        detail = "longer_by: give exactly one of longer_by and max_run_duration"
        return Rejection(Reason.INVALID_FIELD, detail, field="longer_by")
    if not 1 <= given[0] <= settings.max_run_ms_max:
        field = "longer_by" if command.longer_by_ms is not None else "max_run_duration"
        told, most = map(format_duration_ms, (given[0], settings.max_run_ms_max))
        detail = f"{field}: is {told}; accepted: 1ms to {most}"
        return Rejection(Reason.INVALID_FIELD, detail, field=field)
    if not job.spec.max_run_ms:
        detail = f"name: job {job.id} has no time limit, so there is none to extend"
        return Rejection(Reason.INVALID_FIELD, detail, field="name")
    return None


# -- what is promised


def _broken_promises(state: ClusterState, job: Job, run_ms: int, now_ms: int) -> list[Claim]:
    """Windows for which the job would leave too little where it runs, if it ran for `run_ms`."""
    if not state.reservations:
        return []
    by_node: dict[str, list[Attempt]] = {}
    for attempt in job.live():
        if attempt.suspended_ms is None:
            by_node.setdefault(attempt.slice.node, []).append(attempt)
    broken: dict[str, Claim] = {}
    for name, attempts in by_node.items():
        for claim in _broken_on(state, state.nodes[name], job, attempts, run_ms, now_ms):
            broken[claim.id] = claim
    return list(broken.values())


def _broken_on(
    state: ClusterState, node: Node, job: Job, attempts: list[Attempt], run_ms: int, now_ms: int
) -> list[Claim]:
    """The same on one node, as a pass would see it that placed the job there anew."""
    end_ms = max((a.held_since_ms or a.started_ms or a.allocated_ms) for a in attempts) + run_ms
    # Windows of what recurs ask for the same each time: the next one, and one more that the longer run would meet.
    windows = {c.id: c for c in [*claims(state, now_ms), *claims_between(state, now_ms, end_ms)]}
    promised = [c for c in windows.values() if c.id.startswith(RESERVATION_CLAIM) and c.start_ms < end_ms]
    found = Claims(promised, now_ms)
    owner = Owner(job.tenant, job.created_by.user, job.key)
    others = [b for b in Bookings(state, node).bookings.values() if b.owner.job != job.key]
    short = found.shortfall(node.name, others, found.horizon(end_ms), found.own(owner))
    cards = {uuid for a in attempts for uuid in a.slice.gpu_uuids}
    if _has_room(node, cards, short):
        return []
    return [
        c
        for c in found.claims
        if not c.entitles(owner) and (node.name in c.hosts or any((node.name, uuid) in c.cards for uuid in cards))
    ]


def _has_room(node: Node, cards: set[str], short: Shortfall) -> bool:
    """Whether what is owed to others fits what is free beside the job."""
    if short.shut:
        return False
    if short.host[0] > max(0, node.free_cpu_milli) or short.host[1] > max(0, node.free_memory_mib):
        return False
    owed = ((node.gpus[uuid], short.cards.get(uuid, (0, 0))) for uuid in cards)
    return all(milli <= max(0, gpu.free_milli) and mib <= max(0, gpu.free_mib) for gpu, (milli, mib) in owed)


def _name_of(claim: Claim) -> str:
    return claim.id.removeprefix(RESERVATION_CLAIM).partition(" ")[0]
