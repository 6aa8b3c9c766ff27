"""A scratch transaction over free capacity: try, roll back, or take the result.

Pure, and without arrays itself. A plan never changes the state: what it would take is noted in its fleet.
A gang is placed task by task between `checkpoint` and, when one does not fit, `rollback`. One fleet serves one plan at
a time: what an earlier plan left is forgotten when the next begins.
"""

from __future__ import annotations

from gpushare.core.model import Gpu, Node, Slice
from gpushare.core.placement import POLICIES
from gpushare.core.placement.claims import Owner
from gpushare.core.placement.fleet import Fleet
from gpushare.core.state import ClusterState


class Plan:
    """Free capacity of `state` less the slices taken so far (plus what `give` put back, for what-if questions). Without
    a fleet it makes its own, which costs a look at every card."""

    def __init__(self, state: ClusterState, fleet: Fleet | None = None) -> None:
        self.state = state
        if fleet is None:
            fleet = Fleet(state, POLICIES["best_fit"]())
        else:
            fleet.refresh()
        self.fleet = fleet

    def free_milli(self, gpu: Gpu) -> int:
        return int(self.fleet.free_milli[self.fleet.card_id[gpu.uuid]])

    def free_mib(self, gpu: Gpu) -> int:
        """Free memory for slices; what strangers hold is not free."""
        return int(self.fleet.free_mib[self.fleet.card_id[gpu.uuid]])

    def holders(self, gpu: Gpu) -> int:
        return int(self.fleet.holders[self.fleet.card_id[gpu.uuid]])

    def free_cpu_milli(self, node: Node) -> int:
        return int(self.fleet.free_cpu_milli[self.fleet.node_id[node.name]])

    def free_memory_mib(self, node: Node) -> int:
        return int(self.fleet.free_memory_mib[self.fleet.node_id[node.name]])

    def take(self, tenant: str, piece: Slice, end_ms: int | None = None, user: str = "", job: str = "") -> None:
        """Hold `piece` for a task of `tenant`'s `user` and `job` that surely ends at `end_ms` (None: unknown)."""
        self.fleet.take(piece, end_ms, Owner(tenant, user, job))

    def give(self, tenant: str, piece: Slice, end_ms: int | None = None, user: str = "", job: str = "") -> None:
        """Put a live attempt's slice back, as if it had ended."""
        self.fleet.give(piece, end_ms, Owner(tenant, user, job))

    def checkpoint(self) -> int:
        return self.fleet.checkpoint()

    def rollback(self, checkpoint: int) -> None:
        """Undo everything since `checkpoint`."""
        self.fleet.rollback(checkpoint)
