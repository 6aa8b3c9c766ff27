"""Best fit per device: leave the smallest piece behind, so that large pieces stay large. Pure."""

from __future__ import annotations

from gpushare.core.placement.candidate import Candidate


def score(candidate: Candidate) -> tuple[int, ...]:
    """Smallest wins: what is left of the card, then of its memory, then untouched cards and CPU of the node."""
    return (candidate.left_milli, candidate.left_mib, candidate.left_cards, candidate.left_cpu_milli)
