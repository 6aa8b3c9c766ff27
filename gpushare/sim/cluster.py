"""A trace's nodes and tenants as a state of the production core.

Imports the core. Nodes are named by their place in the order that they come in, so that the core's own order of nodes,
and with it every tie, is that order. A simulated card has so much memory that a share's memory, which follows its
thousandths, never binds before they do.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpushare.core.commands import CoreSettings, RawJob, RawResources
from gpushare.core.events import Entry, Event, NodeSynced, TenantCreated, TermStarted
from gpushare.core.kinds import Enforcement, Qos, Role
from gpushare.core.model import (
    EXCLUSIVE_TIER,
    SYSTEM,
    GpuInventory,
    JobSpec,
    Node,
    Principal,
    Slice,
    TenantSettings,
    TierOffer,
)
from gpushare.core.placement import POLICIES
from gpushare.core.state import ClusterState, Snapshot
from gpushare.sim.traces import SPEC_MAX_BYTES, TASKS_MAX, TraceJob, TraceNode, TraceTenant
from gpushare.weights import PolicyWeights

#: The virtual clock's zero: no time of a simulation is 0, which the core reads as "not yet".
EPOCH_MS = 1_000_000_000_000
TERM = 1

# A share of n milli then has n x 1000 MiB, without rounding.
_USABLE_MIB = 1_000_000
_UNLIMITED = 10**15
_TIERS = (TierOffer(EXCLUSIVE_TIER, Enforcement.HARD), TierOffer("timeslice", Enforcement.SOFT))


def policies() -> tuple[str, ...]:
    """Names of the placement policies, the default first."""
    default = CoreSettings().policy
    return (default, *sorted(name for name in POLICIES if name != default))


def settings_for(policy: str, weights: PolicyWeights, *, once: bool) -> CoreSettings:
    """The shipped settings, with the caps that guard a shared scheduler out of the way. `once`: nobody waits, so nobody
    is owed a start in the future."""
    shipped = CoreSettings()
    return CoreSettings(
        policy=policy,
        weights=weights,
        backfill_depth=0 if once else shipped.backfill_depth,
        label_max_chars=SPEC_MAX_BYTES,
        tasks_max=TASKS_MAX,
        gpus_per_node_max=1_000_000,
        max_run_ms_max=_UNLIMITED,
    )


def core_name(place: int) -> str:
    """The core's name of the node at `place` of the order; sorts as the number does."""
    return f"n{place:07d}"


def node_place(name: str) -> int:
    return int(name[1:])


def card_indexes(piece: Slice) -> tuple[int, ...]:
    return tuple(sorted(int(uuid.partition("-")[2]) for uuid in piece.gpu_uuids))


def begin(nodes: Sequence[TraceNode], tenants: Sequence[TraceTenant], specs: Sequence[tuple[str, ...]]) -> ClusterState:
    """Every node synced and every tenant there, at the virtual clock's zero. `specs` are the model lists that CPU jobs
    ask for: nodes are labelled with those that they satisfy."""
    hosts = {core_name(place): Node(name=core_name(place), created_ms=EPOCH_MS) for place in range(len(nodes))}
    state = ClusterState(Snapshot(nodes=hosts))
    events: list[Event] = [TermStarted(holder="simulate")]
    events += [TenantCreated(tenant=t.name, settings=_settings_of(t)) for t in tenants]
    events += [_synced(place, node, specs) for place, node in enumerate(nodes)]
    for event in events:
        state.apply(Entry(state.seq + 1, EPOCH_MS, TERM, event, SYSTEM))  # type: ignore[arg-type]
    return state


def _settings_of(tenant: TraceTenant) -> TenantSettings:
    return TenantSettings(
        limit_milli=tenant.limit_milli,
        max_queued_jobs=_UNLIMITED,
        guaranteed_milli=tenant.guaranteed_milli,
        weight=tenant.weight,
    )


def _synced(place: int, node: TraceNode, specs: Sequence[tuple[str, ...]]) -> NodeSynced:
    name = core_name(place)
    cards = tuple(
        GpuInventory(
            uuid=f"{name}-{index}",
            index=index,
            model=node.model,
            total_mib=_USABLE_MIB,
            usable_mib=_USABLE_MIB,
            tiers=_TIERS,
            simulated=True,
        )
        for index in range(node.gpu_count)
    )
    return NodeSynced(
        node=name,
        instance_id=name,
        boot_id="1",
        start_counter=1,
        agent_version="simulated",
        cpu_milli=node.cpu_milli,
        memory_mib=node.memory_mib,
        labels={_spec_label(spec): "yes" for spec in specs if node.model in spec},
        containment="",
        driver_version="",
        gpus=cards,
    )


def _spec_label(spec: tuple[str, ...]) -> str:
    return "|".join(spec)


def principal_of(job: TraceJob) -> Principal:
    """An admin of that name, so that any priority passes; it is the user that usage is shared by."""
    return Principal(user=job.user, role=Role.ADMIN, tenant=job.tenant, unix_user=job.user)


def raw_job(job: TraceJob) -> RawJob:
    """`job` as a submission."""
    is_cpu = job.num_gpu == 0
    spec = _spec_label(job.models)
    resources = RawResources(
        gpus=None if job.is_share else job.num_gpu,
        gpu_milli=job.gpu_milli if job.is_share else None,
        # A person cannot ask for no CPU at all; `exact` puts the zero back.
        cpu_milli=job.cpu_milli or 1,
        memory_mib=job.memory_mib or 1,
        gpu_model="" if is_cpu else spec,
        node_labels={spec: "yes"} if is_cpu and spec else {},
    )
    return RawJob(
        argv=("true",),
        working_directory="/",
        resources=resources,
        tasks=job.tasks,
        max_run_ms=job.max_run_ms,
        priority=job.priority,
        qos=Qos(job.qos),
    )


def exact(spec: JobSpec, job: TraceJob) -> JobSpec:
    """`spec` with what a submission cannot say: no CPU or no memory at all."""
    if job.cpu_milli and job.memory_mib:
        return spec
    resources = msgspec.structs.replace(spec.resources, cpu_milli=job.cpu_milli, memory_mib=job.memory_mib)
    return msgspec.structs.replace(spec, resources=resources)
