"""What is left of the cards of some nodes, as a matrix of pieces: what policies that weigh whole nodes look at.

May import numpy. A piece is counted by what is scarcer on its card, compute or memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpushare.core.placement.policy import BoolArray, IntArray

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet


class Pieces(NamedTuple):
    """Rows are nodes, columns their cards in order (filled up with nothing). `milli`: thousandths that a share could
    get, 0 on cards that take no work; `empty`: cards that a task of whole cards could get."""

    milli: IntArray
    empty: BoolArray


class CardNodes(NamedTuple):
    """The nodes of some cards: `nodes` once each, `row_of` a card's place among them, `column_of` its place on it."""

    nodes: IntArray
    row_of: IntArray
    column_of: IntArray


def nodes_of(fleet: Fleet, cards: IntArray) -> CardNodes:
    """`cards` lie node by node."""
    node = fleet.node_of[cards]
    starts = np.empty(len(cards), np.bool_)
    starts[:1] = True
    np.not_equal(node[1:], node[:-1], out=starts[1:])
    return CardNodes(node[starts], starts.cumsum() - 1, cards - fleet.first_card[node])


def pieces_on(fleet: Fleet, nodes: IntArray) -> Pieces:
    cards = fleet.slots.take(nodes, axis=0)
    milli, empty = fleet.piece_milli.take(cards), fleet.is_empty.take(cards)
    if not fleet.is_even:
        there = fleet.is_slot.take(nodes, axis=0)
        milli *= there
        empty &= there
    return Pieces(milli, empty)
