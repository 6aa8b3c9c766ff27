"""Why a queued job waits, what it waits for, when it starts, and what would start it now.

Pure, and true by construction: the scheduler's own pass runs on a copy of the cluster, and what is told is what that
pass says. A suggestion is given only after such a pass has started the job with it; the expected start comes from
moving the copy on in time.
"""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from gpushare.core import due
from gpushare.core.brain import Brain
from gpushare.core.commands import CoreSettings
from gpushare.core.counterfactuals import Counterfactual, counterfactuals
from gpushare.core.cycle import Cycle
from gpushare.core.due import Readiness
from gpushare.core.events import CapacityHeld, JobEnded
from gpushare.core.fairshare import FairShare
from gpushare.core.forecast import expected_start
from gpushare.core.kinds import JobState
from gpushare.core.model import Job
from gpushare.core.order import Order
from gpushare.core.placement.claims import Claim
from gpushare.core.placement.endings import end_ms, give_own_host
from gpushare.core.placement.filters import Refusals, gang_refusals
from gpushare.core.placement.place import place_gang
from gpushare.core.promises import CapacityHold
from gpushare.core.quota import QuotaTree
from gpushare.core.sentences import Sees, Wait, backoff, capped_branch, sentence, told_reason, wait_of
from gpushare.core.state import WAITING_STATES, ClusterState
from gpushare.core.tenant_tree import is_below
from gpushare.core.waiting import line_key
from gpushare.core.whatif import Look, World
from gpushare.reasons import Reason

__all__ = ["Counterfactual", "Explanation", "FilterCount", "Question", "Wait", "explain", "wait_of"]

AHEAD_MAX = 10
_BLOCKING_MAX = 100
_NODES_MAX = 20
# Claims that are looked at one by one, for which of them keeps the room.
_CLAIMS_MAX = 64
# Jobs that are tried out for whether they must end.
_TRIED_MAX = 64


class FilterCount(msgspec.Struct, frozen=True):
    """`gpus` cards (or nodes, for a CPU job) that one filter refused, on these nodes."""

    reason: Reason
    detail: str
    gpus: int
    nodes: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True):
    """`stage`: what holds it, in one word: request, quota, cap, dependency, order, reservation, preemption, capacity,
    fence or health. `expected_start_ms`: exact when nothing unforeseen happens; None: not known, and
    `unknown_because` says why. `earliest_start_ms`: when those of `blocking_jobs` (keys) have ended that make the room,
    by their limits; None: unknown. `ahead`: keys of queued jobs that go first, of `ahead_count` in all. `claimant`: the
    job for which the room that this one would fit is kept. `victims`: jobs that have been making way for this one since
    `hold_ms`."""

    job: str
    state: JobState
    stage: str = ""
    wait: Wait | None = None
    filters: tuple[FilterCount, ...] = ()
    blocking_jobs: tuple[str, ...] = ()
    earliest_start_ms: int | None = None
    suggestion: str = ""
    counterfactuals: tuple[Counterfactual, ...] = ()
    expected_start_ms: int | None = None
    ahead: tuple[str, ...] = ()
    ahead_count: int = 0
    claimant: str = ""
    victims: tuple[str, ...] = ()
    hold_ms: int | None = None
    unknown_because: str = ""


STAGES = {
    Reason.MODEL_UNAVAILABLE: "request",
    Reason.LABELS_UNAVAILABLE: "request",
    Reason.PATH_MISSING: "request",
    Reason.FENCE_UNAVAILABLE: "fence",
    Reason.TENANT_LIMIT: "quota",
    Reason.TENANT_LIMIT_NEVER: "quota",
    Reason.QUOTA: "quota",
    Reason.QUOTA_NEVER: "quota",
    Reason.HOST_LIMIT: "quota",
    Reason.TENANT_CAP: "cap",
    Reason.USER_CAP: "cap",
    Reason.ARRAY_CAP: "cap",
    Reason.DEPENDENCY: "dependency",
    Reason.HELD: "order",
    Reason.RETRY_BACKOFF: "order",
    Reason.SCHEDULING: "order",
    Reason.RESERVED: "reservation",
    Reason.PREEMPTING: "preemption",
    Reason.NODES_UNAVAILABLE: "health",
    Reason.GPU_UNHEALTHY: "health",
    Reason.OCCUPIED: "health",
}
# What stands before any card is looked at: which cards refuse it says nothing then.
_BEFORE_ROOM = frozenset({"cap", "dependency"})


def explain(
    state: ClusterState,
    job: Job,
    now_ms: int,
    settings: CoreSettings,
    brain: Brain | None = None,
    sees: Sees | None = None,
) -> Explanation:
    """Everything there is to say of `job` now. `brain`: the scheduler's, so that the copy decides as it does. Neither
    it nor `state` is changed. In sentences no other tenant is named without `sees`; the keys are all there."""
    return Question(state, job, now_ms, settings, brain, sees).answer()


