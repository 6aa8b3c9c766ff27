"""Claims as arrays: what a task that meets some of them must leave alone, on the nodes that they touch.

May import numpy. Only claimed nodes are looked at, and of these only the ones that changed, so that a cluster without
claims pays nothing and one with few pays little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpushare.core.placement.claims import Claims
from gpushare.core.placement.policy import INFINITE, FloatArray, IntArray
from gpushare.core.placement.scores import Scores, Taken, fitting_cards, task_counts

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet


class Promised:
    """For tasks that meet the first `horizon` starts of the claims and may use the claims `own`. `shut` nodes take
    nothing; on `nodes` and their `cards` (ids) the amounts of `by_card` and `by_node` are out of reach."""

    def __init__(self, fleet: Fleet, claims: Claims, horizon: int, own: frozenset[str]) -> None:
        self._fleet, self._claims, self._horizon, self._own = fleet, claims, horizon, own
        known = sorted(fleet.node_id[name] for name in claims.nodes if name in fleet.node_id)
        shut = [i for i in known if claims.shuts(fleet.names[i], horizon)]
        self.shut: IntArray = np.array(shut, dtype=np.int64)
        self.shut_cards = fleet.cards_of(self.shut)
        self.nodes: IntArray = np.array(sorted(set(known) - set(shut)), dtype=np.int64)
        self.cards = fleet.cards_of(self.nodes)
        self._counts = fleet.card_count[self.nodes]
        self._first = np.cumsum(self._counts) - self._counts
        self._milli, self._mib = np.zeros(len(self.cards), np.int64), np.zeros(len(self.cards), np.int64)
        self._cpu, self._memory = np.zeros(len(self.nodes), np.int64), np.zeros(len(self.nodes), np.int64)
        self._version = -1
        self.is_nothing = False
        self.by_node = Taken(self._milli, self._mib, self._cpu, self._memory)
        self.by_card = self.by_node

    def update(self) -> None:
        """Come in step with the fleet."""
        fleet = self._fleet
        if self._version == fleet.version:
            return
        for place in np.flatnonzero(fleet.changed_at[self.nodes] > self._version).tolist():
            self._read(place)
        self._version = fleet.version
        amounts = (self._milli, self._mib, self._cpu, self._memory)
        self.is_nothing = not len(self.shut) and not any(a.any() for a in amounts)
        self.by_card = Taken(
            self._milli, self._mib, np.repeat(self._cpu, self._counts), np.repeat(self._memory, self._counts)
        )

    def _read(self, place: int) -> None:
        fleet = self._fleet
        node = int(self.nodes[place])
        short = self._claims.shortfall(fleet.names[node], fleet.bookings(node), self._horizon, self._own)
        self._cpu[place], self._memory[place] = short.host
        first, count = int(self._first[place]), int(self._counts[place])
        self._milli[first : first + count] = 0
        self._mib[first : first + count] = 0
        for uuid, (milli, mib) in short.cards.items():
            card = fleet.card_id.get(uuid)
            if card is not None and fleet.node_of[card] == node:
                offset = first + card - int(fleet.first_card[node])
                self._milli[offset], self._mib[offset] = milli, mib

    def mask(self, scores: Scores) -> FloatArray:
        """A copy of `scores.values` that is infinite also where only what is promised to others would fit."""
        values = scores.values.copy()
        if scores.needs.request.is_share:
            values[self.shut_cards] = INFINITE
            found, _ = fitting_cards(self._fleet, scores.needs, self.cards, self.by_card)
            values[self.cards] = INFINITE
            values[found] = scores.values[found]
        else:
            values[self.shut] = INFINITE
            values[self.nodes] = scores.score_nodes(self.nodes, self.by_node)
        return values

    def mask_counts(self, scores: Scores) -> IntArray:
        """The same for `scores.counts`."""
        counts = scores.counts().copy()
        counts[self.shut] = 0
        counts[self.nodes] = task_counts(self._fleet, scores.needs, self.nodes, self.by_node)
        return counts

    def leaves(self, card: int) -> bool:
        """Whether nothing of the card is promised to others."""
        place = int(np.searchsorted(self.cards, card))
        if place < len(self.cards) and self.cards[place] == card:
            return bool(self._milli[place] == 0 and self._mib[place] == 0)
        place = int(np.searchsorted(self.shut_cards, card))
        return place == len(self.shut_cards) or self.shut_cards[place] != card
