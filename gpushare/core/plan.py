"""A scratch transaction over free capacity: try, roll back, or take the result.

Pure. A plan never changes the state: it keeps what it would take per card, node and tenant beside it. A gang is placed
task by task between `checkpoint` and, when one does not fit, `rollback`.
"""

from __future__ import annotations

from collections import defaultdict

from gpushare.core.model import Gpu, Node, Slice
from gpushare.core.state import ClusterState


class Plan:
    """Free capacity of `state` less the slices taken so far (plus what `give` put back, for what-if questions)."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self._taken: list[tuple[str, Slice, int]] = []
        self._milli: defaultdict[str, int] = defaultdict(int)
        self._mib: defaultdict[str, int] = defaultdict(int)
        self._holds: defaultdict[str, int] = defaultdict(int)
        self._cpu: defaultdict[str, int] = defaultdict(int)
        self._memory: defaultdict[str, int] = defaultdict(int)
        self._charge: defaultdict[str, int] = defaultdict(int)

    def free_milli(self, gpu: Gpu) -> int:
        return gpu.free_milli - self._milli[gpu.uuid]

    def free_mib(self, gpu: Gpu) -> int:
        """Free memory for slices; what strangers hold is not free."""
        return gpu.free_mib - self._mib[gpu.uuid]

    def holders(self, gpu: Gpu) -> int:
        return len(gpu.holds) + self._holds[gpu.uuid]

    def free_cpu_milli(self, node: Node) -> int:
        return node.free_cpu_milli - self._cpu[node.name]

    def free_memory_mib(self, node: Node) -> int:
        return node.free_memory_mib - self._memory[node.name]

    def charge_milli(self, tenant: str) -> int:
        """The tenant's charge with this plan's slices."""
        found = self.state.tenants.get(tenant)
        return (found.charge_milli if found else 0) + self._charge[tenant]

    def take(self, tenant: str, piece: Slice) -> None:
        self._book(tenant, piece, +1)
        self._taken.append((tenant, piece, +1))

    def give(self, tenant: str, piece: Slice) -> None:
        """Put a live attempt's slice back, as if it had ended."""
        self._book(tenant, piece, -1)
        self._taken.append((tenant, piece, -1))

    def checkpoint(self) -> int:
        return len(self._taken)

    def rollback(self, checkpoint: int) -> None:
        """Undo everything since `checkpoint`."""
        while len(self._taken) > checkpoint:
            tenant, piece, sign = self._taken.pop()
            self._book(tenant, piece, -sign)

    def _book(self, tenant: str, piece: Slice, sign: int) -> None:
        for uuid, mib in zip(piece.gpu_uuids, piece.held_mib, strict=True):
            self._milli[uuid] += sign * piece.gpu_milli
            self._mib[uuid] += sign * mib
            self._holds[uuid] += sign
        self._cpu[piece.node] += sign * piece.cpu_milli
        self._memory[piece.node] += sign * piece.memory_mib
        self._charge[tenant] += sign * piece.charge_milli
