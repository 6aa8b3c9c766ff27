"""Protobuf <-> the core's nouns, for tenants: their settings in, their ledger and their place in the tree out.

Imports the generated messages, the core's quota tree and `convert`. Shape only: what a setting may be is the core's to
say. What is in use is counted with everything below a tenant, because its limit and its guarantee are.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gpushare.core.fairshare import FairShare
from gpushare.core.model import ModelQuota, TaskRequest, Tenant, TenantSettings
from gpushare.core.preview import Effect, PreviewedJob
from gpushare.core.quota import Branch, QuotaTree
from gpushare.core.state import ClusterState
from gpushare.errors import invalid_field
from gpushare.scheduler import convert
from gpushare.v1 import tenant_pb2

# Settings that are numbers or texts, set where the message sets them.
_PLAIN: Final = (
    "display_name",
    "limit_milli",
    "max_queued_jobs",
    "max_priority",
    "guaranteed_milli",
    "weight",
    "max_running_jobs",
    "max_running_per_user",
    "cpu_limit_milli",
    "memory_limit_mib",
    "isolated",
)
# What `unset` may name, and the setting that it takes away.
_UNSETTABLE: Final = {
    "max_running_jobs": "max_running_jobs",
    "max_running_per_user": "max_running_per_user",
    "cpu_limit_milli": "cpu_limit_milli",
    "memory_limit_mib": "memory_limit_mib",
    "min_run": "min_run_ms",
    "default_run": "default_run_ms",
    "max_run": "max_run_ms",
}
_LISTS: Final = ("unix_groups", "unix_users")
# Settings that are durations.
_DURATIONS: Final = {"min_run": "min_run_ms", "default_run": "default_run_ms", "max_run": "max_run_ms"}


def settings(
    old: TenantSettings, new: tenant_pb2.TenantSettings, default_request: TaskRequest | None
) -> TenantSettings:
    """`old` with the fields that are set in `new`; `default_request` is what became of that field. Raises INVALID_FIELD
    for what contradicts itself."""
    if new.no_limit and new.HasField("limit_milli"):
        raise invalid_field("settings.no_limit", "excludes limit_milli; set one of the two")
    changed: dict[str, object] = {field: getattr(new, field) for field in _PLAIN if new.HasField(field)}
    if new.no_limit:
        changed["limit_milli"] = None
    for field, setting in _DURATIONS.items():
        if new.HasField(field):
            changed[setting] = convert.duration_ms(getattr(new, field), f"settings.{field}")
    if new.HasField("parent"):
        changed["parent"] = convert.parse_parent(new.parent) if new.parent else ""
    for field in new.unset:
        if field not in _UNSETTABLE and field not in _LISTS:
            raise invalid_field("settings.unset", f"{field!a} is none of: {', '.join((*_UNSETTABLE, *_LISTS))}")
        if getattr(new, field) if field in _LISTS else new.HasField(field):
            raise invalid_field("settings.unset", f"names {field}, which is set, too; one of the two")
        changed[_UNSETTABLE.get(field, field)] = () if field in _LISTS else None
    if new.model_quotas or new.no_model_quotas:
        changed["model_quotas"] = _model_quotas(old, new)
    for field, people in (("unix_groups", new.unix_groups), ("unix_users", new.unix_users)):
        if people:
            changed[field] = tuple(sorted(set(people)))
    if default_request is not None:
        changed["default_request"] = default_request
    return msgspec.structs.replace(old, **changed)


def _model_quotas(old: TenantSettings, new: tenant_pb2.TenantSettings) -> tuple[ModelQuota, ...]:
    said = [quota.model for quota in new.model_quotas] + list(new.no_model_quotas)
    if len(set(said)) != len(said):
        raise invalid_field("settings.model_quotas", "names a model twice")
    quotas = {quota.model: quota for quota in old.model_quotas if quota.model not in said}
    for each in new.model_quotas:
        limit_milli = each.limit_milli if each.HasField("limit_milli") else None
        quotas[each.model] = ModelQuota(each.model, each.guaranteed_milli, limit_milli)
    return tuple(quotas[model] for model in sorted(quotas))


_EFFECTS: Final = {effect: f"QUOTA_EFFECT_{effect.name}" for effect in Effect}


def previewed(found: tuple[PreviewedJob, ...]) -> tenant_pb2.PreviewQuotaResponse:
    return tenant_pb2.PreviewQuotaResponse(
        jobs=[
            tenant_pb2.PreviewedJob(name=convert.job_name(e.job), effect=_EFFECTS[e.effect], detail=e.detail)
            for e in found
        ]
    )


class TenantView:
    """Tenants as messages, of one state at one moment: the tree is added up once for all of them."""

    def __init__(self, state: ClusterState, now_ms: int) -> None:
        self._tree = QuotaTree(state)
        self._shares = FairShare(state, self._tree, now_ms)

    def shown(self, found: Tenant) -> tenant_pb2.Tenant:
        made = _settled(found)
        branch = self._tree.branches.get(found.name)
        if branch is not None:
            self._add_use(made, branch)
        return made

    def _add_use(self, made: tenant_pb2.Tenant, branch: Branch) -> None:
        """Nothing of a tombstone is in use."""
        made.used_charge_milli = branch.charge_milli
        made.guaranteed_charge_milli = branch.guaranteed_charge_milli
        made.borrowed_charge_milli = branch.borrowed_milli()
        made.average_charge_milli = round(self._shares.average_milli(branch.name))
        made.model_use.extend(
            tenant_pb2.ModelUse(model=model, charge_milli=milli)
            for model, milli in sorted(branch.by_model.items())
            if milli
        )


def _settled(found: Tenant) -> tenant_pb2.Tenant:
    """What was set, and the tenant's own ledger."""
    has = found.settings
    return tenant_pb2.Tenant(
        name=convert.tenant_name(found.name),
        display_name=has.display_name,
        limit_milli=has.limit_milli,
        max_queued_jobs=has.max_queued_jobs,
        default_request=convert.resources(has.default_request),
        max_priority=has.max_priority,
        create_time=convert.timestamp(found.created_ms),
        running_charge_milli=found.charge_milli,
        queued_jobs=found.queued_jobs,
        running_jobs=found.running_jobs,
        parent=convert.tenant_name(has.parent) if has.parent else "",
        guaranteed_milli=has.guaranteed_milli,
        weight=has.weight,
        model_quotas=[
            tenant_pb2.ModelQuota(model=q.model, guaranteed_milli=q.guaranteed_milli, limit_milli=q.limit_milli)
            for q in has.model_quotas
        ],
        max_running_jobs=has.max_running_jobs,
        max_running_per_user=has.max_running_per_user,
        cpu_limit_milli=has.cpu_limit_milli,
        memory_limit_mib=has.memory_limit_mib,
        min_run=None if has.min_run_ms is None else convert.duration(has.min_run_ms),
        allocated_cpu_milli=found.used_cpu_milli,
        allocated_memory_mib=found.used_memory_mib,
        unix_groups=has.unix_groups,
        unix_users=has.unix_users,
        isolated=has.isolated,
        default_run=None if has.default_run_ms is None else convert.duration(has.default_run_ms),
        max_run=None if has.max_run_ms is None else convert.duration(has.max_run_ms),
    )
