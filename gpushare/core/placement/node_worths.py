"""What every node of one fleet is worth at given prices, what a task would take from it, and the buckets to find the
node or card from which it takes least. May import numpy.

All prices lie on one grid, so that sums of them are exact in whatever order they are made (up to the worth of eight
thousand cards a node): arrays and plain numbers give the same scores, and what a node is worth is kept by adding what
changed. A node is worth least at one of the charges, and a task takes from it at least what it takes at that charge:
this is the bound by which buckets are searched.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from operator import add
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec
import numpy as np

from gpushare.core.placement.buckets import NOWHERE, Buckets
from gpushare.core.placement.pieces import pieces_on
from gpushare.core.placement.policy import INFINITE, BoolArray, FloatArray, IntArray, Need, OneNeed

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet
    from gpushare.core.placement.scores import Needs

# A CPU task likes a node without cards better than any that has some.
NO_CARDS_BONUS = 1.0

# Steps of prices, per thousandth of a card (or of a CPU, or MiB).
_STEPS = 2.0**30

# So many lists are kept of a kind; half a KiB each with the charges there are by default.
_MOST_KEPT = 20_000

_Key = tuple[int, ...]
_Whole = TypeVar("_Whole", int, IntArray)


class Tables(NamedTuple):
    """Second axis: the charges. `host`: charge per CPU thousandth and per MiB. `piece[r]`: worth of a piece of r
    thousandths, 0 to `top_milli`. `empty[n]`: worth of n empty cards of one node. `gone`: what a node loses when a card
    is taken from it whole; row r for one with a piece of r thousandths left, row `top_milli` + 1 + n for one of its n
    empty ones; its first rows are `piece`. `gone_rows` and `empty_rows` are the same in plain numbers."""

    host: FloatArray
    piece: FloatArray
    empty: FloatArray
    gone: FloatArray
    gone_rows: list[list[float]]
    empty_rows: list[list[float]]

    @property
    def top_milli(self) -> int:
        """The largest piece."""
        return len(self.piece) - 1


def on_grid(host: FloatArray, piece: FloatArray, empty: FloatArray) -> Tables:
    """Tables of these prices; all three as in `Tables`."""
    host, piece, empty = (np.rint(prices * _STEPS) / _STEPS for prices in (host, piece, empty))
    gone = np.concatenate((piece, empty[:1], empty[1:] - empty[:-1]))
    return Tables(host, piece, empty, gone, gone.tolist(), empty.tolist())


class _NodeNow(msgspec.Struct, gc=False):
    """A row of the arrays of `NodeWorths`, in plain numbers; `side` is the place of `worth` in `charged`."""

    charged: list[float]
    worth: float
    side: int
    empty: int
    first_empty: int
    is_alike: bool
    free_cpu: int
    free_memory: int


class NodeWorths:
    """In step with its fleet: `empty` how many cards of each node are empty, `charged` what all of it is worth at each
    charge, `worth` the least of that: the node's worth. `gone_row`: where each card stands in `Tables.gone`, an empty
    one as if the node had none; this one is always in step, the others after `bring_arrays_in_step` alone.

    `cards` and `nodes` are buckets of what takes work: a key says at which charge the node is worth least, the kind of
    card and what is left of it (of a node: how many are empty). Of empty cards of a node that are all alike, only the
    first is in a bucket. What did not change is not looked at again."""

    def __init__(self, fleet: Fleet, tables: Tables) -> None:
        self.tables = tables
        self.layout = fleet.layout
        self._fleet = weakref.ref(fleet)
        count, size, charges = len(fleet.names), len(fleet.uuids), len(tables.gone_rows[0])
        self.empty = np.zeros(count, np.int64)
        self.charged = np.zeros((count, charges))
        self.worth = np.zeros(count)
        self.gone_row = np.zeros(size, np.int64)
        self._hosts = np.zeros((count, 2), np.int64)
        self.cards, self.nodes = Buckets(size), Buckets(count)
        self._kinds, self._kind_of = len(fleet.kinds), fleet.kind_of.tolist()
        self._node_kind, self._is_alike = _node_kinds(fleet)
        self._first_empty = np.full(count, NOWHERE, np.int64)
        # How many values the fields of a key have: charge and kind; row of `gone`; piece.
        self._sides = charges * (self._kinds + 1)
        self._rows, self._pieces = len(tables.gone), len(tables.piece)
        self._changes: dict[_Key, list[float]] = {}
        self._steps: dict[_Key, list[float]] = {}
        self._host_rows: dict[_Key, list[float]] = {}
        # Nodes whose rows in the arrays are behind, and what they are now.
        self._late: set[int] = set()
        self._nows: dict[int, _NodeNow] = {}
        self._top = tables.top_milli
        self._read(fleet, fleet.all_nodes)
        self._version = fleet.version

    def is_of(self, fleet: Fleet, tables: Tables) -> bool:
        return self._fleet() is fleet and self.layout == fleet.layout and self.tables is tables

    def update(self, fleet: Fleet) -> None:
        if self._version != fleet.version:
            few = fleet.few_moves_since(self._version)
            if few is None:
                self._read(fleet, fleet.changed_since(self._version))
            else:
                for node, cards in few.items():
                    self._read_cards(fleet, node, cards)
            self._version = fleet.version

    # -- what a task takes

    def host_worth(self, need: Need) -> FloatArray:
        """What the CPU and memory of a need are worth: one row, or one a place."""
        return _host_worth(self.tables, need.cpu_milli, need.memory_mib)

    def gone_rows(self, nodes: IntArray, cards: IntArray) -> IntArray:
        """Rows of `Tables.gone`, for `cards` and the node of each."""
        rows = self.gone_row.take(cards)
        rows += np.where(rows > self._top, self.empty.take(nodes), 0)
        return rows

    def lost(self, nodes: IntArray, after: FloatArray) -> FloatArray:
        """What `nodes` lose that are worth `after` at each charge. Differences below a thousandth of a card are ties:
        the node order decides them."""
        lost = self.worth.take(nodes)
        lost -= np.minimum.reduce(after, axis=1)
        return np.rint(lost, out=lost)

    def share_score(self, fleet: Fleet, need: OneNeed, card: int) -> float:
        node, row = fleet.node_of.item(card), self.gone_row.item(card)
        now = self._of(node)
        if row > self._top:
            row += now.empty
        return _lost_one(now, self._share_change(need, fleet.piece_milli.item(card), row))

    def task_score(self, fleet: Fleet, need: OneNeed, node: int) -> float:
        now = self._of(node)
        score = _lost_one(now, self._task_change(need, now.empty))
        return score if need.gpus or fleet.card_count.item(node) else score - NO_CARDS_BONUS

    def share_bound(self, needs: Needs, need: OneNeed, key: int) -> float:
        free, piece, gone_row, side = self._unpacked(key)
        charge, kind = divmod(side, self._kinds + 1)
        if needs.grants[kind] is None or free < needs.least_milli or piece < needs.least_piece[kind]:
            return INFINITE
        gone, left = self.tables.gone_rows[gone_row], self.tables.gone_rows[max(0, piece - needs.least_milli)]
        return float(round(gone[charge] - left[charge] + self._host_row(need.cpu_milli, need.memory_mib)[charge]))

    def task_bound(self, needs: Needs, need: OneNeed, key: int) -> float:
        row, side = divmod(key, self._sides)
        charge, kind = divmod(side, self._kinds + 1)
        empty = max(0, row - 1)
        if empty < need.gpus or (need.gpus and kind < self._kinds and needs.grants[kind] is None):
            return INFINITE
        gone, left = self.tables.empty_rows[empty], self.tables.empty_rows[empty - need.gpus]
        lost = gone[charge] - left[charge] + self._host_row(need.cpu_milli, need.memory_mib)[charge]
        bound = float(round(lost))
        return bound if need.gpus or row else bound - NO_CARDS_BONUS

    def _host_row(self, cpu_milli: int, memory_mib: int) -> list[float]:
        """What so much of a host is worth at each charge; kept."""
        found = self._host_rows.get((cpu_milli, memory_mib))
        if found is None:
            found = _host_worth(self.tables, cpu_milli, memory_mib).tolist()
            _keep(self._host_rows, (cpu_milli, memory_mib), found)
        return found

    def _share_change(self, need: OneNeed, milli: int, gone_row: int) -> list[float]:
        """What a node gains at each charge when a share is taken from a card; kept."""
        key = need.milli, need.cpu_milli, need.memory_mib, milli, gone_row
        found = self._changes.get(key)
        if found is None:
            rows = self.tables.gone_rows
            found = self._change(rows[max(0, min(milli, self._top) - need.milli)], rows[gone_row], need)
            _keep(self._changes, key, found)
        return found

    def _task_change(self, need: OneNeed, empty: int) -> list[float]:
        """The same for whole cards, or none, of a node with so many empty ones."""
        key = need.gpus, need.cpu_milli, need.memory_mib, empty
        found = self._changes.get(key)
        if found is None:
            rows = self.tables.empty_rows
            found = self._change(rows[empty - need.gpus], rows[empty], need)
            _keep(self._changes, key, found)
        return found

    def _change(self, left: list[float], gone: list[float], need: OneNeed) -> list[float]:
        host = self._host_row(need.cpu_milli, need.memory_mib)
        return [more - less - paid for more, less, paid in zip(left, gone, host, strict=True)]

    # -- in step

    def _read_cards(self, fleet: Fleet, node: int, cards: Collection[int]) -> None:
        """`_read` of one node of which no other cards have changed, in plain numbers: it adds what they changed."""
        now = self._of(node)
        side, empty = now.side, now.empty
        moved = self._add_cards(fleet, node, now, cards)
        free_cpu, free_memory = fleet.free_cpu_milli.item(node), fleet.free_memory_mib.item(node)
        if free_cpu != now.free_cpu or free_memory != now.free_memory:
            step = self._host_row(free_cpu - now.free_cpu, free_memory - now.free_memory)
            now.charged = list(map(add, now.charged, step))
            now.free_cpu, now.free_memory = free_cpu, free_memory
        now.worth = min(now.charged)
        now.side = now.charged.index(now.worth)
        if now.side != side or not now.is_alike:
            moved = range(fleet.spans[node].start, fleet.spans[node].stop)
        for card in moved:
            self.cards.move(card, self._card_key(fleet, card, now))
        is_open = fleet.node_open.item(node)
        if now.side != side or now.empty != empty or is_open is (self.nodes.keys.item(node) == NOWHERE):
            self.nodes.move(node, self._node_key(fleet, node, now))
        self._late.add(node)

    def _add_cards(self, fleet: Fleet, node: int, now: _NodeNow, cards: Collection[int]) -> Collection[int]:
        """Add what these cards changed; those whose keys may have changed with it."""
        top, empty, has_turned = self._top, now.empty, False
        for card in cards:
            was, row = self.gone_row.item(card), min(top, fleet.piece_milli.item(card))
            if fleet.is_empty.item(card):
                row = top + 1
            if was != row:
                self.gone_row[card] = row
                # Empty cards are worth what they are together, below.
                was_piece, piece = was if was <= top else 0, row if row <= top else 0
                if was_piece != piece:
                    now.charged = list(map(add, now.charged, self._step(was_piece, piece)))
                if (row > top) is not (was > top):
                    has_turned = True
                    empty += 1 if row > top else -1
        if not has_turned:
            return cards
        rows = self.tables.empty_rows
        changes = zip(now.charged, rows[empty], rows[now.empty], strict=True)
        now.charged = [had + more - less for had, more, less in changes]
        span, was_first = fleet.spans[node], now.first_empty
        now.empty = empty
        now.first_empty = span.start + fleet.is_empty[span].tolist().index(True) if empty else NOWHERE
        return {*cards, was_first, now.first_empty} - {NOWHERE}

    def _step(self, was: int, piece: int) -> list[float]:
        """What a node gains at each charge when a piece of `was` thousandths becomes one of `piece`; kept."""
        found = self._steps.get((was, piece))
        if found is None:
            rows = self.tables.gone_rows
            found = [more - less for more, less in zip(rows[piece], rows[was], strict=True)]
            _keep(self._steps, (was, piece), found)
        return found

    def _of(self, node: int) -> _NodeNow:
        found = self._nows.get(node)
        if found is None:
            charged, empty = self.charged[node].tolist(), self.empty.item(node)
            first, is_alike = self._first_empty.item(node), self._is_alike.item(node)
            side = int(self.charged[node].argmin())
            found = _NodeNow(charged, charged[side], side, empty, first, is_alike, *self._hosts[node].tolist())
            self._nows[node] = found
        return found

    def bring_arrays_in_step(self) -> None:
        for node in self._late:
            now = self._nows[node]
            self.charged[node], self.worth[node], self.empty[node] = now.charged, now.worth, now.empty
            self._first_empty[node], self._hosts[node] = now.first_empty, (now.free_cpu, now.free_memory)
        self._late.clear()

    def _card_key(self, fleet: Fleet, card: int, now: _NodeNow) -> int:
        free, row = fleet.open_milli.item(card), self.gone_row.item(card)
        if free <= 0:
            return NOWHERE
        piece = row
        if row > self._top:
            if card != now.first_empty and now.is_alike:
                return NOWHERE
            row, piece = row + now.empty, min(self._top, fleet.piece_milli.item(card))
        side = now.side * (self._kinds + 1) + self._kind_of[card]
        return int(self._packed(free, piece, row) + side)

    def _packed(self, free: _Whole, piece: _Whole, row: _Whole) -> _Whole:
        """All fields of a card's key but the side, the last."""
        return ((free * self._pieces + piece) * self._rows + row) * self._sides

    def _unpacked(self, key: int) -> tuple[int, int, int, int]:
        """(free, piece, row, side)."""
        rest, side = divmod(key, self._sides)
        rest, row = divmod(rest, self._rows)
        return *divmod(rest, self._pieces), row, side

    def _node_key(self, fleet: Fleet, node: int, now: _NodeNow) -> int:
        if not fleet.node_open.item(node):
            return NOWHERE
        row = 1 + now.empty if fleet.card_count.item(node) else 0
        return int(row * self._sides + now.side * (self._kinds + 1) + self._node_kind.item(node))

    def _read(self, fleet: Fleet, nodes: IntArray) -> None:
        tables, pieces, top = self.tables, pieces_on(fleet, nodes), self._top
        self.bring_arrays_in_step()
        for node in nodes.tolist():
            self._nows.pop(node, None)
        empty, hosts = pieces.empty.sum(axis=1), fleet.free_hosts.take(nodes, axis=0)
        charged = tables.piece.take(np.where(pieces.empty, 0, np.minimum(pieces.milli, top)), axis=0).sum(axis=1)
        charged += _host_worth(tables, hosts[:, 0], hosts[:, 1])
        charged += tables.empty.take(empty, axis=0)
        self.empty[nodes], self._hosts[nodes], self.charged[nodes] = empty, hosts, charged
        self.worth[nodes] = charged.min(axis=1)
        if pieces.empty.shape[1]:
            first = fleet.first_card.take(nodes) + pieces.empty.argmax(axis=1)
            self._first_empty[nodes] = np.where(empty > 0, first, NOWHERE)
        cards, counts, sides = fleet.cards_of(nodes), fleet.card_count.take(nodes), charged.argmin(axis=1)
        piece, is_empty = np.minimum(fleet.piece_milli.take(cards), top), fleet.is_empty.take(cards)
        self.gone_row[cards] = np.where(is_empty, top + 1, piece)
        # The keys, as `_card_key` and `_node_key` make them.
        free, sides = fleet.open_milli.take(cards), sides * (self._kinds + 1)
        rows = np.where(is_empty, np.repeat(top + 1 + empty, counts), piece)
        keys = self._packed(free, piece, rows) + np.repeat(sides, counts) + fleet.kind_of.take(cards)
        is_other = is_empty & (cards != np.repeat(self._first_empty.take(nodes), counts))
        is_other &= np.repeat(self._is_alike.take(nodes), counts)
        self.cards.move_all(cards, np.where((free <= 0) | is_other, NOWHERE, keys))
        keys = np.where(counts > 0, 1 + empty, 0) * self._sides + sides + self._node_kind.take(nodes)
        self.nodes.move_all(nodes, np.where(fleet.node_open.take(nodes), keys, NOWHERE))


