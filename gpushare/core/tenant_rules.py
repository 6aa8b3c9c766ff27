"""May a tenant have these settings: their bounds, its place in the tree, its guarantee, and what its own admin may say.

Pure. Each check gives None or a Rejection. A tenant's admin rules below the own tenant, and never gives what the own
tenant does not have: so that a subtree left to its admin cannot take more from the rest of the cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from gpushare import names
from gpushare.core.commands import CoreSettings, Rejection
from gpushare.core.model import ModelQuota, Tenant, TenantSettings
from gpushare.core.tenant_tree import DEPTH_MAX, height, path
from gpushare.quantity import format_cpu_milli, format_duration_ms
from gpushare.reasons import Reason

LIMIT_MAX_MILLI: Final = 10_000_000_000
_QUEUE_MAX = 1_000_000
_WEIGHT_MAX = 1_000_000
_MODELS_MAX = 64
_PEOPLE_MAX = 10_000
_GROUP_MAX_BYTES = 256
_HOST_MAX = 2**50
_MIN_RUN_MAX_MS = 30 * 24 * 3600 * 1000
# Below a tenant whose own admin makes them; an admin of the cluster is not held to it.
CHILDREN_MAX: Final = 1000

Tenants = Mapping[str, Tenant]


def _bad(field: str, detail: str, reason: Reason = Reason.INVALID_FIELD) -> Rejection:
    return Rejection(reason, f"{field}: {detail}", field=field)


# -- bounds


def bad_values(has: TenantSettings, caps: CoreSettings) -> Rejection | None:
    """What no tenant may have, wherever it stands."""
    for field, value, low, high in _bounds(has, caps):
        if value is not None and not low <= value <= high:
            told, least, most = (_shown(field, each) for each in (value, low, high))
            return _bad(field, f"is {told}; accepted: {least} to {most}")
    if has.limit_milli is not None and has.guaranteed_milli > has.limit_milli:
        return _bad(
            "guaranteed_milli",
            f"is {format_cpu_milli(has.guaranteed_milli)}, above the limit of {format_cpu_milli(has.limit_milli)}",
        )
    if has.max_run_ms is not None and (has.default_run_ms or 0) > has.max_run_ms:
        told, most = map(format_duration_ms, (has.default_run_ms or 0, has.max_run_ms))
        return _bad("default_run", f"is {told}, above max_run, which is {most}")
    try:
        _check_people(has)
        if has.display_name:
            names.check_display_name(has.display_name, "display_name", caps.display_name_max_chars)
        return _bad_quotas(has, caps)
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field=err.field)


def _shown(field: str, value: int) -> str:
    """As a person writes it: cards, CPUs and times, not thousandths and ms."""
    if field.endswith("_run"):
        return format_duration_ms(value)
    return format_cpu_milli(value) if field.endswith("_milli") or field == "model_quotas" else str(value)


def _check_people(has: TenantSettings) -> None:
    """Raises TextError. A group's name may be almost anything: directories have spaces in theirs."""
    for user in has.unix_users:
        names.check_account(user, "unix_users")
        if user == "root":
            raise names.TextError("unix_users", user, "gets no token on a host's word", "a person's account")
    for group in has.unix_groups:
        names.check_text(group, "unix_groups", max_bytes=_GROUP_MAX_BYTES)
        if not group:
            raise names.TextError("unix_groups", group, "is empty", "a Unix group's name")
    for field, people in (("unix_users", has.unix_users), ("unix_groups", has.unix_groups)):
        if len(people) > _PEOPLE_MAX:
            raise names.TextError(field, f"{len(people)} of them", "is too long", f"up to {_PEOPLE_MAX}")


def _bounds(has: TenantSettings, caps: CoreSettings) -> tuple[tuple[str, int | None, int, int], ...]:
    return (
        ("limit_milli", has.limit_milli, 0, LIMIT_MAX_MILLI),
        ("guaranteed_milli", has.guaranteed_milli, 0, LIMIT_MAX_MILLI),
        ("weight", has.weight, 1, _WEIGHT_MAX),
        ("max_queued_jobs", has.max_queued_jobs, 0, _QUEUE_MAX),
        ("max_priority", has.max_priority, -caps.priority_max, caps.priority_max),
        ("max_running_jobs", has.max_running_jobs, 0, _QUEUE_MAX),
        ("max_running_per_user", has.max_running_per_user, 0, _QUEUE_MAX),
        ("cpu_limit_milli", has.cpu_limit_milli, 0, _HOST_MAX),
        ("memory_limit_mib", has.memory_limit_mib, 0, _HOST_MAX),
        ("min_run", has.min_run_ms, 0, _MIN_RUN_MAX_MS),
        ("default_run", has.default_run_ms, 1, caps.max_run_ms_max),
        ("max_run", has.max_run_ms, 1, caps.max_run_ms_max),
    )


