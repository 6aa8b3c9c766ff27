"""A random cluster on the real core with agents that keep to the letter of their jobs' limits.

Every job runs exactly to its time limit and succeeds; what has none never ends; what is told to stop or to suspend uses
all of its grace. Commands go through `decide`, events through `apply`, passes run whenever something has happened.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable

import msgspec

from gpushare.core.brain import Brain
from gpushare.core.commands import (
    AttemptReport,
    Call,
    Command,
    CordonNode,
    CoreSettings,
    CreateReservation,
    Outcome,
    RawJob,
    RawResources,
    Rejection,
    ReportAttempt,
    SubmitJobs,
)
from gpushare.core.cycle import schedule
from gpushare.core.decide import decide
from gpushare.core.events import (
    AttemptResumed,
    AttemptsAllocated,
    AttemptStopRequested,
    AttemptSuspendRequested,
    Entry,
    Event,
    JobEnded,
    NodeSynced,
    TenantCreated,
    TermStarted,
)
from gpushare.core.kinds import AttemptState, DependencyKind, Enforcement, PreemptionMode, Qos, Role, Topology
from gpushare.core.model import (
    SYSTEM,
    Dependency,
    GpuInventory,
    Job,
    ModelQuota,
    Node,
    Principal,
    TenantSettings,
    TierOffer,
)
from gpushare.core.state import WAITING_STATES, ClusterState
from gpushare.reasons import Reason

BEGIN_MS = 1_000_000_000
MODELS = {"small": 24_000, "large": 80_000}
TIERS = (
    TierOffer("exclusive", Enforcement.HARD, can_suspend=True),
    TierOffer("timeslice", Enforcement.SOFT, can_suspend=True),
)
MINUTE_MS = 60_000


class Lab:
    """`starts` is when each job first started after `watch` was called, or resumed."""

    def __init__(self, settings: CoreSettings | None = None) -> None:
        self.state = ClusterState()
        self.now_ms = BEGIN_MS
        self.settings = settings or CoreSettings()
        self.starts: dict[str, int] = {}
        self._wake_ms: int | None = None
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self.apply([TermStarted(holder="lab")])
        self._brain: Brain | None = None

    @property
    def brain(self) -> Brain:
        if self._brain is None:
            self._brain = Brain(self.state, self.settings)
        return self._brain

    # -- the core's doors

    def apply(self, events: Iterable[Event], who: Principal = SYSTEM) -> None:
        for event in events:
            self.state.apply(Entry(self.state.seq + 1, self.now_ms, 1, event, who))  # type: ignore[arg-type]
            if isinstance(event, AttemptStopRequested | AttemptSuspendRequested):
                self._told(event.attempt)

    def do(self, command: Command, who: Principal = SYSTEM) -> Outcome | Rejection:
        found = decide(self.state, command, Call(principal=who), self.now_ms, self.settings)
        if isinstance(found, Outcome):
            self.apply(found.events, who)  # type: ignore[arg-type]
        return found

    def node(self, name: str, cards: int, model: str, cpu: int = 32, memory_gib: int = 256, **labels: str) -> None:
        if name not in self.state.nodes:
            self.state = ClusterState(
                msgspec.structs.replace(
                    self.state.snapshot(),
                    nodes={**self.state.nodes, name: Node(name=name, created_ms=self.now_ms)},
                )
            )
        gpus = tuple(GpuInventory(f"{name}-{i}", i, model, MODELS[model], MODELS[model], TIERS) for i in range(cards))
        self.apply([NodeSynced(name, name, "1", 1, "1", cpu * 1000, memory_gib * 1024, labels, "", "", gpus)])

    def tenant(self, name: str, **settings: object) -> None:
        self.apply([TenantCreated(tenant=name, settings=TenantSettings(**settings))])  # type: ignore[arg-type]

    def submit(self, tenant: str, user: str = "ann", **fields: object) -> list[Job]:
        base: dict[str, object] = {"argv": ("true",), "working_directory": "/tmp", "grace_ms": 5000}
        raw = RawJob(**{**base, **fields})  # type: ignore[arg-type]
        who = Principal(user=user, role=Role.ADMIN, tenant=tenant, unix_user=user)
        found = self.do(SubmitJobs(tenant=tenant, jobs=(raw,)), who)
        return [self.state.jobs[key] for key in found.names] if isinstance(found, Outcome) else []

    # -- agents and time

    def settle(self) -> None:
        """Passes until nothing more follows at this moment."""
        while True:
            result = schedule(self.state, self.now_ms, self.settings, self.brain)
            self.apply(result.events)
            for event in result.events:
                assert not (isinstance(event, JobEnded) and event.reason is Reason.INTERNAL), event
                if isinstance(event, AttemptsAllocated):
                    if not event.grow:
                        self.starts.setdefault(event.job, self.now_ms)
                    for attempt in self.state.jobs[event.job].live():
                        if attempt.number == event.round:
                            self._runs(attempt.id)
                elif isinstance(event, AttemptResumed):
                    self.starts.setdefault(self.state.must_attempt(event.attempt).job_key, self.now_ms)
                    self._runs(event.attempt)
            self._wake_ms = result.wake_ms
            if not (result.more or self._end_due()):
                return

    def next_ms(self) -> int | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        times = [self._heap[0][0]] if self._heap else []
        if self._wake_ms is not None:
            times.append(max(self._wake_ms, self.now_ms + 1))
        return min(times, default=None)

    def run_until(self, last_ms: int) -> bool:
        """False once nothing can happen any more."""
        while (at_ms := self.next_ms()) is not None and at_ms <= last_ms:
            self.now_ms = at_ms
            self._end_due()
            self.settle()
        if at_ms is not None:
            self.now_ms = last_ms
        return at_ms is not None

    def _end_due(self) -> bool:
        ended = False
        while self._heap and self._heap[0][0] <= self.now_ms:
            at_ms, attempt_id = heapq.heappop(self._heap)
            if self._due.get(attempt_id) == at_ms:
                del self._due[attempt_id]
                self._end(attempt_id)
                ended = True
        return ended

    def _end(self, attempt_id: str) -> None:
        attempt = self.state.must_attempt(attempt_id)
        limit_ms = self.state.jobs[attempt.job_key].spec.max_run_ms
        since_ms = attempt.held_since_ms or attempt.started_ms or 0
        if limit_ms and attempt.suspended_ms is None and since_ms + limit_ms <= self.now_ms:
            self._report(attempt_id, AttemptState.SUCCEEDED, reason="COMPLETED", exit_code=0)
        elif attempt.desired_stop:
            self._report(attempt_id, AttemptState.STOPPED, reason=str(attempt.stop_reason), signal=15)
        else:
            self._report(attempt_id, AttemptState.SUSPENDED)

    def _runs(self, attempt_id: str) -> None:
        attempt = self.state.must_attempt(attempt_id)
        resumed = attempt.started_ms is not None
        self._report(attempt_id, AttemptState.RUNNING, started_ms=None if resumed else self.now_ms)
        limit_ms = self.state.jobs[attempt.job_key].spec.max_run_ms
        self._due.pop(attempt_id, None)
        if limit_ms:
            self._at(attempt_id, self.now_ms + limit_ms)

    def _told(self, attempt_id: str) -> None:
        attempt = self.state.must_attempt(attempt_id)
        at_ms = self.now_ms + self.state.jobs[attempt.job_key].spec.grace_ms
        self._at(attempt_id, min(at_ms, self._due.get(attempt_id, at_ms)))

    def _at(self, attempt_id: str, at_ms: int) -> None:
        self._due[attempt_id] = at_ms
        heapq.heappush(self._heap, (at_ms, attempt_id))

    def _report(self, attempt_id: str, state: AttemptState, **fields: object) -> None:
        said = AttemptReport(attempt=attempt_id, state=state, **fields)  # type: ignore[arg-type]
        node = self.state.must_attempt(attempt_id).slice.node
        assert isinstance(self.do(ReportAttempt(node=node, report=said)), Outcome)

    def waiting(self) -> list[Job]:
        return [job for job in self.state.jobs.values() if job.state in WAITING_STATES]


# -- random ones


def random_lab(seed: int) -> Lab:
    """A busy cluster with every feature somewhere in it, some minutes after its first job came."""
    rng = random.Random(seed)
    lab = Lab(CoreSettings(min_run_ms=rng.choice((0, 0, 30_000)), backfill_depth=rng.choice((1, 4))))
    for i in range(rng.randint(2, 4)):
        lab.node(f"n{i}", rng.choice((1, 2, 4)), rng.choice(("small", "large")), rng.choice((8, 32)), zone=str(i % 2))
    _tenants(lab, rng)
    for _ in range(rng.randint(0, 2)):
        _reserve(lab, rng)
    if rng.random() < 0.2:
        lab.do(CordonNode(node="n0"))
    for _ in range(10):
        # They borrow what its owner has not come for yet.
        _submit(lab, rng, "bc")
    lab.settle()
    for _ in range(rng.randint(15, 40)):
        _submit(lab, rng)
        if rng.random() < 0.4:
            lab.settle()
            lab.run_until(lab.now_ms + rng.randint(1, 90) * 1000)
    lab.settle()
    lab.starts.clear()
    return lab


def _tenants(lab: Lab, rng: random.Random) -> None:
    cards = sum(len(n.gpus) for n in lab.state.nodes.values()) * 1000
    lab.tenant("a", guaranteed_milli=cards // rng.choice((2, 3)), weight=rng.choice((1, 3)))
    lab.tenant("b", limit_milli=rng.choice((None, cards // 2)), max_running_per_user=rng.choice((None, 4)))
    lab.tenant("c", max_running_jobs=rng.choice((None, 4)), cpu_limit_milli=rng.choice((None, 12_000)))
    quota = ModelQuota("large", rng.choice((0, 1000)), rng.choice((None, 2000)))
    lab.tenant("d", parent="a", model_quotas=(quota,), guaranteed_milli=rng.choice((0, 500)))


def _reserve(lab: Lab, rng: random.Random) -> None:
    start_ms = lab.now_ms + rng.randint(1, 30) * MINUTE_MS
    repeat_ms = rng.choice((0, 60 * MINUTE_MS))
    what: dict[str, object] = {"tenant": rng.choice("abc"), "gpus": 1}
    if rng.random() < 0.3:
        what = {"maintenance": True, "nodes": ("n1",)}
    lab.do(
        CreateReservation(
            name=f"r{rng.randint(0, 10**6)}",
            start_ms=start_ms,
            end_ms=start_ms + rng.randint(1, 20) * MINUTE_MS,
            repeat_ms=repeat_ms,
            until_ms=start_ms + 5 * repeat_ms if repeat_ms else 0,
            force=True,
            **what,  # type: ignore[arg-type]
        )
    )


def _resources(rng: random.Random) -> RawResources:
    extra: dict[str, object] = {}
    if rng.random() < 0.2:
        extra["gpu_model"] = rng.choice(("small", "large", "small|large"))
    if rng.random() < 0.3:
        extra["cpu_milli"] = rng.choice((1000, 4000, 8000))
    if rng.random() < 0.1:
        extra["node_labels"] = {"zone": rng.choice("01")}
    if rng.random() < 0.05:
        extra["min_enforcement"] = int(Enforcement.HARD)
    kind = rng.random()
    if kind < 0.45:
        return RawResources(gpu_milli=rng.choice((100, 250, 500, 700)), **extra)  # type: ignore[arg-type]
    if kind < 0.6:
        return RawResources(gpu_memory_mib=rng.choice((4000, 20_000)), **extra)  # type: ignore[arg-type]
    if kind < 0.92:
        return RawResources(gpus=rng.choice((1, 1, 2, 4)), **extra)  # type: ignore[arg-type]
    extra.pop("gpu_model", None)
    extra.pop("min_enforcement", None)
    return RawResources(gpus=0, **{"cpu_milli": 4000, **extra})  # type: ignore[arg-type]


def _submit(lab: Lab, rng: random.Random, tenants: str = "abcd") -> None:
    tenant = rng.choice(tenants)
    fields: dict[str, object] = {
        "resources": _resources(rng),
        "max_run_ms": None if rng.random() < 0.03 else rng.choice((1, 2, 5, 5, 5, 5, 10, 30)) * MINUTE_MS,
        "priority": rng.choice((0, 0, 0, 5)),
        "qos": rng.choice((Qos.BURST, Qos.BURST, Qos.GUARANTEED)) if tenant == "a" else Qos.BURST,
        "preemption": rng.choice((PreemptionMode.SUSPEND, *PreemptionMode)),
    }
    if rng.random() < 0.2:
        fields["tasks"] = rng.randint(2, 4)
        fields["min_tasks"] = rng.choice((0, 1))
        fields["topology"] = rng.choice((Topology.ANY, Topology.ANY, Topology.NODE))
    if rng.random() < 0.1:
        fields["array_indexes"], fields["array_max_running"] = (0, 1, 2), 1
    others = [j.key for j in lab.state.jobs.values() if j.tenant == tenant and not j.is_ended and not j.array_id]
    if others and rng.random() < 0.1:
        fields["after"] = (Dependency(rng.choice(others), rng.choice(list(DependencyKind))),)
    lab.submit(tenant, rng.choice(("ann", "bob")), **fields)


def reloaded(state: ClusterState) -> ClusterState:
    """The same state as a restarted scheduler has it."""
    return ClusterState.decode(state.encode())
