"""The weights of the placement policies that have some: one struct a policy, and a table of scheduler.toml each.

Imports msgspec alone, so that the configuration, the core and the command line say the same. Invariants: the defaults
are the weights that the policies were measured with; a bound that stands here is checked wherever a value comes in.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Part = Annotated[float, Meta(ge=0, le=1)]
Worth = Annotated[float, Meta(ge=0, le=10_000)]
Load = Annotated[float, Meta(ge=1.01, le=10)]
Step = Annotated[float, Meta(ge=0, le=10)]
SomeFew = Meta(max_length=16)
WindowTasks = Annotated[int, Meta(ge=64, le=1_000_000)]


class PriceFitWeights(msgspec.Struct, frozen=True):
    """`[price_fit]`: how the worth of a node is counted. Worths are in thousandths of a card."""

    # Demand, as a multiple of all cards, at which pieces are priced; the mean of all is taken.
    loads: Annotated[tuple[Load, ...], SomeFew] = (1.02, 1.1, 1.2, 1.3)
    # What may be charged for CPU and memory: parts of a card for the fleet's mean CPU (or memory) per card.
    charge_steps: Annotated[tuple[Step, ...], SomeFew] = (0.0, 0.125, 0.25, 0.5, 1.0)
    # Pieces are filled by the most earning classes (0), by the average of those that fit (1), or in between.
    average_part: Part = 0.8
    # Extra worth of an empty card, and of smaller pieces by the square of their size: large pieces are kept.
    size_bonus_milli: Worth = 150.0
    # Extra worth of g cards that are free together, per card, times the part of demand that asks for g at once ...
    wide_bonus_milli: Worth = 1000.0
    # ... as far as it is above this part.
    wide_part_min: Part = 0.1
    # Tasks by which the mix is known; older ones fade.
    window_tasks: WindowTasks = 8192
    # Sizes of shares that are priced; more different ones are taken together.
    most_sizes: Annotated[int, Meta(ge=2, le=1000)] = 24
    # New prices are taken over once a piece's worth moves by more than this.
    tolerance_milli: Worth = 10.0


class FgdWeights(msgspec.Struct, frozen=True):
    """`[fgd]`: for which mix of jobs fragmentation is measured."""

    # Tasks by which the mix is known; older ones fade.
    window_tasks: WindowTasks = 8192
    # Classes of the mix that are looked at: the most popular.
    most_classes: Annotated[int, Meta(ge=1, le=2048)] = 256


class PolicyWeights(msgspec.Struct, frozen=True):
    """Of every policy that has weights, under its name."""

    price_fit: PriceFitWeights = PriceFitWeights()
    fgd: FgdWeights = FgdWeights()