def _bad_quotas(has: TenantSettings, caps: CoreSettings) -> Rejection | None:
    """Raises TextError for a model that is no text."""
    field = "model_quotas"
    if len(has.model_quotas) > _MODELS_MAX:
        return _bad(field, f"names {len(has.model_quotas)} models; accepted: {_MODELS_MAX}")
    if len({quota.model for quota in has.model_quotas}) != len(has.model_quotas):
        return _bad(field, "names a model twice")
    for quota in has.model_quotas:
        names.check_text(quota.model, field, max_bytes=caps.label_max_chars)
        shown = names.shown(quota.model)
        if not quota.model or "|" in quota.model:
            return _bad(field, f"{shown} is not one model, as `gpushare gpus` prints it")
        limit_milli = LIMIT_MAX_MILLI if quota.limit_milli is None else quota.limit_milli
        for value in (quota.guaranteed_milli, limit_milli):
            if not 0 <= value <= LIMIT_MAX_MILLI:
                return _bad(
                    field, f"{shown} has {format_cpu_milli(value)}; accepted: 0 to {format_cpu_milli(LIMIT_MAX_MILLI)}"
                )
        if quota.guaranteed_milli > limit_milli:
            told, most = format_cpu_milli(quota.guaranteed_milli), format_cpu_milli(limit_milli)
            return _bad(field, f"{shown} is guaranteed {told}, above its limit of {most}")
    return None


# -- the tree


def bad_place(tenants: Tenants, tenant: str, has: TenantSettings) -> Rejection | None:
    """Whether `tenant`, which need not exist yet, may stand below `has.parent`."""
    if not has.parent:
        return None
    above = list(path(tenants, has.parent))
    if not above:
        return _bad("parent", f"tenant {names.shown(has.parent)} does not exist", Reason.NOT_FOUND)
    if tenant in above:
        return _bad("parent", f"{has.parent} is {tenant} itself or below it: a tree has no cycle")
    levels = len(above) + height(tenants, tenant)
    if levels > DEPTH_MAX:
        return _bad("parent", f"the tree would have {levels} levels; accepted: {DEPTH_MAX}")
    return None


def bad_guarantees(tenants: Tenants, tenant: str, has: TenantSettings, own: str = "") -> Rejection | None:
    """Whether all that is guaranteed below `tenant`, and below every tenant above it, fits what that one is guaranteed.
    A guarantee of 0 holds nobody back. With `own`, all below that tenant must not come to more than it has."""
    present = {t.name: t.settings for t in tenants.values() if not t.deleted}
    wanted = {**present, tenant: has}
    needs = _needs(wanted)
    name = tenant
    while name in wanted:
        for model, need in sorted(needs[name].items()):
            room = _guarantee(wanted[name], model)
            if room and need > room:
                on = f" on {model}" if model else ""
                told, has_itself = format_cpu_milli(need), format_cpu_milli(room)
                return _bad(
                    "guaranteed_milli",
                    f"the tenants below {name} would be guaranteed {told}{on}, and it has {has_itself}; raise that "
                    "first, or give less",
                )
        name = wanted[name].parent
    if own:
        had, gets = _given(present[own], _needs(present)[own]), _given(wanted[own], needs[own])
        if any(gets[model] > had[model] for model in gets):
            return _bad("guaranteed_milli", f"the tenants below {own} would be guaranteed more than {own} is")
    return None


def guaranteed_together_milli(tenants: Tenants, tenant: str, has: TenantSettings) -> int:
    """What the tenants at the top, and those below them, are guaranteed over all models once `tenant` is as `has`."""
    wanted = {**{t.name: t.settings for t in tenants.values() if not t.deleted}, tenant: has}
    needs = _needs(wanted)
    return sum(_given(each, needs[name])[""] for name, each in wanted.items() if each.parent not in wanted)


