"""What was accepted and yet is worth a word: jobs that would wait for ever, quotas on models that no card has, more
guarantees than there are cards.

Pure. A notice is a sentence for the caller; it refuses nothing, since limits, guarantees and nodes may change.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpushare import names
from gpushare.core.capacity import least_charge
from gpushare.core.gates import waits_for_ever
from gpushare.core.kinds import Qos
from gpushare.core.model import WHOLE_CARD_MILLI, Job, JobSpec, ModelQuota, Principal, TenantSettings
from gpushare.core.quota import QuotaTree, least_room_ever
from gpushare.core.sentences import cards, sentence
from gpushare.core.state import ClusterState
from gpushare.core.tenant_rules import guaranteed_together_milli
from gpushare.core.tenant_tree import path

# Names in `Outcome.notices`.
NEVER_STARTS = "never_starts"
MODEL_QUOTAS = "model_quotas"
GUARANTEES = "guarantees"

_TOLD_MAX = 10


def never_starts(state: ClusterState, tenant: str, specs: Iterable[JobSpec], who: Principal) -> tuple[str, ...]:
    """Why jobs of `tenant` that could be admitted would not start as limits and guarantees are now; one sentence for
    equal ones."""
    limits = [state.tenants[name].settings for name in path(state.tenants, tenant)]
    told: dict[str, None] = {}
    tree: QuotaTree | None = None
    is_limited = any(has.limit_milli is not None or has.model_quotas for has in limits)
    for spec in _distinct(s for s in specs if is_limited or s.qos is Qos.GUARANTEED):
        if spec.qos is not Qos.GUARANTEED and not _may_pass(limits, spec):
            continue
        job = Job(tenant, "", spec, state.at_ms, who, submit_seq=0)
        least = least_charge(state, spec.resources)
        if least is None:
            continue
        # It is made of every job there is: once, and only where it is needed.
        tree = tree or QuotaTree(state)
        reason = waits_for_ever(tree, job, least * spec.least_tasks)
        if reason is not None:
            told[f"{reason}: {sentence(state, job, reason, state.at_ms)}"] = None
            if len(told) == _TOLD_MAX:
                break
    return tuple(told)


def _distinct(specs: Iterable[JobSpec]) -> list[JobSpec]:
    return list({(s.resources, s.least_tasks, s.qos): s for s in specs}.values())


def _may_pass(limits: Iterable[TenantSettings], spec: JobSpec) -> bool:
    """Whether the limits are so low that what such a job is charged has to be looked up on every card."""
    room = least_room_ever(limits, spec.resources)
    return room is not None and WHOLE_CARD_MILLI * max(1, spec.resources.gpus) * spec.least_tasks > room


def unknown_models(state: ClusterState, quotas: Iterable[ModelQuota]) -> tuple[str, ...]:
    """One sentence for each model that no registered card has; none where there is no card at all."""
    known = sorted({gpu.inventory.model for node in state.nodes.values() for gpu in node.gpus.values()})
    if not known:
        return ()
    listed = ", ".join(known[:_TOLD_MAX]) + (", ..." if len(known) > _TOLD_MAX else "")
    return tuple(
        f"no registered card is a {names.shown(quota.model)}, so its quota says nothing for now; there are: {listed}"
        for quota in quotas
        if quota.model not in known
    )


def beyond_the_cards(state: ClusterState, tenant: str, has: TenantSettings) -> tuple[str, ...]:
    """A sentence where the settings raise what all tenants are guaranteed above the cards that are registered."""
    there_milli = WHOLE_CARD_MILLI * sum(len(node.gpus) for node in state.nodes.values())
    wanted_milli = guaranteed_together_milli(state.tenants, tenant, has)
    known = state.tenant(tenant)
    had_milli = guaranteed_together_milli(state.tenants, tenant, known.settings if known else TenantSettings())
    if not there_milli or wanted_milli <= max(there_milli, had_milli):
        return ()
    return (
        f"guarantees are {cards(wanted_milli)} cards together, the cluster has {cards(there_milli)}: not all can be "
        "honoured at once",
    )
