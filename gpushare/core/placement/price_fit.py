"""The default policy: a task goes where it takes least from what the job mix could still earn. May import numpy.

A node is worth what the tasks that come could fill of it; the score of a place is the worth that the task takes from
it, in thousandths of a card. The worth of a node is the sum over its pieces of free card, each at the price that the
mix pays for a piece of that size (`card_prices`), limited by the CPU and memory that the node has left:

    worth = min over charges of  [ free CPU x charge + free memory x charge + sum of pieces at prices after charges ]

This is the Lagrangian bound of the node's packing problem. With much CPU left the charge is nil and the worth is that
of the pieces; with little left it is that of the CPU, and GPU that idles without the CPU to use it counts for nothing.
So small CPU needs go where CPU is short, large ones where it abounds, and shares go where they complete a filling that
the mix can make. Three small corrections: a large piece is worth more than its parts (what fits in the parts fits in
it), wide jobs add worth to cards that are free together once they are more than a few, and equal scores go by the
fleet's node order, which fills nodes one after the other.

Prices follow the mix of recent submissions; they begin as plain best fit, and need nobody to tell the mix.
"""

from __future__ import annotations

from copy import copy, deepcopy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpushare.core.model import WHOLE_CARD_MILLI, TaskRequest
from gpushare.core.placement.card_prices import best_fillings, piece_prices
from gpushare.core.placement.mix import JobClass, JobMix
from gpushare.core.placement.node_worths import NO_CARDS_BONUS, NodeWorths, Tables, on_grid
from gpushare.core.placement.policy import BoolArray, FloatArray, IntArray, Need
from gpushare.weights import PriceFitWeights

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet

# Pieces above this (cards that are sold several times over) count as this.
_LARGEST_PIECE_MILLI = 4 * WHOLE_CARD_MILLI

# Of how many cards' share a host's CPU or memory is at most.
_MOST_HOST_CARDS = 1000


class Site(NamedTuple):
    """What the tables need to know of a fleet: the largest piece, the most cards of a node, a card's memory, and the
    nodes' CPU and memory per card."""

    top_milli: int
    width: int
    usable_mib: int
    cpu_milli_per_card: float
    memory_mib_per_card: float


class PriceFit:
    """See the module. Cost per decision: a few table look-ups for each place that changed, and as many for each that is
    looked at."""

    name = "price_fit"

    def __deepcopy__(self, memo: dict[int, object]) -> PriceFit:
        """Tables are never changed in place, and worths belong to a fleet that the copy will not see."""
        made = copy(self)
        made._mix, made._worths = deepcopy(self._mix, memo), None
        return made

    def __init__(self, weights: PriceFitWeights | None = None) -> None:
        self.weights = weights or PriceFitWeights()
        self._mix = JobMix(self.weights.window_tasks)
        self._epoch = 0
        self._classes: list[JobClass] = []
        self._site: Site | None = None
        self._tables: Tables | None = None
        self._worths: NodeWorths | None = None

    def learn(self, request: TaskRequest, tasks: int) -> None:
        if not request.is_cpu:
            self._mix.learn(request, tasks)

    def epoch(self) -> int:
        if self._mix.is_due and self._site is not None:
            self._classes = self._mix.read(self._site.usable_mib)
            tables = make_tables(self._classes, self._site, self.weights)
            if self._tables is None or _moved(self._tables, tables) > self.weights.tolerance_milli:
                self._tables = tables
                self._epoch += 1
        return self._epoch

    def index(self, fleet: Fleet) -> NodeWorths:
        return self._worths_of(fleet)

    def share_scores(self, fleet: Fleet, need: Need, cards: IntArray) -> FloatArray:
        worths = self._arrays_of(fleet)
        tables, nodes = worths.tables, fleet.node_of.take(cards)
        left = np.minimum(fleet.piece_milli.take(cards), tables.top_milli)
        left -= need.milli
        after = tables.piece.take(np.maximum(left, 0, out=left), axis=0)
        after -= tables.gone.take(worths.gone_rows(nodes, cards), axis=0)
        after -= worths.host_worth(need)
        after += worths.charged.take(nodes, axis=0)
        return worths.lost(nodes, after)

    def node_scores(self, fleet: Fleet, need: Need, nodes: IntArray) -> FloatArray:
        worths = self._arrays_of(fleet)
        rows, empty = worths.tables.empty, worths.empty.take(nodes)
        after = rows.take(np.maximum(empty - need.gpus, 0), axis=0) - rows.take(empty, axis=0)
        after -= worths.host_worth(need)
        after += worths.charged.take(nodes, axis=0)
        scores = worths.lost(nodes, after)
        if not need.gpus:
            scores -= np.where(fleet.card_count.take(nodes) == 0, NO_CARDS_BONUS, 0.0)
        return scores

    def _arrays_of(self, fleet: Fleet) -> NodeWorths:
        worths = self._worths_of(fleet)
        worths.bring_arrays_in_step()
        return worths

    def _worths_of(self, fleet: Fleet) -> NodeWorths:
        """In step with `fleet`; tables are made anew where it is not like the last one."""
        worths, tables = self._worths, self._tables
        if worths is None or tables is None or not worths.is_of(fleet, tables):
            site = site_of(fleet)
            if tables is None or site != self._site:
                self._site = site
                if self._mix.is_due:
                    self._classes = self._mix.read(site.usable_mib)
                tables = self._tables = make_tables(self._classes, site, self.weights)
                self._epoch += 1
            worths = self._worths = NodeWorths(fleet, tables)
        worths.update(fleet)
        return worths


