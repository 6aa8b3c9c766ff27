"""Best fit per device: leave the smallest piece behind, so that large pieces stay large. May import numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpushare.core.placement.policy import FixedPolicy, FloatArray, IntArray, Need, ranked

if TYPE_CHECKING:
    from gpushare.core.placement.fleet import Fleet


class BestFit(FixedPolicy):
    """What is left of the card, then of its memory, then empty cards of the node, then its CPU."""

    name = "best_fit"

    def share_scores(self, fleet: Fleet, need: Need, cards: IntArray) -> FloatArray:
        return ranked(
            (
                (fleet.free_milli[cards] - need.milli, fleet.milli_span),
                (fleet.free_mib[cards] - need.mib, fleet.mib_span),
                (fleet.free_cpu_milli[fleet.node_of[cards]] - need.cpu_milli, fleet.cpu_span),
            )
        )

    def node_scores(self, fleet: Fleet, need: Need, nodes: IntArray) -> FloatArray:
        """A CPU task goes where it takes CPU from the fewest cards."""
        cards = need.eligible - need.gpus if need.gpus else fleet.card_count[nodes]
        return ranked(
            ((cards, fleet.count_span), (fleet.free_cpu_milli[nodes] - need.cpu_milli, fleet.cpu_span)),
        )
