"""Who holds what: the one place that adds a slice to cards, node and tenant, or takes it away.

Pure. Both axes are conserved per device, and taking away is the exact inverse of adding; `state.check` compares the
sums with the live attempts.
"""

from __future__ import annotations

from gpushare.core.model import Attempt, Hold, Node, Tenant, Usage


def hold(node: Node, tenant: Tenant, attempt: Attempt) -> None:
    """Add `attempt`'s slice to its node's ledger and its tenant's charge."""
    piece = attempt.slice
    for uuid, mib in zip(piece.gpu_uuids, piece.held_mib, strict=True):
        gpu = node.gpus[uuid]
        gpu.holds[attempt.id] = Hold(milli=piece.gpu_milli, mib=mib)
        gpu.used_milli += piece.gpu_milli
        gpu.used_mib += mib
    node.used_cpu_milli += piece.cpu_milli
    node.used_memory_mib += piece.memory_mib
    node.attempts.add(attempt.id)
    tenant.charge_milli += piece.charge_milli


def release(node: Node, tenant: Tenant, attempt: Attempt) -> None:
    """Take `attempt`'s slice away again."""
    piece = attempt.slice
    for uuid in piece.gpu_uuids:
        gpu = node.gpus[uuid]
        held = gpu.holds.pop(attempt.id)
        gpu.used_milli -= held.milli
        gpu.used_mib -= held.mib
    node.used_cpu_milli -= piece.cpu_milli
    node.used_memory_mib -= piece.memory_mib
    node.attempts.discard(attempt.id)
    tenant.charge_milli -= piece.charge_milli


def meter(tenant: Tenant, user: str, attempt: Attempt, now_ms: int) -> None:
    """Count an ended attempt's charge from its allocation to `now_ms`."""
    usage = tenant.usage.setdefault(user, Usage())
    usage.charge_milli_ms += attempt.slice.charge_milli * max(0, now_ms - attempt.allocated_ms)
    usage.attempts += 1


def held_charge_milli_ms(attempt: Attempt, now_ms: int) -> int:
    """Charge times milliseconds of one attempt, until its end or until now. Unit: thousandths of a card x ms."""
    until = attempt.ended_ms if attempt.ended_ms is not None else now_ms
    return attempt.slice.charge_milli * max(0, until - attempt.allocated_ms)
