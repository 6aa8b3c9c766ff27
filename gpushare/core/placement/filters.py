"""What stands between one task and each card or node: the filters, in their order, as counts and as one word.

May import numpy. Filters run from what no waiting can change to what the tenant's own limit says. So the last one that
any card reached names the reason: it is the one thing that still stands between job and card.
"""

from __future__ import annotations

import numpy as np

from gpushare.core.capacity import matches_model
from gpushare.core.kinds import Topology
from gpushare.core.model import MPS_CLIENT_SLOTS
from gpushare.core.placement.ask import NO_LIMIT, Ask, Field
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.place import place_task
from gpushare.core.placement.policy import INFINITE, BoolArray, IntArray
from gpushare.core.placement.scores import Needs, Scores, Verdicts, eligible_cards
from gpushare.core.plan import Plan
from gpushare.reasons import Reason

# Weakest first: a later one hides the earlier ones when a single reason is wanted.
STRENGTH = (
    Reason.NO_NODES,
    Reason.MODEL_UNAVAILABLE,
    Reason.LABELS_UNAVAILABLE,
    Reason.PATH_MISSING,
    Reason.FENCE_UNAVAILABLE,
    Reason.NODES_UNAVAILABLE,
    Reason.GPU_UNHEALTHY,
    Reason.HOST_CAPACITY,
    Reason.NO_CAPACITY,
    Reason.OCCUPIED,
    Reason.RESERVED,
    Reason.HELD,
    Reason.TENANT_LIMIT,
)
# A verdict is a reason's place in STRENGTH, and 0 where the task fits.
_VERDICT = {reason: place for place, reason in enumerate(STRENGTH)}
_FITS = 0


class Refusals:
    """Which cards (or nodes, for a CPU job) each filter refused: `by_reason` maps it to (node, card) pairs."""

    def __init__(self) -> None:
        self.by_reason: dict[Reason, list[tuple[str, str]]] = {}

    def add(self, reason: Reason, node: str, card: str = "") -> None:
        self.by_reason.setdefault(reason, []).append((node, card))

    def strongest(self) -> Reason:
        return next((r for r in reversed(STRENGTH) if r in self.by_reason), Reason.NO_NODES)


def refusals(plan: Plan, ask: Ask) -> Refusals:
    """What refuses one task on each card (or node) of the plan; those that would take it are left out."""
    return _listed(plan.fleet, ask, verdicts(plan.fleet, ask))


def gang_refusals(plan: Plan, ask: Ask, min_tasks: int) -> Refusals:
    """What refuses the first task that finds no place while `min_tasks` are placed one by one; the plan stays as it
    was. Places that would take one task more do not hold the gang together, and count as lack of room."""
    checkpoint = plan.checkpoint()
    ask = _fill_up(plan, ask, min_tasks)
    found = verdicts(plan.fleet, ask)
    if min_tasks > 1:
        found[found == _FITS] = _VERDICT[Reason.NO_CAPACITY]
    told = _listed(plan.fleet, ask, found)
    plan.rollback(checkpoint)
    return told


def strongest(plan: Plan, ask: Ask, min_tasks: int = 1) -> Reason:
    """The one reason for which `place_task` (or `place_gang`) found nothing. Cheap for one task that waits for long."""
    fleet = plan.fleet
    checkpoint = plan.checkpoint()
    ask = _fill_up(plan, ask, min_tasks)
    scores = fleet.scores.of(ask.request)
    if ask.only is None and scores.best() is None:
        place = _strongest_verdict(fleet, scores)
    else:
        place = int(verdicts(fleet, ask).max(initial=_FITS))
    plan.rollback(checkpoint)
    is_alone = min_tasks == 1 and ask.topology is not Topology.DOMAIN
    return STRENGTH[place] if place != _FITS or not fleet.names or is_alone else Reason.NO_CAPACITY


def _fill_up(plan: Plan, ask: Ask, min_tasks: int) -> Ask:
    """Take places for all but the last of `min_tasks`, as far as they go; the question with what the limits leave."""
    for task in range(min_tasks - 1):
        piece = place_task(plan, ask, task)
        if piece is None:
            break
        model = plan.fleet.model_of(piece.gpu_uuids[0]) if piece.gpu_uuids else ""
        room = ask.room.less(piece.charge_milli, model, piece.cpu_milli, piece.memory_mib)
        ask = ask._replace(room=room)
    return ask


