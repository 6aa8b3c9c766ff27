"""Even use: the emptiest card, on the node that is emptiest as a whole. May import numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpushare.core.placement.policy import FixedPolicy, FloatArray, IntArray, Need, ranked

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet

# Parts of a whole in which what is used is compared: nodes and cards may differ in size.
_PARTS = 1_000_000


class Spread(FixedPolicy):
    """The part of the card in use, then the part of its node; CPU tasks go by the part of the CPU in use."""

    name = "spread"

    def share_scores(self, fleet: Fleet, need: Need, cards: IntArray) -> FloatArray:
        capacity = fleet.capacity_milli[cards]
        used = _part(capacity - fleet.free_milli[cards], capacity)
        return ranked(((used, _PARTS + 1), (self._node_use(fleet, fleet.node_of[cards]), _PARTS + 1)))

    def node_scores(self, fleet: Fleet, need: Need, nodes: IntArray) -> FloatArray:
        cpu = _part(fleet.cpu_milli[nodes] - fleet.free_cpu_milli[nodes], fleet.cpu_milli[nodes])
        if not need.gpus:
            return ranked(((cpu, _PARTS + 1),))
        return ranked(((self._node_use(fleet, nodes), _PARTS + 1), (cpu, _PARTS + 1)))

    def _node_use(self, fleet: Fleet, nodes: IntArray) -> IntArray:
        return _part(fleet.share_milli[nodes] - fleet.free_share[nodes], fleet.share_milli[nodes])


def _part(used: IntArray, whole: IntArray) -> IntArray:
    """Millionths of `whole`, rounded down; 0 of nothing."""
    part: IntArray = np.clip(used * _PARTS // np.maximum(1, whole), 0, _PARTS)
    return part
