"""Tenants and tokens: what an admin's commands change. Pure; secrets come as hashes, never as themselves."""

from __future__ import annotations

from typing import Final

from gpushare import names
from gpushare.core import tenant_rules
from gpushare.core.commands import (
    Bootstrap,
    Call,
    CoreSettings,
    CreateTenant,
    CreateToken,
    DeleteTenant,
    Outcome,
    Rejection,
    RevokeToken,
    UpdateTenant,
)
from gpushare.core.events import TenantCreated, TenantDeleted, TenantUpdated, TokenCreated, TokenRevoked
from gpushare.core.kinds import Role
from gpushare.core.model import Principal, TenantSettings
from gpushare.core.notices import GUARANTEES, MODEL_QUOTAS, beyond_the_cards, unknown_models
from gpushare.core.state import ClusterState
from gpushare.core.tenant_tree import children, is_below
from gpushare.quantity import format_duration_ms
from gpushare.reasons import Reason

Decision = Outcome | Rejection

#: What a tenant's own admin may make tokens of.
GRANTABLE_ROLES: Final = (Role.TENANT_ADMIN, Role.USER, Role.VIEWER)
_ROLES = (Role.ADMIN, Role.OPERATOR, *GRANTABLE_ROLES)

_TTL_MAX_MS = 10 * 366 * 24 * 3600 * 1000


def _no_tenant(tenant: str) -> Rejection:
    return Rejection(Reason.NOT_FOUND, f"tenant {names.shown(tenant)} does not exist")


def _bad_settings(
    state: ClusterState, tenant: str, has: TenantSettings, call: Call, caps: CoreSettings
) -> Rejection | None:
    """The first rule of `tenant_rules` that stands against `has`."""
    own = call.principal.tenant if call.principal.role is Role.TENANT_ADMIN else ""
    bad = tenant_rules.bad_values(has, caps) or tenant_rules.bad_place(state.tenants, tenant, has)
    if bad is None and own:
        bad = tenant_rules.beyond_own_admin(state.tenants, own, tenant, has, caps)
    return bad or tenant_rules.bad_guarantees(state.tenants, tenant, has, own)


def create_tenant(
    state: ClusterState, command: CreateTenant, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    try:
        names.check_name(command.tenant, "tenant_id")
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field="tenant_id")
    known = state.tenants.get(command.tenant)
    if known is not None:
        why = (
            "was deleted; its jobs and audit keep the name, so choose another"
            if known.deleted
            else ("exists; use `gpushare tenant set` to change it")
        )
        return Rejection(Reason.ALREADY_EXISTS, f"tenant {command.tenant} {why}")
    bad = _bad_settings(state, command.tenant, command.settings, call, settings)
    if bad is not None:
        return bad
    return Outcome(
        events=(TenantCreated(tenant=command.tenant, settings=command.settings),),
        names=(command.tenant,),
        notices=_notices(state, command.tenant, command.settings, TenantSettings()),
    )


