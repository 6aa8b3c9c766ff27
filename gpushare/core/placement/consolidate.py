"""Fill what is in use, so that whole cards and whole nodes stay idle and can sleep. May import numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpushare.core.placement.policy import FixedPolicy, FloatArray, IntArray, Need, ranked

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet


class Consolidate(FixedPolicy):
    """Used nodes before idle ones, on them used cards before idle ones, then the fullest."""

    name = "consolidate"

    def share_scores(self, fleet: Fleet, need: Need, cards: IntArray) -> FloatArray:
        nodes = fleet.node_of[cards]
        return ranked(
            (
                ((fleet.tasks[nodes] == 0).astype(np.int64), 2),
                ((fleet.holders[cards] == 0).astype(np.int64), 2),
                (fleet.free_milli[cards] - need.milli, fleet.milli_span),
                (fleet.free_share[nodes] - need.milli, fleet.milli_span * fleet.count_span),
            )
        )

    def node_scores(self, fleet: Fleet, need: Need, nodes: IntArray) -> FloatArray:
        """A CPU task keeps away from nodes with cards where it can, idle or not: it would keep them awake."""
        idle = (fleet.tasks[nodes] == 0).astype(np.int64)
        left = need.eligible - need.gpus if need.gpus else fleet.card_count[nodes]
        left_cpu = fleet.free_cpu_milli[nodes] - need.cpu_milli
        return ranked(((idle, 2), (left, fleet.count_span), (left_cpu, fleet.cpu_span)))
