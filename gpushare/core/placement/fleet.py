"""Free capacity of all nodes and cards as arrays, kept in step with the cluster's state, and the scratch taken from it.

May import numpy and the core's nouns. Row i of a card array is card id i, row j of a node array is node id j; node ids
follow the order given at the start (sorted names without one), card ids follow nodes, then the card's index. `take` and
`give` are exact inverses of each other, and whatever was scratch is read again from the state at the next `refresh`.
Every change of a node moves `version` and is noted in `changed_at`; `grew_at` notes only what made room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from gpushare.core.kinds import GpuState
from gpushare.core.model import WHOLE_CARD_MILLI, Gpu, GpuInventory, Node, Slice, Stranger, TierOffer
from gpushare.core.placement.bookings import Bookings, Scratch
from gpushare.core.placement.bookings import sure_end_ms as sure_end_ms
from gpushare.core.placement.claims import NOBODY, Booking, Claim, Claims, Owner
from gpushare.core.placement.policy import BoolArray, IntArray, Policy
from gpushare.core.placement.promised import Promised
from gpushare.core.placement.scores import ScoreKeeper
from gpushare.core.state import ClusterState

# Measured load counts in steps of so many percent of the card's SMs.
LOAD_STEP_PERCENT = 25
# So many pairs of a horizon and a set of own claims are kept.
MOST_PROMISED = 64
MOST_CLAIM_SETS = 4
# So many of the last changes, or twice that, are known by node. So many nodes are few where all cards of a node are
# looked at, and so many where only those are that have changed.
LAST_CHANGES = 48
FEW_NODES = 12
FEW_MOVED = 36


class Kind(NamedTuple):
    """Cards that no request can tell apart when they are empty."""

    model: str
    usable_mib: int
    tiers: tuple[TierOffer, ...]


class CardNow(msgspec.Struct):
    """What changes of a card, scratch included: what its elements in the arrays are made of."""

    free_milli: int
    # Less what strangers hold, like the array.
    free_mib: int
    holders: int
    state: GpuState
    strangers: tuple[Stranger, ...]
    is_present: bool
    node_open: bool


class HostNow(msgspec.Struct):
    """The same of a node."""

    free_cpu_milli: int
    free_memory_mib: int
    free_share: int
    tasks: int
    node_open: bool


# Like no card and no host; a host's free share is always the sum of its cards'.
_UNREAD_CARD = CardNow(0, -1, -1, GpuState.HEALTHY, (), is_present=False, node_open=False)
_UNREAD_HOST = HostNow(-1, -1, 0, -1, node_open=False)


class ClaimSet(NamedTuple):
    """Claims as they were told, and what was made of them."""

    told: tuple[Claim, ...]
    claims: Claims
    promised: dict[tuple[int, frozenset[str]], Promised]


class Fleet:
    """Arrays per card: `node_of kind_of index_of usable_mib capacity_milli free_milli free_mib holders stranger_mib
    strangers gpu_open open open_milli is_empty piece_milli domain_of load_steps`; per node: `cpu_milli memory_mib
    free_cpu_milli free_memory_mib free_share share_milli tasks node_open first_card card_count node_kind_of`. Amounts
    in thousandths and MiB. A card is `open` when it and its node take new work. `share_milli` sums the thousandths of a
    node's cards, `free_share` the free ones."""

    def __init__(
        self, state: ClusterState, policy: Policy, order: Sequence[str] = (), load_weight: float = 0.0
    ) -> None:
        self.state = state
        self.policy = policy
        self.load_weight = load_weight
        self.version = 0
        # Nodes, and those of their cards that changed.
        self._changes: list[tuple[int, Sequence[int]]] = []
        # Moves when cards, nodes, labels or sizes change: whatever was derived from them is void then.
        self.layout = 0
        self.claims: Claims | None = None
        # The present claims first, where there are any.
        self._claim_sets: list[ClaimSet] = []
        self._order = {name: place for place, name in enumerate(order)}
        self._loads: Mapping[str, int] = {}
        self._journal: list[Scratch] = []
        self._scratch: dict[int, list[Scratch]] = {}
        self._stale: set[int] = set()
        self._held: dict[int, Bookings] = {}
        self._build()
        self.scores = ScoreKeeper(self, policy)

    # -- in step with the state

    def refresh(self) -> None:
        """Read again what the state touched and what was scratch. Empties `touched` and `moved`: one fleet a state."""
        state, node_id = self.state, self.node_id
        is_fresh = len(state.nodes) != len(self.names) or any(name not in node_id for name in state.touched)
        # By node: the cards to read, None for all.
        stale: dict[int, set[str] | None] = {}
        if not is_fresh:
            for i in self._stale:
                stale[i] = {uuid for line in self._scratch.get(i, ()) for uuid in line.piece.gpu_uuids}
            for name in state.touched:
                moved, held = state.moved.get(name), stale.get(node_id[name], set())
                stale[node_id[name]] = None if moved is None or held is None else moved | held
        state.touched.clear()
        state.moved.clear()
        self._journal.clear()
        self._scratch.clear()
        self._stale.clear()
        found = [(i, state.nodes[self.names[i]], stale[i]) for i in sorted(stale)]
        if is_fresh or any(uuids is None and _layout_of(node) != self._layouts[i] for i, node, uuids in found):
            self._build()
            return
        for i, node, uuids in found:
            self._read(i, node, self.uuids[self.spans[i]] if uuids is None else uuids)

    def set_claims(self, claims: Iterable[Claim], now_ms: int) -> None:
        """What is promised, as of `now_ms`: call at the start of each pass, and whenever it changes within one."""
        found = tuple(claims)
        if not found:
            self.claims = None
            return
        claimed = ClaimSet(found, Claims(found, now_ms), {})
        # A look into the future comes back to the claims of the present: what was made for them still holds.
        for kept in self._claim_sets:
            if kept.told == found and kept.claims.phase == claimed.claims.phase:
                claimed = kept
        others = [kept for kept in self._claim_sets if kept is not claimed]
        self._claim_sets = [claimed, *others][:MOST_CLAIM_SETS]
        self.claims = claimed.claims

    def set_loads(self, loads: Mapping[str, int]) -> None:
        """Measured use of the SMs by card UUID, in percent; a card that is not named counts as idle."""
        self._loads = dict(loads)
        steps = [min(100, max(0, self._loads.get(u, 0))) // LOAD_STEP_PERCENT for u in self.uuids]
        self.load_steps = np.array(steps, dtype=np.int64)
        self.is_loaded = bool(self.load_steps.any())

    def promised(self, end_ms: int | None, owner: Owner) -> Promised | None:
        """What a task of `owner` that surely ends at `end_ms` must leave alone; None where it is nothing."""
        if self.claims is None:
            return None
        return self.promised_to_others(end_ms, self.claims.own(owner))

    def promised_to_others(self, end_ms: int | None, own: frozenset[str]) -> Promised | None:
        """The same, for whoever may use the claims of ids `own`."""
        claims = self.claims
        if claims is None:
            return None
        key, kept = (claims.horizon(end_ms), own), self._claim_sets[0].promised
        found = kept.get(key)
        if found is None:
            if len(kept) == MOST_PROMISED:
                kept.clear()
            found = kept[key] = Promised(self, claims, *key)
        found.update()
        return None if found.is_nothing else found

    # -- scratch

    def take(self, piece: Slice, end_ms: int | None = None, owner: Owner = NOBODY) -> None:
        """Hold `piece`; it surely ends at `end_ms` (None: unknown)."""
        self._book(Scratch(+1, piece, end_ms, owner))

    def give(self, piece: Slice, end_ms: int | None = None, owner: Owner = NOBODY) -> None:
        """Put a held slice back, as if its attempt had ended; `piece` is the attempt's own object."""
        self._book(Scratch(-1, piece, end_ms, owner))

    def checkpoint(self) -> int:
        return len(self._journal)

    def rollback(self, checkpoint: int) -> None:
        """Undo every take and give since `checkpoint`."""
        while len(self._journal) > checkpoint:
            line = self._journal.pop()
            i = self._move(line.piece, -line.sign)
            self._scratch[i].pop()
            if i in self._held:
                self._held[i].undo()

    def _book(self, line: Scratch) -> None:
        i = self._move(line.piece, line.sign)
        self._journal.append(line)
        self._scratch.setdefault(i, []).append(line)
        if i in self._held:
            self._held[i].follow(line)

    def _move(self, piece: Slice, sign: int) -> int:
        i = self.node_id[piece.node]
        milli = sign * piece.gpu_milli
        host, cards = self._hosts[i], [self.card_id[uuid] for uuid in piece.gpu_uuids]
        for card, mib in zip(cards, piece.held_mib, strict=True):
            now = self._cards[card]
            now.free_milli -= milli
            now.free_mib -= sign * mib
            now.holders += sign
            self._show_card(card, now)
            host.free_share -= milli
        host.free_cpu_milli -= sign * piece.cpu_milli
        host.free_memory_mib -= sign * piece.memory_mib
        host.tasks += sign
        self._show_host(i, host)
        self._stale.add(i)
        self.note_change(i, cards, grew=sign < 0)
        return i

    def _show_card(self, card: int, now: CardNow) -> None:
        """Bring the arrays in step with what a card has free."""
        free_milli, free_mib = now.free_milli, now.free_mib
        self.free_milli[card], self.free_mib[card], self.holders[card] = free_milli, free_mib, now.holders
        if self.open.item(card):
            self.open_milli[card] = free_milli
            self.is_empty[card] = not now.holders and not now.strangers
            by_memory = free_mib * WHOLE_CARD_MILLI // max(1, self.usable_mib.item(card))
            self.piece_milli[card] = max(0, min(free_milli, by_memory))
        else:
            self.open_milli[card], self.is_empty[card], self.piece_milli[card] = -1, False, 0

    def _show_host(self, node: int, now: HostNow) -> None:
        self.free_cpu_milli[node], self.free_memory_mib[node] = now.free_cpu_milli, now.free_memory_mib
        self.free_share[node], self.tasks[node] = now.free_share, now.tasks

    def note_change(self, node: int, cards: Sequence[int], *, grew: bool) -> None:
        self.version += 1
        self._changes.append((node, cards))
        if len(self._changes) == 2 * LAST_CHANGES:
            del self._changes[:LAST_CHANGES]
        self.changed_at[node] = self.version
        if grew:
            self.grew_at[node] = self.version
            self.last_grew = self.version

    # -- reading

    def model_of(self, uuid: str) -> str:
        return self.kinds[int(self.kind_of[self.card_id[uuid]])].model

    def cards_of(self, nodes: IntArray) -> IntArray:
        """Ids of all cards of `nodes`, in their order."""
        if len(nodes) == 1:
            first = int(self.first_card[nodes[0]])
            return self.all_cards[first : first + int(self.card_count[nodes[0]])]
        if len(nodes) == len(self.names):
            return self.all_cards
        slots = self.slots.take(nodes, axis=0)
        return slots.ravel() if self.is_even else slots[self.is_slot.take(nodes, axis=0)]

    def count_empty(self, nodes: IntArray, chosen: BoolArray | None) -> IntArray:
        """How many of each node's cards are empty, and `chosen` (in step with all cards; None: all are)."""
        slots = self.slots.take(nodes, axis=0)
        fits = self.is_empty.take(slots)
        if chosen is not None:
            fits &= chosen.take(slots)
        if not self.is_even:
            fits &= self.is_slot.take(nodes, axis=0)
        counts: IntArray = fits.sum(axis=1)
        return counts

    def few_changed_since(self, version: int, *, grown: bool = False) -> list[int] | None:
        """What `changed_since` finds, or `grown_since`, as a list; None where it is more than a few, or where that goes
        back further than changes are kept."""
        changes = self._changes_since(version)
        if changes is None:
            return None
        found = sorted({node for node, _ in changes})
        if grown:
            found = [node for node in found if self.grew_at.item(node) > version]
        return found if len(found) <= FEW_NODES else None

    def few_moves_since(self, version: int) -> dict[int, set[int]] | None:
        """By node that has changed since, those of its cards that have; None as in `few_changed_since`."""
        changes = self._changes_since(version)
        if changes is None:
            return None
        found: dict[int, set[int]] = {}
        for node, cards in changes:
            found.setdefault(node, set()).update(cards)
        return found if len(found) <= FEW_MOVED else None

    def _changes_since(self, version: int) -> list[tuple[int, Sequence[int]]] | None:
        first = len(self._changes) - (self.version - version)
        return None if first < 0 else self._changes[first:]

    def changed_since(self, version: int) -> IntArray:
        return (self.changed_at > version).nonzero()[0]

    def grown_since(self, version: int) -> IntArray:
        return (self.grew_at > version).nonzero()[0]

    def scratch_on(self, node: int) -> Sequence[Scratch]:
        """What was taken from a node and given back to it since the last refresh."""
        return self._scratch.get(node, ())

    def bookings(self, node: int) -> list[Booking]:
        """What holds capacity of a node, scratch included."""
        held = self._held.get(node)
        if held is None:
            held = self._held[node] = Bookings(self.state, self.state.nodes[self.names[node]])
            for line in self._scratch.get(node, ()):
                held.follow(line)
        return list(held.bookings.values())

    # -- building

    def _build(self) -> None:
        """Lay out all arrays anew."""
        last = len(self._order)
        self.names = sorted(self.state.nodes, key=lambda name: (self._order.get(name, last), name))
        self.node_id = {name: i for i, name in enumerate(self.names)}
        nodes = [self.state.nodes[name] for name in self.names]
        here = [_in_order(node) for node in nodes]
        self._layouts = [_layout_of(node) for node in nodes]
        self._held.clear()
        for kept in self._claim_sets:
            kept.promised.clear()
        self.layout += 1
        self.version += 1
        self._changes = []
        self.last_grew = self.version
        self._lay_out_nodes(nodes)
        self._lay_out_cards([gpu for cards in here for gpu in cards])
        self._lay_out_slots()
        # What the arrays show now, in plain Python: much faster to compare and to change one by one.
        self._cards, self._hosts = [_UNREAD_CARD] * len(self.uuids), [_UNREAD_HOST] * len(self.names)
        for i, node in enumerate(nodes):
            self._read(i, node, self.uuids[self.spans[i]])

    def _lay_out_nodes(self, nodes: list[Node]) -> None:
        size = len(nodes)
        self.cpu_milli = np.array([n.cpu_milli for n in nodes], dtype=np.int64)
        self.memory_mib = np.array([n.memory_mib for n in nodes], dtype=np.int64)
        self.card_count = np.array([len(n.gpus) for n in nodes], dtype=np.int64)
        self.are_hosts_alike = len({(n.cpu_milli, n.memory_mib, len(n.gpus)) for n in nodes}) == 1
        self.first_card = np.cumsum(self.card_count) - self.card_count
        # One row a node; the two columns have names of their own.
        self.free_hosts = np.zeros((size, 2), np.int64)
        self.free_cpu_milli, self.free_memory_mib = self.free_hosts[:, 0], self.free_hosts[:, 1]
        self.free_share, self.tasks = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.node_open = np.zeros(size, np.bool_)
        self.changed_at = np.full(size, self.version, np.int64)
        self.grew_at = np.full(size, self.version, np.int64)
        self.all_nodes = np.arange(size, dtype=np.int64)
        # What a request may ask of a node: its labels and shared paths, of which many nodes have the same.
        kinds: dict[tuple[tuple[tuple[str, str], ...], tuple[str, ...]], int] = {}
        kind_of = [kinds.setdefault((tuple(sorted(n.labels.items())), n.shared_paths), len(kinds)) for n in nodes]
        self.node_kind_of = np.array(kind_of, dtype=np.int64)
        self.node_kinds = [(dict(labels), paths) for labels, paths in kinds]

    def _lay_out_cards(self, gpus: list[Gpu]) -> None:
        size = len(gpus)
        inventory: list[GpuInventory] = [g.inventory for g in gpus]
        self.uuids = [g.uuid for g in gpus]
        self.card_id = {uuid: i for i, uuid in enumerate(self.uuids)}
        self.node_of = np.repeat(self.all_nodes, self.card_count)
        self.index_of = np.array([c.index for c in inventory], dtype=np.int64)
        self.usable_mib = np.array([c.usable_mib for c in inventory], dtype=np.int64)
        self.capacity_milli = np.array([g.capacity_milli for g in gpus], dtype=np.int64)
        kinds: dict[Kind, int] = {}
        kind_of = [kinds.setdefault(Kind(c.model, c.usable_mib, c.tiers), len(kinds)) for c in inventory]
        self.kind_of, self.kinds = np.array(kind_of, dtype=np.int64), list(kinds)
        # A card whose domain is not known is near to itself alone.
        domains: dict[tuple[int, str], int] = {}
        names = [(int(i), c.domain or f"\0{c.uuid}") for i, c in zip(self.node_of, inventory, strict=True)]
        self.domain_of = np.array([domains.setdefault(name, len(domains)) for name in names], dtype=np.int64)
        self.has_domains = any(c.domain for c in inventory)
        self.all_cards = np.arange(size, dtype=np.int64)
        self.free_milli, self.free_mib = np.zeros(size, np.int64), np.zeros(size, np.int64)
        # For speed: the free thousandths of open cards (-1 elsewhere), which cards are open and held by nobody, and the
        # thousandths that a share could get of what is scarcer, compute or memory (0 elsewhere).
        self.open_milli, self.is_empty = np.full(size, -1, np.int64), np.zeros(size, np.bool_)
        self.piece_milli = np.zeros(size, np.int64)
        self.holders, self.stranger_mib = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.open, self.gpu_open, self.strangers = (np.zeros(size, np.bool_) for _ in range(3))
        self.share_milli = np.bincount(self.node_of, self.capacity_milli, len(self.names)).astype(np.int64)
        self.milli_span = 1 + int(self.capacity_milli.max(initial=0))
        self.mib_span = 1 + int(self.usable_mib.max(initial=0))
        self.cpu_span = 1 + int(self.cpu_milli.max(initial=0))
        self.count_span = 1 + int(self.card_count.max(initial=0))
        self.set_loads(self._loads)

    def _lay_out_slots(self) -> None:
        """`spans[node]`: the ids of its cards; `slots[node]`: the same filled up with 0 where `is_slot` is False."""
        width = self.count_span - 1
        columns = np.arange(width, dtype=np.int64)
        self.is_slot: BoolArray = columns < self.card_count[:, None]
        self.slots: IntArray = np.where(self.is_slot, self.first_card[:, None] + columns, 0)
        self.is_even = bool(self.is_slot.all())
        ends = (self.first_card + self.card_count).tolist()
        self.spans = [slice(first, end) for first, end in zip(self.first_card.tolist(), ends, strict=True)]

    def _read(self, i: int, node: Node, uuids: Iterable[str]) -> None:
        """Bring node `i` and these of its cards in step with the state; notes a change only where there is one."""
        self._held.pop(i, None)
        node_open, free_share = node.is_placeable, self._hosts[i].free_share
        cards: list[int] = []
        for uuid in uuids:
            gpu = node.gpus.get(uuid)
            if gpu is None:
                # The card of a suspended attempt that is not there any more.
                continue
            card = self.card_id[uuid]
            was = self._cards[card]
            now = _now(gpu, node_open)
            if now != was:
                self._cards[card] = now
                cards.append(card)
                free_share += now.free_milli - was.free_milli
                self._show_condition(card, gpu, node_open)
                self._show_card(card, now)
        host = HostNow(
            node.cpu_milli - node.used_cpu_milli,
            node.memory_mib - node.used_memory_mib,
            free_share,
            len(node.attempts),
            node_open,
        )
        has_changed = host != self._hosts[i]
        if has_changed:
            self._hosts[i] = host
            self.node_open[i] = node_open
            self._show_host(i, host)
        if has_changed or cards:
            self.note_change(i, cards, grew=True)

    def _show_condition(self, card: int, gpu: Gpu, node_open: bool) -> None:
        has_strangers, gpu_open = bool(gpu.condition.strangers), gpu.is_placeable
        self.strangers[card], self.stranger_mib[card] = has_strangers, gpu.stranger_mib if has_strangers else 0
        self.gpu_open[card], self.open[card] = gpu_open, gpu_open and node_open


def _now(gpu: Gpu, node_open: bool) -> CardNow:
    state, strangers = gpu.condition.state, gpu.condition.strangers
    return CardNow(gpu.free_milli, gpu.free_mib, len(gpu.holds), state, strangers, gpu.present, node_open)


def _layout_of(node: Node) -> tuple[object, ...]:
    """What, when it changes, has the arrays laid out anew."""
    return (
        [(g.inventory, g.capacity_milli) for g in node.gpus.values()],
        node.labels,
        node.shared_paths,
        node.cpu_milli,
        node.memory_mib,
    )


def _in_order(node: Node) -> list[Gpu]:
    """A node's cards in the order of their ids."""
    return sorted(node.gpus.values(), key=lambda g: (g.inventory.index, g.inventory.uuid))