def update_tenant(
    state: ClusterState, command: UpdateTenant, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    """Running jobs stay when a limit sinks below them; nothing new starts until they fit again."""
    tenant = state.tenant(command.tenant)
    if tenant is None:
        return _no_tenant(command.tenant)
    bad = _bad_settings(state, command.tenant, command.settings, call, settings)
    if bad is not None:
        return bad
    if command.settings == tenant.settings:
        return Outcome(names=(command.tenant,))
    return Outcome(
        events=(TenantUpdated(tenant=command.tenant, settings=command.settings),),
        names=(command.tenant,),
        notices=_notices(state, command.tenant, command.settings, tenant.settings),
    )


def _notices(state: ClusterState, tenant: str, has: TenantSettings, had: TenantSettings) -> dict[str, tuple[str, ...]]:
    """What is new and means nothing, or less than it says, as things are."""
    found = {
        MODEL_QUOTAS: unknown_models(state, [quota for quota in has.model_quotas if quota not in had.model_quotas]),
        GUARANTEES: beyond_the_cards(state, tenant, has),
    }
    return {name: notices for name, notices in found.items() if notices}


def delete_tenant(
    state: ClusterState, command: DeleteTenant, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    tenant = state.tenant(command.tenant)
    if tenant is None:
        return _no_tenant(command.tenant)
    left = tenant.queued_jobs + tenant.running_jobs
    if left:
        return Rejection(
            Reason.TENANT_NOT_EMPTY,
            f"tenant {command.tenant} has {left} jobs that have not ended; cancel them or wait, then delete it",
        )
    below = sorted(t.name for t in children(state.tenants, command.tenant))
    if below:
        return Rejection(
            Reason.TENANT_NOT_EMPTY,
            f"tenant {command.tenant} has tenants below it ({', '.join(below[:5])}); delete them, or move them first",
        )
    return Outcome(events=(TenantDeleted(tenant=command.tenant),), names=(command.tenant,))


def create_token(
    state: ClusterState, command: CreateToken, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    """Agents get theirs by enrolling."""
    bad = _bad_token(state, command)
    if bad is None and call.principal.role is Role.TENANT_ADMIN:
        bad = _beyond_own_admin(state, command, call.principal)
    if bad is not None:
        return bad
    principal = Principal(user=command.user, role=command.role, tenant=command.tenant, unix_user=command.unix_user)
    expires_ms = 0 if command.ttl_ms is None else now_ms + command.ttl_ms
    event = TokenCreated(token_id=command.token_id, sha256=command.sha256, principal=principal, expires_ms=expires_ms)
    return Outcome(events=(event,), names=(command.token_id,))


def _bad_token(state: ClusterState, command: CreateToken) -> Rejection | None:
    try:
        names.check_name(command.user, "user")
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field="user")
    if command.role not in _ROLES:
        return Rejection(
            Reason.INVALID_FIELD,
            "role: accepted are admin, operator, tenant-admin, user and viewer (an agent gets its token by enrolling)",
            field="role",
        )
    if command.role in GRANTABLE_ROLES and not command.tenant:
        return Rejection(Reason.INVALID_FIELD, f"tenant: a {command.role} belongs to a tenant; name it", field="tenant")
    if command.role is Role.OPERATOR and command.tenant:
        return Rejection(Reason.INVALID_FIELD, "tenant: an operator belongs to none; leave it out", field="tenant")
    if command.tenant and state.tenant(command.tenant) is None:
        return _no_tenant(command.tenant)
    if command.unix_user and not _may_run_jobs(command.unix_user):
        return Rejection(
            Reason.INVALID_FIELD,
            f"unix_user: {names.shown(command.unix_user)} is not an account jobs may run as; root never is",
            field="unix_user",
        )
    if command.ttl_ms is not None and not 1 <= command.ttl_ms <= _TTL_MAX_MS:
        return Rejection(
            Reason.INVALID_FIELD,
            f"ttl: {format_duration_ms(command.ttl_ms)}; accepted: 1ms to {format_duration_ms(_TTL_MAX_MS)}",
            field="ttl",
        )
    if command.token_id in state.tokens or command.sha256 in state.tokens_by_sha:
        return Rejection(Reason.ALREADY_EXISTS, "this token exists; ask again for a new one")
    return None


def _may_run_jobs(unix_user: str) -> bool:
    try:
        return names.check_account(unix_user) != "root"
    except names.TextError:
        return False


def _beyond_own_admin(state: ClusterState, command: CreateToken, who: Principal) -> Rejection | None:
    """The API has hidden other tenants already. Accounts of the hosts are an admin's to give: whoever could name any
    account would run as anybody. That a host vouched for somebody gives nobody else that person's account."""
    if command.role not in GRANTABLE_ROLES:
        return Rejection(
            Reason.PERMISSION_DENIED,
            f"a tenant's admin makes tokens of the roles {', '.join(GRANTABLE_ROLES)}; {command.role} is not one",
        )
    if not is_below(state.tenants, command.tenant, who.tenant):
        return _no_tenant(command.tenant)
    known = {
        (t.principal.user, t.principal.unix_user)
        for t in state.tokens.values()
        if is_below(state.tenants, t.principal.tenant, who.tenant) and not t.login_node
    }
    if command.unix_user and (command.user, command.unix_user) not in known:
        return Rejection(
            Reason.PERMISSION_DENIED,
            f"no token lets {command.user} run as the account {command.unix_user} yet; ask an admin for the first one",
        )
    return None


def revoke_token(
    state: ClusterState, command: RevokeToken, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    token = state.tokens.get(command.token_id)
    if token is None:
        return Rejection(Reason.NOT_FOUND, f"token {names.shown(command.token_id)} does not exist")
    events = () if token.revoked_ms else (TokenRevoked(token_id=token.id),)
    return Outcome(events=events, names=(token.id,))


def bootstrap(state: ClusterState, command: Bootstrap, call: Call, now_ms: int, settings: CoreSettings) -> Decision:
    """Only an empty store is bootstrapped; later starts find their tokens there."""
    if state.tokens or state.tenants:
        return Outcome()
    principal = Principal(user=command.user, role=Role.ADMIN, tenant=command.tenant, unix_user=command.unix_user)
    return Outcome(
        events=(
            TenantCreated(tenant=command.tenant, settings=command.settings),
            TokenCreated(token_id=command.token_id, sha256=command.sha256, principal=principal),
        ),
        names=(command.token_id,),
    )
