"""What a benchmark prints: figures, what they are compared with, and the page they make. Pure: no clock, no process.

A figure is one number with its unit. It is shown beside references (something simple measured in the same session on
the same machine, as a ratio), beside other schedulers (constants, measured elsewhere) and beside its floor. Ratios are
what two machines can compare; the numbers alone are not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Where the figures of other schedulers come from; printed beside them.
PEERS_SOURCE = "others, measured elsewhere on 2 such cores"


@dataclass(frozen=True)
class Target:
    """`floor` must be held, `aim` is wanted (None: nothing beyond the floor); both have the figure's unit."""

    floor: float
    aim: float | None
    more_is_better: bool
    peers: str = ""

    def holds(self, value: float) -> bool:
        return value >= self.floor if self.more_is_better else value <= self.floor


@dataclass(frozen=True)
class Reference:
    """Something simple that was measured in the same session; `value` has the unit of the figure beside it."""

    what: str
    value: float


@dataclass(frozen=True)
class Figure:
    """One number. `key` finds its target, where it has one; `note` says how the samples lay."""

    key: str
    what: str
    value: float
    unit: str
    references: tuple[Reference, ...] = ()
    note: str = ""


#: `peers`: what other schedulers reach at the like task, as constants; nothing here measures them again.
TARGETS: Mapping[str, Target] = {
    "submit": Target(
        500, 2_000, True, "Slurm (tuned) 237/s, Ray tasks 8,800/s, HyperQueue 19,700/s (the last two nothing durable)"
    ),
    "submit_batch": Target(5_000, 30_000, True),
    "start_p50": Target(100, 30, False, "Slurm (tuned) 965 ms, Ray tasks 4 ms, HyperQueue 3.8 ms"),
    "drain": Target(80, 200, True, "Slurm (tuned) 33/s, Ray tasks 255/s, HyperQueue 892/s"),
    "pss_scheduler": Target(110, None, False),
    "pss_agent": Target(70, None, False),
    "cpu_scheduler": Target(2, None, False),
    "cpu_agent": Target(2, None, False),
    "help": Target(150, None, False),
}


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of them do not pass (nearest rank). ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    rank = math.ceil(percent / 100 * len(samples))
    return sorted(samples)[max(rank, 1) - 1]


def spread(samples: Sequence[float], unit: str) -> str:
    """Least, median and greatest of the rounds, for a note."""
    low, middle, high = min(samples), statistics.median(samples), max(samples)
    return f"{len(samples)} rounds: {number(low)}, {number(middle)}, {number(high)} {unit} (least, median, greatest)"


def number(value: float) -> str:
    """Three significant digits or all whole ones, thousands apart."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def verdict(figure: Figure) -> str:
    """ "PASS (floor 500)", "below (floor 500)", or "" for a figure without one."""
    target = TARGETS.get(figure.key)
    if target is None:
        return ""
    aim = "" if target.aim is None else f", aim {number(target.aim)}"
    return f"{'PASS' if target.holds(figure.value) else 'below'} (floor {number(target.floor)}{aim})"


def render(figure: Figure) -> str:
    """A figure's lines: the number and its verdict, then what it is compared with."""
    first = f"{figure.what:<58}{number(figure.value):>10} {figure.unit:<8} {verdict(figure)}".rstrip()
    lines = [first]
    if figure.note:
        lines.append(f"    {figure.note}")
    for reference in figure.references:
        ratio = f"ratio {figure.value / reference.value:.3g}" if reference.value else "no ratio"
        lines.append(f"    beside {reference.what}: {number(reference.value)} {figure.unit}, {ratio}")
    target = TARGETS.get(figure.key)
    if target is not None and target.peers:
        lines.append(f"    {PEERS_SOURCE}: {target.peers}")
    return "\n".join(lines)