def site_of(fleet: Fleet) -> Site:
    cards = max(1, len(fleet.uuids))
    with_cards = fleet.card_count > 0
    return Site(
        top_milli=min(_LARGEST_PIECE_MILLI, max(WHOLE_CARD_MILLI, fleet.milli_span - 1)),
        width=max(1, int(fleet.card_count.max(initial=0))),
        usable_mib=int(np.median(fleet.usable_mib)) if len(fleet.uuids) else 1,
        cpu_milli_per_card=_per_card(fleet.cpu_milli, with_cards, cards),
        memory_mib_per_card=_per_card(fleet.memory_mib, with_cards, cards),
    )


def _per_card(amounts: IntArray, with_cards: BoolArray, cards: int) -> float:
    """The mean; where there are none, or hosts of nothing, enough that no node's host is worth a thousand cards."""
    least = max(1.0, float(amounts.max(initial=0)) / _MOST_HOST_CARDS)
    return max(least, float(amounts[with_cards].sum()) / cards)


def _moved(old: Tables, new: Tables) -> float:
    """The largest change of the worth of a piece, or of a card among empty ones."""
    if old.piece.shape != new.piece.shape or old.empty.shape != new.empty.shape:
        return float("inf")
    cards = np.maximum(1, np.arange(len(new.empty)))[:, None]
    return max(float(np.abs(new.piece - old.piece).max()), float((np.abs(new.empty - old.empty) / cards).max()))


# -- making the tables


def make_tables(classes: list[JobClass], site: Site, weights: PriceFitWeights) -> Tables:
    """Worths for a job mix on a site. An empty mix leaves the bonus for size alone: best fit."""
    cpu, memory = _charges(site, weights)
    sizes = np.arange(site.top_milli + 1)
    bonus = weights.size_bonus_milli * (sizes / WHOLE_CARD_MILLI) ** 2
    asked = [c for c in classes if c.gpu_milli and c.gpus <= site.width]
    piece = np.zeros((len(cpu), site.top_milli + 1))
    if asked:
        piece = _piece_worth(asked, cpu, memory, site.top_milli, weights)
    empty = _empty_worth(asked, piece[:, WHOLE_CARD_MILLI], cpu, memory, site.width, weights)
    host = np.stack((cpu, memory))
    by_size, by_count = np.ascontiguousarray((piece + bonus).T), np.ascontiguousarray(empty.T)
    return on_grid(host, by_size, by_count)


def _charges(site: Site, weights: PriceFitWeights) -> tuple[FloatArray, FloatArray]:
    """For CPU alone, for memory alone, and half of each."""
    steps = np.array([s for s in weights.charge_steps if s > 0]) * WHOLE_CARD_MILLI
    none, nothing = np.zeros(1), np.zeros(len(steps))
    cpu = np.concatenate((none, steps, nothing, steps / 2)) / site.cpu_milli_per_card
    memory = np.concatenate((none, nothing, steps, steps / 2)) / site.memory_mib_per_card
    return cpu, memory


def _after_charges(classes: list[JobClass], worth: FloatArray, cpu: FloatArray, memory: FloatArray) -> FloatArray:
    """What tasks of each class (columns) bring when they pay each charge (rows); none pays more than it brings."""
    cpu_milli = np.array([c.cpu_milli for c in classes], dtype=np.float64)
    memory_mib = np.array([c.memory_mib for c in classes], dtype=np.float64)
    left: FloatArray = np.maximum(worth - np.outer(cpu, cpu_milli) - np.outer(memory, memory_mib), 0.0)
    return left


