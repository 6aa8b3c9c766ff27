"""One scheduling pass: an ordered list of stages over one scratch plan.

Pure. `schedule` returns events that are to be applied in their order, and changes nothing but the brain's short cuts.
The stages: what is due (starts that came too late); holds (jobs that others made way for); the queue in its order, each
line tried until its first job does not fit, with making way for whoever has a claim and a future start for the heads of
the queue; growth of gangs that run with less than they asked for. A job that does not fit is passed over: no capacity
idles that a waiting job could use, unless it is held, reserved or owed to a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from gpushare.core import due, kept_place, power
from gpushare.core.backfill import head_claim, is_anything_to_end, shadow
from gpushare.core.brain import Brain
from gpushare.core.capacity import domain_of
from gpushare.core.commands import CoreSettings
from gpushare.core.due import Readiness
from gpushare.core.events import (
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
    CapacityHeld,
    Event,
    HoldReleased,
    JobEnded,
    ReservationDeleted,
)
from gpushare.core.fairshare import FairShare
from gpushare.core.gangs import gang_port, missing_tasks
from gpushare.core.gates import Gates
from gpushare.core.kinds import JobState, Topology
from gpushare.core.lifecycle import INFRA_REASONS, OWN_FAILURE_CODE
from gpushare.core.limits import which_limit
from gpushare.core.making_way import TURNED_AWAY, could_claim, make_way
from gpushare.core.model import Job, Slice
from gpushare.core.order import Order
from gpushare.core.placement.ask import Ask
from gpushare.core.placement.claims import Claim
from gpushare.core.placement.endings import host_alone, without_host
from gpushare.core.placement.filters import strongest
from gpushare.core.placement.place import place_gang, place_on, place_task
from gpushare.core.plan import Plan
from gpushare.core.preemption import Way
from gpushare.core.promises import CapacityHold, is_kept_free
from gpushare.core.quota import QuotaTree
from gpushare.core.reservations import claims as reservation_claims
from gpushare.core.reservations import claims_between, expired, hold_claim, next_change_ms
from gpushare.core.shared_paths import placed_request
from gpushare.core.state import WAITING_STATES, ClusterState
from gpushare.core.waiting import Fate, Line, LineKey
from gpushare.reasons import Reason

# Waits that room on cards and nodes would end: these jobs may have others make way, and are owed a future start.
ROOM_REASONS = frozenset({Reason.NO_CAPACITY, Reason.HOST_CAPACITY, Reason.HELD, Reason.RESERVED, Reason.TENANT_LIMIT})


_NO_PRIORITY = 2**31
_NOWHERE: frozenset[str] = frozenset()
# Blocked jobs without a known start that are passed over in the search for one that can be owed it.
_UNKNOWN_STARTS_MAX = 8


class Pass(NamedTuple):
    """What a pass decided. `waits` by line, `job_waits` for single jobs; `starts_ms`: when the heads of the queue start
    at the latest; `wake_ms`: when time alone changes something, or None; `more`: the bound was reached, run again."""

    events: list[Event]
    waits: dict[LineKey, Reason]
    wake_ms: int | None
    more: bool
    job_waits: Mapping[str, Reason] = MappingProxyType({})
    starts_ms: Mapping[str, int] = MappingProxyType({})


NOTHING_YET = Pass([], {}, None, more=False)


def schedule(
    state: ClusterState,
    now_ms: int,
    settings: CoreSettings,
    brain: Brain | None = None,
    loads: Mapping[str, int] | None = None,
) -> Pass:
    """Decide what starts, stops, grows and resumes now. At most `settings.placements_per_cycle` jobs start, so that one
    pass stays short. Without a brain one is made for this pass alone."""
    return Cycle(state, now_ms, settings, brain or Brain(state, settings), loads).run()


class Cycle:
    """One pass under way; see the module's text. Also the base of every what-if, which runs it on a changed state."""

    def __init__(
        self,
        state: ClusterState,
        now_ms: int,
        settings: CoreSettings,
        brain: Brain,
        loads: Mapping[str, int] | None = None,
    ) -> None:
        brain.refresh(loads)
        self.state, self.now_ms, self.settings, self.brain = state, now_ms, settings, brain
        self.plan = Plan(state, brain.fleet)
        self.claims: dict[str, Claim] = {c.id: c for c in reservation_claims(state, now_ms)}
        brain.fleet.set_claims(self.claims.values(), now_ms)
        self.tree = QuotaTree(state)
        self.fair = FairShare(state, self.tree, now_ms)
        self.gates = Gates(state, self.tree)
        self.events: list[Event] = []
        self.waits: dict[LineKey, Reason] = {}
        self.job_waits: dict[str, Reason] = {}
        self.starts_ms: dict[str, int] = {}
        # Jobs that this pass has ended, started, or told to make way; the last are `told`, too.
        self.settled: set[str] = set()
        self.told: set[str] = set()
        self.started: set[str] = set()
        # Searches for jobs that could make way, and whether there was no time for some.
        self.searches = 0
        # Jobs for which somebody made way already, who cannot do so again.
        self.spoilt: set[str] = set()
        self._has_turned_away = False
        self._turned_away: set[LineKey] | None = None
        # By tenant with a claim: whether anybody borrows what it could take back, as far as this pass has looked.
        self.reclaimable: dict[str, bool] = {}
        self._ports: set[int] = set()
        self._entitled = frozenset(c.tenant for c in self.claims.values() if c.tenant)
        self._unfit: dict[Fate, Reason] = {}
        self._no_way: set[LineKey] = set()
        self._claimants: dict[tuple[str, int], bool] = {}
        self._placed = 0
        # Until the first blocked job was looked at: a place may be kept free for one that has waited too long.
        self.may_keep_place = True
        # Blocked jobs that are owed a start, and how often one was looked for.
        self.heads: set[str] = set()
        self._shadows = 0
        self._owes_nobody = False
        self._wakes: list[int] = []
        self._searches_at: list[int] = []
        # Of the last placing.
        self._last: list[Slice] = []
        # The job that is being looked at, and how much had been decided before it.
        self._job: Job | None = None
        self._decided = 0

    def run(self) -> Pass:
        more = False
        for stage in (self._due, self._holds, self._queue, self._growth, self._power):
            try:
                more = stage()
            except Exception as err:  # one bad job must not stop the others
                if self._job is None:
                    raise
                self._quarantine(self._job, err)
                more = True
            if more:
                break
        self.wake_at(next_change_ms(self.state, self.now_ms))
        self.wake_at(self.state.lines.next_deadline_ms(self.now_ms))
        if self.events:
            self._wakes += self._searches_at
        wake_ms = self.now_ms if more else min(self._wakes, default=None)
        return Pass(self.events, self.waits, wake_ms, more, self.job_waits, self.starts_ms)

    # -- stages; each says whether the pass has reached its bound

    def _due(self) -> bool:
        for name in expired(self.state, self.now_ms):
            self.events.append(ReservationDeleted(name=name))
        for end in due.overdue(self.state, self.now_ms):
            self._end(end)
        return False

    def _holds(self) -> bool:
        """Jobs for which others made way start first, in what was freed or in something better."""
        for hold in sorted(self.state.holds.values(), key=lambda h: (h.since_ms, h.job)):
            job = self._look_at(hold.job)
            if is_kept_free(hold):
                kept_place.use(self, job, hold)
                continue
            self.count_hold(hold, +1)
            if job.key in hold.victims and self._is_making_way(job.key):
                # It moves: its place is kept until it has given up the old one.
                continue
            waits = job.state in WAITING_STATES and job.not_before_ms <= self.now_ms
            if job.key in self.settled or not waits:
                self._release(hold, "it does not wait any more")
                continue
            self.count_hold(hold, -1)
            if self.start(job):
                self.drop_claim(hold_claim(self.state, hold).id)
                continue
            self.count_hold(hold, +1)
            if any(v for v in hold.victims if self._is_making_way(v)):
                self.job_waits[job.key] = Reason.PREEMPTING
                self.gates.promised(job)
            else:
                self._release(hold, "what was freed for it does not hold it any more")
        self._job = None
        return False

    def _queue(self) -> bool:
        order = Order(self.state, self.tree, self.fair, self._is_futile)
        while (cursor := order.first()) is not None:
            job = self.state.jobs[cursor.job_key]
            if job.key in self.settled or job.key in self.job_waits:
                order.skip()
            elif job.not_before_ms > self.now_ms:
                self.wake_at(job.not_before_ms)
                order.skip()
            elif self._placed >= self.settings.placements_per_cycle:
                return True
            else:
                self._consider(self._look_at(job.key), cursor.line, order)
                if self._is_all_futile():
                    for line in self.state.lines.each():
                        if not all(key in self.settled or key in self.job_waits for _, key in line):
                            self.waits.setdefault(line.key, self._unfit[line.fate])
                    break
        self._job = None
        return False

    def _growth(self) -> bool:
        for key in sorted(self.state.growing):
            job = self.state.jobs[key]
            if key in self.settled:
                continue
            if self._placed >= self.settings.placements_per_cycle:
                return True
            self._grow(self._look_at(job.key))
        self._job = None
        return False

    def _power(self) -> bool:
        """What is left: idle nodes go to sleep, and sleeping ones are woken for those that wait."""
        waiting = power.without_room(self.state, self.waits, self.settled)
        self.events += power.stage(self.state, self.now_ms, self.settings, waiting, self.events)
        self.wake_at(power.next_due_ms(self.state, self.now_ms, self.settings))
        return False

    # -- one job

    def _look_at(self, key: str) -> Job:
        """From here on it is this job whose fault it is if something breaks."""
        self._job, self._decided = self.state.jobs[key], len(self.events)
        return self._job

    def _quarantine(self, job: Job, err: Exception) -> None:
        """End the job whose placing broke. What had been decided before it stands; the rest is for a fresh pass."""
        del self.events[self._decided :]
        detail = f"placing this job failed ({type(err).__name__}: {err}); report it with the job's id"
        if job.state is JobState.QUEUED:
            self._end(_broken(job, detail))
            return
        self.events += [
            AttemptStopRequested(attempt=a.id, reason=Reason.INTERNAL, detail=detail)
            for a in job.live()
            if not a.desired_stop
        ]
        if job.key in self.state.holds:
            self.events.append(HoldReleased(job=job.key, detail=detail))

    def _consider(self, job: Job, line: Line, order: Order) -> None:
        readiness, dependency = self.gates.dependency(job)
        if readiness is Readiness.NEVER and dependency is not None:
            self._end(due.never_starts(job, dependency))
            order.skip()
            return
        reason = Reason.DEPENDENCY if readiness is Readiness.WAITS else self.gate(job)
        if reason is None:
            reason = self._try(job, line)
        if reason is None:
            order.placed(job, sum(s.charge_milli for s in self._last))
        elif reason is Reason.PREEMPTING:
            # Only this one: the next of its line may fit elsewhere, or have a claim of its own.
            self.job_waits[job.key] = reason
            order.skip()
        else:
            if job.key in self.spoilt:
                # For the next of its line others may make way.
                self.job_waits[job.key] = reason
                order.skip()
                return
            self.waits[line.key] = reason
            if job.key in self.heads and not self._owes_no_more():
                # The next of its line is another head.
                order.skip()
            else:
                order.set_aside()

    def gate(self, job: Job) -> Reason | None:
        least = self.brain.least_charge(job.spec.resources)
        never = self.gates.never(job, None if least is None else least * job.spec.least_tasks)
        return never or self.gates.cap(job)

    def _try(self, job: Job, line: Line) -> Reason | None:
        """None: it starts. Else why not; PREEMPTING when others were told to make way."""
        fate, key = self._fate(job, line), line.key
        reason = None if fate is None else self._unfit.get(fate)
        if reason is None:
            if self.start(job):
                return None
            reason = strongest(self.plan, self.ask(job), job.spec.least_tasks)
            if fate is not None and reason is not Reason.TENANT_LIMIT:
                self._unfit[fate] = reason
        if reason not in ROOM_REASONS:
            kept_place.forgo(self, job)
            return reason
        way = None if key in self._no_way else make_way(self, job, reason)
        if way is not None:
            self._make_way(job, way)
            return Reason.PREEMPTING
        if job.key not in self.spoilt:
            self._no_way.add(key)
        if reason is Reason.TENANT_LIMIT:
            kept_place.forgo(self, job)
            return which_limit(self.plan, self.tree, job, self.ask(job))
        self._owe(job)
        return reason

    def _is_futile(self, line: Line) -> bool:
        """Nothing that looking at the line could still bring: no room for its like, no claim, no start to be owed."""
        reason, key = self._unfit.get(line.fate), line.key
        if reason is None or not self._owes_no_more() or line.stands_apart or key.tenant in self._entitled:
            return False
        if reason in ROOM_REASONS and self._could_claim(key.tenant, key.priority):
            return False
        self.waits[key] = reason
        return True

    def _is_all_futile(self) -> bool:
        """Every line is; found without a look at each. Where nodes may sleep, `waits` must be in the queue's order."""
        lines = self.state.lines
        if len(self._unfit) < len(lines.fates) or not self._owes_no_more() or lines.apart or self._entitled:
            return False
        if self.state.asleep or self.settings.power_idle_ms or any(fate not in self._unfit for fate in lines.fates):
            return False
        of_tenants = ((tenant, priority) for tenant, found in lines.tenants.items() for priority in found)
        return not any(self._could_claim(tenant, priority) for tenant, priority in of_tenants)

    def _could_claim(self, tenant: str, priority: int) -> bool:
        """A quick look whether others might make way for anything of this tenant and priority."""
        found = self._claimants.get((tenant, priority))
        if found is None:
            found = could_claim(self, tenant, priority)
            self._claimants[tenant, priority] = found
        return found

    def _fate(self, job: Job, line: Line) -> Fate | None:
        """Jobs of all tenants with the same fate fit together or not at all, but for the limits: what has found no
        place finds none later in the pass. None for a job with a claim of its own, which sees other room."""
        if job.state is JobState.SUSPENDED or job.key in self.state.holds or job.tenant in self._entitled:
            return None
        return line.fate

    def ask(self, job: Job, task: int | None = None) -> Ask:
        """What placing must know of `job`."""
        ends_ms = self.now_ms + job.spec.max_run_ms if job.spec.max_run_ms else None
        room, node = self.tree.room(job), ""
        if job.state is JobState.SUSPENDED:
            # Its CPU and host memory count against the limits already.
            held = job.current()[0].slice
            node, room = held.node, room.less(0, "", -held.cpu_milli, -held.memory_mib)
        return Ask(
            request=placed_request(job),
            tenant=job.tenant,
            user=job.created_by.user,
            job=job.key,
            end_ms=ends_ms,
            room=room,
            topology=job.spec.topology,
            avoid=_burnt(job) if job.attempts else _NOWHERE,
            only=frozenset({node}) if node else None,
        )

    def start(self, job: Job) -> bool:
        """Place the job whole on the plan, and say so in events; nothing is taken when it does not fit."""
        if job.state is JobState.SUSPENDED:
            return self._resume(job)
        slices = place_gang(self.plan, self.ask(job), job.spec.tasks, job.spec.least_tasks)
        if slices is None:
            return False
        self._placed += 1
        self.count(job, slices, +1, jobs=1)
        self.gates.started(job)
        self.settled.add(job.key)
        self.started.add(job.key)
        port = self._port(slices[0].node) if job.spec.tasks > 1 else 0
        self.events.append(AttemptsAllocated(job=job.key, round=job.round + 1, slices=tuple(slices), master_port=port))
        return True

    def _resume(self, job: Job) -> bool:
        attempt = job.current()[0]
        piece = self._piece_to_resume(job, attempt.slice)
        if piece is None:
            return False
        self._placed += 1
        self.count(job, [without_host(piece)], +1)
        self.settled.add(job.key)
        self.started.add(job.key)
        self.events.append(AttemptResumed(attempt=attempt.id, slice=piece))
        return True

    def _piece_to_resume(self, job: Job, held: Slice) -> Slice | None:
        """A place on its node; CPU and host memory it has never given up."""
        checkpoint = self.plan.checkpoint()
        self.plan.give(job.tenant, host_alone(held), job=job.key)
        ask, hold = self.ask(job), self.state.holds.get(job.key)
        # What was freed for it, or planned for its move, comes first.
        planned = hold.slices[0].gpu_uuids if hold is not None and hold.slices else ()
        piece = place_on(self.plan, ask, planned, held.task) or place_task(self.plan, ask, held.task)
        if piece is None:
            self.plan.rollback(checkpoint)
            return None
        return msgspec.structs.replace(piece, cpu_milli=held.cpu_milli, memory_mib=held.memory_mib)

    def _grow(self, job: Job) -> None:
        missing = missing_tasks(job, self.now_ms, self.settings)
        self.wake_at(missing.wake_ms)
        slices: list[Slice] = []
        for task in missing.tasks:
            piece = self._place_near(job, task)
            if piece is None:
                break
            self.count(job, [piece], +1)
            slices.append(piece)
        if slices:
            self._placed += 1
            self.events.append(AttemptsAllocated(job=job.key, round=job.round + 1, slices=tuple(slices), grow=True))

    def _place_near(self, job: Job, task: int) -> Slice | None:
        """A place for one more task of a gang that runs, as near to the others as the job demands."""
        ask, live = self.ask(job), job.live()
        if job.spec.topology is Topology.ANY or not live:
            return place_task(self.plan, ask, task)
        first = live[0].slice
        if job.spec.topology is Topology.NODE:
            return place_task(self.plan, ask._replace(only=frozenset({first.node})), task)
        gpus = self.state.nodes[first.node].gpus
        domain = domain_of(gpus[first.gpu_uuids[0]].inventory) if first.gpu_uuids else ""
        near = [uuid for uuid, gpu in gpus.items() if domain_of(gpu.inventory) == domain]
        return place_on(self.plan, ask, near, task)

    # -- promises

    def _make_way(self, job: Job, way: Way) -> None:
        """Tell the victims, and keep what they free for `job`."""
        hold = CapacityHold(job=job.key, slices=way.slices, victims=way.victims, since_ms=self.now_ms)
        self.events.append(CapacityHeld(hold=hold))
        for key in way.victims:
            victim = self.state.jobs[key]
            self.settled.add(key)
            self.told.add(key)
            suspends = key in way.suspend
            detail = f"makes way for {job.key}"
            for attempt in victim.live():
                if attempt.desired_stop or attempt.suspended_ms is not None:
                    continue
                kind = AttemptSuspendRequested if suspends else AttemptStopRequested
                self.events.append(kind(attempt=attempt.id, reason=Reason.PREEMPTED, detail=detail, claimant=job.key))
        self.count_hold(hold, +1, way.suspend)
        self.gates.promised(job)
        self.add_claim(hold_claim(self.state, hold, suspends=way.suspend))

    def count_hold(self, hold: CapacityHold, sign: int, suspends: frozenset[str] = frozenset()) -> None:
        """In the tree a claimant has its cards from the moment that others make way, and the victims have not. What is
        suspended keeps CPU and host memory, and counts as running; `suspends`: those that are only now told to."""
        job = self.state.jobs[hold.job]
        starts = job.state is JobState.QUEUED
        slices = list(hold.slices) if starts else [without_host(s) for s in hold.slices]
        self.count(job, slices, sign, jobs=sign * starts)
        for key in hold.victims:
            victim = self.state.jobs.get(key)
            if victim is not None and self._is_making_way(key):
                held = [a for a in victim.live() if a.suspended_ms is None]
                stays = key in suspends or any(a.desired_suspend and not a.desired_stop for a in held)
                pieces = [without_host(a.slice) if stays else a.slice for a in held]
                self.count(victim, pieces, -sign, jobs=0 if stays else -sign)

    def _is_making_way(self, key: str) -> bool:
        job = self.state.jobs.get(key)
        if job is None:
            return False
        return key in self.told or any(
            a.suspended_ms is None and (a.desired_stop or a.desired_suspend) for a in job.live()
        )

    def _release(self, hold: CapacityHold, detail: str) -> None:
        self.count_hold(hold, -1)
        self.drop_hold(hold, detail)

    def drop_hold(self, hold: CapacityHold, detail: str) -> None:
        self.drop_claim(hold_claim(self.state, hold).id)
        self.events.append(HoldReleased(job=hold.job, detail=detail))

    def _owe(self, job: Job) -> None:
        """The first blocked jobs of the order whose start can be known are owed it: nobody after them may delay it."""
        if self._owes_no_more() or job.key in self.heads or job.key in self.state.holds:
            return
        self._shadows += 1
        ask, spec, endings, found = self.ask(job), job.spec, self.brain.endings, None
        is_known = is_anything_to_end(self.plan, endings, self.now_ms)
        if is_known:
            found = shadow(self.plan, ask, spec.tasks, spec.least_tasks, endings, self.now_ms)
        kept_place.keep(self, job, ask, found)
        # Else no other job's start can be known either.
        self._owes_nobody = not is_known and not self.may_keep_place
        if found is not None:
            self.heads.add(job.key)
            self.starts_ms[job.key] = found.start_ms
            claim = head_claim(found, job)
            for window in claims_between(self.state, claim.start_ms, claim.end_ms):
                self.claims.setdefault(window.id, window)
            self.add_claim(claim)

    def _owes_no_more(self) -> bool:
        depth = self.settings.backfill_depth
        return self._owes_nobody or len(self.heads) >= depth or self._shadows >= depth + _UNKNOWN_STARTS_MAX

    def add_claim(self, claim: Claim) -> None:
        self.claims[claim.id] = claim
        self.brain.fleet.set_claims(self.claims.values(), self.now_ms)

    def drop_claim(self, claim_id: str) -> None:
        if self.claims.pop(claim_id, None) is not None:
            self._unfit.clear()
            self.brain.fleet.set_claims(self.claims.values(), self.now_ms)

    # -- small things

    def lowest_running(self, tenant: str) -> int:
        """The lowest priority of what the tenant runs."""
        return min(self.state.running_priorities.get(tenant, ()), default=_NO_PRIORITY)

    def count(self, job: Job, slices: list[Slice], sign: int, *, jobs: int = 0) -> None:
        """Tell the tenant tree what was placed (+1) or is taken away (-1), and by how many more `jobs` run."""
        self._last = slices
        self.tree.add(job, tuple(slices), self.models(slices), sign, jobs=jobs)
        if job.spec.max_run_ms:
            # There is an end to wait for now.
            self._owes_nobody = False
        self.reclaimable.clear()
        self._claimants.clear()

    def models(self, slices: Iterable[Slice]) -> tuple[str, ...]:
        """Of each slice's cards; "" without any, and for cards that are gone."""
        cards = (self.state.nodes[s.node].gpus.get(s.gpu_uuids[0]) if s.gpu_uuids else None for s in slices)
        return tuple("" if gpu is None else gpu.inventory.model for gpu in cards)

    def turned_away(self) -> set[LineKey]:
        """Lines that the pass before had no time to search for."""
        if self._turned_away is None:
            again_ms = self.brain.short_cuts.search_again_ms
            self._turned_away = {line for line, at_ms in again_ms.items() if at_ms == TURNED_AWAY}
            for line in self._turned_away:
                del again_ms[line]
        return self._turned_away

    def search_again_at(self, at_ms: int) -> None:
        """A search has found nobody. The next finds nobody either, unless something has changed by then: what others
        change brings a pass of its own, and what this pass changes is known at its end."""
        self._searches_at.append(at_ms)

    def search_more(self) -> None:
        """There was no time for all searches: the next pass goes on with them."""
        self._has_turned_away = True

    def _port(self, node: str) -> int:
        # Of other nodes, too: two of them may be one host.
        port = gang_port(self.state, node, self.settings.gang_ports, self._ports)
        self._ports.add(port)
        return port

    def _end(self, end: JobEnded) -> None:
        self.settled.add(end.job)
        self.events.append(end)

    def wake_at(self, at_ms: int | None) -> None:
        if at_ms is not None:
            self._wakes.append(at_ms)


def _burnt(job: Job) -> frozenset[str]:
    """Nodes that lost it before: taken last."""
    return frozenset(
        a.slice.node for a in job.attempts if a.reason in INFRA_REASONS and a.reason is not Reason.PREEMPTED
    )


def _broken(job: Job, detail: str) -> JobEnded:
    return JobEnded(
        job=job.key, state=JobState.FAILED, reason=Reason.INTERNAL, detail=detail, exit_code=OWN_FAILURE_CODE
    )