def verdicts(fleet: Fleet, ask: Ask) -> Verdicts:
    """One verdict a card (shares and whole cards) or a node (CPU tasks)."""
    found = _kept_verdicts(fleet, fleet.scores.of(ask.request)).copy()
    if (found == _FITS).any():
        _judge_question(fleet, ask, found)
    if ask.request.gpus:
        # A node that could take the task refuses nothing.
        takes = np.zeros(len(fleet.names), np.bool_)
        takes[fleet.node_of[found == _FITS]] = True
        found[takes[fleet.node_of]] = _FITS
    if ask.only is not None:
        inside = np.isin(fleet.all_nodes, [fleet.node_id[n] for n in ask.only if n in fleet.node_id])
        # What is elsewhere is out of the question and refuses nothing.
        found[~(inside if ask.request.is_cpu else inside[fleet.node_of])] = _FITS
    return found


def _judge_question(fleet: Fleet, ask: Ask, found: Verdicts) -> None:
    """Claims, then limits, on the places that are left."""
    field = Field(fleet, ask._replace(avoid=frozenset()))
    free = found == _FITS
    if field.promised is not None:
        # Without the limits, so that these have the last word.
        open_ask = ask._replace(room=NO_LIMIT)
        reachable = _fits(Field(fleet, open_ask))
        found[free & ~reachable] = _VERDICT[Reason.RESERVED]
        assert fleet.claims is not None
        own = fleet.claims.own(ask.owner) | fleet.claims.job_ids
        others = Field(fleet, open_ask)
        others.promised = fleet.promised_to_others(ask.end_ms, own)
        found[free & ~reachable & _fits(others)] = _VERDICT[Reason.HELD]
        free = found == _FITS
    found[free & ~_fits(field)] = _VERDICT[Reason.TENANT_LIMIT]


def _fits(field: Field) -> BoolArray:
    """Per card (per node for CPU tasks): whether the task, or a part of it, could be there."""
    if field.is_barred:
        size = len(field.fleet.names if field.ask.request.is_cpu else field.fleet.uuids)
        return np.zeros(size, np.bool_)
    fits: BoolArray = field.values() < INFINITE
    return fits[field.fleet.node_of] if field.ask.request.gpus else fits


def _kept_verdicts(fleet: Fleet, scores: Scores) -> Verdicts:
    """Verdicts of the state and the plan alone, without claims and limits; only nodes that changed are judged again."""
    needs = scores.needs
    if scores.verdicts_version == fleet.version:
        return scores.verdicts
    nodes = fleet.all_nodes
    if scores.verdicts_version < 0:
        scores.lasting_verdicts = _judge_for_ever(fleet, needs)
        scores.verdicts = scores.lasting_verdicts.copy()
    else:
        nodes = fleet.changed_since(scores.verdicts_version)
    if needs.request.is_cpu:
        places, found = nodes, _judge_hosts(fleet, needs, nodes)
    else:
        places = fleet.cards_of(nodes)
        found = (_judge_shares if needs.request.is_share else _judge_whole)(fleet, needs, nodes, places)
    lasting = scores.lasting_verdicts[places]
    scores.verdicts[places] = np.where(lasting == _FITS, found, lasting)
    scores.verdicts_version = fleet.version
    return scores.verdicts


def _strongest_verdict(fleet: Fleet, scores: Scores) -> int:
    """Of the verdicts that `_kept_verdicts` would find. Lack of room is the strongest unless there are strangers: while
    the place that it was found at has not changed since, no other has to be judged."""
    lacks, witness = _VERDICT[Reason.NO_CAPACITY], scores.witness
    if witness is not None and scores.verdicts[witness] == lacks and not fleet.strangers.any():
        node = witness if scores.needs.request.is_cpu else fleet.node_of[witness]
        if fleet.changed_at[node] <= scores.verdicts_version:
            return lacks
    found = _kept_verdicts(fleet, scores)
    scores.witness = int(found.argmax()) if len(found) else None
    return int(found.max(initial=_FITS))


def _first_of(rules: list[tuple[BoolArray, Reason]], size: int) -> Verdicts:
    """For each place the first rule that holds."""
    found = np.zeros(size, np.int8)
    for holds, reason in reversed(rules):
        found[holds] = _VERDICT[reason]
    return found


