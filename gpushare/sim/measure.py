"""What a simulation is judged by: allocation over time, stranded capacity, waits, fairness.

Pure arithmetic; the standard library alone. Allocation is thousandths of cards held over those there are; times are
milliseconds of the virtual clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from gpushare.sim.traces import WHOLE_CARD_MILLI, TraceJob

#: Of the arrivals, how many at the end are looked at for the steady state.
TAIL = 0.35


class Spread(msgspec.Struct, frozen=True):
    """Of some times, in seconds; nearest-rank percentiles."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float


class Allocation:
    """GPU held over time. `change` and `mark` are called in the order of time."""

    def __init__(self, capacity_milli: int, start_ms: int) -> None:
        self.capacity_milli = capacity_milli
        self.held_milli = 0
        self.peak_milli = 0
        self._start_ms = self._at_ms = start_ms
        self._area = 0
        self._mark: tuple[int, int] | None = None

    def change(self, by_milli: int, now_ms: int) -> None:
        self._advance(now_ms)
        self.held_milli += by_milli
        self.peak_milli = max(self.peak_milli, self.held_milli)

    def mark(self, now_ms: int) -> None:
        """From here on counts for `since_mark`."""
        self._advance(now_ms)
        self._mark = (now_ms, self._area)

    def now(self) -> float | None:
        return self.held_milli / self.capacity_milli if self.capacity_milli else None

    def peak(self) -> float | None:
        return self.peak_milli / self.capacity_milli if self.capacity_milli else None

    def mean(self, now_ms: int) -> float | None:
        return self._mean(self._start_ms, 0, now_ms)

    def since_mark(self, now_ms: int) -> float | None:
        return None if self._mark is None else self._mean(*self._mark, now_ms)

    def _advance(self, now_ms: int) -> None:
        self._area += self.held_milli * (now_ms - self._at_ms)
        self._at_ms = now_ms

    def _mean(self, since_ms: int, area: int, now_ms: int) -> float | None:
        self._advance(now_ms)
        if not self.capacity_milli:
            return None
        if now_ms == since_ms:
            return self.now()
        return (self._area - area) / (self.capacity_milli * (now_ms - since_ms))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank of an ordered sequence that is not empty."""
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def spread_s(times_ms: Iterable[int]) -> Spread | None:
    """Of times in ms; None of none."""
    ordered = sorted(time / 1000 for time in times_ms)
    if not ordered:
        return None
    p50, p95, p99 = (percentile(ordered, percent) for percent in (50, 95, 99))
    return Spread(len(ordered), math.fsum(ordered) / len(ordered), p50, p95, p99)


def jain(shares: Sequence[float]) -> float | None:
    """1 where all are equal, 1/n where one has all; None where nobody has anything."""
    square = math.fsum(share * share for share in shares)
    return math.fsum(shares) ** 2 / (len(shares) * square) if square else None


class FreeNode(msgspec.Struct, frozen=True):
    """What is free on one node; `cards_milli` per card, in any order."""

    model: str
    cpu_milli: int
    memory_mib: int
    cards_milli: tuple[int, ...]


class _Class(msgspec.Struct, frozen=True):
    """Jobs that are alike to a node."""

    num_gpu: int
    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    models: tuple[str, ...]


def stranded_milli(nodes: Iterable[FreeNode], jobs: Iterable[TraceJob]) -> float:
    """Idle thousandths that a task drawn from the GPU jobs cannot use, in expectation, over all nodes (the measure of
    fragmentation of Weng et al., USENIX ATC 2023)."""
    classes = Counter(_Class(j.num_gpu, j.gpu_milli, j.cpu_milli, j.memory_mib, j.models) for j in jobs if j.num_gpu)
    total = classes.total()
    if not total:
        return 0.0
    known: dict[FreeNode, float] = {}
    for node in (n for n in nodes if any(n.cards_milli)):
        if node not in known:
            known[node] = 0.0
        known[node] += 1
    return math.fsum(count * _stranded_on(node, classes) for node, count in known.items()) / total


def _stranded_on(node: FreeNode, classes: Mapping[_Class, int]) -> float:
    idle = sum(node.cards_milli)
    free_cards = sum(milli == WHOLE_CARD_MILLI for milli in node.cards_milli)
    # By what is asked of one card; few differ.
    usable: dict[int, int] = {}
    stranded = 0
    for job, count in classes.items():
        fits = job.cpu_milli <= node.cpu_milli and job.memory_mib <= node.memory_mib and job.num_gpu <= free_cards
        if job.gpu_milli < WHOLE_CARD_MILLI:
            fits = job.cpu_milli <= node.cpu_milli and job.memory_mib <= node.memory_mib
        if not fits or (job.models and node.model not in job.models):
            stranded += count * idle
            continue
        if job.gpu_milli not in usable:
            usable[job.gpu_milli] = sum(milli for milli in node.cards_milli if milli >= job.gpu_milli)
        stranded += count * (idle - usable[job.gpu_milli])
    return stranded