def _needs(settings: Mapping[str, TenantSettings]) -> dict[str, Counter[str]]:
    """By tenant: what is guaranteed below it, by model and ("") over all models. Deepest first, so that a tenant
    without a guarantee of its own passes on what its children have."""
    below: dict[str, Counter[str]] = {name: Counter() for name in settings}
    for name in sorted(settings, key=lambda each: -_depth(settings, each)):
        parent = settings[name].parent
        if parent in below:
            below[parent].update(_given(settings[name], below[name]))
    return below


def _given(has: TenantSettings, below: Counter[str]) -> Counter[str]:
    models = {"", *(quota.model for quota in has.model_quotas), *below}
    return Counter({model: max(_guarantee(has, model), below[model]) for model in models})


def _guarantee(has: TenantSettings, model: str) -> int:
    """Over all models for ""."""
    return has.model_quota(model).guaranteed_milli if model else has.guaranteed_milli


def _depth(settings: Mapping[str, TenantSettings], name: str) -> int:
    steps = 0
    while name in settings and steps <= DEPTH_MAX:
        name, steps = settings[name].parent, steps + 1
    return steps


# -- a tenant's own admin


def beyond_own_admin(
    tenants: Tenants, own: str, tenant: str, has: TenantSettings, caps: CoreSettings
) -> Rejection | None:
    """What the admin of `own` may not say of `tenant`. `has` was found good otherwise."""
    top = tenants.get(own)
    if top is None or tenant == own:
        return Rejection(
            Reason.PERMISSION_DENIED,
            f"a tenant's own settings are for an admin of the cluster; you may change the tenants below {own}",
        )
    if own not in path(tenants, has.parent) or (tenant in tenants and own not in path(tenants, tenant)):
        return Rejection(Reason.NOT_FOUND, f"tenant {names.shown(tenant)} is not below {own}", field="parent")
    made = sum(t.settings.parent == has.parent for t in tenants.values())
    if tenant not in tenants and made >= CHILDREN_MAX:
        return _bad("parent", f"{has.parent} has had {made} tenants below it; accepted: {CHILDREN_MAX}")
    known = tenants.get(tenant)
    had = known.settings if known else TenantSettings()
    if (has.unix_users, has.unix_groups) != (had.unix_users, had.unix_groups):
        return Rejection(
            Reason.PERMISSION_DENIED,
            "unix_users and unix_groups are for an admin of the cluster: a tenant takes no accounts by itself",
            field="unix_users",
        )
    if has.isolated != had.isolated:
        detail = "isolated: what others see of a tenant is for an admin of the cluster to say"
        return Rejection(Reason.PERMISSION_DENIED, detail, field="isolated")
    return _above_own(top.settings, has, caps, had)


def _above_own(top: TenantSettings, has: TenantSettings, caps: CoreSettings, had: TenantSettings) -> Rejection | None:
    """No limit at all is fine: those of the tenants above hold as well. What stays as the cluster's admin made it is
    not judged."""
    cluster_ms = caps.min_run_ms
    pairs = [
        ("limit_milli", has.limit_milli, top.limit_milli),
        ("max_queued_jobs", has.max_queued_jobs, top.max_queued_jobs),
        ("max_priority", has.max_priority, top.max_priority),
        ("max_running_jobs", has.max_running_jobs, top.max_running_jobs),
        ("cpu_limit_milli", has.cpu_limit_milli, top.cpu_limit_milli),
        ("memory_limit_mib", has.memory_limit_mib, top.memory_limit_mib),
        ("max_run", has.max_run_ms, top.max_run_ms),
        # A longer one would keep from others for longer what is theirs.
        ("min_run", has.min_run_ms, cluster_ms if top.min_run_ms is None else top.min_run_ms),
    ]
    if has.min_run_ms == had.min_run_ms:
        pairs.pop()
    pairs += [("model_quotas", quota.limit_milli, _limit_on(top, quota)) for quota in has.model_quotas]
    for field, value, most in pairs:
        if value is not None and most is not None and value > most:
            return _bad(field, f"is {_shown(field, value)}, above your own tenant's {_shown(field, most)}")
    return None


def _limit_on(top: TenantSettings, quota: ModelQuota) -> int | None:
    limit_milli = top.model_quota(quota.model).limit_milli
    return top.limit_milli if limit_milli is None else limit_milli
