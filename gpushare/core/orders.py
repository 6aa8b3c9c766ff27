"""What agents must be told, as data: orders follow from facts, and from the difference between two truths.

Pure. The shell sends an order only after the events behind it are durable. `orders_after_sync` makes every lost message
harmless: it compares all that the scheduler wants of a node with all that its agent knows.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpushare.core.commands import AttemptReport
from gpushare.core.events import AttemptEnded, AttemptsAllocated, AttemptStopRequested, Entry
from gpushare.core.model import ENDED_ATTEMPT_STATES, Attempt, Job, Node
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason


class StartOrder(msgspec.Struct, frozen=True):
    node: str
    attempt: Attempt
    job: Job


class StopOrder(msgspec.Struct, frozen=True):
    node: str
    attempt_id: str
    reason: Reason
    grace_ms: int
    detail: str = ""


class SealOrder(msgspec.Struct, frozen=True):
    """Make sure it can never start, or end what is left of it, and report what was found."""

    node: str
    attempt_id: str


class ForgetOrder(msgspec.Struct, frozen=True):
    """Its end is durable here."""

    node: str
    attempt_id: str


Order = StartOrder | StopOrder | SealOrder | ForgetOrder


def orders_for(entry: Entry, state: ClusterState) -> list[Order]:
    """The orders that follow from one applied entry; `state` is the state just after it."""
    event = entry.event
    if isinstance(event, AttemptsAllocated):
        job = state.jobs[event.job]
        return [StartOrder(a.slice.node, a, job) for a in job.current()]
    if isinstance(event, AttemptStopRequested):
        attempt = state.must_attempt(event.attempt)
        return [_stop(state, attempt)] if attempt.is_live else []
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
                orders.append(StartOrder(node.name, attempt, state.jobs[attempt.job_key]))
        elif attempt.desired_stop:
            orders.append(_stop(state, attempt))
    for attempt_id, report in told.items():
        known = state.attempt(attempt_id)
        if known is None or not known.is_live:
            orders.append(stale_order(node.name, attempt_id, ended=report.state in ENDED_ATTEMPT_STATES))
    return orders


def stale_order(node: str, attempt_id: str, *, ended: bool) -> Order:
    """For an attempt that has ended here, or was never ours: its traces go, its processes die."""
    if ended:
        return ForgetOrder(node, attempt_id)
    return StopOrder(node, attempt_id, Reason.STALE, 0, "the scheduler knows this attempt as ended, or not at all")


def _stop(state: ClusterState, attempt: Attempt) -> StopOrder:
    grace_ms = state.jobs[attempt.job_key].spec.grace_ms
    reason = attempt.stop_reason or Reason.CANCELLED
    return StopOrder(attempt.slice.node, attempt.id, reason, grace_ms, attempt.stop_detail)
