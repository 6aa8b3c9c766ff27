"""What a placement policy is: scores for places that fit, the lowest wins. One policy a file.

A policy never tests whether a task fits and never changes the fleet. Equal scores are decided by the fleet's node
order, then by the card's index, so that the same state always gives the same placement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gpushare.core.model import TaskRequest

if TYPE_CHECKING:
    from gpushare.core.placement.buckets import Buckets
    from gpushare.core.placement.fleet import Fleet
    from gpushare.core.placement.scores import Needs

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# The score of a place where the task does not fit.
INFINITE = float("inf")

# Whole numbers below this are exact as floats.
EXACT = 2**53


class Need(NamedTuple):
    """What one task takes at each of the places to be scored. Every field but the first two is one number, or an array
    in step with the places. `milli` and `mib` are per card; `eligible` counts the empty cards of a node that the task
    could have (whole cards only)."""

    request: TaskRequest
    gpus: int
    milli: IntArray | int
    mib: IntArray | int
    cpu_milli: IntArray | int
    memory_mib: IntArray | int
    eligible: IntArray | int = 0


class OneNeed(NamedTuple):
    """The same at one place."""

    gpus: int
    milli: int
    mib: int
    cpu_milli: int
    memory_mib: int


class PlaceIndex(Protocol):
    """The places of one fleet, in step with it, in buckets of places that a policy tells apart by little, and their
    scores one by one. What is kept of bounds is void in another epoch."""

    # By card id and by node id; what takes no work is in no bucket.
    cards: Buckets
    nodes: Buckets

    def share_score(self, fleet: Fleet, need: OneNeed, card: int) -> float:
        """That of `share_scores`, to the last bit, for one card."""
        ...

    def task_score(self, fleet: Fleet, need: OneNeed, node: int) -> float:
        """That of `node_scores`, to the last bit, for one node."""
        ...

    def share_bound(self, needs: Needs, need: OneNeed, key: int) -> float:
        """No card in the bucket scores below it; infinite where none of them can hold the share."""
        ...

    def task_bound(self, needs: Needs, need: OneNeed, key: int) -> float:
        """The same for a task of whole cards or of none, and nodes."""
        ...


class Policy(Protocol):
    """`epoch`: scores that were kept under another epoch are dropped. Scores must be finite."""

    name: str

    def epoch(self) -> int: ...

    def index(self, fleet: Fleet) -> PlaceIndex | None:
        """None where arrays are good enough."""
        ...

    def share_scores(self, fleet: Fleet, need: Need, cards: IntArray) -> FloatArray:
        """One score a card id: the share would go to that card."""
        ...

    def node_scores(self, fleet: Fleet, need: Need, nodes: IntArray) -> FloatArray:
        """One score a node id: for whole cards and for CPU tasks."""
        ...

    def learn(self, request: TaskRequest, tasks: int) -> None:
        """A job of `tasks` such tasks was submitted; told in the order of submission."""
        ...


class FixedPolicy:
    """A base for policies that learn nothing."""

    def epoch(self) -> int:
        return 0

    def index(self, fleet: Fleet) -> PlaceIndex | None:
        return None

    def learn(self, request: TaskRequest, tasks: int) -> None:
        return None


def ranked(fields: Sequence[tuple[IntArray | int, int]]) -> FloatArray:
    """One number per place that sorts like the tuple of its fields. Each field comes with its span: its values are from
    0 to below it. Where the spans together pass what a float holds exactly, the last field is rounded down."""
    total: IntArray | int = 0
    reach = 1
    for place, (values, span) in enumerate(fields):
        if reach * span > EXACT and place == len(fields) - 1:
            coarse = -(-span // max(1, EXACT // reach))
            values, span = values // coarse, -(-span // coarse)
        total = total * span + values
        reach *= span
    return np.asarray(total, dtype=np.float64)
