"""What a task needs on a given card or node, and whether any registered node could ever hold it.

Pure arithmetic on integers: thousandths of a card and MiB, per device. Rounding always favours the ledger: memory
follows a share by floor, a share follows memory by ceiling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gpushare.core.kinds import Topology
from gpushare.core.model import (
    CPU_JOB_CPU_MILLI,
    CPU_JOB_MEMORY_MIB,
    EXCLUSIVE_TIER,
    SHARE_TIERS,
    WHOLE_CARD_MILLI,
    Gpu,
    GpuInventory,
    Node,
    TaskRequest,
    TierOffer,
)
from gpushare.core.state import ClusterState


class Share(NamedTuple):
    """What a task takes of one card, and what of the card nobody else can have then."""

    milli: int
    mib: int
    charge_milli: int


def share_on(request: TaskRequest, usable_mib: int) -> Share:
    """`request` on a card with `usable_mib`; it may come out larger than the card. Needs usable_mib >= 1."""
    milli, mib = request.gpu_milli, request.gpu_memory_mib
    if milli is None:
        milli = _ceil_div(WHOLE_CARD_MILLI * (mib or 0), usable_mib)
    if mib is None:
        mib = max(1, milli * usable_mib // WHOLE_CARD_MILLI)
    return Share(milli, mib, max(milli, _ceil_div(WHOLE_CARD_MILLI * mib, usable_mib)))


def host_need(request: TaskRequest, node: Node, task_milli: int) -> tuple[int, int]:
    """(cpu_milli, memory_mib) of one task on `node`; unset ones follow its `task_milli` thousandths of a card."""
    if request.cpu_milli is not None and request.memory_mib is not None:
        return request.cpu_milli, request.memory_mib
    if request.is_cpu:
        cpu, memory = CPU_JOB_CPU_MILLI, CPU_JOB_MEMORY_MIB
    else:
        cards = max(1, len(node.gpus))
        cpu = max(1, node.cpu_milli * task_milli // (WHOLE_CARD_MILLI * cards))
        memory = max(1, node.memory_mib * task_milli // (WHOLE_CARD_MILLI * cards))
    return (
        cpu if request.cpu_milli is None else request.cpu_milli,
        memory if request.memory_mib is None else request.memory_mib,
    )


def tier_for(request: TaskRequest, offers: Iterable[TierOffer]) -> TierOffer | None:
    """The tier that `request` gets of a card with `offers`, or None when none is as strong as asked."""
    wanted = SHARE_TIERS if request.is_share else (EXCLUSIVE_TIER,)
    present = {o.tier: o for o in offers if not o.absent_because}
    for tier in wanted:
        offer = present.get(tier)
        if offer is not None and offer.enforcement >= request.min_enforcement:
            return offer
    return None


def matches_model(request: TaskRequest, model: str, usable_mib: int) -> bool:
    """Model and size, which no waiting can change."""
    models = request.gpu_models
    if models and model not in models:
        return False
    return usable_mib >= max(1, request.min_gpu_memory_mib)


def matches_card(request: TaskRequest, card: GpuInventory) -> bool:
    return matches_model(request, card.model, card.usable_mib)


def has_labels(request: TaskRequest, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in request.node_labels)


def matches_labels(request: TaskRequest, node: Node) -> bool:
    return has_labels(request, node.labels)


def domain_of(card: GpuInventory) -> str:
    """A card whose domain is not known is near to itself alone."""
    return card.domain or f"\0{card.uuid}"


def least_charge(state: ClusterState, request: TaskRequest) -> int | None:
    """The smallest charge of one task over all registered cards it could ever be on; None when there is none."""
    if request.is_cpu:
        return 0
    if not request.is_share:
        return WHOLE_CARD_MILLI * request.gpus
    charges = [
        share_on(request, card.usable_mib).charge_milli
        for node in state.nodes.values()
        for card in (g.inventory for g in node.gpus.values())
        if matches_card(request, card)
    ]
    return min((c for c in charges if c <= WHOLE_CARD_MILLI), default=None)


def never_fits(state: ClusterState, request: TaskRequest, tasks: int, topology: Topology = Topology.ANY) -> str:
    """Why no emptied cluster of all registered nodes, silent and drained ones included, could hold `tasks` such tasks
    as near to each other as asked.

    Empty text when it could, or when no node is registered at all (then the job waits with NO_NODES). A fence that is
    too weak is not judged here: that is a wait.
    """
    room = 0
    for node in state.nodes.values():
        # Most requests fit on the first node or two: no walk over all of them, or over its cards, for each submit.
        if tasks == 1 and _first_card_holds(request, node):
            return ""
        here = _tasks_together(request, node, topology) if node.cpu_milli else 0
        room = room + here if topology is Topology.ANY else max(room, here)
        if room >= tasks:
            return ""
    nodes = [n for n in state.nodes.values() if n.cpu_milli]
    if not nodes:
        return ""
    if not request.is_cpu and not any(n.gpus for n in nodes):
        return "no registered node has a GPU; ask for gpus: 0, or wait until an admin adds one"
    if topology is not Topology.ANY and not never_fits(state, request, tasks):
        return _why_not_together(tasks, room, topology)
    if room:
        return f"{tasks} tasks at once never fit: all registered nodes together hold {room} when empty"
    return _why_none(request, nodes)


def _why_not_together(tasks: int, room: int, topology: Topology) -> str:
    what = "one task in one card domain never fits" if tasks == 1 else f"{tasks} tasks in one card domain never fit"
    where = "card domain"
    if topology is Topology.NODE:
        what, where = f"{tasks} tasks on one node never fit", "node"
    return f"{what}: the largest registered {where} holds {room} when empty (topology any takes several)"


def _tasks_together(request: TaskRequest, node: Node, topology: Topology) -> int:
    """How many such tasks the empty node holds; with a topology of domain: the best of its card domains."""
    if not matches_labels(request, node):
        return 0
    cards = [g for g in node.gpus.values() if matches_card(request, g.inventory)]
    if topology is not Topology.DOMAIN or request.is_cpu:
        return _tasks_on_empty(request, node, cards)
    domains: dict[str, list[Gpu]] = {}
    for card in cards:
        domains.setdefault(domain_of(card.inventory), []).append(card)
    return max((_tasks_on_empty(request, node, near) for near in domains.values()), default=0)


def _first_card_holds(request: TaskRequest, node: Node) -> bool:
    """Whether the empty node holds one task, as a look at its first card that will do can tell."""
    if not node.cpu_milli or not matches_labels(request, node):
        return False
    for gpu in node.gpus.values():
        if not matches_card(request, gpu.inventory):
            continue
        milli, mib = WHOLE_CARD_MILLI * request.gpus, 0
        if request.is_share:
            milli, mib, _ = share_on(request, gpu.inventory.usable_mib)
        cpu, memory = host_need(request, node, milli)
        has_cards = request.gpus <= 1 and milli <= gpu.capacity_milli and mib <= gpu.inventory.usable_mib
        return has_cards and cpu <= node.cpu_milli and memory <= node.memory_mib
    return False


def _tasks_on_empty(request: TaskRequest, node: Node, cards: list[Gpu]) -> int:
    if request.is_cpu:
        by_cards, milli = 2**31, 0
    elif request.is_share:
        sizes = [card.inventory.usable_mib for card in cards]
        shares = {size: share_on(request, size) for size in set(sizes)}
        by_cards = sum(
            min(card.capacity_milli // shares[size].milli, size // shares[size].mib)
            for size, card in zip(sizes, cards, strict=True)
        )
        milli = min((s.milli for s in shares.values()), default=0)
    else:
        by_cards, milli = len(cards) // request.gpus, WHOLE_CARD_MILLI * request.gpus
    cpu, memory = host_need(request, node, milli)
    by_cpu = node.cpu_milli // cpu if cpu else by_cards
    by_memory = node.memory_mib // memory if memory else by_cards
    return min(by_cards, by_cpu, by_memory)


def _why_none(request: TaskRequest, nodes: list[Node]) -> str:
    labelled = [n for n in nodes if matches_labels(request, n)]
    if not labelled:
        return f"no registered node carries the labels {dict(request.node_labels)}"
    cards = [g.inventory for n in labelled for g in n.gpus.values()]
    models = sorted({c.model for c in cards})
    if request.gpu_model and not set(request.gpu_models) & set(models):
        wanted = " or ".join(request.gpu_models)
        return f"no registered card is called {wanted}; there are: {', '.join(models) or 'none'}"
    largest = max((c.usable_mib for c in cards), default=0)
    if request.min_gpu_memory_mib > largest:
        return f"no card has {request.min_gpu_memory_mib} MiB; the largest has {largest} MiB usable"
    if request.gpu_memory_mib is not None and request.gpu_memory_mib > largest:
        return f"{request.gpu_memory_mib} MiB never fit one card; the largest has {largest} MiB usable"
    most = max((len(n.gpus) for n in labelled), default=0)
    if request.gpus > most:
        return f"{request.gpus} GPUs never fit one node; the largest has {most} (ask for several tasks instead)"
    cpu = max(n.cpu_milli for n in labelled)
    memory = max(n.memory_mib for n in labelled)
    return (
        f"no node is large enough: the largest has {most} GPUs, {cpu} milli-CPU and {memory} MiB of host memory "
        "(CPU and host memory count together with the cards of one node)"
    )


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
