"""UsageService: who used what, and who did what.

Imports the gate, the journal, the denials and the converters. Usage is the ledger's sum over ended attempts plus what
live ones have held so far. The audit is the journal itself, newest first; what a line shows of its event is without
environment, script and hashes of secrets, and is cut where it would be long.
"""

from __future__ import annotations

import difflib
import json
from typing import Any, Final, get_args

import msgspec

from gpushare.core.events import AnyEvent
from gpushare.core.kinds import Role
from gpushare.core.model import Principal
from gpushare.core.state import ClusterState
from gpushare.errors import invalid_field
from gpushare.names import shown
from gpushare.scheduler import convert
from gpushare.scheduler.api_paging import PAGE_BYTES_MAX, Place, page_size
from gpushare.scheduler.auth import Caller
from gpushare.scheduler.denials import Denials
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.journal import about, from_record
from gpushare.store.port import AuditFilter, Denial, Record
from gpushare.v1 import usage_pb2

_GROUPS: Final = (usage_pb2.USAGE_GROUP_TENANT, usage_pb2.USAGE_GROUP_USER, usage_pb2.USAGE_GROUP_JOB)
_KINDS: Final = frozenset(each.__name__ for each in get_args(AnyEvent))
#: Rows of one answer; a person reads the largest.
ROWS_MAX = 10_000
_HIDDEN: Final = frozenset(
    {"env", "captured_env", "script", "sha256", "join_sha256", "token_sha256", "body_sha256", "request_key", "key"}
)
# Their keys are people's words, which hide nothing.
_PEOPLES_KEYS: Final = frozenset({"labels", "node_labels"})
_TEXT_MAX_CHARS = 500
_ITEMS_MAX = 50

# (tenant, user, job) -> [charge_milli_ms, attempts]
_Sums = dict[tuple[str, str, str], list[int]]


class UsageApi:
    def __init__(self, engine: Engine, denials: Denials, page_max: int) -> None:
        self._engine = engine
        self._denials = denials
        self._page_max = page_max

    async def get_usage(self, request: usage_pb2.GetUsageRequest, caller: Caller) -> usage_pb2.GetUsageResponse:
        """The largest first. By job: those that are still in memory."""
        if request.group not in _GROUPS:
            raise invalid_field("group", f"{request.group} is no group; accepted: tenant, user, job")
        if request.tenant and not caller.sees_tenant(request.tenant):
            raise convert.not_found(convert.tenant_name(request.tenant))
        sums = await self._engine.read(lambda state: self._sums(state, request, caller))
        rows = sorted(sums.items(), key=lambda item: (-item[1][0], item[0]))[:ROWS_MAX]
        return usage_pb2.GetUsageResponse(
            rows=[
                usage_pb2.UsageRow(
                    tenant=tenant,
                    user=user,
                    job=convert.job_name(job) if job else "",
                    charge_milli_seconds=charge_ms // 1000,
                    attempts=attempts,
                )
                for (tenant, user, job), (charge_ms, attempts) in rows
            ]
        )

    def _sums(self, state: ClusterState, request: usage_pb2.GetUsageRequest, caller: Caller) -> _Sums:
        tenants = {name for name in state.tenants if request.tenant in ("", name) and caller.sees_tenant(name)}
        by_job = request.group == usage_pb2.USAGE_GROUP_JOB
        by_user = request.group == usage_pb2.USAGE_GROUP_USER
        now_ms = self._engine.now_ms()
        sums: _Sums = {}
        if not by_job:
            for name in tenants:
                for user, used in state.tenants[name].usage.items():
                    _add(sums, (name, user if by_user else "", ""), used.charge_milli_ms, used.attempts)
        for job in state.jobs.values():
            # Ended attempts are in the ledger's sums already, except where it is each job's that is asked for.
            counted = job.attempts if by_job else job.live()
            if job.tenant in tenants and counted:
                user = job.created_by.user
                row = (job.tenant, user if by_user or by_job else "", job.key if by_job else "")
                _add(sums, row, convert.charge_milli_ms(counted, now_ms), len(counted))
        return sums

    async def list_audit_events(
        self, request: usage_pb2.ListAuditEventsRequest, caller: Caller
    ) -> usage_pb2.ListAuditEventsResponse:
        size = page_size(request.page_size, self._page_max)
        place = Place(caller.rpc, caller.principal, [request.user, request.tenant, request.kind, request.denials])
        before = int(place.cursor(request.page_token, (int,))[0]) if request.page_token else None
        if request.denials:
            return await self._list_denials(request, size)
        # Up to here everything is durable once this returns, so that the answer holds what the caller did before it.
        await self._engine.read(lambda state: None)
        if request.kind not in ("", *_KINDS):
            near = difflib.get_close_matches(request.kind, _KINDS, n=3) or sorted(_KINDS)
            raise invalid_field("kind", f"{shown(request.kind)} is no kind of event; there are: {', '.join(near)}")
        wanted = AuditFilter(
            user=request.user or None,
            tenant=request.tenant or None,
            kind=request.kind or None,
            before_seq=before,
        )
        records = await self._engine.store_call(lambda store: store.read_audit(wanted, size))
        answer = usage_pb2.ListAuditEventsResponse()
        page_bytes = 0
        for record in records:
            answer.events.append(_audit_event(record))
            page_bytes += answer.events[-1].ByteSize()
            if page_bytes > PAGE_BYTES_MAX:
                break
        if answer.events:
            answer.next_page_token = place.token([answer.events[-1].sequence])
        return answer

    async def _list_denials(
        self, request: usage_pb2.ListAuditEventsRequest, size: int
    ) -> usage_pb2.ListAuditEventsResponse:
        """The newest of what is kept; there are no further pages, since anyone may add to them."""
        found = await self._denials.newest(size)
        fitting = [d for d in found if request.user in ("", d.user) and request.tenant in ("", d.tenant)]
        return usage_pb2.ListAuditEventsResponse(events=[_denial_event(denial) for denial in fitting])


