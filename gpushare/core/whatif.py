"""A copy of the cluster on which questions are tried out: other wishes, other limits, and time that goes on.

Pure. The state that a copy was made of is never changed by it, and the copy runs the production pass. `World` plays the
agents: what is allocated runs at once; a job with a time limit runs exactly to it and succeeds; what was told to stop,
or to suspend, uses all of its grace; what has no known end never ends. Nobody submits, and nothing fails.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable
from copy import copy
from heapq import heappop, heappush
from typing import NamedTuple, cast

from gpushare.core.brain import Brain
from gpushare.core.commands import (
    AttemptReport,
    Call,
    CoreSettings,
    Rejection,
    ReportAttempt,
)
from gpushare.core.cycle import Cycle, Pass
from gpushare.core.decide_attempts import report
from gpushare.core.events import (
    AnyEvent,
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
    Entry,
    Event,
)
from gpushare.core.model import SYSTEM, Attempt, AttemptState, Gpu, Job, Node, Person, Tenant
from gpushare.core.placement.fleet import sure_end_ms
from gpushare.core.state import ClusterState, Snapshot
from gpushare.core.waiting import LineKey, line_key
from gpushare.reasons import Reason

# Jobs of one line that are copied at most.
LINE_MAX = 500
_SIGTERM = 15
_SYSTEM_CALL = Call(principal=SYSTEM)
_NOT_YET_RUNNING = frozenset({AttemptState.ALLOCATED, AttemptState.LAUNCHING})


class Look(NamedTuple):
    """What a pass would decide, and the pass itself with its plan, of which nothing was applied."""

    cycle: Cycle
    found: Pass


class World:
    """`state` is a copy and the world's own. With `brain` the copy decides as that one does. With `asked_for` only what
    can matter to that waiting job is copied: the lines of `cut` go on after the jobs that are there."""

    def __init__(
        self,
        state: ClusterState,
        now_ms: int,
        settings: CoreSettings,
        brain: Brain | None = None,
        asked_for: Job | None = None,
    ) -> None:
        dropped: set[str] = set()
        self.cut: list[LineKey] = []
        if asked_for is not None:
            dropped, self.cut = _tails(state, asked_for)
        self.state = copy_of(state, dropped)
        self.now_ms = max(now_ms, state.at_ms)
        self.settings = settings
        self.brain = Brain(self.state, settings) if brain is None else brain.twin(self.state)
        self._wake_ms: int | None = None
        # When each live attempt gives up its cards, where that is known; the heap may hold times that no longer count.
        self._ends: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def look(self) -> Look:
        """A pass that changes nothing. The next one voids its plan."""
        brain = self.brain
        again = dict(brain.search_again_ms), dict(brain.guess_again_ms)
        cycle = Cycle(self.state, self.now_ms, self.settings, self.brain)
        found = cycle.run()
        brain.search_again_ms, brain.guess_again_ms = again
        return Look(cycle, found)

    def is_short(self) -> bool:
        """A line that was cut has come to its end: what the copy does from here on need not be so."""
        return any(key not in self.state.lines for key in self.cut)

    # -- time

    def begin(self) -> None:
        """Take up what runs now; once, before the first pass."""
        live = [a for node in self.state.nodes.values() for a in self.state.live_attempts(node)]
        for attempt in live:
            if attempt.state in _NOT_YET_RUNNING and self.state.nodes[attempt.slice.node].ready:
                self._say(attempt, AttemptState.RUNNING, started_ms=self.now_ms)
            self._expect(attempt)

    def run_pass(self) -> Pass:
        """One pass, carried out by it and by the agents."""
        result = Cycle(self.state, self.now_ms, self.settings, self.brain).run()
        self.apply(result.events)
        for event in result.events:
            if isinstance(event, AttemptsAllocated):
                for attempt in self.state.jobs[event.job].live():
                    if attempt.number == event.round:
                        self._say(attempt, AttemptState.RUNNING, started_ms=self.now_ms)
                        self._expect(attempt)
            elif isinstance(event, AttemptResumed):
                attempt = self.state.must_attempt(event.attempt)
                self._say(attempt, AttemptState.RUNNING)
                self._expect(attempt)
        self._wake_ms = result.wake_ms
        return result

    def next_ms(self) -> int | None:
        """When something happens next; None: nothing is known to."""
        while self._heap and self._ends.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        times = [self._heap[0][0]] if self._heap else []
        if self._wake_ms is not None:
            times.append(max(self._wake_ms, self.now_ms + 1))
        return min(times, default=None)

    def go_on(self, at_ms: int) -> None:
        """Time moves on to `at_ms`, and what is due by then ends."""
        self.now_ms = at_ms
        while self._heap and self._heap[0][0] <= at_ms:
            due_ms, attempt_id = heappop(self._heap)
            if self._ends.get(attempt_id) == due_ms:
                del self._ends[attempt_id]
                self._end(self.state.must_attempt(attempt_id))

    # -- changes

    def apply(self, events: Iterable[Event]) -> None:
        for event in events:
            state = self.state
            state.apply(Entry(state.seq + 1, self.now_ms, state.term, cast("AnyEvent", event)))
            if isinstance(event, AttemptStopRequested | AttemptSuspendRequested):
                self._expect(state.must_attempt(event.attempt))

    def _say(self, attempt: Attempt, said: AttemptState, reason: str = "", **more: int | None) -> None:
        """The agent's word, decided as in production."""
        told = AttemptReport(attempt=attempt.id, state=said, reason=reason, **more)  # type: ignore[arg-type]
        command = ReportAttempt(node=attempt.slice.node, report=told)
        outcome = report(self.state, command, _SYSTEM_CALL, self.now_ms, self.settings)
        if not isinstance(outcome, Rejection):
            self.apply(cast("Iterable[Event]", outcome.events))

    def _end(self, attempt: Attempt) -> None:
        """It has run to its limit, or to the end of its grace."""
        sure_ms = sure_end_ms(self.state, attempt)
        if sure_ms is not None and sure_ms <= self.now_ms:
            self._say(attempt, AttemptState.SUCCEEDED, Reason.COMPLETED, exit_code=0)
        elif attempt.desired_stop:
            reason = attempt.stop_reason or Reason.CANCELLED
            self._say(attempt, AttemptState.STOPPED, reason, signal=_SIGTERM)
        else:
            self._say(attempt, AttemptState.SUSPENDED)

    def _expect(self, attempt: Attempt) -> None:
        """Note when it ends."""
        self._ends.pop(attempt.id, None)
        if not attempt.is_live or attempt.state is AttemptState.UNKNOWN:
            return
        grace_ms = self.state.jobs[attempt.job_key].spec.grace_ms
        times: list[int] = []
        sure_ms = sure_end_ms(self.state, attempt)
        if sure_ms is not None:
            # Past its limit it is being ended.
            times.append(sure_ms if sure_ms > self.now_ms else self.now_ms + grace_ms)
        if attempt.desired_stop or (attempt.desired_suspend and attempt.suspended_ms is None):
            # Told long ago, it is late already, and has as long again.
            since_ms = self.now_ms if attempt.told_ms is None else attempt.told_ms
            is_late = since_ms + grace_ms < self.now_ms
            times.append((self.now_ms if is_late else since_ms) + grace_ms)
        if times:
            self._ends[attempt.id] = min(times)
            heappush(self._heap, (min(times), attempt.id))


