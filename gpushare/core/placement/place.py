"""Where one task, or one gang, goes: the best place by the fleet's policy, taken on the plan at once.

May import numpy. A task goes to the place of the lowest score. A gang starts with `min_tasks` tasks or more, or not at
all: all in one card domain if that can be, else on one node, else on few nodes, the one that holds most of it first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpushare.core.kinds import Enforcement, Topology
from gpushare.core.model import WHOLE_CARD_MILLI, Slice
from gpushare.core.placement.ask import NO_LIMIT, Ask, Field, avoided_nodes
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.policy import IntArray
from gpushare.core.placement.promised import Promised
from gpushare.core.placement.scores import Needs, card_counts, empty_cards
from gpushare.core.plan import Plan


def place_task(plan: Plan, ask: Ask, task: int = 0) -> Slice | None:
    """The best slice for one task, which `plan` then holds; None where it fits nowhere."""
    field = Field(plan.fleet, ask)
    place = field.best()
    return None if place is None else _settle(plan, field, place, task)


def place_on(plan: Plan, ask: Ask, uuids: Sequence[str], task: int = 0) -> Slice | None:
    """The same on these cards of one node alone; None for a request without cards, or for cards that are gone."""
    fleet, request = plan.fleet, ask.request
    if request.is_cpu or not uuids or any(uuid not in fleet.card_id for uuid in uuids):
        return None
    field = Field(fleet, ask)
    cards = np.array([fleet.card_id[uuid] for uuid in uuids], dtype=np.int64)
    if request.is_share:
        place = field.best_of(cards)
    else:
        node = int(fleet.node_of[cards[0]])
        place = field.best_of(slice(node, node + 1))
        if len(_whole_cards(fleet, field.scores.needs, node, field.promised, cards)) < request.gpus:
            return None
    return None if place is None or field.is_barred else _settle(plan, field, place, task, cards)


def place_gang(
    plan: Plan, ask: Ask, tasks: int, min_tasks: int, numbers: Sequence[int] | None = None
) -> list[Slice] | None:
    """Slices for as many of `tasks` equal tasks as fit, at least `min_tasks`, which `plan` then holds; or None and the
    plan as it was. `numbers`: the tasks' indexes, 0 and up unless given."""
    named = range(tasks) if numbers is None else numbers
    if tasks == 1 and not (ask.topology is Topology.DOMAIN and ask.request.gpus > 1):
        piece = place_task(plan, ask, named[0])
        return None if piece is None else [piece]
    checkpoint = plan.checkpoint()
    for trial in _trials(plan.fleet, ask, min_tasks):
        slices = _Gang(plan, trial.ask, trial.dearest_milli, named, min_tasks).place()
        if slices is not None:
            return slices
        plan.rollback(checkpoint)
    return None


class _Trial(NamedTuple):
    ask: Ask
    dearest_milli: tuple[int, ...] = ()


def _trials(fleet: Fleet, ask: Ask, min_tasks: int) -> Iterator[_Trial]:
    """Ways to place a gang, in the order to try: where it never failed before, then anywhere, then the cards that
    charge least first, which is how a limit takes most tasks."""
    field = Field(fleet, ask)
    charges = sorted({g.share.charge_milli for g in field.scores.needs.grants if g is not None})
    if field.is_barred or (ask.room.milli is not None and charges and charges[0] * min_tasks > ask.room.milli):
        return
    if int(field.counts().sum()) < min_tasks:
        return
    if ask.avoid:
        elsewhere = frozenset(n for n in (ask.only or fleet.names) if n not in ask.avoid)
        yield _Trial(ask._replace(only=elsewhere, avoid=frozenset()))
    yield _Trial(ask)
    if ask.room != NO_LIMIT and len(charges) > 1:
        yield _Trial(ask, tuple(charges))


