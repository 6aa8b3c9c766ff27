"""A cluster on virtual time whose jobs end by themselves: commands, passes and the answers of agents until nothing more
follows, and then on to the next moment at which something happens."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from cluster import Cluster

from gpushare.core.brain import Brain
from gpushare.core.commands import CoreSettings
from gpushare.core.cycle import Cycle, Pass
from gpushare.core.events import (
    AnyEvent,
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
    Entry,
)
from gpushare.core.kinds import AttemptState, Enforcement
from gpushare.core.model import SYSTEM, Attempt, Job, Principal, TierOffer

SUSPENDING = (
    TierOffer("exclusive", Enforcement.HARD, can_suspend=True),
    TierOffer("timeslice", Enforcement.SOFT, can_suspend=True),
)
_PASSES_MAX = 200
_FOREVER = 10**15


class FairLab(Cluster):
    """`runs_ms` says how long a job runs in one piece; `delay_ms` how long an attempt takes to obey (at most its grace
    in the tests). With `checked` False the invariants are not looked at. `watch` hears of each pass, `heard` of each
    event once all that came with it is applied."""

    def __init__(
        self,
        *,
        tenants: tuple[str, ...] = (),
        settings: CoreSettings | None = None,
        half_life_ms: int | None = None,
        checked: bool = True,
    ) -> None:
        self._checked = checked
        self.heard: Callable[[AnyEvent], None] = lambda event: None
        self.delay_ms: Callable[[Attempt], int] = lambda attempt: 0
        super().__init__(tenants=tenants, settings=settings)
        if half_life_ms is not None:
            self.state.half_life_ms = half_life_ms
        self.brain = Brain(self.state, self.settings)
        self.runs_ms: Callable[[Job], int | None] = lambda job: None
        self.watch: Callable[[Cycle, Pass], None] = lambda cycle, found: None
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._pushed = 0
        self._wake_ms: int | None = None
        # What a suspended attempt has still to run, and since when a running one runs.
        self._left_ms: dict[str, int] = {}
        self._since_ms: dict[str, int] = {}

    def apply(self, events: list[AnyEvent], principal: Principal = SYSTEM, request_id: str = "") -> None:
        if self._checked:
            super().apply(events, principal, request_id)
        else:
            for event in events:
                self.state.apply(Entry(self.state.seq + 1, self.now_ms, 1, event, principal, request_id))
        for event in events:
            self.heard(event)
            if isinstance(event, AttemptStopRequested):
                self._obey(self.state.must_attempt(event.attempt), stop=True)
            elif isinstance(event, AttemptSuspendRequested):
                self._obey(self.state.must_attempt(event.attempt), stop=False)

    # -- time

    def at(self, at_ms: int, do: Callable[[], None]) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (at_ms, self._pushed, do))

    def after(self, ms: int, do: Callable[[], None]) -> None:
        self.at(self.now_ms + ms, do)

    def go_on(self, until_ms: int = _FOREVER) -> None:
        """Until then, or until nothing is left to happen."""
        while True:
            times = [self._heap[0][0]] if self._heap else []
            if self._wake_ms is not None:
                times.append(max(self._wake_ms, self.now_ms + 1))
            if not times or min(times) > until_ms:
                break
            self.now_ms = max(self.now_ms, min(times))
            while self._heap and self._heap[0][0] <= self.now_ms:
                heapq.heappop(self._heap)[2]()
            self.settle()
        if until_ms < _FOREVER:
            self.now_ms = max(self.now_ms, until_ms)

    def settle(self) -> None:
        """Passes until they decide nothing more at this moment."""
        for _ in range(_PASSES_MAX):
            cycle = Cycle(self.state, self.now_ms, self.settings, self.brain)
            self.last_pass = found = cycle.run()
            self.watch(cycle, found)
            self.apply(list(found.events))  # type: ignore[arg-type]
            for event in found.events:
                self._answer(event)
            self._wake_ms = found.wake_ms
            if not found.events and not found.more:
                return
        raise AssertionError(f"{_PASSES_MAX} passes at one moment, and still more to do")

    # -- agents

    def _answer(self, event: object) -> None:
        if isinstance(event, AttemptsAllocated):
            for attempt in self.state.jobs[event.job].live():
                if attempt.number == event.round:
                    self._begin(attempt, self.runs_ms(self.state.jobs[event.job]))
        elif isinstance(event, AttemptResumed):
            attempt = self.state.must_attempt(event.attempt)
            left = self._left_ms.pop(attempt.id, None)
            self._begin(attempt, left)

    def _begin(self, attempt: Attempt, runs_ms: int | None) -> None:
        self.report(attempt, AttemptState.RUNNING, started_ms=self.now_ms)
        self._since_ms[attempt.id] = self.now_ms
        limit_ms = self.state.jobs[attempt.job_key].spec.max_run_ms or None
        times = [ms for ms in (runs_ms, limit_ms) if ms is not None]
        if not times:
            return
        since_ms = self.now_ms
        self._left_ms[attempt.id] = min(times)
        over = limit_ms is not None and (runs_ms is None or runs_ms > limit_ms)
        self.after(min(times), lambda: self._end(attempt, since_ms, over))

    def _end(self, attempt: Attempt, since_ms: int, over: bool) -> None:
        if not attempt.is_live or attempt.suspended_ms is not None or self._since_ms.get(attempt.id) != since_ms:
            return
        if attempt.state is AttemptState.UNKNOWN:
            # Its node is silent: the agent tells when it is back.
            self.after(1000, lambda: self._end(attempt, since_ms, over))
        elif over:
            self.report(attempt, AttemptState.FAILED, "TIME_LIMIT", signal=15)
        else:
            self.report(attempt, AttemptState.SUCCEEDED, "COMPLETED", exit_code=0)

    def _obey(self, attempt: Attempt, *, stop: bool) -> None:
        self.after(self.delay_ms(attempt), lambda: self._stopped(attempt, stop))

    def _stopped(self, attempt: Attempt, stop: bool) -> None:
        if not attempt.is_live or not (attempt.desired_stop if stop else attempt.desired_suspend):
            return
        if attempt.state is AttemptState.UNKNOWN:
            self.after(1000, lambda: self._stopped(attempt, stop))
        elif stop:
            self.report(attempt, AttemptState.STOPPED, str(attempt.stop_reason), signal=15)
        elif attempt.suspended_ms is None:
            if attempt.id in self._left_ms:
                self._left_ms[attempt.id] -= self.now_ms - self._since_ms[attempt.id]
            self._since_ms.pop(attempt.id, None)
            self.report(attempt, AttemptState.SUSPENDED)


class Meter:
    """Charge times time per key since it was made; `key` of a tenant and user."""

    def __init__(self, lab: FairLab, by_user: bool = False) -> None:
        self.lab, self.by_user = lab, by_user
        self.begin()

    def begin(self) -> None:
        self._from_ms, self._before = self.lab.now_ms, self._totals()

    def used(self) -> dict[str, float]:
        """Thousandths of cards on average since it began."""
        span = self.lab.now_ms - self._from_ms
        return {key: (total - self._before.get(key, 0)) / span for key, total in self._totals().items()}

    def _totals(self) -> dict[str, int]:
        """Of all attempts so far."""
        totals: dict[str, int] = {}
        for name, tenant in self.lab.state.tenants.items():
            for user, usage in tenant.usage.items():
                key = user if self.by_user else name
                totals[key] = totals.get(key, 0) + usage.charge_milli_ms
        for node in self.lab.state.nodes.values():
            for attempt in self.lab.state.live_attempts(node):
                job = self.lab.state.jobs[attempt.job_key]
                held_ms = self.lab.now_ms - (attempt.held_since_ms or attempt.allocated_ms)
                key = job.created_by.user if self.by_user else job.tenant
                if attempt.suspended_ms is None:
                    totals[key] = totals.get(key, 0) + attempt.slice.charge_milli * held_ms
                totals[key] = totals.get(key, 0) + attempt.charged_milli_ms
        return totals