# -- copies


def copy_of(state: ClusterState, dropped: Container[str] = ()) -> ClusterState:
    """A state that passes decide alike on, and that shares no record with `state`. Secrets, request ids, ended jobs for
    which nobody waits and the jobs of `dropped` are left out."""
    jobs = {
        key: _job(job)
        for key, job in state.jobs.items()
        if (not job.is_ended or _is_waited_for(state, job)) and key not in dropped
    }
    made = ClusterState(
        Snapshot(
            seq=state.seq,
            at_ms=state.at_ms,
            term=state.term,
            submit_seq=state.submit_seq,
            tenants={name: _tenant(tenant) for name, tenant in state.tenants.items()},
            nodes={name: _node(node) for name, node in state.nodes.items()},
            jobs=jobs,
            reservations=dict(state.reservations),
            holds=dict(state.holds),
            half_life_ms=state.half_life_ms,
        )
    )
    # Once its brain is made, nothing has changed since.
    made.touched.clear()
    return made


def _tails(state: ClusterState, asked_for: Job) -> tuple[set[str], list[LineKey]]:
    """Jobs that need no copy when one waiting job is asked for, and the lines that they are the end of: those behind it
    in its own line, which cannot start before it does, and those far behind in a long line."""
    own = line_key(asked_for)
    dropped: set[str] = set()
    cut: list[LineKey] = []
    for key, line in state.lines.each():
        if key == own:
            tail = line[bisect_right(line, (asked_for.submit_seq, asked_for.key)) :]
        else:
            tail = line[LINE_MAX:]
            if tail:
                cut.append(key)
        behind = (job for _, job in tail if job not in state.holds)
        dropped.update(job for job in behind if not _is_waited_for(state, state.jobs[job]))
    return dropped, cut


def _is_waited_for(state: ClusterState, job: Job) -> bool:
    return job.key in state.dependents or (bool(job.array_id) and job.array_key in state.dependents)


def _job(job: Job) -> Job:
    made = copy(job)
    made.attempts = [copy(attempt) for attempt in job.attempts]
    return made


def _node(node: Node) -> Node:
    made = copy(node)
    made.labels, made.attempts = dict(node.labels), set(node.attempts)
    made.gpus = {uuid: _gpu(gpu) for uuid, gpu in node.gpus.items()}
    return made


def _gpu(gpu: Gpu) -> Gpu:
    made = copy(gpu)
    made.holds = dict(gpu.holds)
    return made


def _tenant(tenant: Tenant) -> Tenant:
    made = copy(tenant)
    made.usage = {user: copy(usage) for user, usage in tenant.usage.items()}
    made.charge_by_model = dict(tenant.charge_by_model)
    made.account = copy(tenant.account)
    made.people = {user: Person(p.running_jobs, copy(p.account)) for user, p in tenant.people.items()}
    return made
