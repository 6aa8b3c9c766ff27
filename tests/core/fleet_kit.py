"""Small clusters as plain state, without a journal: nodes, cards and running jobs for tests of placement."""

from __future__ import annotations

from gpushare.core.kinds import AttemptState, Enforcement, JobState, Role
from gpushare.core.model import (
    Attempt,
    Gpu,
    GpuCondition,
    GpuInventory,
    Hold,
    Job,
    JobSpec,
    Node,
    Principal,
    Slice,
    Stranger,
    TaskRequest,
    Tenant,
    TierOffer,
)
from gpushare.core.placement import POLICIES
from gpushare.core.placement.fleet import Fleet
from gpushare.core.plan import Plan
from gpushare.core.state import ClusterState, Snapshot

TIERS = (TierOffer("exclusive", Enforcement.HARD), TierOffer("timeslice", Enforcement.SOFT))
HALF = TaskRequest(gpu_milli=500, cpu_milli=100, memory_mib=100)
WHOLE = TaskRequest(gpus=1, cpu_milli=100, memory_mib=100)
CPU = TaskRequest(cpu_milli=100, memory_mib=100)


def share(milli: int, **fields: object) -> TaskRequest:
    return TaskRequest(**{"gpu_milli": milli, "cpu_milli": 1, "memory_mib": 1, **fields})  # type: ignore[arg-type]


def gpu(
    uuid: str,
    index: int = 0,
    mib: int = 10_000,
    model: str = "H100",
    domain: str = "",
    capacity_milli: int = 1000,
    strangers_mib: int = 0,
    tiers: tuple[TierOffer, ...] = TIERS,
) -> Gpu:
    card = GpuInventory(uuid, index, model, mib, mib, tiers, domain=domain)
    strangers = (Stranger(1, "eve", strangers_mib),) if strangers_mib else ()
    return Gpu(inventory=card, condition=GpuCondition(uuid=uuid, strangers=strangers), capacity_milli=capacity_milli)


def node(name: str, cards: int | list[Gpu] = 1, cpu_milli: int = 100_000, memory_mib: int = 100_000, **fields) -> Node:
    """`cards`: how many equal ones, or the cards themselves; `n` has cards `n-0`, `n-1` and so on."""
    made = [gpu(f"{name}-{i}", i) for i in range(cards)] if isinstance(cards, int) else cards
    found = Node(name=name, created_ms=0, ready=True, cpu_milli=cpu_milli, memory_mib=memory_mib, **fields)
    found.gpus = {g.uuid: g for g in made}
    return found


def cluster(*nodes: Node) -> ClusterState:
    return ClusterState(Snapshot(nodes={n.name: n for n in nodes}, tenants={t: Tenant(t, 0) for t in ("t", "u")}))


def fleet(state: ClusterState, policy: str = "best_fit", **fields: object) -> Fleet:
    return Fleet(state, POLICIES[policy](), **fields)  # type: ignore[arg-type]


def plan(*nodes: Node, policy: str = "best_fit") -> Plan:
    state = cluster(*nodes)
    return Plan(state, fleet(state, policy))


def piece(node: str, *uuids: str, milli: int = 500, mib: int | None = None, cpu: int = 1, memory: int = 1) -> Slice:
    held = milli * 10 if mib is None else mib
    return Slice(
        task=0,
        node=node,
        gpu_uuids=uuids,
        gpu_milli=milli,
        gpu_memory_mib=held,
        held_mib=(held,) * len(uuids),
        cpu_milli=cpu,
        memory_mib=memory,
        charge_milli=milli * len(uuids),
    )


def run(
    state: ClusterState, found: Slice, number: int = 1, tenant: str = "t", user: str = "ann", max_run_ms: int = 0
) -> Attempt:
    """A job with one task that runs in this slice since time 0; the ledgers follow."""
    spec = JobSpec(argv=("x",), resources=HALF, working_directory="/", max_run_ms=max_run_ms)
    who = Principal(user=user, role=Role.USER, tenant=tenant)
    job = Job(tenant, str(number), spec, 0, who, number, state=JobState.RUNNING, round=1, base_round=1)
    attempt = Attempt(tenant, str(number), 0, 1, found, 1, 0, state=AttemptState.RUNNING, started_ms=0)
    job.attempts = [attempt]
    state.jobs[job.key] = job
    state.attempts[attempt.id] = attempt
    here = state.nodes[found.node]
    here.attempts.add(attempt.id)
    here.used_cpu_milli += found.cpu_milli
    here.used_memory_mib += found.memory_mib
    for uuid, mib in zip(found.gpu_uuids, found.held_mib, strict=True):
        here.gpus[uuid].holds[attempt.id] = Hold(found.gpu_milli, mib)
        here.gpus[uuid].used_milli += found.gpu_milli
        here.gpus[uuid].used_mib += mib
    state.touched.add(found.node)
    return attempt


def end(state: ClusterState, attempt: Attempt) -> None:
    """The attempt ends and gives its capacity back."""
    found, here = attempt.slice, state.nodes[attempt.slice.node]
    attempt.state, attempt.ended_ms = AttemptState.SUCCEEDED, 1
    here.attempts.discard(attempt.id)
    here.used_cpu_milli -= found.cpu_milli
    here.used_memory_mib -= found.memory_mib
    for uuid, mib in zip(found.gpu_uuids, found.held_mib, strict=True):
        del here.gpus[uuid].holds[attempt.id]
        here.gpus[uuid].used_milli -= found.gpu_milli
        here.gpus[uuid].used_mib -= mib
    state.touched.add(found.node)