def _judge_for_ever(fleet: Fleet, needs: Needs) -> Verdicts:
    """Of all cards, or of all nodes for a CPU task: what no waiting can change."""
    request = needs.request
    if request.is_cpu:
        return _first_of(
            [(~needs.labels_fit, Reason.LABELS_UNAVAILABLE), (~needs.path_fits, Reason.PATH_MISSING)], len(fleet.names)
        )
    other_model = np.array([not matches_model(request, k.model, k.usable_mib) for k in fleet.kinds], dtype=np.bool_)
    no_tier = np.array([grant is None for grant in needs.grants], dtype=np.bool_)
    kinds, nodes = fleet.kind_of, fleet.node_of
    rules = [
        (other_model[kinds], Reason.MODEL_UNAVAILABLE),
        (~needs.labels_fit[nodes], Reason.LABELS_UNAVAILABLE),
        (~needs.path_fits[nodes], Reason.PATH_MISSING),
        (no_tier[kinds], Reason.FENCE_UNAVAILABLE),
    ]
    return _first_of(rules, len(kinds))


def _judge_shares(fleet: Fleet, needs: Needs, nodes: IntArray, cards: IntArray) -> Verdicts:
    milli, mib = needs.milli_on(fleet, cards), needs.mib_on(fleet, cards)
    left_milli, left_mib = fleet.free_milli[cards] - milli, fleet.free_mib[cards] - mib
    full = needs.slots[fleet.kind_of[cards]] & (fleet.holders[cards] >= MPS_CLIENT_SLOTS)
    lacks = (left_milli < 0) | (left_mib < 0) | full
    strangers = lacks & (left_milli >= 0) & (left_mib + fleet.stranger_mib[cards] >= 0) & ~full
    host_of = fleet.node_of[cards]
    cpu, memory = needs.host_on(fleet, host_of, milli)
    short = (fleet.free_cpu_milli[host_of] < cpu) | (fleet.free_memory_mib[host_of] < memory)
    rules = [
        (~fleet.node_open[host_of], Reason.NODES_UNAVAILABLE),
        (~fleet.gpu_open[cards], Reason.GPU_UNHEALTHY),
        (strangers, Reason.OCCUPIED),
        (lacks, Reason.NO_CAPACITY),
        (short, Reason.HOST_CAPACITY),
    ]
    return _first_of(rules, len(cards))


def _judge_whole(fleet: Fleet, needs: Needs, nodes: IntArray, cards: IntArray) -> Verdicts:
    """Empty cards on a node that cannot take the task count as lack of room, or of CPU."""
    cpu, memory = needs.host_on(fleet, nodes, needs.task_milli())
    short = (fleet.free_cpu_milli[nodes] < cpu) | (fleet.free_memory_mib[nodes] < memory)
    few = eligible_cards(fleet, needs, nodes) < needs.request.gpus
    counts = fleet.card_count[nodes]
    short_here, few_here = np.repeat(short, counts), np.repeat(few, counts)
    rules = [
        (~fleet.node_open[fleet.node_of[cards]], Reason.NODES_UNAVAILABLE),
        (~fleet.gpu_open[cards], Reason.GPU_UNHEALTHY),
        (fleet.holders[cards] > 0, Reason.NO_CAPACITY),
        (fleet.strangers[cards], Reason.OCCUPIED),
        (few_here, Reason.NO_CAPACITY),
        (short_here, Reason.HOST_CAPACITY),
    ]
    return _first_of(rules, len(cards))


def _judge_hosts(fleet: Fleet, needs: Needs, nodes: IntArray) -> Verdicts:
    cpu, memory = needs.host_on(fleet, nodes, 0)
    short = (fleet.free_cpu_milli[nodes] < cpu) | (fleet.free_memory_mib[nodes] < memory)
    rules = [(~fleet.node_open[nodes], Reason.NODES_UNAVAILABLE), (short, Reason.HOST_CAPACITY)]
    return _first_of(rules, len(nodes))


def _listed(fleet: Fleet, ask: Ask, found: Verdicts) -> Refusals:
    told = Refusals()
    is_cpu = ask.request.is_cpu
    for place in np.flatnonzero(found).tolist():
        node = fleet.names[place if is_cpu else int(fleet.node_of[place])]
        if ask.only is None or node in ask.only:
            told.add(STRENGTH[int(found[place])], node, "" if is_cpu else fleet.uuids[place])
    return told