class _Gang:
    """One try at a gang."""

    def __init__(self, plan: Plan, ask: Ask, ceilings: tuple[int, ...], numbers: Sequence[int], min_tasks: int) -> None:
        self.plan, self.fleet, self.ask = plan, plan.fleet, ask
        self.ceilings = list(ceilings)
        self.numbers, self.min_tasks = numbers, min_tasks
        self.slices: list[Slice] = []

    def place(self) -> list[Slice] | None:
        """The slices, or None; the plan keeps what was tried either way."""
        if self.ask.topology is not Topology.ANY:
            return self._together()
        while self.missing:
            route = self._route()
            if not route or not sum(self._fill(*stop) for stop in route):
                if len(self.ceilings) < 2:
                    break
                del self.ceilings[0]
        return self.slices if len(self.slices) >= self.min_tasks else None

    @property
    def missing(self) -> int:
        return len(self.numbers) - len(self.slices)

    def _field(self) -> Field:
        return Field(self.fleet, self.ask, self.ceilings[0] if self.ceilings else None)

    def _route(self) -> list[tuple[int, IntArray | None, int]]:
        """Stops (node, its cards or None for all, tasks) that together should hold what is missing."""
        field, want = self._field(), self.missing
        counts = field.counts()
        want = min(want, int(counts.sum()))
        if not want:
            return []
        near = _domains(field, want) if not self.slices else []
        if near:
            return [(near[0][0], near[0][1], want)]
        avoided = avoided_nodes(self.fleet, self.ask) if self.ask.avoid else np.zeros(len(counts), np.bool_)
        stops: list[tuple[int, IntArray | None, int]] = []
        # Most tasks first; nodes to avoid last; then the fixed order.
        for node in np.lexsort((self.fleet.all_nodes, -counts, avoided)).tolist():
            # The smallest node that holds all the rest.
            enough = np.flatnonzero((counts >= want) & ~avoided)
            if len(enough):
                node = int(enough[counts[enough].argmin()])
            elif not counts[node]:
                continue
            held = min(want, int(counts[node]))
            stops.append((node, None, held))
            counts[node] = 0
            want -= held
            if not want:
                break
        return stops

    def _together(self) -> list[Slice] | None:
        """All on one node, or in one domain, as asked."""
        checkpoint = self.plan.checkpoint()
        field = self._field()
        for node, cards, held in self._rooms(field):
            if held < self.min_tasks:
                break
            self._fill(node, cards, min(self.missing, held))
            if len(self.slices) >= self.min_tasks:
                return self.slices
            self.plan.rollback(checkpoint)
            self.slices = []
        return None

    def _rooms(self, field: Field) -> list[tuple[int, IntArray | None, int]]:
        """Single nodes or domains: those that hold the whole gang first, the smallest of them foremost."""
        rooms: list[tuple[int, IntArray | None, int]]
        if self.ask.topology is Topology.DOMAIN:
            rooms = [(node, cards, held) for node, cards, held in _domains(field, 1)]
        else:
            counts = field.counts()
            rooms = [(node, None, int(counts[node])) for node in np.flatnonzero(counts).tolist()]
        want = self.missing
        rooms.sort(key=lambda room: (room[2] < want, room[2] if room[2] >= want else -room[2], room[0]))
        return rooms

    def _fill(self, node: int, cards: IntArray | None, most: int) -> int:
        """Place up to `most` tasks there; how many it were."""
        done = 0
        while done < most and self.missing:
            field = self._field()
            if self.ask.request.is_share and cards is None:
                first = int(self.fleet.first_card[node])
                place = field.best_of(slice(first, first + int(self.fleet.card_count[node])))
            elif self.ask.request.is_share:
                place = field.best_of(np.asarray(cards))
            else:
                place = field.best_of(slice(node, node + 1))
            if place is None or field.is_barred:
                break
            piece = _settle(self.plan, field, place, self.numbers[len(self.slices)], cards)
            self.slices.append(piece)
            model = self.fleet.model_of(piece.gpu_uuids[0]) if piece.gpu_uuids else ""
            room = self.ask.room.less(piece.charge_milli, model, piece.cpu_milli, piece.memory_mib)
            self.ask = self.ask._replace(room=room)
            done += 1
        return done


def _domains(field: Field, least: int) -> list[tuple[int, IntArray, int]]:
    """(node, cards, tasks held) of each domain that holds `least` tasks or more, the smallest first."""
    fleet, request = field.fleet, field.ask.request
    if request.is_cpu or not len(fleet.uuids) or (least > 1 and not fleet.has_domains):
        return []
    counts = field.counts()
    each = _counts_of_cards(field)
    held = np.bincount(fleet.domain_of, weights=each).astype(np.int64)
    if request.gpus:
        held //= request.gpus
    first = np.full(len(held), len(fleet.uuids), np.int64)
    np.minimum.at(first, fleet.domain_of, fleet.all_cards)
    held = np.minimum(held, counts[fleet.node_of[first]])
    found = np.flatnonzero(held >= least)
    found = found[np.lexsort((found, held[found]))]
    return [
        (int(fleet.node_of[first[d]]), np.flatnonzero(fleet.domain_of == d), int(held[d])) for d in found[:64].tolist()
    ]


