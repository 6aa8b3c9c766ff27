"""Who has to make way so that a job fits the limits that it shares with them: of its tenant, or of one above it.

Pure, without arrays itself. Places are there, or come free with the same jobs; what lacks is charge, CPU or memory
within a limit, wherever those run that use it up. As in `preemption`, nobody goes for nothing: a set counts once the
claimant was placed on the scratch plan without its members, and then loses everybody who need not go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gpushare.core.model import Job, Slice
from gpushare.core.placement.ask import Ask, Room
from gpushare.core.placement.endings import give_own_host
from gpushare.core.placement.place import place_gang
from gpushare.core.plan import Plan
from gpushare.core.preemption import Way
from gpushare.core.victims import Victim, Victims, cost_of

# Sets that are tried out on the plan, and jobs that one of them has at most.
_TRIALS_MAX = 16
_VICTIMS_MAX = 256

# The limits as they are when these have gone.
RoomWithout = Callable[[Iterable[Victim]], Room]


def find_within_limits(
    plan: Plan, ask: Ask, job: Job, keys: Iterable[str], allowed: Callable[[Job], bool], room: RoomWithout
) -> Way | None:
    """The way for `job` to start when some of the jobs `keys`, which count against the same limits, have gone; None:
    there is none. No victims: those of them that leave anyway are enough. `plan` is left as it was."""
    known = sorted(keys)
    leaving = [v for v in (_leaving(plan, plan.state.jobs[key]) for key in known) if v is not None]
    for with_suspend in (True, False):
        victims = Victims(plan.state, job, allowed, with_suspend=with_suspend)
        found = [v for v in map(victims.of, known) if v is not None and v.pieces]
        found.sort(key=lambda v: (cost_of([v]), v.key))
        checkpoint = plan.checkpoint()
        give_own_host(plan, job.key)
        for victim in leaving:
            _move(plan, victim, is_gone=True)
        way = _search(plan, ask, job, found[:_VICTIMS_MAX], lambda gone: room([*leaving, *gone]))
        plan.rollback(checkpoint)
        if way is not None or not victims.has_suspended:
            return way
    return None


def _search(plan: Plan, ask: Ask, job: Job, ranked: Sequence[Victim], room: RoomWithout) -> Way | None:
    """The cheapest that is enough alone; else the cheapest together, fewest first."""
    alone = [[victim] for victim in ranked[:_TRIALS_MAX]]
    together = [list(ranked[:count]) for count in _counts(len(ranked))]
    for chosen in ([], *alone, *together):
        for victim in chosen:
            _move(plan, victim, is_gone=True)
        slices = _place(plan, ask, job, chosen, room)
        if slices is not None:
            return _pruned(plan, ask, job, chosen, slices, room)
        for victim in chosen:
            _move(plan, victim, is_gone=False)
    return None


def _counts(most: int) -> list[int]:
    """2, 3, 4, 6, 9, ...: up to `most`, half as many again each time."""
    counts, count = [], 2
    while count < most:
        counts.append(count)
        count += max(1, count // 2)
    return [*counts, most] if most > 1 else []


def _pruned(plan: Plan, ask: Ask, job: Job, chosen: list[Victim], slices: list[Slice], room: RoomWithout) -> Way:
    """Let everybody stay without whom the job still starts, the dearest first."""
    kept = list(chosen)
    for victim in sorted(chosen, key=lambda v: (cost_of([v]), v.key), reverse=True):
        rest = [v for v in kept if v is not victim]
        _move(plan, victim, is_gone=False)
        found = _place(plan, ask, job, rest, room)
        if found is None:
            _move(plan, victim, is_gone=True)
        else:
            kept, slices = rest, found
    return Way(tuple(slices), tuple(sorted(v.key for v in kept)), frozenset(v.key for v in kept if v.is_suspended))


def _place(plan: Plan, ask: Ask, job: Job, gone: Sequence[Victim], room: RoomWithout) -> list[Slice] | None:
    checkpoint = plan.checkpoint()
    slices = place_gang(plan, ask._replace(room=room(gone)), job.spec.tasks, job.spec.least_tasks)
    plan.rollback(checkpoint)
    return slices


def _leaving(plan: Plan, job: Job) -> Victim | None:
    """What `job` gives up when it stops anyway, for nobody in particular."""
    live = [a for a in job.live() if a.suspended_ms is None]
    if not live or not all(a.desired_stop and a.claimant not in plan.state.holds for a in live):
        return None
    return Victim(job, tuple(a.slice for a in live), False, 0, 0, 0, False, job.key)


def _move(plan: Plan, victim: Victim, *, is_gone: bool) -> None:
    move = plan.give if is_gone else plan.take
    for piece in victim.pieces:
        move(victim.job.tenant, piece, None, victim.job.created_by.user, victim.key)
