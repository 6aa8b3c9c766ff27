"""Who holds what: the one place that adds a slice to cards, node, tenant and person, or takes it away.

Pure. Both axes are conserved per device, and taking away is the exact inverse of adding; `invariants.check` compares
the sums with the live attempts. Decayed usage is integrated exactly between changes: while `rate_milli` is held, the
account moves by the closed form of decay and inflow.
"""

from __future__ import annotations

import math

from gpushare.core.kinds import Qos
from gpushare.core.model import Account, Attempt, Hold, Job, Node, Tenant, Usage

_LN_2 = math.log(2)


def hold(node: Node, tenant: Tenant, job: Job, attempt: Attempt, at_ms: int, half_life_ms: int) -> None:
    """Add `attempt`'s whole slice to its node's ledger and its tenant's."""
    piece = attempt.slice
    node.used_cpu_milli += piece.cpu_milli
    node.used_memory_mib += piece.memory_mib
    node.attempts.add(attempt.id)
    tenant.used_cpu_milli += piece.cpu_milli
    tenant.used_memory_mib += piece.memory_mib
    hold_cards(node, tenant, job, attempt, at_ms, half_life_ms)


def release(node: Node, tenant: Tenant, job: Job, attempt: Attempt, at_ms: int, half_life_ms: int) -> None:
    """Take `attempt`'s slice away again; the cards of a suspended one are free already."""
    piece = attempt.slice
    if attempt.suspended_ms is None:
        release_cards(node, tenant, job, attempt, at_ms, half_life_ms)
    node.used_cpu_milli -= piece.cpu_milli
    node.used_memory_mib -= piece.memory_mib
    node.attempts.discard(attempt.id)
    tenant.used_cpu_milli -= piece.cpu_milli
    tenant.used_memory_mib -= piece.memory_mib


def hold_cards(node: Node, tenant: Tenant, job: Job, attempt: Attempt, at_ms: int, half_life_ms: int) -> None:
    """The part of `hold` that a suspended attempt gives up."""
    piece = attempt.slice
    for uuid, mib in zip(piece.gpu_uuids, piece.held_mib, strict=True):
        gpu = node.gpus[uuid]
        gpu.holds[attempt.id] = Hold(milli=piece.gpu_milli, mib=mib)
        gpu.used_milli += piece.gpu_milli
        gpu.used_mib += mib
    _charge(node, tenant, job, attempt, +1, at_ms, half_life_ms)


def release_cards(node: Node, tenant: Tenant, job: Job, attempt: Attempt, at_ms: int, half_life_ms: int) -> None:
    _charge(node, tenant, job, attempt, -1, at_ms, half_life_ms)
    for uuid in attempt.slice.gpu_uuids:
        gpu = node.gpus[uuid]
        held = gpu.holds.pop(attempt.id)
        gpu.used_milli -= held.milli
        gpu.used_mib -= held.mib


def _charge(node: Node, tenant: Tenant, job: Job, attempt: Attempt, sign: int, at_ms: int, half_life_ms: int) -> None:
    charge = sign * attempt.slice.charge_milli
    if not charge:
        return
    tenant.charge_milli += charge
    if job.spec.qos is Qos.GUARANTEED:
        tenant.guaranteed_charge_milli += charge
    model = node.gpus[attempt.slice.gpu_uuids[0]].inventory.model
    tenant.charge_by_model[model] = tenant.charge_by_model.get(model, 0) + charge
    if not tenant.charge_by_model[model]:
        del tenant.charge_by_model[model]
    for account in (tenant.account, tenant.person(job.created_by.user).account):
        settle(account, at_ms, half_life_ms)
        account.rate_milli += charge


# -- decayed usage


def settle(account: Account, at_ms: int, half_life_ms: int) -> None:
    """Bring `account` to `at_ms`, which is never before its own."""
    account.decayed = decayed_at(account, at_ms, half_life_ms)
    account.at_ms = at_ms


def decayed_at(account: Account, at_ms: int, half_life_ms: int) -> float:
    """Charge times ms at `at_ms`, halved every `half_life_ms`. Unit: thousandths of a card x ms."""
    left = math.exp2(-(at_ms - account.at_ms) / half_life_ms)
    return account.decayed * left + account.rate_milli * (1.0 - left) * half_life_ms / _LN_2


def average_milli(account: Account, at_ms: int, half_life_ms: int) -> float:
    """The decayed average of what was held: whoever holds r for ever comes to r. Unit: thousandths of a card."""
    return decayed_at(account, at_ms, half_life_ms) * _LN_2 / half_life_ms


# -- metering


def meter(tenant: Tenant, user: str, attempt: Attempt) -> None:
    """Count an ended attempt's charge, over the times in which it held cards."""
    usage = tenant.usage.setdefault(user, Usage())
    usage.charge_milli_ms += held_charge_milli_ms(attempt, attempt.ended_ms or 0)
    usage.attempts += 1


def held_charge_milli_ms(attempt: Attempt, now_ms: int) -> int:
    """Charge times milliseconds of one attempt, until its end or until now. Unit: thousandths of a card x ms."""
    if attempt.suspended_ms is not None:
        return attempt.charged_milli_ms
    until = attempt.ended_ms if attempt.ended_ms is not None else now_ms
    since = attempt.allocated_ms if attempt.held_since_ms is None else attempt.held_since_ms
    return attempt.charged_milli_ms + attempt.slice.charge_milli * max(0, until - since)
