"""What one request needs on every card and node, where it fits now, and how good each place is: kept between decisions.

May import numpy and the core's nouns. A `Scores` belongs to one request (and to a set of card kinds that a limit bars).
Its arrays are brought in step by scoring again only the nodes that changed since; one that fits nowhere looks only at
nodes that grew. A policy with an index is searched instead where the best place is all that is asked for. Claims are no
part of it: `promised` takes away on top what is promised to others.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gpushare.core.capacity import (
    Share,
    has_labels,
    host_need,
    matches_model,
    share_on,
    tier_for,
)
from gpushare.core.model import (
    CPU_JOB_CPU_MILLI,
    CPU_JOB_MEMORY_MIB,
    MPS_CLIENT_SLOTS,
    MPS_V2_TIER,
    WHOLE_CARD_MILLI,
    TaskRequest,
    TierOffer,
)
from gpushare.core.placement.policy import INFINITE, BoolArray, FloatArray, IntArray, Need, OneNeed, PlaceIndex, Policy
from gpushare.core.placement.search import NO_PLACE, Found, lowest
from gpushare.core.shared_paths import shares

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet

# Requests are forgotten, the longest unused first, beyond so many of them or so many scores in all.
MOST_REQUESTS = 1024
MOST_SCORES = 16 * 1024 * 1024

Verdicts = npt.NDArray[np.int8]

# After so many searches in vain, one in about 60 questions is searched for.
_MOST_MISSES = 6
# More tasks than any node holds.
_PLENTY = 2**31


class Grant(NamedTuple):
    """What a task takes of a card of one kind, and the tier it gets there."""

    share: Share
    offer: TierOffer


class Needs:
    """The fixed part: per kind of card, what `request` takes there; per card, whether waiting can ever help."""

    def __init__(self, fleet: Fleet, request: TaskRequest, barred: frozenset[int] = frozenset()) -> None:
        self.request = request
        self.grants: list[Grant | None] = [
            None if kind in barred else _grant(request, fleet, kind) for kind in range(len(fleet.kinds))
        ]
        here = [g for g in self.grants if g is not None]
        # One number where all kinds agree, else one a kind.
        self.milli = _one_or_table([g and g.share.milli for g in self.grants])
        self.mib = _one_or_table([g and g.share.mib for g in self.grants])
        self.least_milli = min((g.share.milli for g in here), default=0)
        self.least_mib = min((g.share.mib for g in here), default=0)
        # A share that takes the same of any card, or no share at all.
        self.is_plain = (isinstance(self.milli, int) and isinstance(self.mib, int)) or not request.is_share
        self.has_slots = any(g.offer.tier == MPS_V2_TIER for g in here)
        # By kind: a card that holds the share has a piece of so many thousandths, by what is scarcer on it.
        self.least_piece = [
            0 if g is None else min(g.share.milli, g.share.mib * WHOLE_CARD_MILLI // max(1, kind.usable_mib))
            for g, kind in zip(self.grants, fleet.kinds, strict=True)
        ]
        # What a plain task takes of any host; None where that depends on the node.
        is_told = request.is_cpu or (request.cpu_milli is not None and request.memory_mib is not None)
        self.one_need: OneNeed | None = None
        if self.is_plain and fleet.names and (is_told or fleet.are_hosts_alike):
            self.one_need = self.plain_need(fleet, 0)
        self.slots = np.array([g is not None and g.offer.tier == MPS_V2_TIER for g in self.grants], dtype=np.bool_)
        labelled = np.array([has_labels(request, found) for found, _ in fleet.node_kinds], dtype=np.bool_)
        shared = np.array([shares(request, found) for _, found in fleet.node_kinds], dtype=np.bool_)
        # The nodes that have the labels, and those that have the directory as far as anybody knows.
        self.labels_fit: BoolArray = _look_up(labelled, fleet.node_kind_of)
        self.path_fits: BoolArray = _look_up(shared, fleet.node_kind_of)
        kinds = np.array([g is not None for g in self.grants], dtype=np.bool_)
        self.node_fits: BoolArray = self.labels_fit & self.path_fits
        self.card_fits: BoolArray = _look_up(kinds, fleet.kind_of) & self.node_fits[fleet.node_of]
        self.all_fit = bool(self.card_fits.all())
        models: dict[str, int] = {}
        for kind, grant in enumerate(self.grants):
            if grant is not None:
                charge = grant.share.charge_milli
                models[fleet.kinds[kind].model] = max(charge, models.get(fleet.kinds[kind].model, 0))
        # The largest charge of one task on a card of each model, and of all.
        self.charge_of_model = models
        self.most_charge = max(models.values(), default=0)

    def milli_on(self, fleet: Fleet, cards: IntArray) -> IntArray | int:
        return self.milli if isinstance(self.milli, int) else self.milli[fleet.kind_of[cards]]

    def mib_on(self, fleet: Fleet, cards: IntArray) -> IntArray | int:
        return self.mib if isinstance(self.mib, int) else self.mib[fleet.kind_of[cards]]

    def host_on(self, fleet: Fleet, nodes: IntArray, milli: IntArray | int) -> tuple[IntArray | int, IntArray | int]:
        """(cpu_milli, memory_mib) of one task that takes `milli` thousandths of a node's cards; see `host_need`."""
        request = self.request
        if request.is_cpu:
            cpu: IntArray | int = CPU_JOB_CPU_MILLI
            memory: IntArray | int = CPU_JOB_MEMORY_MIB
        elif request.cpu_milli is None or request.memory_mib is None:
            parts = WHOLE_CARD_MILLI * np.maximum(1, fleet.card_count[nodes])
            cpu = np.maximum(1, fleet.cpu_milli[nodes] * milli // parts)
            memory = np.maximum(1, fleet.memory_mib[nodes] * milli // parts)
        else:
            cpu = memory = 0
        return (
            cpu if request.cpu_milli is None else request.cpu_milli,
            memory if request.memory_mib is None else request.memory_mib,
        )

    def plain_need(self, fleet: Fleet, node: int) -> OneNeed:
        """What a plain task takes on a node."""
        if self.request.is_share:
            return OneNeed(0, self.least_milli, self.least_mib, *self.host_of(fleet, node, self.least_milli))
        gpus = self.request.gpus
        return OneNeed(gpus, WHOLE_CARD_MILLI if gpus else 0, 0, *self.host_of(fleet, node, self.task_milli()))

    def task_milli(self) -> int:
        """Thousandths of a node's cards that a task of whole cards (or of none) takes."""
        return WHOLE_CARD_MILLI * self.request.gpus

    def host_of(self, fleet: Fleet, node: int, milli: int) -> tuple[int, int]:
        return host_need(self.request, fleet.state.nodes[fleet.names[node]], milli)


class Taken(NamedTuple):
    """What is promised on top of what is held: `milli` and `mib` in step with some cards, the others with these cards
    too where cards are looked at one by one, else with the cards' nodes."""

    milli: IntArray
    mib: IntArray
    cpu_milli: IntArray
    memory_mib: IntArray


class Scores:
    """`values`: one score a card for shares, else one a node; infinite where the task does not fit now."""

    def __init__(self, fleet: Fleet, policy: Policy, needs: Needs) -> None:
        self.needs = needs
        self.fleet, self.policy = fleet, policy
        size = len(fleet.uuids) if needs.request.is_share else len(fleet.names)
        self.values: FloatArray = np.full(size, INFINITE)
        self._version = -1
        self._epoch = -1
        self._is_hopeless = False
        self._counts: IntArray = np.zeros(len(fleet.names), np.int64)
        self._counts_version = -1
        # For `filters`: what refuses the request at each place for ever, and as of a version of the fleet.
        self.lasting_verdicts: Verdicts = np.zeros(0, np.int8)
        self.verdicts: Verdicts = np.zeros(0, np.int8)
        self.verdicts_version = -1
        # A place with the strongest of them.
        self.witness: int | None = None
        # Of searches: in vain the last times, and left out from here on.
        self._misses = self._skips = 0
        # By key of a bucket, under one epoch.
        self._bounds: dict[int, float] = {}
        self._bounds_epoch = -1

    def update(self) -> None:
        """Bring `values` in step with the fleet."""
        fleet, epoch = self.fleet, self.policy.epoch()
        if self._epoch != epoch or self._version < 0:
            self._is_hopeless = False
            self._score(fleet.all_nodes)
        elif self._version == fleet.version:
            return
        elif self._is_hopeless:
            # What did not fit fits only where room was made.
            if fleet.last_grew > self._version:
                self._is_hopeless = False
                self._score_changed(grown=True)
        else:
            self._score_changed()
        self._version, self._epoch = fleet.version, epoch

    def best(self) -> int | None:
        """The best place's card or node id; None when there is none."""
        self.policy.epoch()
        if self._is_hopeless and self.fleet.last_grew <= self._version:
            return None
        if self._skips:
            self._skips -= 1
            return self.best_kept()
        index = None if self.needs.one_need is None else self.policy.index(self.fleet)
        if index is None:
            return self.best_kept()
        found = self._search(index)
        if found.is_sure:
            self._misses = 0
            return found.place
        # Searched in vain, and again and again: arrays are the better way for longer and longer.
        self._misses = min(self._misses + 1, _MOST_MISSES)
        self._skips = 2**self._misses - 2
        return self.best_kept()

    def best_kept(self) -> int | None:
        """The same, and brings `values` in step."""
        self.update()
        if self._is_hopeless or not len(self.values):
            return None
        place = int(self.values.argmin())
        if self.values[place] == INFINITE:
            self._is_hopeless = True
            return None
        return place

    def counts(self) -> IntArray:
        """How many such tasks each node holds now, one by one, claims and limits aside. Do not write to it."""
        fleet = self.fleet
        if self._counts_version != fleet.version:
            nodes = fleet.all_nodes if self._counts_version < 0 else fleet.changed_since(self._counts_version)
            self._counts[nodes] = task_counts(fleet, self.needs, nodes)
            self._counts_version = fleet.version
        return self._counts

    def _score(self, nodes: IntArray) -> None:
        if not len(nodes):
            return
        if self.needs.request.is_share:
            cards = self.fleet.cards_of(nodes)
            self.values[cards] = INFINITE
            found, need = fitting_cards(self.fleet, self.needs, cards)
            if len(found):
                self.values[found] = self.policy.share_scores(self.fleet, need, found)
        else:
            self.values[nodes] = self.score_nodes(nodes)

    def _search(self, index: PlaceIndex) -> Found:
        """Among the buckets of the places that can hold the task."""
        fleet, needs, need = self.fleet, self.needs, self.needs.one_need
        assert need is not None, "asked for only where a need is the same everywhere"
        is_share = needs.request.is_share
        epoch = self.policy.epoch()
        if self._bounds_epoch != epoch:
            self._bounds, self._bounds_epoch = {}, epoch
        buckets = index.cards if is_share else index.nodes
        find_bound = partial(index.share_bound if is_share else index.task_bound, needs, need)
        found = lowest(buckets.by_key(), self._bounds, find_bound, partial(self._score_of, index))
        if found == NO_PLACE:
            self.values[:] = INFINITE
            self._is_hopeless, self._version, self._epoch = True, fleet.version, epoch
        return found

    def _score_of(self, index: PlaceIndex, place: int) -> float:
        """The score of one card, or of one node."""
        fleet, needs = self.fleet, self.needs
        if needs.request.is_share:
            need = fitting_card(fleet, needs, place)
            return INFINITE if need is None else index.share_score(fleet, need, place)
        need = fitting_node(fleet, needs, place)
        return INFINITE if need is None else index.task_score(fleet, need, place)

    def _score_changed(self, *, grown: bool = False) -> None:
        """Of the nodes that have changed, or grown, since. One by one where they are few: less work than arrays."""
        fleet, needs = self.fleet, self.needs
        few = fleet.few_changed_since(self._version, grown=grown) if needs.is_plain else None
        index = None if few is None else self.policy.index(fleet)
        if few is None or index is None:
            self._score((fleet.grown_since if grown else fleet.changed_since)(self._version))
            return
        for node in few:
            span = fleet.spans[node] if needs.request.is_share else slice(node, node + 1)
            self.values[span] = [self._score_of(index, place) for place in range(span.start, span.stop)]

    def score_nodes(self, nodes: IntArray, taken: Taken | None = None) -> FloatArray:
        """Scores of whole-card or CPU tasks on `nodes`; `taken` belongs to their cards and to them."""
        fleet = self.fleet
        found, need = fitting_nodes(fleet, self.needs, nodes, taken)
        values = np.full(len(nodes), INFINITE)
        if len(found):
            values[found] = self.policy.node_scores(fleet, need, nodes[found])
        return values


class ScoreKeeper:
    """The scores of recent requests under one policy."""

    def __init__(self, fleet: Fleet, policy: Policy) -> None:
        self.fleet, self.policy = fleet, policy
        self._layout = fleet.layout
        self._kept: OrderedDict[tuple[TaskRequest, frozenset[int]], Scores] = OrderedDict()

    def of(self, request: TaskRequest, barred: frozenset[int] = frozenset()) -> Scores:
        """The scores of `request`; `barred` kinds of cards (by number) are out of question."""
        if self._layout != self.fleet.layout:
            self._kept.clear()
            self._layout = self.fleet.layout
        key = (request, barred)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = Scores(self.fleet, self.policy, Needs(self.fleet, request, barred))
            most = max(16, min(MOST_REQUESTS, MOST_SCORES // max(1, len(self.fleet.uuids))))
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return found


def fitting_cards(fleet: Fleet, needs: Needs, cards: IntArray, taken: Taken | None = None) -> tuple[IntArray, Need]:
    """Those of `cards` that hold one more such share now, and what it takes there. `taken` is in step with `cards`."""
    free = fleet.open_milli.take(cards)
    if taken is not None:
        free -= taken.milli
    fits = free >= needs.milli_on(fleet, cards)
    if not needs.all_fit:
        fits &= needs.card_fits.take(cards)
    found = cards[fits]
    if not len(found):
        return found, Need(needs.request, 0, 0, 0, 0, 0)
    milli, mib = needs.milli_on(fleet, found), needs.mib_on(fleet, found)
    nodes = fleet.node_of.take(found)
    cpu, memory = needs.host_on(fleet, nodes, milli)
    free_mib, free_cpu = fleet.free_mib.take(found), fleet.free_cpu_milli.take(nodes)
    free_memory = fleet.free_memory_mib.take(nodes)
    if taken is not None:
        free_mib -= taken.mib[fits]
        free_cpu -= taken.cpu_milli[fits]
        free_memory -= taken.memory_mib[fits]
    still = free_mib >= mib
    still &= free_cpu >= cpu
    still &= free_memory >= memory
    if needs.has_slots:
        still &= (fleet.holders[found] < MPS_CLIENT_SLOTS) | ~needs.slots[fleet.kind_of[found]]
    milli, mib, cpu, memory = (_where(v, still) for v in (milli, mib, cpu, memory))
    return found[still], Need(needs.request, 0, milli, mib, cpu, memory)


def fitting_card(fleet: Fleet, needs: Needs, card: int) -> OneNeed | None:
    """`fitting_cards` of one card, in plain numbers, for a share that takes the same of any: what it takes there, None
    where it does not fit."""
    if fleet.open_milli.item(card) < needs.least_milli or fleet.free_mib.item(card) < needs.least_mib:
        return None
    need = _need_on(fleet, needs, fleet.node_of.item(card))
    if need is None or not (needs.all_fit or needs.card_fits.item(card)):
        return None
    if needs.has_slots and needs.slots.item(fleet.kind_of.item(card)) and fleet.holders.item(card) >= MPS_CLIENT_SLOTS:
        return None
    return need


def fitting_nodes(fleet: Fleet, needs: Needs, nodes: IntArray, taken: Taken | None = None) -> tuple[IntArray, Need]:
    """The places within `nodes` of those that hold one more such task of whole cards, or of none, and its needs."""
    request, task_milli = needs.request, needs.task_milli()
    cpu, memory = needs.host_on(fleet, nodes, task_milli)
    free_cpu, free_memory = fleet.free_cpu_milli[nodes], fleet.free_memory_mib[nodes]
    if taken is not None:
        free_cpu -= taken.cpu_milli
        free_memory -= taken.memory_mib
    fits = fleet.node_open[nodes]
    fits &= needs.node_fits[nodes]
    fits &= free_cpu >= cpu
    fits &= free_memory >= memory
    eligible: IntArray | int = 0
    if request.gpus:
        eligible = eligible_cards(fleet, needs, nodes, taken)
        fits &= eligible >= request.gpus
    found = np.flatnonzero(fits)
    values = (_where(v, found) for v in (cpu, memory, eligible))
    cpu, memory, eligible = values
    milli = WHOLE_CARD_MILLI if request.gpus else 0
    return found, Need(request, request.gpus, milli, 0, cpu, memory, eligible)


def fitting_node(fleet: Fleet, needs: Needs, node: int) -> OneNeed | None:
    """`fitting_nodes` of one node, in plain numbers: what the task needs there, None where it does not fit."""
    gpus, span = needs.request.gpus, fleet.spans[node]
    need = _need_on(fleet, needs, node)
    if need is None or not (fleet.node_open.item(node) and needs.node_fits.item(node)):
        return None
    if gpus:
        empty = fleet.is_empty[span] if needs.all_fit else fleet.is_empty[span] & needs.card_fits[span]
        if int(np.count_nonzero(empty)) < gpus:
            return None
    return need


def _need_on(fleet: Fleet, needs: Needs, node: int) -> OneNeed | None:
    """What a plain task takes on a node; None where its host has less than that."""
    need = needs.one_need or needs.plain_need(fleet, node)
    if fleet.free_cpu_milli.item(node) < need.cpu_milli or fleet.free_memory_mib.item(node) < need.memory_mib:
        return None
    return need


def eligible_cards(fleet: Fleet, needs: Needs, nodes: IntArray, taken: Taken | None = None) -> IntArray:
    """How many empty cards each of `nodes` has for a task of whole cards."""
    if taken is None and len(fleet.uuids):
        return fleet.count_empty(nodes, None if needs.all_fit else needs.card_fits)
    cards = fleet.cards_of(nodes)
    fits = empty_cards(fleet, needs, cards)
    if taken is not None:
        fits &= (taken.milli <= 0) & (taken.mib <= 0)
    ends = np.cumsum(fleet.card_count[nodes])
    total = np.concatenate(([0], np.cumsum(fits)))
    counts: IntArray = total[ends] - total[ends - fleet.card_count[nodes]]
    return counts


def empty_cards(fleet: Fleet, needs: Needs, cards: IntArray) -> BoolArray:
    return fleet.is_empty.take(cards) & needs.card_fits.take(cards)


def card_counts(fleet: Fleet, needs: Needs, cards: IntArray, taken: Taken | None = None) -> IntArray:
    """How many such shares each of `cards` holds now, one by one, as far as the card itself goes."""
    free_milli, free_mib = fleet.free_milli[cards], fleet.free_mib[cards]
    if taken is not None:
        free_milli -= taken.milli
        free_mib -= taken.mib
    counts = np.minimum(
        free_milli // _at_least_1(needs.milli_on(fleet, cards)), free_mib // _at_least_1(needs.mib_on(fleet, cards))
    )
    if needs.has_slots:
        left = np.where(needs.slots[fleet.kind_of[cards]], MPS_CLIENT_SLOTS - fleet.holders[cards], _PLENTY)
        counts = np.minimum(counts, left)
    counts = np.where(fleet.open[cards] & needs.card_fits[cards], counts, 0)
    return np.maximum(counts, 0)


def task_counts(fleet: Fleet, needs: Needs, nodes: IntArray, taken: Taken | None = None) -> IntArray:
    """How many such tasks each of `nodes` holds now. Never too few; exact where a node's cards are of one kind."""
    request = needs.request
    free_cpu, free_memory = fleet.free_cpu_milli[nodes], fleet.free_memory_mib[nodes]
    if taken is not None:
        free_cpu -= taken.cpu_milli
        free_memory -= taken.memory_mib
    cpu, memory = needs.host_on(fleet, nodes, needs.least_milli if request.is_share else needs.task_milli())
    counts = np.where(fleet.node_open[nodes] & needs.node_fits[nodes], _PLENTY, 0)
    for free, need in ((free_cpu, cpu), (free_memory, memory)):
        # A need of nothing is met by any node that is not short already.
        room = np.where(np.asarray(need) > 0, free // _at_least_1(need), np.where(free >= 0, _PLENTY, 0))
        counts = np.minimum(counts, room)
    if request.is_share:
        cards = fleet.cards_of(nodes)
        each = np.concatenate(([0], np.cumsum(card_counts(fleet, needs, cards, taken))))
        ends = np.cumsum(fleet.card_count[nodes])
        counts = np.minimum(counts, each[ends] - each[ends - fleet.card_count[nodes]])
    elif request.gpus:
        counts = np.minimum(counts, eligible_cards(fleet, needs, nodes, taken) // request.gpus)
    return np.maximum(counts, 0)


def _grant(request: TaskRequest, fleet: Fleet, number: int) -> Grant | None:
    kind = fleet.kinds[number]
    if request.is_cpu or not matches_model(request, kind.model, kind.usable_mib):
        return None
    offer = tier_for(request, kind.tiers)
    if offer is None:
        return None
    if request.is_share:
        return Grant(share_on(request, kind.usable_mib), offer)
    return Grant(Share(WHOLE_CARD_MILLI, kind.usable_mib, WHOLE_CARD_MILLI * request.gpus), offer)


def _one_or_table(values: list[int | None]) -> IntArray | int:
    told = {v for v in values if v is not None}
    if len(told) <= 1:
        return next(iter(told), 0)
    return np.array([v or 0 for v in values], dtype=np.int64)


def _look_up(table: BoolArray, places: IntArray) -> BoolArray:
    return table[places] if len(table) else np.zeros(len(places), np.bool_)


def _where(values: IntArray | int, chosen: BoolArray | IntArray) -> IntArray | int:
    return values if isinstance(values, int) else values[chosen]


def _at_least_1(values: IntArray | int) -> IntArray | int:
    return max(1, values) if isinstance(values, int) else np.maximum(1, values)