def _piece_worth(
    classes: list[JobClass], cpu: FloatArray, memory: FloatArray, top_milli: int, weights: PriceFitWeights
) -> FloatArray:
    """Rows are charges, columns sizes of pieces."""
    sizes, group_of = _priced_sizes(classes, weights.most_sizes)
    cards = np.bincount(group_of, [c.weight * c.gpus for c in classes], len(sizes))
    supply = cards * WHOLE_CARD_MILLI / float(cards @ sizes)
    prices = np.mean([piece_prices(sizes, supply * load) for load in weights.loads], axis=0)
    # By the best: each size pays what its tasks keep of the price on average; a piece takes its best filling.
    narrow = [i for i, c in enumerate(classes) if c.gpus == 1]
    best = np.zeros((len(cpu), top_milli + 1))
    if narrow:
        chosen, group = [classes[i] for i in narrow], group_of[narrow]
        weight = np.array([c.weight for c in chosen])
        kept = _after_charges(chosen, prices[group], cpu, memory) * weight
        totals = np.stack([np.bincount(group, row, len(sizes)) for row in kept])
        best = best_fillings(sizes, totals / np.maximum(np.bincount(group, weight, len(sizes)), 1e-9), top_milli)
    # By the average: a piece keeps the part of its price that all tasks which fit in it keep together.
    order = sorted(range(len(classes)), key=lambda i: classes[i].milli)
    ordered = [classes[i] for i in order]
    weight = np.array([c.weight for c in ordered])
    worth = np.array([c.gpu_milli for c in ordered], dtype=np.float64)
    kept = np.cumsum(_after_charges(ordered, worth, cpu, memory) * weight, axis=1)
    part = kept / np.cumsum(worth * weight)
    last = np.searchsorted([c.milli for c in ordered], np.arange(top_milli + 1), side="right") - 1
    average = best_fillings(sizes, prices[None, :], top_milli) * np.where(last >= 0, part[:, np.maximum(last, 0)], 0.0)
    mixed: FloatArray = weights.average_part * average + (1.0 - weights.average_part) * best
    return mixed


def _priced_sizes(classes: list[JobClass], most: int) -> tuple[IntArray, IntArray]:
    """At most `most` sizes, ascending, and each class's place among them. Where there are more, neighbours that ask for
    little are taken together, at the largest of them."""
    demand: dict[int, float] = {}
    for c in classes:
        demand[c.milli] = demand.get(c.milli, 0.0) + c.weight * c.gpu_milli
    found = sorted(demand)
    bounds = found
    if len(found) > most:
        common = set(sorted(found, key=lambda size: -demand[size])[: most // 2])
        rest = sum(d for size, d in demand.items() if size not in common)
        room, bounds, filled = max(1, most - len(common) - 1), [], 0.0
        for size in found:
            filled += 0.0 if size in common else demand[size]
            if size in common or size == found[-1] or filled >= rest / room:
                bounds.append(size)
                filled = 0.0
        # What is left over at the end of each run belongs to the next size up.
    sizes = np.array(bounds, dtype=np.int64)
    return sizes, np.searchsorted(sizes, [c.milli for c in classes])


def _empty_worth(
    classes: list[JobClass],
    card: FloatArray,
    cpu: FloatArray,
    memory: FloatArray,
    width: int,
    weights: PriceFitWeights,
) -> FloatArray:
    """Rows are charges, columns how many cards of a node are empty. `card`: worth of one."""
    total = sum(c.weight * c.gpu_milli for c in classes)
    wide: dict[int, list[JobClass]] = {}
    for c in classes:
        if c.gpus > 1:
            wide.setdefault(c.gpus, []).append(c)
    earns = {g: _mean_worth(found, cpu, memory) for g, found in wide.items()}
    worth = np.zeros((len(card), width + 1))
    for count in range(1, width + 1):
        worth[:, count] = worth[:, count - 1] + card
        for gpus, earned in earns.items():
            if gpus <= count:
                np.maximum(worth[:, count], worth[:, count - gpus] + earned, out=worth[:, count])
    counts = np.arange(width + 1)
    worth += weights.size_bonus_milli * counts
    for gpus, found in wide.items():
        part = sum(c.weight * c.gpu_milli for c in found) / total
        worth += weights.wide_bonus_milli * max(0.0, part - weights.wide_part_min) * gpus * (counts // gpus)
    return worth


def _mean_worth(classes: list[JobClass], cpu: FloatArray, memory: FloatArray) -> FloatArray:
    weight = np.array([c.weight for c in classes])
    worth = np.array([c.gpu_milli for c in classes], dtype=np.float64)
    mean: FloatArray = _after_charges(classes, worth, cpu, memory) @ weight / weight.sum()
    return mean
