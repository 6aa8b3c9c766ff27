"""The one job that has waited too long for room: a place is kept free for it until it starts.

Pure. A head of the queue is owed a start anew by each pass, and only where it is known; those before it in the order
may still put it off, for as long as they come. So once it has waited for `starvation_after`, its place is held: from
the start that is known, or from now on where none is, at the place that would be free first if all that runs ran as
long again as it has. One job at a time, so that little idles for it; with such a hold it comes before all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpushare.core.backfill import Shadow, shadow
from gpushare.core.due import Readiness
from gpushare.core.events import CapacityHeld
from gpushare.core.model import Job
from gpushare.core.placement.ask import Ask
from gpushare.core.promises import CapacityHold, is_kept_free
from gpushare.core.reservations import hold_claim

if TYPE_CHECKING:
    from gpushare.core.cycle import Cycle

# How long a job for which no place was found waits for the next look, and all jobs after a place was guessed: in a
# queue that moves by itself, no place is guessed for each job in turn. A guess that finds one has read every node.
_GUESS_AGAIN_MS = 60_000
_NEXT_GUESS_MS = 10_000
_NEXT_GUESS_MS_PER_NODE = 120


def use(cycle: Cycle, job: Job, hold: CapacityHold) -> None:
    """The job starts before all others, there or elsewhere; else it waits on, and may still have others make way."""
    ready = cycle.gates.dependency(job)[0] is Readiness.READY and cycle.gate(job) is None
    if not ready or job.key in cycle.settled:
        cycle.drop_hold(hold, "it does not wait for room any more")
    elif cycle.start(job):
        cycle.drop_claim(hold_claim(cycle.state, hold).id)
    elif not _is_open(cycle, hold):
        cycle.drop_hold(hold, "the place that was kept free for it is gone")
    elif hold.since_ms > cycle.now_ms:
        cycle.starts_ms[job.key] = hold.since_ms


def keep(cycle: Cycle, job: Job, ask: Ask, found: Shadow | None) -> None:
    """Keep a place for the blocked `job` if it has waited too long and no other has one; `found` is its start. Asked
    in order: only the first of the blocked jobs is meant, and those after it where that one could be nowhere."""
    if not cycle.may_keep_place or any(map(is_kept_free, cycle.state.holds.values())):
        return
    due_ms = max(job.created_ms, job.not_before_ms) + cycle.settings.starvation_after_ms
    if due_ms > cycle.now_ms:
        cycle.may_keep_place = False
        cycle.wake_at(due_ms)
        return
    next_guess_ms = cycle.brain.short_cuts.next_guess_ms
    if found is None and next_guess_ms > cycle.now_ms:
        cycle.may_keep_place = False
        cycle.wake_at(next_guess_ms)
        return
    place = found or _guess(cycle, job, ask)
    if place is None:
        return
    cycle.may_keep_place = False
    since_ms = cycle.now_ms if found is None else found.start_ms
    hold = CapacityHold(job=job.key, slices=place.slices, victims=(), since_ms=since_ms)
    cycle.events.append(CapacityHeld(hold=hold))
    cycle.add_claim(hold_claim(cycle.state, hold))


def forgo(cycle: Cycle, job: Job) -> None:
    """Room is not what it waits for: what is kept for it is for all again."""
    hold = cycle.state.holds.get(job.key)
    if hold is not None and is_kept_free(hold):
        cycle.drop_hold(hold, "it does not wait for room any more")


def _guess(cycle: Cycle, job: Job, ask: Ask) -> Shadow | None:
    """The place that it would have first if all that has no known end ran as long again as it has."""
    brain, short_cuts, now_ms = cycle.brain, cycle.brain.short_cuts, cycle.now_ms
    again_ms = short_cuts.guess_again_ms.get(job.key, 0)
    if again_ms > now_ms:
        cycle.wake_at(again_ms)
        return None
    found = shadow(cycle.plan, ask, job.spec.tasks, job.spec.least_tasks, brain.guessed, now_ms)
    if found is not None:
        short_cuts.next_guess_ms = now_ms + max(_NEXT_GUESS_MS, _NEXT_GUESS_MS_PER_NODE * len(cycle.state.nodes))
    else:
        waiting = {key: at_ms for key, at_ms in short_cuts.guess_again_ms.items() if at_ms > now_ms}
        short_cuts.guess_again_ms = {**waiting, job.key: now_ms + _GUESS_AGAIN_MS}
        cycle.search_again_at(now_ms + _GUESS_AGAIN_MS)
    return found


def _is_open(cycle: Cycle, hold: CapacityHold) -> bool:
    """Whether all of the place can still be used."""
    fleet = cycle.brain.fleet
    nodes = [fleet.node_id.get(s.node) for s in hold.slices]
    cards = [fleet.card_id.get(uuid) for s in hold.slices for uuid in s.gpu_uuids]
    return all(i is not None and bool(fleet.node_open[i]) for i in nodes) and all(
        c is not None and bool(fleet.open[c]) for c in cards
    )
