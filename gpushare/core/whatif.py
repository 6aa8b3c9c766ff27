"""A fork of the cluster on which questions are tried out: other wishes, other limits, and time that goes on.

Pure. The state that it was forked from is never changed by it, and the fork runs the production pass. `World` plays the
agents: what is allocated runs at once; a job with a time limit runs exactly to it and succeeds; what was told to stop,
or to suspend, uses all of its grace; what has no known end never ends. Nobody submits, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from heapq import heappop, heappush
from typing import NamedTuple, cast

from gpushare.core.brain import Brain, Twin
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
from gpushare.core.kinds import AttemptState
from gpushare.core.model import SYSTEM, Attempt
from gpushare.core.placement.fleet import sure_end_ms
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason

_SIGTERM = 15
_SYSTEM_CALL = Call(principal=SYSTEM)
_NOT_YET_RUNNING = frozenset({AttemptState.ALLOCATED, AttemptState.LAUNCHING})


class Look(NamedTuple):
    """What a pass would decide, and the pass itself with its plan, of which nothing was applied."""

    cycle: Cycle
    found: Pass


class World:
    """`state` is a fork and the world's own. With `brain` it decides as that one does. Made, it needs nothing more of
    the two, so that another thread may go on with it; all that takes long is left to that."""

    def __init__(self, state: ClusterState, now_ms: int, settings: CoreSettings, brain: Brain | None = None) -> None:
        self.state = state.fork()
        self.now_ms = max(now_ms, state.at_ms)
        self.settings = settings
        self._twin = None if brain is None else Twin(brain)
        self._wake_ms: int | None = None
        # When each live attempt gives up its cards, where that is known; the heap may hold times that no longer count.
        self._ends: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    @cached_property
    def brain(self) -> Brain:
        return Brain(self.state, self.settings) if self._twin is None else self._twin.over(self.state)

    def fork(self) -> World:
        """Another one, as this is now."""
        return World(self.state, self.now_ms, self.settings, self.brain)

    def look(self) -> Look:
        """A pass that changes nothing. The next one voids its plan."""
        brain = self.brain
        short_cuts = brain.short_cuts.copy()
        cycle = Cycle(self.state, self.now_ms, self.settings, self.brain)
        found = cycle.run()
        brain.short_cuts = short_cuts
        return Look(cycle, found)

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
