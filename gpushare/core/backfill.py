"""When the blocked head of the queue can start, so that others may run in the gaps without delaying it (EASY).

Pure, without arrays itself. The shadow is the earliest moment at which the head fits when everything that is known to
end has ended, by its time limit or by its grace; what has no known end never ends here. Claims of others count as
they will stand then. A claim on the head's places from then on is what keeps backfilled jobs out of its way.
"""

from __future__ import annotations

from typing import NamedTuple

from gpushare.core import reservations
from gpushare.core.model import Job, Slice
from gpushare.core.placement.ask import Ask
from gpushare.core.placement.claims import Claim, Claims
from gpushare.core.placement.endings import Endings, Search, end_ms, give_own_host
from gpushare.core.placement.place import place_gang
from gpushare.core.plan import Plan

__all__ = ["Endings", "Shadow", "end_ms", "head_claim", "is_anything_to_end", "shadow"]

# So many moments are tried out in full at most; a head that fits at none of them has no known start.
_TRIALS_MAX = 48
HEAD_CLAIM = "head "


class Shadow(NamedTuple):
    """The head starts at `start_ms` at the latest, when jobs end by their limits, at these places."""

    start_ms: int
    slices: tuple[Slice, ...]


def shadow(plan: Plan, ask: Ask, tasks: int, least: int, endings: Endings, now_ms: int) -> Shadow | None:
    """The earliest start after now of a job that does not fit now; None: not known. `ask.end_ms` is its end if it
    started now. `plan` is left as it was; what it has taken so far counts as running."""
    claims, search = plan.fleet.claims, Search(endings.timeline(now_ms), ask, least)
    run_ms = None if ask.end_ms is None else ask.end_ms - now_ms
    at_ms = now_ms
    for _ in range(_TRIALS_MAX):
        moments = [m for m in (search.next_after(at_ms), _next_close_ms(plan, claims, at_ms)) if m is not None]
        if not moments:
            return None
        at_ms = min(moments)
        if search.is_enough(at_ms):
            asked = ask._replace(end_ms=None if run_ms is None else at_ms + run_ms)
            slices = _fits_at(plan, asked, tasks, least, search, at_ms)
            if slices is not None:
                return Shadow(at_ms, tuple(slices))
    return None


def is_anything_to_end(plan: Plan, endings: Endings, now_ms: int) -> bool:
    """Whether the end of anything is known, a job's or a claim's: else no start is."""
    return len(endings.timeline(now_ms).times) > 0 or _next_close_ms(plan, plan.fleet.claims, now_ms) is not None


def head_claim(found: Shadow, job: Job) -> Claim:
    """What the head is owed from its shadow on, as long as it may run."""
    cards: dict[tuple[str, str], tuple[int, int]] = {}
    hosts: dict[str, tuple[int, int]] = {}
    for piece in found.slices:
        for uuid, mib in zip(piece.gpu_uuids, piece.held_mib, strict=True):
            milli_before, mib_before = cards.get((piece.node, uuid), (0, 0))
            cards[piece.node, uuid] = (milli_before + piece.gpu_milli, mib_before + mib)
        cpu, memory = hosts.get(piece.node, (0, 0))
        hosts[piece.node] = (cpu + piece.cpu_milli, memory + piece.memory_mib)
    limit_ms = job.spec.max_run_ms
    return Claim(
        id=f"{HEAD_CLAIM}{job.key}",
        start_ms=found.start_ms,
        end_ms=found.start_ms + limit_ms if limit_ms else None,
        job=job.key,
        cards=cards,
        hosts=hosts,
    )


def _next_close_ms(plan: Plan, claims: Claims | None, at_ms: int) -> int | None:
    """When the next claim of others ends."""
    if claims is None:
        return None
    ends = [c.end_ms for c in claims.claims if c.end_ms is not None and c.end_ms > at_ms]
    windows = [reservations.window(r, at_ms) for r in plan.state.reservations.values()]
    return min([*ends, *(w.end_ms for w in windows if w is not None)], default=None)


def _fits_at(plan: Plan, ask: Ask, tasks: int, least: int, search: Search, at_ms: int) -> list[Slice] | None:
    """Place the head as if it were `at_ms`, then undo it all."""
    fleet, before = plan.fleet, plan.fleet.claims
    checkpoint = plan.checkpoint()
    give_own_host(plan, ask.job)
    search.timeline.give(plan, at_ms, search.nodes(at_ms))
    if before is not None:
        fleet.set_claims(_claims_at(plan, before, at_ms), at_ms)
    try:
        return place_gang(plan, ask, tasks, least)
    finally:
        plan.rollback(checkpoint)
        if before is not None:
            fleet.set_claims(before.claims, before.now_ms)


def _claims_at(plan: Plan, now: Claims, at_ms: int) -> list[Claim]:
    """Reservations as they will stand then, by when all that was told to make way has done so; other claims as now."""
    then = reservations.claims(plan.state, at_ms, is_netted=False)
    known = {c.id for c in then}
    return then + [c for c in now.claims if c.id not in known and not c.id.startswith(reservations.RESERVATION_CLAIM)]
