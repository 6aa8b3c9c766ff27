"""TenantService: the servicer for tenants and tokens.

Imports the gate, the converters and the token functions. Invariants: a secret leaves once, in the answer of the call
that made it, and is nowhere else; a repeated CreateToken makes no second token and cannot show the first one's secret
again, so it says which token that is; changes of one tenant are made one after the other, so that none is lost.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import msgspec

from gpushare import names
from gpushare.core.admission import Refused, check_resources
from gpushare.core.commands import CreateTenant, CreateToken, DeleteTenant, Outcome, RevokeToken, UpdateTenant
from gpushare.core.model import TaskRequest, Tenant, TenantSettings, Token
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.scheduler import convert, tokens
from gpushare.scheduler.api_gate import call_of, commit
from gpushare.scheduler.api_paging import Place, page_size
from gpushare.scheduler.auth import Caller
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
        settings = self._settings(self._fresh, request.settings)
        command = CreateTenant(request.tenant_id, settings)
        return await commit(self._engine, command, call_of(caller, request), _shown_tenant)

    async def get_tenant(self, request: tenant_pb2.GetTenantRequest, caller: Caller) -> tenant_pb2.Tenant:
        tenant = convert.parse_tenant_name(request.name)
        if not caller.sees_tenant(tenant):
            raise convert.not_found(request.name)
        found = await self._engine.read(
            lambda state: None if state.tenant(tenant) is None else convert.tenant(state.tenants[tenant])
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
            return [convert.tenant(state.tenants[name]) for name in visible[: size + 1]]

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
            if known is None:
                raise convert.not_found(request.name)
            command = UpdateTenant(tenant, self._settings(known.settings, request.settings))
            return await commit(self._engine, command, call, _shown_tenant)

    async def delete_tenant(
        self, request: tenant_pb2.DeleteTenantRequest, caller: Caller
    ) -> tenant_pb2.DeleteTenantResponse:
        tenant = convert.parse_tenant_name(request.name)
        await self._engine.execute(DeleteTenant(tenant), call_of(caller, request))
        return tenant_pb2.DeleteTenantResponse()

    def _settings(self, old: TenantSettings, new: tenant_pb2.TenantSettings) -> TenantSettings:
        """`old` with the fields that are set in `new`."""
        if new.no_limit and new.HasField("limit_milli"):
            raise invalid_field("settings.no_limit", "excludes limit_milli; set one of the two")
        changed: dict[str, object] = {
            field: getattr(new, field)
            for field in ("display_name", "limit_milli", "max_queued_jobs", "max_priority")
            if new.HasField(field)
        }
        if new.no_limit:
            changed["limit_milli"] = None
        if new.HasField("default_request"):
            changed["default_request"] = self._default_request(new.default_request)
        return msgspec.structs.replace(old, **changed)

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

    # -- tokens

    async def create_token(
        self, request: tenant_pb2.CreateTokenRequest, caller: Caller
    ) -> tenant_pb2.CreateTokenResponse:
        secret = tokens.new_token()
        token_id = secrets.token_hex(8)
        command = CreateToken(
            token_id=token_id,
            sha256=tokens.token_sha256(secret),
            user=request.user,
            role=convert.role_in(request.role),
            tenant=request.tenant,
            unix_user=request.unix_user,
            ttl_ms=convert.duration_ms(request.ttl, "ttl") if request.HasField("ttl") else None,
        )
        made = await commit(self._engine, command, call_of(caller, request), _made_token)
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
                if request.tenant in ("", t.principal.tenant) and (t.created_ms, t.id) > after
            )
            return [([ms, token_id], convert.token(state.tokens[token_id])) for ms, token_id in fitting[: size + 1]]

        found = await self._engine.read(look)
        token = place.token(found[size - 1][0]) if len(found) > size else ""
        return tenant_pb2.ListTokensResponse(tokens=[each for _, each in found[:size]], next_page_token=token)

    async def revoke_token(self, request: tenant_pb2.RevokeTokenRequest, caller: Caller) -> tenant_pb2.Token:
        token_id = convert.parse_token_name(request.name)
        made = await commit(self._engine, RevokeToken(token_id), call_of(caller, request), _made_token)
        return convert.token(made)


def _shown_tenant(state: ClusterState, outcome: Outcome) -> tenant_pb2.Tenant:
    """Also for a repeated request whose tenant was deleted since: the tombstone says what it was."""
    found: Tenant = state.tenants[outcome.names[0]]
    return convert.tenant(found)


def _made_token(state: ClusterState, outcome: Outcome) -> Token:
    return msgspec.structs.replace(state.tokens[outcome.names[0]])


def _shown_before(name: str) -> GpushareError:
    return error_of(
        Reason.ALREADY_EXISTS,
        f"This request was done before: it made {name}, whose secret was in that answer only.",
        what_to_do=f"If the answer is lost, revoke {name} and create another with a new request id.",
        metadata={"name": name},
    )