class Question:
    """An `explain` in two steps: made, it has forked all that the answer needs; `answer`, once, looks at nothing else,
    so that another thread may do it while the state goes on."""

    def __init__(
        self,
        state: ClusterState,
        job: Job,
        now_ms: int,
        settings: CoreSettings,
        brain: Brain | None = None,
        sees: Sees | None = None,
    ) -> None:
        self._told = Explanation(job=job.key, state=job.state)
        # Judged now: tenants may change while the answer is thought through.
        seen = frozenset(name for name in (*state.tenants, "") if sees is not None and sees(name))
        self._sees: Sees | None = None if sees is None else seen.__contains__
        self._world: World | None = None
        if job.state in WAITING_STATES:
            self._world = World(state, now_ms, settings, brain)

    def answer(self) -> Explanation:
        world = self._world
        if world is None:
            return self._told
        job = world.state.own_job(self._told.job)
        ahead, ahead_count = _ahead(world.state, job, world.now_ms)
        told = _told_now(world, job, self._sees)
        # Last, since it moves the world on.
        found = expected_start(world, told.job, sees=self._sees)
        if told.stage == "preemption":
            # Others make way for it alone: nobody goes first.
            ahead, ahead_count = (), 0
        return msgspec.structs.replace(
            told,
            expected_start_ms=found.start_ms,
            unknown_because=found.unknown_because,
            ahead=ahead,
            ahead_count=ahead_count,
        )


def _told_now(world: World, job: Job, sees: Sees | None) -> Explanation:
    """All but the expected start. `job` is the world's own record."""
    look = world.look()
    cycle = look.cycle
    if job.not_before_ms > world.now_ms:
        wait = backoff(job, world.now_ms)
        return Explanation(job.key, job.state, "order", wait, earliest_start_ms=job.not_before_ms)
    if job.key in cycle.started:
        wait = Wait(Reason.SCHEDULING, "it fits now and starts with the next scheduling pass")
        return Explanation(job.key, job.state, "order", wait, earliest_start_ms=world.now_ms)
    reason = _reason(look, job)
    if reason is None:
        return Explanation(job.key, job.state, "order", _not_judged(look, job))
    stage = STAGES.get(reason, "capacity")
    claim = _keeps_the_room(cycle, job) if reason in (Reason.HELD, Reason.RESERVED) else None
    shown = told_reason(job, reason)
    blocking, earliest_ms = _waits_for(cycle, job, reason)
    hold = world.state.holds.get(job.key) or _new_hold(look, job)
    filters = () if stage in _BEFORE_ROOM else _filter_counts(gang_refusals(cycle.plan, cycle.ask(job), _least(job)))
    changes = () if job.state is JobState.SUSPENDED else counterfactuals(world, job, cycle)
    return Explanation(
        job=job.key,
        state=job.state,
        stage=stage,
        wait=Wait(
            shown, sentence(world.state, job, shown, world.now_ms, claim, sees), look.found.starts_ms.get(job.key)
        ),
        filters=filters,
        blocking_jobs=blocking,
        earliest_start_ms=earliest_ms,
        suggestion=f"it would start now {changes[0].change} ({changes[0].flag})" if changes else "",
        counterfactuals=changes,
        claimant="" if claim is None else claim.job,
        victims=() if hold is None else tuple(v for v in hold.victims if _is_live(world.state, v)),
        hold_ms=None if hold is None else hold.since_ms,
    )


def _reason(look: Look, job: Job) -> Reason | None:
    return look.found.job_waits.get(job.key) or look.found.waits.get(line_key(job))


def _new_hold(look: Look, job: Job) -> CapacityHold | None:
    """Where only the next pass tells others to make way."""
    holds = (event.hold for event in look.found.events if isinstance(event, CapacityHeld))
    return next((hold for hold in holds if hold.job == job.key), None)


def _not_judged(look: Look, job: Job) -> Wait:
    """The pass did not come to it, or ends it."""
    for event in look.found.events:
        if isinstance(event, JobEnded) and event.job == job.key:
            return Wait(Reason.SCHEDULING, f"the next scheduling pass ends it: {event.detail}")
    started = len(look.cycle.started)
    return Wait(
        Reason.SCHEDULING, f"{started} jobs ahead of it start with the next scheduling pass, then it is its turn"
    )


def _least(job: Job) -> int:
    return 1 if job.state is JobState.SUSPENDED else job.spec.least_tasks


def _is_live(state: ClusterState, key: str) -> bool:
    return key in state.jobs and bool(state.jobs[key].live())


# -- the order


