"""Which cards and nodes can take one task now, and what refuses it on the others.

Pure. Filters run in the order of `STRENGTH`: what no waiting can change first, what the tenant's own limit says last.
So the last filter that any card reached names the job's reason: it is the one thing that still stands between job and
card.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpushare.core.capacity import host_need, matches_card, matches_labels, share_on, tier_for
from gpushare.core.model import (
    MPS_CLIENT_SLOTS,
    MPS_V2_TIER,
    WHOLE_CARD_MILLI,
    Enforcement,
    Gpu,
    Node,
    Slice,
    TaskRequest,
    TierOffer,
)
from gpushare.core.placement.candidate import Candidate
from gpushare.core.plan import Plan
from gpushare.reasons import Reason

# Weakest first: a later one hides the earlier ones when a single reason is wanted.
STRENGTH = (
    Reason.NO_NODES,
    Reason.MODEL_UNAVAILABLE,
    Reason.LABELS_UNAVAILABLE,
    Reason.FENCE_UNAVAILABLE,
    Reason.NODES_UNAVAILABLE,
    Reason.GPU_UNHEALTHY,
    Reason.HOST_CAPACITY,
    Reason.NO_CAPACITY,
    Reason.OCCUPIED,
    Reason.TENANT_LIMIT,
)


class Refusals:
    """Which cards (or nodes, for a CPU job) each filter refused: `by_reason` maps it to (node, card) pairs."""

    def __init__(self) -> None:
        self.by_reason: dict[Reason, list[tuple[str, str]]] = {}

    def add(self, reason: Reason, node: str, card: str = "") -> None:
        self.by_reason.setdefault(reason, []).append((node, card))

    def strongest(self) -> Reason:
        return next((r for r in reversed(STRENGTH) if r in self.by_reason), Reason.NO_NODES)


def candidates(
    plan: Plan, request: TaskRequest, tenant: str, task: int, limit_milli: int | None, refusals: Refusals
) -> Iterator[Candidate]:
    """Every place where one task can be now; what refuses it elsewhere goes to `refusals`."""
    room = None if limit_milli is None else limit_milli - plan.charge_milli(tenant)
    for node in plan.state.nodes.values():
        if request.is_cpu:
            yield from _cpu_candidate(plan, request, node, task, refusals)
        elif request.is_share:
            for gpu in node.gpus.values():
                yield from _share_candidate(plan, request, node, gpu, task, room, refusals)
        else:
            yield from _whole_candidate(plan, request, node, task, room, refusals)


def _static_refusal(request: TaskRequest, node: Node, gpu: Gpu, offer: TierOffer | None) -> Reason | None:
    if not matches_card(request, gpu.inventory):
        return Reason.MODEL_UNAVAILABLE
    if not matches_labels(request, node):
        return Reason.LABELS_UNAVAILABLE
    if offer is None:
        return Reason.FENCE_UNAVAILABLE
    if not node.is_placeable:
        return Reason.NODES_UNAVAILABLE
    if not gpu.is_placeable:
        return Reason.GPU_UNHEALTHY
    return None


def _host_fits(plan: Plan, request: TaskRequest, node: Node, milli: int) -> tuple[int, int] | None:
    cpu, memory = host_need(request, node, milli)
    if cpu > plan.free_cpu_milli(node) or memory > plan.free_memory_mib(node):
        return None
    return cpu, memory


def _share_candidate(
    plan: Plan, request: TaskRequest, node: Node, gpu: Gpu, task: int, room: int | None, refusals: Refusals
) -> Iterator[Candidate]:
    offer = tier_for(request, gpu.inventory.tiers)
    static = _static_refusal(request, node, gpu, offer)
    if static is not None or offer is None:
        refusals.add(static or Reason.FENCE_UNAVAILABLE, node.name, gpu.uuid)
        return
    share = share_on(request, gpu.inventory.usable_mib)
    host = _host_fits(plan, request, node, share.milli)
    left_milli, left_mib = plan.free_milli(gpu) - share.milli, plan.free_mib(gpu) - share.mib
    slots_full = offer.tier == MPS_V2_TIER and plan.holders(gpu) >= MPS_CLIENT_SLOTS
    if left_milli < 0 or left_mib < 0 or slots_full:
        strangers_only = left_milli >= 0 and left_mib + gpu.stranger_mib >= 0 and not slots_full
        refusals.add(Reason.OCCUPIED if strangers_only else Reason.NO_CAPACITY, node.name, gpu.uuid)
    elif host is None:
        refusals.add(Reason.HOST_CAPACITY, node.name, gpu.uuid)
    elif room is not None and share.charge_milli > room:
        refusals.add(Reason.TENANT_LIMIT, node.name, gpu.uuid)
    else:
        piece = Slice(
            task=task,
            node=node.name,
            gpu_uuids=(gpu.uuid,),
            gpu_milli=share.milli,
            gpu_memory_mib=share.mib,
            held_mib=(share.mib,),
            cpu_milli=host[0],
            memory_mib=host[1],
            charge_milli=share.charge_milli,
            tier=offer.tier,
            enforcement=offer.enforcement,
        )
        yield Candidate(piece, left_milli, left_mib, 0, plan.free_cpu_milli(node) - host[0], gpu.inventory.index)


def _whole_candidate(
    plan: Plan, request: TaskRequest, node: Node, task: int, room: int | None, refusals: Refusals
) -> Iterator[Candidate]:
    free: list[Gpu] = []
    verdicts: list[tuple[Reason, str]] = []
    for gpu in node.gpus.values():
        verdict = _whole_refusal(plan, request, node, gpu)
        if verdict is None:
            free.append(gpu)
        else:
            verdicts.append((verdict, gpu.uuid))
    host = _host_fits(plan, request, node, WHOLE_CARD_MILLI * request.gpus)
    charge = WHOLE_CARD_MILLI * request.gpus
    shortfall = None
    if len(free) < request.gpus:
        # Cards that are free but too few together count as lack of room, unless nothing else refuses.
        shortfall = Reason.NO_CAPACITY
    elif host is None:
        shortfall = Reason.HOST_CAPACITY
    elif room is not None and charge > room:
        shortfall = Reason.TENANT_LIMIT
    if shortfall is not None or host is None:
        for reason, uuid in verdicts:
            refusals.add(reason, node.name, uuid)
        for gpu in free:
            refusals.add(shortfall or Reason.HOST_CAPACITY, node.name, gpu.uuid)
        return
    chosen = sorted(free, key=lambda g: (g.inventory.usable_mib, g.inventory.index))[: request.gpus]
    left = len(free) - request.gpus
    yield Candidate(
        _whole_slice(task, node, chosen, host, charge), left * WHOLE_CARD_MILLI, 0, left,
        plan.free_cpu_milli(node) - host[0], chosen[0].inventory.index,
    )  # fmt: skip


def _whole_refusal(plan: Plan, request: TaskRequest, node: Node, gpu: Gpu) -> Reason | None:
    static = _static_refusal(request, node, gpu, tier_for(request, gpu.inventory.tiers))
    if static is not None:
        return static
    if plan.holders(gpu):
        return Reason.NO_CAPACITY
    return Reason.OCCUPIED if gpu.condition.strangers else None


def _whole_slice(task: int, node: Node, chosen: list[Gpu], host: tuple[int, int], charge: int) -> Slice:
    return Slice(
        task=task,
        node=node.name,
        gpu_uuids=tuple(g.uuid for g in chosen),
        gpu_milli=WHOLE_CARD_MILLI,
        gpu_memory_mib=min(g.inventory.usable_mib for g in chosen),
        held_mib=tuple(g.inventory.usable_mib for g in chosen),
        cpu_milli=host[0],
        memory_mib=host[1],
        charge_milli=charge,
        tier="exclusive",
        enforcement=Enforcement.HARD,
        whole=True,
    )


def _cpu_candidate(plan: Plan, request: TaskRequest, node: Node, task: int, refusals: Refusals) -> Iterator[Candidate]:
    host = _host_fits(plan, request, node, 0)
    if not matches_labels(request, node):
        refusals.add(Reason.LABELS_UNAVAILABLE, node.name)
    elif not node.is_placeable:
        refusals.add(Reason.NODES_UNAVAILABLE, node.name)
    elif host is None:
        refusals.add(Reason.HOST_CAPACITY, node.name)
    else:
        piece = Slice(task=task, node=node.name, cpu_milli=host[0], memory_mib=host[1])
        left_cpu = plan.free_cpu_milli(node) - host[0]
        yield Candidate(piece, 0, 0, len(node.gpus), left_cpu, 0)