def _counts_of_cards(field: Field) -> IntArray:
    """How many such shares each card holds; for whole cards 1 where it is free for the request."""
    fleet, needs, promised = field.fleet, field.scores.needs, field.promised
    if field.ask.request.is_share:
        each = card_counts(fleet, needs, fleet.all_cards)
        if promised is not None:
            each[promised.cards] = card_counts(fleet, needs, promised.cards, promised.by_card)
            each[promised.shut_cards] = 0
        return each
    free = empty_cards(fleet, needs, fleet.all_cards)
    if promised is not None:
        free[promised.cards] &= (promised.by_card.milli <= 0) & (promised.by_card.mib <= 0)
        free[promised.shut_cards] = False
    return free.astype(np.int64)


# -- slices


def _settle(plan: Plan, field: Field, place: int, task: int, cards: IntArray | None = None) -> Slice:
    """The slice of one task at `place`, held by the plan from here on."""
    fleet, needs, ask = plan.fleet, field.scores.needs, field.ask
    if ask.request.is_share:
        piece = _share_slice(fleet, needs, place, task)
    elif ask.request.gpus:
        piece = _whole_slice(fleet, needs, place, task, field.promised, cards)
    else:
        cpu, memory = needs.host_of(fleet, place, 0)
        piece = Slice(task=task, node=fleet.names[place], cpu_milli=cpu, memory_mib=memory)
    plan.take(ask.tenant, piece, ask.end_ms, ask.user, ask.job)
    return piece


def _share_slice(fleet: Fleet, needs: Needs, card: int, task: int) -> Slice:
    grant = needs.grants[int(fleet.kind_of[card])]
    assert grant is not None, "a card of this kind was found to fit"
    node, share = int(fleet.node_of[card]), grant.share
    cpu, memory = needs.host_of(fleet, node, share.milli)
    return Slice(
        task=task,
        node=fleet.names[node],
        gpu_uuids=(fleet.uuids[card],),
        gpu_milli=share.milli,
        gpu_memory_mib=share.mib,
        held_mib=(share.mib,),
        cpu_milli=cpu,
        memory_mib=memory,
        charge_milli=share.charge_milli,
        tier=grant.offer.tier,
        enforcement=grant.offer.enforcement,
    )


def _whole_slice(
    fleet: Fleet, needs: Needs, node: int, task: int, promised: Promised | None, cards: IntArray | None
) -> Slice:
    gpus = needs.request.gpus
    chosen = _whole_cards(fleet, needs, node, promised, cards)
    charge = WHOLE_CARD_MILLI * gpus
    cpu, memory = needs.host_of(fleet, node, charge)
    held = tuple(int(fleet.usable_mib[card]) for card in chosen)
    return Slice(
        task=task,
        node=fleet.names[node],
        gpu_uuids=tuple(fleet.uuids[card] for card in chosen),
        gpu_milli=WHOLE_CARD_MILLI,
        gpu_memory_mib=min(held),
        held_mib=held,
        cpu_milli=cpu,
        memory_mib=memory,
        charge_milli=charge,
        tier="exclusive",
        enforcement=Enforcement.HARD,
        whole=True,
    )


def _whole_cards(fleet: Fleet, needs: Needs, node: int, promised: Promised | None, cards: IntArray | None) -> list[int]:
    """The cards for one task: of one domain where that can be (the smallest that is enough), small ones first."""
    gpus = needs.request.gpus
    here = fleet.cards_of(np.array([node], dtype=np.int64)) if cards is None else cards
    free: list[int] = here[empty_cards(fleet, needs, here)].tolist()
    if promised is not None:
        free = [card for card in free if promised.leaves(card)]
    free.sort(key=lambda card: (fleet.usable_mib[card], card))
    if gpus > 1 and fleet.has_domains:
        domains: dict[int, list[int]] = {}
        for card in free:
            domains.setdefault(int(fleet.domain_of[card]), []).append(card)
        enough = [found for found in domains.values() if len(found) >= gpus]
        if enough:
            free = min(enough, key=len)
    return free[:gpus]