def _ahead(state: ClusterState, job: Job, now_ms: int) -> tuple[tuple[str, ...], int]:
    """Queued jobs before it in the order, as things are before the pass: the first of them, and how many."""
    tree = QuotaTree(state)
    order = Order(state, tree, FairShare(state, tree, now_ms), lambda line: False)
    own = line_key(job)
    found: list[str] = []
    count = 0
    while (cursor := order.first()) is not None:
        line = cursor.line
        is_of_user = cursor.key[:3] == own[:3]
        if is_of_user and cursor.seq >= job.submit_seq:
            break
        # The lines of one user are mixed by submit.
        end = bisect_left(line, (job.submit_seq, "")) if is_of_user else len(line)
        count += end
        found += [key for _, key in line[: min(end, AHEAD_MAX - len(found))]]
        order.set_aside()
    return tuple(found), count


# -- what keeps the room


def _keeps_the_room(cycle: Cycle, job: Job) -> Claim | None:
    """The claim of somebody else without which the job would fit now; where it takes several, the first of them."""
    ask, fleet = cycle.ask(job), cycle.plan.fleet
    others = [c for c in cycle.claims.values() if not c.entitles(ask.owner)]
    others.sort(key=lambda c: (c.start_ms, c.id))
    found: Claim | None = None
    left = list(cycle.claims.values())
    try:
        for claim in others[:_CLAIMS_MAX]:
            fleet.set_claims([c for c in cycle.claims.values() if c.id != claim.id], cycle.now_ms)
            if _fits(cycle, job):
                return claim
        for claim in others:
            # Taken away one after the other: the one with which it is enough.
            left = [c for c in left if c.id != claim.id]
            fleet.set_claims(left, cycle.now_ms)
            found = claim
            if _fits(cycle, job):
                return claim
        return found
    finally:
        fleet.set_claims(cycle.claims.values(), cycle.now_ms)


def _fits(cycle: Cycle, job: Job) -> bool:
    checkpoint = cycle.plan.checkpoint()
    give_own_host(cycle.plan, job.key)
    found = place_gang(
        cycle.plan, cycle.ask(job), 1 if job.state is JobState.SUSPENDED else job.spec.tasks, _least(job)
    )
    cycle.plan.rollback(checkpoint)
    return found is not None


# -- whom it waits for


def _waits_for(cycle: Cycle, job: Job, reason: Reason) -> tuple[tuple[str, ...], int | None]:
    """Running jobs whose end lets it start, and when that is at the latest; (), None where that is not known."""
    state = cycle.state
    if reason is Reason.DEPENDENCY:
        waiting = [d for d in job.spec.after if due.readiness(state, d) is Readiness.WAITS]
        keys = [key for d in waiting for key in state.arrays.get(d.job, [d.job]) if not state.jobs[key].is_ended]
        return tuple(keys[:_BLOCKING_MAX]), None
    if STAGES.get(reason) == "cap":
        return _first_of_capped(cycle, job, reason)
    if reason is Reason.PREEMPTING:
        hold = state.holds.get(job.key)
        return (() if hold is None else hold.victims), None
    return _when_room(cycle, job)


def _first_of_capped(cycle: Cycle, job: Job, reason: Reason) -> tuple[tuple[str, ...], int | None]:
    """Any of these must end; the first known end."""
    state = cycle.state
    branch = capped_branch(state, job) if reason is Reason.TENANT_CAP else None

    def counts(other: Job) -> bool:
        if not other.live():
            return False
        if reason is Reason.ARRAY_CAP:
            return bool(other.array_id) and other.array_key == job.array_key
        if reason is Reason.USER_CAP:
            return (other.tenant, other.created_by.user) == (job.tenant, job.created_by.user)
        return branch is not None and is_below(state.tenants, other.tenant, branch.name)

    keys = [key for key, other in state.jobs.items() if counts(other)]
    ends = [end for key in keys if (end := _job_end_ms(cycle, state.jobs[key])) is not None]
    return tuple(keys[:_BLOCKING_MAX]), min(ends, default=None)


def _job_end_ms(cycle: Cycle, job: Job) -> int | None:
    """When all its attempts have given up their cards; None: unknown."""
    ends = [end_ms(cycle.state, a, cycle.now_ms) for a in job.live()]
    known = [end for end in ends if end is not None]
    return max(known, default=None) if len(known) == len(ends) else None


