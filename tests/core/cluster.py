"""A cluster of the real core without a shell: commands go through `decide`, events through `apply`, `check` runs after
each decision (its events are one transaction of the journal). Agents are played by `report`."""

from __future__ import annotations

from gpushare.core.brain import Brain
from gpushare.core.commands import (
    AttemptReport,
    Call,
    CancelJob,
    Command,
    CoreSettings,
    CreateJoinToken,
    CreateTenant,
    EnrollNode,
    NodeLeaseExpired,
    Outcome,
    RawJob,
    RawResources,
    Rejection,
    ReportAttempt,
    SubmitJobs,
    SyncNode,
)
from gpushare.core.cycle import Pass, schedule
from gpushare.core.decide import decide, expand
from gpushare.core.events import AnyEvent, Entry, TermStarted
from gpushare.core.invariants import check
from gpushare.core.kinds import AttemptState, Enforcement, Role
from gpushare.core.model import SYSTEM, Attempt, GpuInventory, Job, Principal, TenantSettings, TierOffer
from gpushare.core.state import ClusterState

TIERS = (TierOffer("exclusive", Enforcement.HARD), TierOffer("timeslice", Enforcement.SOFT))
SHARE = RawResources(gpu_milli=250)


def user_of(tenant: str, user: str = "ann") -> Principal:
    return Principal(user=user, role=Role.USER, tenant=tenant, unix_user=user)


def card(uuid: str, index: int = 0, usable_mib: int = 81559, model: str = "H100-80GB", tiers=TIERS) -> GpuInventory:
    return GpuInventory(uuid=uuid, index=index, model=model, total_mib=usable_mib, usable_mib=usable_mib, tiers=tiers)


def raw_job(**fields: object) -> RawJob:
    base: dict[str, object] = {"argv": ("true",), "working_directory": "/tmp", "resources": SHARE}
    return RawJob(**{**base, **fields})  # type: ignore[arg-type]


class Cluster:
    """`journal` holds every entry, so that a test can replay it. Time moves only by `tick`."""

    def __init__(self, *, tenants: tuple[str, ...] = ("vision",), settings: CoreSettings | None = None) -> None:
        self.state = ClusterState()
        self.settings = settings or CoreSettings()
        self.journal: list[Entry] = []
        self.now_ms = 1_000_000
        # None: each pass has a new one, as after a failover.
        self.brain: Brain | None = None
        self.last_pass = Pass([], {}, None, False)
        self.apply([TermStarted(holder="test")])
        for tenant in tenants:
            self.must(CreateTenant(tenant=tenant, settings=TenantSettings()))

    # -- time and journal

    def tick(self, ms: int) -> None:
        self.now_ms += ms

    def apply(self, events: list[AnyEvent], principal: Principal = SYSTEM, request_id: str = "") -> None:
        for event in events:
            entry = Entry(self.state.seq + 1, self.now_ms, 1, event, principal, request_id)
            self.state.apply(entry)
            self.journal.append(entry)
        check(self.state)

    def replayed(self) -> ClusterState:
        state = ClusterState()
        for entry in self.journal:
            state.apply(entry)
        return state

    # -- commands

    def do(
        self, command: Command, who: Principal = SYSTEM, request_id: str = "", body: str = "b"
    ) -> Outcome | Rejection:
        call = Call(principal=who, request_id=request_id, method=type(command).__name__, body_sha256=body)
        decision = decide(self.state, command, call, self.now_ms, self.settings)
        if isinstance(decision, Rejection):
            return decision
        steps = expand(self.state, command)
        self.apply(list(decision.events), who, request_id)  # type: ignore[arg-type]
        for step in steps:
            self.do(step)
        return decision

    def must(self, command: Command, who: Principal = SYSTEM, request_id: str = "") -> Outcome:
        decision = self.do(command, who, request_id)
        assert isinstance(decision, Outcome), decision
        return decision

    def node(self, name: str, cards: int = 8, boot_id: str = "boot-1", **fields: object) -> None:
        """Enrol (once) and sync a node with `cards` equal cards."""
        if name not in self.state.nodes:
            self.must(CreateJoinToken(node=name, sha256=f"join-{name}", ttl_ms=1000))
            self.must(EnrollNode(f"join-{name}", f"instance-{name}", f"token-{name}", f"sha-{name}"))
        self.sync(name, gpus=tuple(card(f"GPU-{name}-{i}", i) for i in range(cards)), boot_id=boot_id, **fields)

    def sync(self, name: str, **fields: object) -> Outcome | Rejection:
        base: dict[str, object] = {
            "node": name,
            "instance_id": f"instance-{name}",
            "boot_id": "boot-1",
            "start_counter": 1,
            "agent_version": "1",
            "cpu_milli": 128_000,
            "memory_mib": 1_048_576,
            "labels": {},
            "containment": "weak",
            "driver_version": "580",
            "gpus": (),
        }
        return self.do(SyncNode(**{**base, **fields}))  # type: ignore[arg-type]

    def submit(
        self, tenant: str = "vision", count: int = 1, who: Principal | None = None, **fields: object
    ) -> list[Job]:
        out = self.must(SubmitJobs(tenant=tenant, jobs=(raw_job(**fields),) * count), who or user_of(tenant))
        return [self.state.jobs[key] for key in out.names]

    def refuse(self, tenant: str = "vision", who: Principal | None = None, **fields: object) -> Rejection:
        """Submit what must be refused, and see that the refusal changed nothing."""
        before = self.state.encode()
        decision = self.do(SubmitJobs(tenant=tenant, jobs=(raw_job(**fields),)), who or user_of(tenant))
        assert isinstance(decision, Rejection), decision
        assert self.state.encode() == before
        return decision

    def cancel(self, job: Job) -> Outcome:
        return self.must(CancelJob(job=job.key), user_of(job.tenant))

    def cycle(self) -> Pass:
        self.last_pass = schedule(self.state, self.now_ms, self.settings, self.brain)
        self.apply(list(self.last_pass.events))  # type: ignore[arg-type]
        return self.last_pass

    # -- agents

    def report(self, attempt: Attempt, state: AttemptState, reason: str = "", **fields: object) -> Outcome | Rejection:
        said = AttemptReport(attempt=attempt.id, state=state, reason=reason, **fields)  # type: ignore[arg-type]
        return self.do(ReportAttempt(node=attempt.slice.node, report=said))

    def now(self, job: Job) -> Job:
        """The job's present record: once the state was forked, a change makes a new one."""
        return self.state.jobs[job.key]

    def run(self, job: Job) -> None:
        for attempt in self.now(job).current():
            self.report(attempt, AttemptState.RUNNING, started_ms=self.now_ms)

    def finish(self, job: Job, exit_code: int = 0) -> None:
        """Every live task ends by itself with this code."""
        for attempt in self.now(job).live():
            ok = exit_code == 0
            self.report(
                attempt,
                AttemptState.SUCCEEDED if ok else AttemptState.FAILED,
                "COMPLETED" if ok else "EXIT_CODE",
                exit_code=exit_code,
                detail=f"exit code {exit_code}",
            )

    def silence(self, node: str) -> None:
        self.must(NodeLeaseExpired(node=node))
