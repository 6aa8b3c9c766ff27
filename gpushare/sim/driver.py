"""The production core under a virtual clock: jobs arrive, passes place them, simulated agents run them, they leave.

Imports the core. Every change goes the way that it goes in a scheduler: a command through `decide`, its events through
`apply`, a pass whenever something may have changed; only the wire, the store and the waiting are left out. Agents
answer at once: what is allocated runs, what is told to stop has stopped. Time stands still while all of that settles.
The machine's clock is read to measure speed and decides nothing.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import msgspec

from gpushare.core.brain import Brain
from gpushare.core.commands import (
    AttemptReport,
    Call,
    CancelJob,
    Command,
    Housekeep,
    RawJob,
    Rejection,
    ReportAttempt,
    SubmitJobs,
)
from gpushare.core.cycle import Pass, schedule
from gpushare.core.decide import decide
from gpushare.core.events import (
    AnyEvent,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
    Entry,
    Event,
    JobEnded,
    JobRequeued,
    JobsCreated,
)
from gpushare.core.kinds import AttemptState
from gpushare.core.model import SYSTEM, Principal, Slice
from gpushare.reasons import Reason
from gpushare.sim import cluster
from gpushare.sim.observe import Observer
from gpushare.sim.traces import TraceJob, TraceNode, TraceTenant, tenants_of
from gpushare.weights import PolicyWeights

# Passes at one moment of virtual time, and wakes in a row without any change, before the core is taken to be stuck.
_PASSES_MAX = 100_000
_IDLE_WAKES_MAX = 1_000
# Ended jobs leave the state in batches.
_ARCHIVE_EVERY = 4096
_PROGRESS_EVERY = 256
_SIGTERM = 15

_SYSTEM_CALL = Call(principal=SYSTEM)


class SimulationError(Exception):
    """The core did what it never should; the text is for a report."""


class Run(msgspec.Struct):
    """A job of the trace on its way through the core. `round` is its present launch, 0 while it does not run; the times
    are of the virtual clock. `start_ms` and `slices` are those of its last launch, unless that was preempted."""

    job: TraceJob
    key: str = ""
    round: int = 0
    first_start_ms: int | None = None
    start_ms: int | None = None
    ended_ms: int | None = None
    slices: tuple[Slice, ...] = ()

    @property
    def arrival_ms(self) -> int:
        return cluster.EPOCH_MS + self.job.arrival_ms


class Simulation:
    """One run of `jobs` on `nodes`, whose order decides ties. `once`: a job that does not start when it comes is lost;
    else it waits. `on_progress` hears now and then of how many jobs it is known whether they start."""

    def __init__(
        self,
        nodes: Sequence[TraceNode],
        jobs: Sequence[TraceJob],
        tenants: Sequence[TraceTenant] | None = None,
        *,
        policy: str = "",
        weights: PolicyWeights | None = None,
        once: bool = False,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self.nodes = nodes
        self.runs = [Run(job) for job in jobs]
        self.tenants = tenants_of(jobs) if tenants is None else tenants
        self.once = once
        self.settings = cluster.settings_for(policy or cluster.policies()[0], weights or PolicyWeights(), once=once)
        self.state = cluster.begin(nodes, self.tenants, sorted({j.models for j in jobs if j.models and not j.num_gpu}))
        self.brain = Brain(self.state, self.settings)
        self._arrivals = sorted(self.runs, key=lambda run: run.job.arrival_ms)
        self._next = 0
        self.now_ms = self._arrivals[0].arrival_ms if jobs else cluster.EPOCH_MS
        self.observer = Observer(nodes, jobs, self.tenants, self.now_ms)
        # Speed and counts.
        self.pass_s: list[float] = []
        self.wall_s = 0.0
        self.decisions = self.refused = self.preemptions = 0
        self._done = 0
        self._on_progress = on_progress
        # (when, order of pushing, run, its round then)
        self._ends: list[tuple[int, int, Run, int]] = []
        self._pushed = 0
        self._wake_ms: int | None = None
        self._idle_wakes = 0
        # Of jobs that have not ended, by the core's key.
        self._runs: dict[str, Run] = {}
        self._waiting: dict[str, None] = {}
        self._unarchived = 0
        self._calls: dict[tuple[str, str], Call] = {}
        self._raw: dict[tuple[object, ...], RawJob] = {}

    # -- time

    def run(self, until_ms: int | None = None) -> None:
        """Until nothing can happen any more, or no more by `until_ms` of the trace; may be called again then. Raises
        SimulationError."""
        began = time.perf_counter()
        last_ms = None if until_ms is None else cluster.EPOCH_MS + until_ms
        while (now_ms := self._next_moment()) is not None and (last_ms is None or now_ms <= last_ms):
            self.now_ms = now_ms
            is_woken = self._wake_ms is not None and self._wake_ms <= now_ms
            if (self._end_due() | self._arrive_due() | is_woken) and not self.once:
                self._settle()
                self.observer.decided(self.state, now_ms)
        self.wall_s += time.perf_counter() - began
        self._on_progress(len(self.runs))

    def _next_moment(self) -> int | None:
        times = [self._arrivals[self._next].arrival_ms] if self._next < len(self._arrivals) else []
        if self._ends:
            times.append(self._ends[0][0])
        if self._wake_ms is not None and self._waiting and (times or self._idle_wakes < _IDLE_WAKES_MAX):
            times.append(self._wake_ms)
        return min(times, default=None)

    def _arrive_due(self) -> bool:
        """All that arrive now; with `once` each is decided before the next comes."""
        begin = self._next
        while self._next < len(self._arrivals) and self._arrivals[self._next].arrival_ms == self.now_ms:
            run = self._arrivals[self._next]
            self._next += 1
            self._submit(run)
            if self.once:
                self._settle()
                self._give_up_waiting()
                self._end_due()
                self.observer.decided(self.state, self.now_ms)
        return self._next > begin

    def _end_due(self) -> bool:
        has_ended = False
        while self._ends and self._ends[0][0] <= self.now_ms:
            _, _, run, round_ = heapq.heappop(self._ends)
            if run.round == round_:
                self._finish(run)
                has_ended = True
        return has_ended

    # -- the core's doors

    def _pass(self) -> Pass:
        """One pass of the production cycle."""
        return schedule(self.state, self.now_ms, self.settings, self.brain)

    def _do(self, command: Command) -> None:
        outcome = decide(self.state, command, _SYSTEM_CALL, self.now_ms, self.settings)
        if isinstance(outcome, Rejection):
            raise SimulationError(f"the core refused {command}: {outcome.reason}: {outcome.detail}")
        self._apply(cast("Iterable[AnyEvent]", outcome.events), SYSTEM)

    def _apply(self, events: Iterable[AnyEvent], principal: Principal) -> None:
        for event in events:
            self.state.apply(Entry(self.state.seq + 1, self.now_ms, cluster.TERM, event, principal))
            if isinstance(event, JobRequeued):
                self._waiting[event.job] = None
            elif isinstance(event, JobEnded):
                self._job_ended(event)

    def _submit(self, run: Run) -> None:
        job = run.job
        self.observer.arrived(job)
        call = self._call_of(job)
        command = SubmitJobs(tenant=job.tenant, jobs=(self._raw_job(job),))
        outcome = decide(self.state, command, call, self.now_ms, self.settings)
        if isinstance(outcome, Rejection):
            # No cluster of these nodes ever holds it.
            self.refused += 1
            self.decisions += 1
            self._tell_progress()
            return
        (created,) = outcome.events
        if not isinstance(created, JobsCreated):
            raise SimulationError(f"a submission made {created}")
        run.key = outcome.names[0]
        self._runs[run.key] = run
        self._waiting[run.key] = None
        spec = cluster.exact(created.spec, job)
        if spec is not created.spec:
            created = msgspec.structs.replace(created, spec=spec)
        self._apply((created,), call.principal)

    def _raw_job(self, job: TraceJob) -> RawJob:
        shape = (
            job.num_gpu, job.gpu_milli, job.cpu_milli, job.memory_mib, job.models, job.tasks, job.priority,
            job.max_run_ms, job.qos,
        )  # fmt: skip
        found = self._raw.get(shape)
        if found is None:
            found = self._raw[shape] = cluster.raw_job(job)
        return found

    def _call_of(self, job: TraceJob) -> Call:
        found = self._calls.get((job.tenant, job.user))
        if found is None:
            found = self._calls[job.tenant, job.user] = Call(principal=cluster.principal_of(job))
        return found

    # -- passes, and what agents do about them

    def _settle(self) -> None:
        """Passes until nothing more follows from them at this moment."""
        self._wake_ms = None
        has_changed = False
        for _ in range(_PASSES_MAX):
            began = time.perf_counter()
            result = self._pass()
            self.pass_s.append(time.perf_counter() - began)
            self._apply(cast("Iterable[AnyEvent]", result.events), SYSTEM)
            has_freed = self._answer(result.events)
            has_changed = has_changed or bool(result.events)
            if not (result.more or has_freed):
                break
        else:
            raise SimulationError(f"{_PASSES_MAX} passes at one moment, and still more to do")
        if result.wake_ms is not None:
            self._wake_ms = max(result.wake_ms, self.now_ms + 1)
        self._idle_wakes = 0 if has_changed else self._idle_wakes + 1

    def _answer(self, events: Iterable[Event]) -> bool:
        """True when a task was stopped, so that its room is free."""
        has_freed = False
        for event in events:
            if isinstance(event, AttemptsAllocated):
                self._start(event)
            elif isinstance(event, AttemptStopRequested):
                self._stop(event)
                has_freed = True
            elif isinstance(event, AttemptSuspendRequested):
                raise SimulationError(f"{event.attempt} was told to suspend on a card that offers no suspending")
        return has_freed

    def _start(self, event: AttemptsAllocated) -> None:
        run = self._runs[event.job]
        del self._waiting[event.job]
        run.round, run.slices, run.start_ms = event.round, event.slices, self.now_ms
        for attempt in self.state.jobs[event.job].live():
            said = AttemptReport(attempt=attempt.id, state=AttemptState.RUNNING, started_ms=self.now_ms)
            self._do(ReportAttempt(node=attempt.slice.node, report=said))
        self.observer.began(run.slices, self.now_ms)
        self.decisions += 1
        if run.first_start_ms is None:
            run.first_start_ms = self.now_ms
            self._tell_progress()
        lasts_ms = min((ms for ms in (run.job.duration_ms, run.job.max_run_ms) if ms is not None), default=None)
        if lasts_ms is not None:
            self._pushed += 1
            heapq.heappush(self._ends, (self.now_ms + lasts_ms, self._pushed, run, run.round))

    def _finish(self, run: Run) -> None:
        """By itself, or by its run limit."""
        run.ended_ms = self.now_ms
        limit_ms, lasts_ms = run.job.max_run_ms, run.job.duration_ms
        if limit_ms is not None and (lasts_ms is None or lasts_ms > limit_ms):
            self._end(run, AttemptState.FAILED, Reason.TIME_LIMIT, signal=_SIGTERM)
        else:
            self._end(run, AttemptState.SUCCEEDED, Reason.COMPLETED, exit_code=0)

    def _stop(self, event: AttemptStopRequested) -> None:
        attempt = self.state.attempt(event.attempt)
        if attempt is None or not attempt.is_live:
            # Stopped with its gang.
            return
        run = self._runs[attempt.job_key]
        self.preemptions += 1
        self._end(run, AttemptState.STOPPED, event.reason, signal=_SIGTERM)
        # It starts from the beginning elsewhere; until then it holds nothing.
        run.start_ms, run.slices = None, ()

    def _end(
        self, run: Run, state: AttemptState, reason: Reason, exit_code: int | None = None, signal: int | None = None
    ) -> None:
        """All its tasks, at once."""
        if run.start_ms is None:
            raise SimulationError(f"job {run.job.id} ends and has not started")
        run.round = 0
        self.observer.ended(run.job.tenant, run.slices, run.start_ms, self.now_ms)
        for attempt in self.state.jobs[run.key].live():
            said = AttemptReport(attempt=attempt.id, state=state, reason=reason, exit_code=exit_code, signal=signal)
            self._do(ReportAttempt(node=attempt.slice.node, report=said))

    def _give_up_waiting(self) -> None:
        """Tried once: whatever waits now is lost."""
        for key in list(self._waiting):
            self.decisions += 1
            self._do(CancelJob(job=key))

    def _job_ended(self, event: JobEnded) -> None:
        run = self._runs.pop(event.job)
        self._waiting.pop(event.job, None)
        if event.reason is Reason.INTERNAL:
            raise SimulationError(f"job {run.job.id}: {event.detail}")
        if run.first_start_ms is None:
            self._tell_progress()
        self._unarchived += 1
        if self._unarchived >= _ARCHIVE_EVERY:
            self._unarchived = 0
            self._do(Housekeep(archive_before_ms=self.now_ms + 1, most=_ARCHIVE_EVERY))

    def _tell_progress(self) -> None:
        self._done += 1
        if self._done % _PROGRESS_EVERY == 0:
            self._on_progress(self._done)