def _when_room(cycle: Cycle, job: Job) -> tuple[tuple[str, ...], int | None]:
    """Let running jobs end in the order of their time limits until `job` fits: those of them that it takes, and when
    the last of these ends. Jobs without a known end come last and make the time unknown."""
    state = cycle.state
    running = sorted({a.job_key for n in state.nodes.values() for a in state.live_attempts(n)} - {job.key})
    ends = {key: _job_end_ms(cycle, state.jobs[key]) for key in running}
    order = sorted(running, key=lambda key: (ends[key] is None, ends[key] or 0, key))
    enough = _enough(cycle, job, order)
    if enough is None:
        return (), None
    needed = _least_of(cycle, job, order[:enough])
    known = [end for key in needed if (end := ends[key]) is not None]
    return tuple(needed[:_BLOCKING_MAX]), max(known) if known and len(known) == len(needed) else None


def _enough(cycle: Cycle, job: Job, order: list[str]) -> int | None:
    """How many of `order` must have ended, from its begin; None: even all are not enough. Few are tried first."""
    checkpoint = cycle.plan.checkpoint()
    low, high = 0, 1
    while True:
        high = min(high, len(order))
        _give(cycle, job, order[low:high], +1)
        fits = _fits(cycle, job)
        if fits or high == len(order):
            break
        low, high = high, 2 * high
    _give(cycle, job, order[:high], -1)
    cycle.plan.rollback(checkpoint)
    if not fits:
        return None
    while low < high:
        middle = (low + high) // 2
        if _fits_without(cycle, job, order[:middle]):
            high = middle
        else:
            low = middle + 1
    return low


def _least_of(cycle: Cycle, job: Job, enough: list[str]) -> list[str]:
    """Of jobs whose end is enough, those that are needed: others are left out one by one, the last to end first."""
    own = cycle.state.tenants
    near = [k for k in enough if is_below(own, k.partition("/")[0], job.tenant)]
    needed = near if len(enough) > _TRIED_MAX and _fits_without(cycle, job, near) else enough
    if len(needed) > _TRIED_MAX:
        needed = _on_its_places(cycle, job, needed)
    for key in list(reversed(needed)) if len(needed) <= _TRIED_MAX else []:
        rest = [k for k in needed if k != key]
        if _fits_without(cycle, job, rest):
            needed = rest
    return needed


def _on_its_places(cycle: Cycle, job: Job, enough: list[str]) -> list[str]:
    """Those with something on the nodes where it would be then, if they are enough."""
    state, plan = cycle.state, cycle.plan
    checkpoint = plan.checkpoint()
    _give(cycle, job, enough, +1)
    slices = place_gang(plan, cycle.ask(job), job.spec.tasks, _least(job)) or []
    _give(cycle, job, enough, -1)
    plan.rollback(checkpoint)
    nodes = {piece.node for piece in slices}
    here = [key for key in enough if any(a.slice.node in nodes for a in state.jobs[key].live())]
    return here if _fits_without(cycle, job, here) else enough


def _fits_without(cycle: Cycle, job: Job, gone: list[str]) -> bool:
    """Whether it fits once these have ended; the plan and the tree stay as they were."""
    checkpoint = cycle.plan.checkpoint()
    _give(cycle, job, gone, +1)
    fits = _fits(cycle, job)
    _give(cycle, job, gone, -1)
    cycle.plan.rollback(checkpoint)
    return fits


def _give(cycle: Cycle, job: Job, keys: list[str], sign: int) -> None:
    """`sign` +1: these have ended, on the plan and in the tree; -1: in the tree they have not."""
    for key in keys:
        gone = cycle.state.jobs[key]
        pieces = [a.slice for a in gone.live() if a.suspended_ms is None]
        if sign > 0:
            for piece in pieces:
                cycle.plan.give(gone.tenant, piece, job=key)
        cycle.count(gone, pieces, -sign)


# -- filters


def _filter_counts(refusals: Refusals) -> tuple[FilterCount, ...]:
    return tuple(
        FilterCount(
            reason=reason,
            detail=_FILTER_WORDS.get(reason, ""),
            gpus=len(set(places)),
            nodes=tuple(sorted({node for node, _ in places}))[:_NODES_MAX],
        )
        for reason, places in refusals.by_reason.items()
    )


_FILTER_WORDS = {
    Reason.MODEL_UNAVAILABLE: "another model, or too little memory on the whole card",
    Reason.LABELS_UNAVAILABLE: "node without the labels asked for",
    Reason.PATH_MISSING: "node without the job's directory",
    Reason.FENCE_UNAVAILABLE: "no tier as strong as asked",
    Reason.NODES_UNAVAILABLE: "node cordoned, draining, asleep or out of reach",
    Reason.GPU_UNHEALTHY: "card out of service",
    Reason.HOST_CAPACITY: "too little CPU or host memory free on the node",
    Reason.NO_CAPACITY: "too little free of the card",
    Reason.OCCUPIED: "held by processes that are not gpushare's",
    Reason.RESERVED: "reserved in a window of time that it would run into",
    Reason.HELD: "kept for a job ahead of it",
    Reason.TENANT_LIMIT: "the tenant's limit would be passed",
}