def _node_kinds(fleet: Fleet) -> tuple[IntArray, BoolArray]:
    """The kind of all cards of each node, one more than there are where they differ or where there are none; and
    whether empty they are the same, sold as often too."""
    if not len(fleet.uuids):
        return np.zeros_like(fleet.all_nodes), np.zeros(len(fleet.names), np.bool_)
    kind, sold = fleet.kind_of.take(fleet.slots), fleet.capacity_milli.take(fleet.slots)
    is_one = ((kind == kind[:, :1]) | ~fleet.is_slot).all(axis=1) & (fleet.card_count > 0)
    are_alike: BoolArray = is_one & ((sold == sold[:, :1]) | ~fleet.is_slot).all(axis=1)
    return np.where(is_one, kind[:, 0], len(fleet.kinds)), are_alike


def _lost_one(now: _NodeNow, change: list[float]) -> float:
    return float(round(now.worth - min(map(add, now.charged, change))))


def _host_worth(tables: Tables, cpu_milli: IntArray | int, memory_mib: IntArray | int) -> FloatArray:
    """At each charge: one row, or one a place."""
    cpu, memory = tables.host
    if isinstance(cpu_milli, int) and isinstance(memory_mib, int):
        worth: FloatArray = cpu_milli * cpu + memory_mib * memory
    else:
        worth = np.multiply.outer(cpu_milli, cpu) + np.multiply.outer(memory_mib, memory)
    return worth


def _keep(kept: dict[_Key, list[float]], key: _Key, value: list[float]) -> None:
    if len(kept) == _MOST_KEPT:
        kept.clear()
    kept[key] = value
