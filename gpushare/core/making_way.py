"""Who may have others make way, and whom: reclaim across tenants, preemption by priority inside one.

Pure. A job with a claim on its tenant's guarantee takes back what others borrow; a job of higher priority takes from
lower ones of its own tenant. Nobody is touched before its minimum run time, no job of QoS guaranteed ever, and no job
twice in a row for the same claimant. `preemption.find_victims` finds the smallest set on the scratch plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from gpushare.core.kinds import JobState, Qos
from gpushare.core.limit_room import find_within_limits
from gpushare.core.model import Job
from gpushare.core.placement.ask import NO_LIMIT, Ask, Room
from gpushare.core.preemption import Way, find_victims
from gpushare.core.quota import Branch, Claim
from gpushare.core.victims import Victim
from gpushare.core.waiting import line_key
from gpushare.reasons import Reason

if TYPE_CHECKING:
    from gpushare.core.cycle import Cycle

# How often a set of victims is looked for again without those that would cost a tenant more than it borrows.
_TRIES = 6
# Searches of one pass, and how long a line waits for its next one after a search that found nobody.
_SEARCHES_MAX = 8
_RETRY_MS = 1000
# The next search of a line that a pass had no time for: it comes before those that have had theirs.
TURNED_AWAY = 0


def make_way(cycle: Cycle, job: Job, reason: Reason) -> Way | None:
    """The jobs that have to make way so that `job`, which waits with `reason`, can start; None: there are none."""
    line = line_key(job)
    least = cycle.brain.least_charge(job.spec.resources)
    claim = None if least is None else cycle.tree.claim_of(job, least * job.spec.least_tasks)
    if not _anybody_could(cycle, job, claim):
        return None
    again_ms = cycle.brain.short_cuts.search_again_ms
    alone = line._replace(shape=line.shape._replace(suspended=job.key))
    for key in (line, alone):
        if again_ms.get(key, 0) > cycle.now_ms:
            cycle.wake_at(again_ms[key])
            if key == alone:
                cycle.spoilt.add(job.key)
            return None
    first = cycle.turned_away()
    if cycle.searches + (0 if line in first else len(first)) >= _SEARCHES_MAX:
        again_ms[line] = TURNED_AWAY
        cycle.search_more()
        return None
    first.discard(line)
    cycle.searches += 1
    way = _search(cycle, job, claim, reason)
    if way is None:
        # Who made way for this one is out of its reach alone: others of its line have their own search.
        again_ms[alone if job.key in cycle.spoilt else line] = cycle.now_ms + _RETRY_MS
        cycle.search_again_at(cycle.now_ms + _RETRY_MS)
    return way


def _anybody_could(cycle: Cycle, job: Job, claim: Claim | None) -> bool:
    """A quick look, before any search: is there a tenant to take back from, or a lower priority in the own one?"""
    if cycle.lowest_running(job.tenant) < job.spec.priority:
        return True
    if claim is None:
        return False
    return _can_reclaim(cycle, claim.branch)


def _can_reclaim(cycle: Cycle, branch: Branch) -> bool:
    if branch.name not in cycle.reclaimable:
        holders = (t.name for t in cycle.state.tenants.values() if t.charge_milli)
        cycle.reclaimable[branch.name] = any(cycle.tree.may_reclaim(branch, name) for name in holders)
    return cycle.reclaimable[branch.name]


def could_claim(cycle: Cycle, tenant: str, priority: int) -> bool:
    """Whether any job of this tenant and priority might have others make way, however small it is."""
    if cycle.lowest_running(tenant) < priority:
        return True
    entitled = (b for b in cycle.tree.path(tenant) if b.is_below_guarantee())
    return any(_can_reclaim(cycle, branch) for branch in entitled)


def _search(cycle: Cycle, job: Job, claim: Claim | None, reason: Reason) -> Way | None:
    way = _search_as(cycle, job, claim, reason)
    if way is None and claim is not None and claim.models and cycle.lowest_running(job.tenant) < job.spec.priority:
        # What is not guaranteed to it, it may still take from its own tenant's lower priorities.
        return _search_as(cycle, job, None, reason)
    return way


def _search_as(cycle: Cycle, job: Job, claim: Claim | None, reason: Reason) -> Way | None:
    ask = cycle.ask(job)
    if claim is not None and claim.models:
        ask = ask._replace(request=msgspec.structs.replace(ask.request, gpu_model="|".join(claim.models)))
    # Of tenants that would lose more than they borrow: who of them may still be touched.
    only: dict[str, frozenset[str]] = {}
    for _ in range(_TRIES):
        allowed = _allowed(cycle, job, claim, only)
        way = _find(cycle, ask, job, claim, reason, allowed)
        if way is None and any(only.values()):
            only = dict.fromkeys(only, frozenset())
            continue
        if way is None or not way.victims:
            # Nobody can help, or what leaves already is enough: then the job is owed that.
            return None
        spared = _beyond_what_is_borrowed(cycle, job, claim, way)
        if not spared:
            return way
        only |= spared
    return None


def _find(
    cycle: Cycle, ask: Ask, job: Job, claim: Claim | None, reason: Reason, allowed: Callable[[Job], bool]
) -> Way | None:
    """By places, and by limits where there are any: first by what seems to be in the way."""
    way = None
    if reason is not Reason.TENANT_LIMIT:
        way = find_victims(cycle.plan, ask, job, cycle.now_ms, allowed)
    if way is None and ask.room != NO_LIMIT:
        keys = _under_same_limits(cycle, job, claim)
        way = find_within_limits(cycle.plan, ask, job, keys, allowed, _room_without(cycle, job))
    if way is None and reason is Reason.TENANT_LIMIT:
        way = find_victims(cycle.plan, ask, job, cycle.now_ms, allowed)
    return way


def _under_same_limits(cycle: Cycle, job: Job, claim: Claim | None) -> set[str]:
    """Keys of the jobs that run on account of a tenant whose limit holds for `job`, too."""
    limited = {b.name for b in cycle.tree.path(job.tenant) if b.has_limits()}
    tenants = {job.tenant}
    if claim is not None:
        others = (name for name in cycle.tree.branches if name and cycle.tree.may_reclaim(claim.branch, name))
        tenants |= {name for name in others if any(b.name in limited for b in cycle.tree.path(name))}
    attempts = (cycle.state.attempts[a] for node in cycle.state.nodes.values() for a in node.attempts)
    return {a.job_key for a in attempts if a.tenant in tenants}


def _room_without(cycle: Cycle, job: Job) -> Callable[[Iterable[Victim]], Room]:
    def room(gone: Iterable[Victim]) -> Room:
        victims = list(gone)
        for victim in victims:
            cycle.tree.add(victim.job, victim.pieces, cycle.models(victim.pieces), -1)
        found = cycle.ask(job).room
        for victim in victims:
            cycle.tree.add(victim.job, victim.pieces, cycle.models(victim.pieces), +1)
        return found

    return room


def _allowed(cycle: Cycle, job: Job, claim: Claim | None, only: dict[str, frozenset[str]]) -> Callable[[Job], bool]:
    def allowed(victim: Job) -> bool:
        if victim.key in cycle.settled or victim.spec.qos is Qos.GUARANTEED:
            return False
        if victim.state not in (JobState.STARTING, JobState.RUNNING):
            return False
        if victim.preempted_for == job.key:
            cycle.spoilt.add(job.key)
            return False
        if victim.tenant == job.tenant:
            if victim.spec.priority >= job.spec.priority:
                return False
        elif victim.key not in only.get(victim.tenant, (victim.key,)) or not _is_borrowed(cycle, claim, victim):
            return False
        return _has_run_enough(cycle, victim)

    return allowed


def _has_run_enough(cycle: Cycle, victim: Job) -> bool:
    own = cycle.state.tenants[victim.tenant].settings.min_run_ms
    min_run_ms = cycle.settings.min_run_ms if own is None else own
    if not min_run_ms:
        return True
    since_ms = min((a.held_since_ms or a.started_ms or a.allocated_ms for a in victim.live()), default=cycle.now_ms)
    if since_ms + min_run_ms <= cycle.now_ms:
        return True
    cycle.wake_at(since_ms + min_run_ms)
    return False


def _beyond_what_is_borrowed(cycle: Cycle, job: Job, claim: Claim | None, way: Way) -> dict[str, frozenset[str]]:
    """By tenant that would lose some of `way`'s victims although, after the others, it borrows no more: those others.
    Empty: nobody loses what is guaranteed to it."""
    victims = sorted((cycle.state.jobs[key] for key in way.victims), key=lambda v: (-_charge_milli(v), v.key))
    gone: list[Job] = []
    spared: set[str] = set()
    for victim in victims:
        if victim.tenant != job.tenant and not _is_borrowed(cycle, claim, victim):
            spared.add(victim.tenant)
            continue
        _count(cycle, victim, -1)
        gone.append(victim)
    for victim in gone:
        _count(cycle, victim, +1)
    return {tenant: frozenset(v.key for v in gone if v.tenant == tenant) for tenant in spared}


def _count(cycle: Cycle, job: Job, sign: int) -> None:
    held = tuple(a.slice for a in job.live() if a.suspended_ms is None)
    cycle.tree.add(job, held, cycle.models(held), sign)


def _is_borrowed(cycle: Cycle, claim: Claim | None, victim: Job) -> bool:
    """Whether what it holds is more than its tenant's own, and may be taken back for `claim`."""
    held = tuple(a.slice for a in victim.live() if a.suspended_ms is None and a.slice.gpu_uuids)
    return claim is not None and cycle.tree.may_reclaim(claim.branch, victim.tenant, set(cycle.models(held)))


def _charge_milli(job: Job) -> int:
    return sum(a.slice.charge_milli for a in job.live() if a.suspended_ms is None)