def _add(sums: _Sums, row: tuple[str, str, str], charge_ms: int, attempts: int) -> None:
    total = sums.setdefault(row, [0, 0])
    total[0] += charge_ms
    total[1] += attempts


def _audit_event(record: Record) -> usage_pb2.AuditEvent:
    try:
        entry = from_record(record)
    except msgspec.MsgspecError:
        # Written by a newer version: what the columns tell is true all the same.
        who, subject, detail = Principal(user=record.user, role=Role(record.role), tenant=record.tenant), "", "{}"
    else:
        who, subject = entry.principal, about(entry.event)[1]
        detail = json.dumps(_shown(msgspec.to_builtins(entry.event)), ensure_ascii=True)
    return usage_pb2.AuditEvent(
        sequence=record.seq,
        time=convert.timestamp(record.at_ms),
        principal=convert.principal(who),
        request_id=record.request_id,
        kind=record.kind,
        subject=subject,
        detail_json=detail,
    )


def _denial_event(denial: Denial) -> usage_pb2.AuditEvent:
    event = usage_pb2.AuditEvent(
        time=convert.timestamp(denial.at_ms),
        kind="Denied",
        subject=denial.rpc,
        detail_json=json.dumps({"detail": denial.detail}),
        reason=denial.reason,
    )
    event.principal.user, event.principal.role, event.principal.tenant = denial.user, denial.role, denial.tenant
    return event


def _shown(value: Any) -> Any:
    """An event as builtins, without what no audit shows and without bulk."""
    if isinstance(value, dict):
        return {
            key: each if key in _PEOPLES_KEYS else _shown(each) for key, each in value.items() if key not in _HIDDEN
        }
    if isinstance(value, list | tuple):
        more = [f"... {len(value) - _ITEMS_MAX} more"] if len(value) > _ITEMS_MAX else []
        return [_shown(each) for each in value[:_ITEMS_MAX]] + more
    if isinstance(value, str) and len(value) > _TEXT_MAX_CHARS:
        return f"{value[:_TEXT_MAX_CHARS]}... {len(value) - _TEXT_MAX_CHARS} characters more"
    return value
