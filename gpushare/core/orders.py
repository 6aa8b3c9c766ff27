"""What agents must be told, as data: orders follow from facts, and from the difference between two truths.

Pure. The shell sends an order only after the events behind it are durable. `orders_after_sync` makes every lost message
harmless: it compares all that the scheduler wants of a node with all that its agent knows.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpushare.core.commands import AttemptReport
from gpushare.core.events import (
    AttemptEnded,
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
    Entry,
    JobExtended,
)
from gpushare.core.gangs import GangPlace, peers_of, place_of
from gpushare.core.kinds import AttemptState
from gpushare.core.model import ENDED_ATTEMPT_STATES, WHOLE_CARD_MILLI, Attempt, Job, Node, Slice
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason


class StartOrder(msgspec.Struct, frozen=True):
    """`task_count` is how many tasks the job has with this one; `gang` is None for a job of one task; `capacity_milli`
    is what shares on its card may have together."""

    node: str
    attempt: Attempt
    job: Job
    task_count: int = 1
    gang: GangPlace | None = None
    capacity_milli: int = WHOLE_CARD_MILLI


class StopOrder(msgspec.Struct, frozen=True):
    node: str
    attempt_id: str
    reason: Reason
    grace_ms: int
    detail: str = ""


class SuspendOrder(msgspec.Struct, frozen=True):
    """Give up the cards, keep the processes."""

    node: str
    attempt_id: str


class ResumeOrder(msgspec.Struct, frozen=True):
    """Go on, on the cards of `slice`, which may be others than before."""

    node: str
    attempt_id: str
    slice: Slice
    capacity_milli: int = WHOLE_CARD_MILLI


class LimitOrder(msgspec.Struct, frozen=True):
    """It may run for `max_run_ms` from its start on, whatever it was told before."""

    node: str
    attempt_id: str
    max_run_ms: int


class SealOrder(msgspec.Struct, frozen=True):
    """Make sure it can never start, or end what is left of it, and report what was found."""

    node: str
    attempt_id: str


class ForgetOrder(msgspec.Struct, frozen=True):
    """Its end is durable here."""

    node: str
    attempt_id: str


Order = StartOrder | StopOrder | SuspendOrder | ResumeOrder | LimitOrder | SealOrder | ForgetOrder


def orders_for(entry: Entry, state: ClusterState) -> list[Order]:
    """The orders that follow from one applied entry; `state` is the state just after it."""
    event = entry.event
    if isinstance(event, AttemptsAllocated):
        job = state.jobs[event.job]
        # Of a gang that grew, only what is new.
        return [_start(state, a) for a in job.attempts if a.number == event.round]
    if isinstance(event, AttemptStopRequested | AttemptSuspendRequested | AttemptResumed):
        attempt = state.must_attempt(event.attempt)
        order = _wish(state, attempt, None) if attempt.is_live else None
        return [order] if order else []
    if isinstance(event, JobExtended):
        return [_limit(state, a) for a in state.jobs[event.job].live()]
    if isinstance(event, AttemptEnded):
        attempt = state.must_attempt(event.attempt)
        return [ForgetOrder(attempt.slice.node, attempt.id)]
    return []


def orders_after_sync(state: ClusterState, node: Node, reports: Iterable[AttemptReport]) -> list[Order]:
    """All orders that `node` needs now, given its whole listing, whose reports were already taken."""
    told = {r.attempt: r for r in reports}
    orders: list[Order] = []
    for attempt in state.live_attempts(node):
        if attempt.id not in told:
            if attempt.seen or attempt.desired_stop:
                orders.append(SealOrder(node.name, attempt.id))
            else:
                orders.append(_start(state, attempt))
        else:
            orders += _level(state, attempt, told[attempt.id].state)
    for attempt_id, report in told.items():
        known = state.attempt(attempt_id)
        if known is None or not known.is_live:
            orders.append(stale_order(node.name, attempt_id, ended=report.state in ENDED_ATTEMPT_STATES))
    return orders


def _level(state: ClusterState, attempt: Attempt, told: AttemptState) -> list[Order]:
    """What an agent that was away may have missed of an attempt that it `told` of."""
    wish = _wish(state, attempt, told)
    missed: list[Order] = [wish] if wish is not None else []
    if state.jobs[attempt.job_key].submitted_run_ms is not None:
        missed.append(_limit(state, attempt))
    return missed


def stale_order(node: str, attempt_id: str, *, ended: bool) -> Order:
    """For an attempt that has ended here, or was never ours: its traces go, its processes die."""
    if ended:
        return ForgetOrder(node, attempt_id)
    return StopOrder(node, attempt_id, Reason.STALE, 0, "the scheduler knows this attempt as ended, or not at all")


def _start(state: ClusterState, attempt: Attempt) -> StartOrder:
    job = state.jobs[attempt.job_key]
    return StartOrder(
        attempt.slice.node,
        attempt,
        job,
        task_count=len(peers_of(job, attempt)),
        gang=place_of(state, job, attempt),
        capacity_milli=_capacity_milli(state, attempt),
    )


def _resume(state: ClusterState, attempt: Attempt) -> ResumeOrder:
    return ResumeOrder(attempt.slice.node, attempt.id, attempt.slice, _capacity_milli(state, attempt))


def _capacity_milli(state: ClusterState, attempt: Attempt) -> int:
    gpus = state.nodes[attempt.slice.node].gpus
    return max((gpus[uuid].capacity_milli for uuid in attempt.slice.gpu_uuids), default=WHOLE_CARD_MILLI)


def _wish(state: ClusterState, attempt: Attempt, told: AttemptState | None) -> Order | None:
    """What is wanted of a live attempt beyond that it runs; nothing where its agent `told` that it is so already."""
    if attempt.desired_stop:
        return _stop(state, attempt)
    suspended = told is AttemptState.SUSPENDED
    if attempt.desired_suspend:
        return None if suspended else SuspendOrder(attempt.slice.node, attempt.id)
    return _resume(state, attempt) if suspended or told is None else None


def _limit(state: ClusterState, attempt: Attempt) -> LimitOrder:
    return LimitOrder(attempt.slice.node, attempt.id, state.jobs[attempt.job_key].spec.max_run_ms)


def _stop(state: ClusterState, attempt: Attempt) -> StopOrder:
    grace_ms = state.jobs[attempt.job_key].spec.grace_ms
    reason = attempt.stop_reason or Reason.CANCELLED
    return StopOrder(attempt.slice.node, attempt.id, reason, grace_ms, attempt.stop_detail)
