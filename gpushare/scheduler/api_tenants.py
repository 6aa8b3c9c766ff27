"""TenantService: the servicer for tenants and tokens.

Imports the gate, the converters and the token functions. Invariants: a secret leaves once, in the answer of the call
that made it, and is nowhere else; a repeated CreateToken makes no second token and cannot show the first one's secret
again, so it says which token that is; changes of one tenant are made one after the other, so that none is lost. A
tenant's admin reaches the own tenant and those below it; another's tenant or token answers NOT_FOUND.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import msgspec

from gpushare import names
from gpushare.core.admission import Refused, check_resources
from gpushare.core.brain import Brain
from gpushare.core.commands import (
    CreateTenant,
    CreateToken,
    DeleteTenant,
    Outcome,
    Rejection,
    RevokeToken,
    UpdateTenant,
)
from gpushare.core.decide_people import GRANTABLE_ROLES
from gpushare.core.model import TaskRequest, TenantSettings, Token
from gpushare.core.notices import GUARANTEES, MODEL_QUOTAS
from gpushare.core.preview import QuotaQuestion
from gpushare.core.state import ClusterState
from gpushare.errors import FieldViolation, GpushareError, error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.scheduler import convert, convert_tenants, tokens
from gpushare.scheduler.api_gate import call_of, commit
from gpushare.scheduler.api_paging import Place, page_size
from gpushare.scheduler.auth import Caller, Reach
from gpushare.scheduler.engine import Engine
from gpushare.v1 import job_pb2, tenant_pb2

#: Secret -> one pasted line with the address and the CA certificate.
JoinLine = Callable[[str], str]


class TenantApi:
    """`fresh` are the settings of a tenant that is created without any of its own."""

    def __init__(self, engine: Engine, join_line: JoinLine, fresh: TenantSettings, page_max: int) -> None:
        self._engine = engine
        self._join_line = join_line
        self._fresh = fresh
        self._page_max = page_max
        self._changing = asyncio.Lock()

    # -- tenants

    async def create_tenant(self, request: tenant_pb2.CreateTenantRequest, caller: Caller) -> tenant_pb2.Tenant:
        call = call_of(caller, request)
        settings = self._settings(self._fresh_for(caller), request.settings)
        _check_parent(settings, caller)
        command = CreateTenant(request.tenant_id, settings)
        return await commit(self._engine, command, call, self._shown_tenant)

    def _fresh_for(self, caller: Caller) -> TenantSettings:
        """Settings to begin with: a tenant's admin makes tenants below the own one, with no more than that has."""
        own = self._engine.state.tenant(caller.tenant)
        if caller.reach is not Reach.SUBTREE or own is None:
            return self._fresh
        return msgspec.structs.replace(
            self._fresh,
            parent=caller.tenant,
            max_queued_jobs=min(self._fresh.max_queued_jobs, own.settings.max_queued_jobs),
            max_priority=min(self._fresh.max_priority, own.settings.max_priority),
        )

    async def get_tenant(self, request: tenant_pb2.GetTenantRequest, caller: Caller) -> tenant_pb2.Tenant:
        tenant = convert.parse_tenant_name(request.name)
        if not caller.sees_tenant(tenant):
            raise convert.not_found(request.name)
        found = await self._engine.read(
            lambda state: None if state.tenant(tenant) is None else self._shown(state, [tenant])[0]
        )
        if found is None:
            raise convert.not_found(request.name)
        return found

    async def list_tenants(
        self, request: tenant_pb2.ListTenantsRequest, caller: Caller
    ) -> tenant_pb2.ListTenantsResponse:
        size = page_size(request.page_size, self._page_max)
        place = Place(caller.rpc, caller.principal, [])
        after = str(place.cursor(request.page_token, (str,))[0]) if request.page_token else ""

        def look(state: ClusterState) -> list[tenant_pb2.Tenant]:
            visible = sorted(
                t.name
                for t in state.tenants.values()
                if not t.deleted and t.name > after and caller.sees_tenant(t.name)
            )
            return self._shown(state, visible[: size + 1])

        found = await self._engine.read(look)
        token = place.token([found[size - 1].name.partition("/")[2]]) if len(found) > size else ""
        return tenant_pb2.ListTenantsResponse(tenants=found[:size], next_page_token=token)

    async def who_am_i(self, request: tenant_pb2.WhoAmIRequest, caller: Caller) -> job_pb2.Principal:
        return convert.principal(caller.principal)

    async def update_tenant(self, request: tenant_pb2.UpdateTenantRequest, caller: Caller) -> tenant_pb2.Tenant:
        tenant = convert.parse_tenant_name(request.name)
        call = call_of(caller, request)
        async with self._changing:
            known = self._engine.state.tenant(tenant)
            if known is None or not caller.sees_tenant(tenant):
                raise convert.not_found(request.name)
            settings = self._settings(known.settings, request.settings)
            if settings.parent != known.settings.parent:
                _check_parent(settings, caller)
            return await commit(self._engine, UpdateTenant(tenant, settings), call, self._shown_tenant)

    async def delete_tenant(
        self, request: tenant_pb2.DeleteTenantRequest, caller: Caller
    ) -> tenant_pb2.DeleteTenantResponse:
        tenant = convert.parse_tenant_name(request.name)
        await self._engine.execute(DeleteTenant(tenant), call_of(caller, request))
        return tenant_pb2.DeleteTenantResponse()

    def _shown(self, state: ClusterState, tenants: list[str]) -> list[tenant_pb2.Tenant]:
        view = convert_tenants.TenantView(state, self._engine.now_ms())
        return [view.shown(state.tenants[name]) for name in tenants]

    def _shown_tenant(self, state: ClusterState, outcome: Outcome) -> tenant_pb2.Tenant:
        """Also for a repeated request whose tenant was deleted since: the tombstone says what it was."""
        shown = self._shown(state, [outcome.names[0]])[0]
        for name in (MODEL_QUOTAS, GUARANTEES):
            shown.notices.extend(outcome.notices.get(name, ()))
        return shown

    def _settings(self, old: TenantSettings, new: tenant_pb2.TenantSettings) -> TenantSettings:
        """`old` with the fields that are set in `new`."""
        asked = new.default_request if new.HasField("default_request") else None
        return convert_tenants.settings(old, new, None if asked is None else self._default_request(asked))

    def _default_request(self, asked: job_pb2.Resources) -> TaskRequest:
        if not any(asked.HasField(f) for f in ("gpus", "gpu_milli", "gpu_memory_mib")):
            raise invalid_field("settings.default_request", "names no GPUs: set gpus, gpu_milli or gpu_memory_mib")
        try:
            return check_resources(convert.raw_resources(asked), None, self._engine.settings)
        except Refused as refused:
            rejection = refused.rejection
            raise invalid_field(f"settings.default_request.{rejection.field}", rejection.detail) from refused
        except names.TextError as err:
            raise invalid_field(f"settings.default_request.{err.field}", str(err)) from err

    async def preview_quota(
        self, request: tenant_pb2.PreviewQuotaRequest, caller: Caller
    ) -> tenant_pb2.PreviewQuotaResponse:
        def question(state: ClusterState, brain: Brain) -> QuotaQuestion:
            changes: dict[str, TenantSettings] = {}
            for each in request.changes:
                tenant = convert.parse_tenant_name(each.name)
                if state.tenant(tenant) is None:
                    raise convert.not_found(each.name)
                old = changes.get(tenant, state.tenants[tenant].settings)
                changes[tenant] = self._settings(old, each.settings)
            return QuotaQuestion(state, changes, self._engine.now_ms(), self._engine.settings, brain)

        if len(request.changes) > self._page_max:
            raise invalid_field("changes", f"has {len(request.changes)} tenants; accepted: {self._page_max}")
        found = await self._engine.ask(question)
        if isinstance(found, Rejection):
            violation = FieldViolation(f"changes.{found.field}", found.detail)
            raise error_of(found.reason, found.detail, violations=(violation,))
        return convert_tenants.previewed(found)

    # -- tokens

    async def create_token(
        self, request: tenant_pb2.CreateTokenRequest, caller: Caller
    ) -> tenant_pb2.CreateTokenResponse:
        call = call_of(caller, request)
        tenant = request.tenant or (caller.tenant if caller.reach is Reach.SUBTREE else "")
        if not caller.sees_tenant(tenant):
            raise convert.not_found(convert.tenant_name(tenant))
        secret = tokens.new_token()
        token_id = secrets.token_hex(8)
        command = CreateToken(
            token_id=token_id,
            sha256=tokens.token_sha256(secret),
            user=request.user,
            role=convert.role_in(request.role),
            tenant=tenant,
            unix_user=request.unix_user,
            ttl_ms=convert.duration_ms(request.ttl, "ttl") if request.HasField("ttl") else None,
        )
        made = await commit(self._engine, command, call, _made_token)
        if made.id != token_id:
            raise _shown_before(convert.token_name(made.id))
        return tenant_pb2.CreateTokenResponse(token=convert.token(made), secret=secret, join=self._join_line(secret))

    async def list_tokens(self, request: tenant_pb2.ListTokensRequest, caller: Caller) -> tenant_pb2.ListTokensResponse:
        size = page_size(request.page_size, self._page_max)
        place = Place(caller.rpc, caller.principal, [request.tenant])
        after = (-1, "")
        if request.page_token:
            created_ms, token_id = place.cursor(request.page_token, (int, str))
            after = (int(created_ms), str(token_id))

        def look(state: ClusterState) -> list[tuple[list[int | str], tenant_pb2.Token]]:
            fitting = sorted(
                (t.created_ms, t.id)
                for t in state.tokens.values()
                if request.tenant in ("", t.principal.tenant) and (t.created_ms, t.id) > after and _reaches(caller, t)
            )
            return [([ms, token_id], convert.token(state.tokens[token_id])) for ms, token_id in fitting[: size + 1]]

        found = await self._engine.read(look)
        token = place.token(found[size - 1][0]) if len(found) > size else ""
        return tenant_pb2.ListTokensResponse(tokens=[each for _, each in found[:size]], next_page_token=token)

    async def get_own_token(self, request: tenant_pb2.GetOwnTokenRequest, caller: Caller) -> tenant_pb2.Token:
        return await self._engine.read(lambda state: convert.token(state.tokens[caller.token_id]))

    async def revoke_token(self, request: tenant_pb2.RevokeTokenRequest, caller: Caller) -> tenant_pb2.Token:
        token_id = convert.parse_token_name(request.name)
        known = self._engine.state.tokens.get(token_id)
        if known is None or not _reaches(caller, known):
            raise convert.not_found(request.name)
        made = await commit(self._engine, RevokeToken(token_id), call_of(caller, request), _made_token)
        return convert.token(made)


def _check_parent(settings: TenantSettings, caller: Caller) -> None:
    """A tenant's admin makes tenants below the own one, and no other."""
    if caller.reach is Reach.SUBTREE and not settings.parent:
        raise invalid_field("settings.parent", "is empty; only an admin puts a tenant at the top of the tree")
    if not caller.sees_tenant(settings.parent):
        raise convert.not_found(convert.tenant_name(settings.parent))


def _reaches(caller: Caller, token: Token) -> bool:
    """A tenant's admin has to do with the tokens that such an admin could have made, everybody with the own one."""
    if caller.reach is Reach.ALL or token.id == caller.token_id:
        return True
    who = token.principal
    return caller.reach is Reach.SUBTREE and who.role in GRANTABLE_ROLES and caller.sees_tenant(who.tenant)


def _made_token(state: ClusterState, outcome: Outcome) -> Token:
    return msgspec.structs.replace(state.tokens[outcome.names[0]])


def _shown_before(name: str) -> GpushareError:
    return error_of(
        Reason.ALREADY_EXISTS,
        f"This request was done before: it made {name}, whose secret was in that answer only.",
        what_to_do=f"If the answer is lost, revoke {name} and create another with a new request id.",
        metadata={"name": name},
    )
