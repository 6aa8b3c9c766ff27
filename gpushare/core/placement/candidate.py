"""One possible place for one task, with what would be left there. Pure."""

from __future__ import annotations

from typing import NamedTuple

from gpushare.core.model import Slice


class Candidate(NamedTuple):
    """`left_*` count after the task is there: on its card for a share, on its node for whole cards and CPU jobs."""

    slice: Slice
    left_milli: int
    left_mib: int
    left_cards: int
    left_cpu_milli: int
    card_index: int
