"""What one simulation did, as it happens, and its summary.

Imports the core's state to read what is free, never to change it. An `Observer` hears of arrivals, starts and ends in
the order of virtual time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpushare.core.model import Slice
from gpushare.core.state import ClusterState
from gpushare.sim.measure import TAIL, Allocation, FreeNode, stranded_milli
from gpushare.sim.traces import TraceJob, TraceNode, TraceTenant, capacity_milli


def held_milli(slices: Iterable[Slice]) -> int:
    """Thousandths of cards that `slices` hold, summed over the cards."""
    return sum(len(piece.gpu_uuids) * piece.gpu_milli for piece in slices)


class Observer:
    """Allocation over time, GPU time by tenant, and the figures of two moments: when the arrived jobs ask for all GPUs
    there are (only where none of them ever leaves), and when the last one has come."""

    def __init__(
        self, nodes: Sequence[TraceNode], jobs: Sequence[TraceJob], tenants: Sequence[TraceTenant], start_ms: int
    ) -> None:
        self.allocation = Allocation(capacity_milli(nodes), start_ms)
        self.held_milli_ms = {tenant.name: 0 for tenant in tenants}
        self.nothing_leaves = all(job.duration_ms is None and job.max_run_ms is None for job in jobs)
        self.at_full_demand: float | None = None
        self.tail: float | None = None
        # (stranded, idle) thousandths at the moment that it is looked at.
        self.stranded: tuple[float, int] | None = None
        self._jobs = jobs
        self._arrived = 0
        self._arrived_milli = 0
        self._tail_at = int(len(jobs) * (1 - TAIL))

    def arrived(self, job: TraceJob) -> None:
        self._arrived += 1
        self._arrived_milli += job.demand_milli

    def began(self, slices: Iterable[Slice], now_ms: int) -> None:
        self.allocation.change(held_milli(slices), now_ms)

    def ended(self, tenant: str, slices: Iterable[Slice], start_ms: int, now_ms: int) -> None:
        milli = held_milli(slices)
        self.allocation.change(-milli, now_ms)
        self.held_milli_ms[tenant] += milli * (now_ms - start_ms)

    def decided(self, state: ClusterState, now_ms: int) -> None:
        """All that has arrived so far was decided."""
        if 0 <= self._tail_at <= self._arrived:
            self._tail_at = -1
            self.allocation.mark(now_ms)
        capacity = self.allocation.capacity_milli
        if self.nothing_leaves and self.at_full_demand is None and 0 < capacity <= self._arrived_milli:
            self.at_full_demand = self.allocation.now()
            self.stranded = self._look(state)
        if self._arrived == len(self._jobs) and self.tail is None:
            self.tail = self.allocation.since_mark(now_ms)
            if self.stranded is None:
                self.stranded = self._look(state)

    def _look(self, state: ClusterState) -> tuple[float, int]:
        free = [
            FreeNode(
                next((gpu.inventory.model for gpu in node.gpus.values()), ""),
                node.free_cpu_milli,
                node.free_memory_mib,
                tuple(sorted(gpu.free_milli for gpu in node.gpus.values())),
            )
            for node in state.nodes.values()
        ]
        return stranded_milli(free, self._jobs), sum(sum(node.cards_milli) for node in free)
