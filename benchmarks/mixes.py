"""Clusters and job mixes that no trace gave: what a placement policy must be good at without having seen it.

Pure but for the seed. A mix is a list to draw from, in which every job is as likely as its number of entries says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from gpushare.sim.traces import TraceJob, TraceNode

ENTRIES = 1000

# (cards, CPUs, memory in GiB, model, how many of 100 nodes)
_KINDS = ((8, 96, 512, "A100", 40), (4, 64, 256, "V100", 25), (2, 32, 128, "T4", 25), (8, 192, 1024, "H100", 10))


def cluster(nodes: int, seed: int = 0) -> list[TraceNode]:
    """Servers of four kinds, of which the V100 have CPU to spare and the A100 little."""
    draw = random.Random(f"{seed}/cluster")
    weights = [kind[4] for kind in _KINDS]
    chosen = draw.choices(_KINDS, weights, k=nodes)
    return [TraceNode(f"n{i}", cpus * 1000, gib * 1024, cards, m) for i, (cards, cpus, gib, m, _) in enumerate(chosen)]


def alike(nodes: int, cards: int = 8) -> list[TraceNode]:
    """Equal servers, for speed."""
    return [TraceNode(f"n{i}", 128_000, 1_048_576, cards, "H100") for i in range(nodes)]


def _shape(name: str, milli: int, cpus: float, gib: float, models: tuple[str, ...] = ()) -> TraceJob:
    """`milli` thousandths: a share up to 1000, whole cards above."""
    cards = max(1, milli // 1000) if milli else 0
    return TraceJob(name, 0, int(cpus * 1000), int(gib * 1024), cards, min(milli, 1000), models)


_Shape = tuple[int, float, float]


def _mix(shapes: Sequence[tuple[_Shape, int]], models: Callable[[random.Random], tuple[str, ...]]) -> list[TraceJob]:
    draw = random.Random("mix")
    picked = draw.choices([shape for shape, _ in shapes], [weight for _, weight in shapes], k=ENTRIES)
    return [_shape(f"j{n}", *shape, models(draw) if shape[0] else ()) for n, shape in enumerate(picked)]


def _any(draw: random.Random) -> tuple[str, ...]:
    return ()


def _some(draw: random.Random) -> tuple[str, ...]:
    """Half of the jobs take one model, or one of two."""
    if draw.random() < 0.5:
        return ()
    return tuple(sorted(draw.sample([kind[3] for kind in _KINDS], draw.choice((1, 2)))))


_COMMON = (((250, 2, 8), 20), ((500, 4, 16), 20), ((1000, 8, 32), 40), ((2000, 16, 64), 5), ((0, 4, 16), 15))

MIXES: Mapping[str, list[TraceJob]] = {
    "cpu_heavy": _mix((((100, 6, 8), 25), ((500, 16, 32), 25), ((1000, 20, 64), 30), ((0, 16, 64), 20)), _any),
    "odd_shapes": _mix((((370, 3, 8), 40), ((610, 5, 16), 30), ((290, 2, 8), 20), ((1000, 8, 32), 10)), _any),
    "whole_cards": _mix(
        (((1000, 8, 32), 55), ((2000, 16, 64), 15), ((4000, 32, 128), 8), ((8000, 64, 256), 4), ((500, 4, 16), 18)),
        _any,
    ),
    "model_bound": _mix(_COMMON, _some),
    "small_shares": _mix((((50, 0.5, 2), 40), ((120, 1, 4), 30), ((333, 3, 12), 20), ((1000, 8, 32), 10)), _any),
}
