"""Who may have others make way, and whom: reclaim across tenants, preemption by priority inside one.

Pure. A job with a claim on its tenant's guarantee takes back what others borrow; a job of higher priority takes from
lower ones of its own tenant. Nobody is touched before its minimum run time, no job of QoS guaranteed ever, and no job
twice in a row for the same claimant. `preemption.find_victims` finds the smallest set on the scratch plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gpushare.core.model import Job, JobState, Qos
from gpushare.core.preemption import Way, find_victims
from gpushare.core.quota import Branch
from gpushare.core.waiting import line_key
from gpushare.reasons import Reason

if TYPE_CHECKING:
    from gpushare.core.cycle import Cycle

# How often a set of victims is looked for again without those that would cost a tenant more than it borrows.
_TRIES = 4
# Searches of one pass, and how long a line waits for its next one after a search that found nobody.
_SEARCHES_MAX = 8
_RETRY_MS = 1000


def make_way(cycle: Cycle, job: Job, reason: Reason) -> Way | None:
    """The jobs that have to make way so that `job`, which waits with `reason`, can start; None: there are none."""
    line = line_key(job)
    least = cycle.brain.least_charge(job.spec.resources)
    claim = None if least is None else cycle.tree.claim_of(job, least * job.spec.least_tasks)
    if reason is Reason.TENANT_LIMIT:
        claim = None
    if not _anybody_could(cycle, job, claim):
        return None
    if cycle.searches >= _SEARCHES_MAX or cycle.brain.search_again_ms.get(line, 0) > cycle.now_ms:
        cycle.wake_at(max(cycle.now_ms + _RETRY_MS, cycle.brain.search_again_ms.get(line, 0)))
        return None
    cycle.searches += 1
    way = _search(cycle, job, claim)
    if way is None:
        cycle.brain.search_again_ms[line] = cycle.now_ms + _RETRY_MS
    return way


def _anybody_could(cycle: Cycle, job: Job, claim: Branch | None) -> bool:
    """A quick look, before any search: is there a tenant to take back from, or a lower priority in the own one?"""
    if cycle.lowest_running(job.tenant) < job.spec.priority:
        return True
    if claim is None:
        return False
    return _can_reclaim(cycle, claim)


def _can_reclaim(cycle: Cycle, claim: Branch) -> bool:
    if claim.name not in cycle.reclaimable:
        holders = (t.name for t in cycle.state.tenants.values() if t.charge_milli)
        cycle.reclaimable[claim.name] = any(cycle.tree.may_reclaim(claim, name) for name in holders)
    return cycle.reclaimable[claim.name]


def could_claim(cycle: Cycle, tenant: str, priority: int) -> bool:
    """Whether any job of this tenant and priority might have others make way, however small it is."""
    if cycle.lowest_running(tenant) < priority:
        return True
    entitled = (b for b in cycle.tree.path(tenant) if b.is_below_guarantee())
    return any(_can_reclaim(cycle, branch) for branch in entitled)


def _search(cycle: Cycle, job: Job, claim: Branch | None) -> Way | None:
    refused: set[str] = set()
    for _ in range(_TRIES):
        allowed = _allowed(cycle, job, claim, refused)
        way = find_victims(cycle.plan, cycle.ask(job), job, cycle.now_ms, allowed)
        if way is None or not way.victims:
            # Nobody can help, or what leaves already is enough: then the job is owed that.
            return None
        excess = _beyond_what_is_borrowed(cycle, job, way)
        if not excess:
            return way
        refused |= excess
    return None


def _allowed(cycle: Cycle, job: Job, claim: Branch | None, refused: set[str]) -> Callable[[Job], bool]:
    borrowers: dict[str, bool] = {}

    def allowed(victim: Job) -> bool:
        if victim.key in refused or victim.key in cycle.settled or victim.spec.qos is Qos.GUARANTEED:
            return False
        if victim.state not in (JobState.STARTING, JobState.RUNNING) or victim.preempted_for == job.key:
            return False
        if victim.tenant == job.tenant:
            if victim.spec.priority >= job.spec.priority:
                return False
        else:
            if claim is None:
                return False
            if victim.tenant not in borrowers:
                borrowers[victim.tenant] = cycle.tree.may_reclaim(claim, victim.tenant)
            if not borrowers[victim.tenant]:
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


def _beyond_what_is_borrowed(cycle: Cycle, job: Job, way: Way) -> set[str]:
    """Victims that their tenant would lose although, after the others of `way`, it borrows no more."""
    excess: set[str] = set()
    left: dict[str, int] = {}
    victims = [cycle.state.jobs[key] for key in way.victims]
    for victim in sorted(victims, key=lambda v: -_charge_milli(v)):
        if victim.tenant == job.tenant:
            continue
        for branch in cycle.tree.path(victim.tenant):
            if branch.name in {b.name for b in cycle.tree.path(job.tenant)}:
                continue
            left.setdefault(branch.name, branch.borrowed_milli())
            if left[branch.name] <= 0:
                excess.add(victim.key)
            left[branch.name] -= _charge_milli(victim)
    return excess


def _charge_milli(job: Job) -> int:
    return sum(a.slice.charge_milli for a in job.live() if a.suspended_ms is None)
