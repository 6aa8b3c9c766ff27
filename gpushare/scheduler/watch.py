"""WatchJobs: every durable change of the jobs that a caller may see, from a point in the journal on.

Imports the engine, the journal, the converters and paging's tokens. A watch begins with the present state of its jobs,
or with those that changed since its resume token, each once and as it is now; after `caught_up` come the changes as
they become durable. Invariants: a token stands for "everything up to this sequence was sent", so the last message of a
sequence alone carries it; the buffer of a watch is bounded, and a reader that falls behind it is told to resume.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, TypeVar

import structlog

from gpushare.core.events import Entry
from gpushare.core.model import Job
from gpushare.core.state import ClusterState
from gpushare.errors import error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.scheduler import convert
from gpushare.scheduler.api_gate import StreamEnd
from gpushare.scheduler.api_paging import Place
from gpushare.scheduler.auth import Caller, JobView, view_of
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.journal import from_record, job_from_history, jobs_touched
from gpushare.scheduler.places import ListTurns
from gpushare.store.port import Store
from gpushare.v1 import job_pb2

BUFFER_MESSAGES_MAX = 20_000
BUFFER_BYTES_MAX = 16 << 20
CHUNK_JOBS = 50
#: A watch that begins with more than these waits for its tenant's turn.
FEW_JOBS = 10
JOURNAL_PAGE = 2_000
#: Further back than this, listing everything is cheaper than reading what happened since.
RESUME_ENTRIES_MAX = 100_000

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class Scope(NamedTuple):
    """What a watch is about: a tenant ("-" for all), and one job or array of it ("" for all)."""

    tenant: str
    job_id: str


class _Change(NamedTuple):
    seq: int
    key: str
    job: job_pb2.Job
    size_bytes: int
    last_of_seq: bool


class _Subscription:
    """One watch's buffer of changes."""

    def __init__(self, scope: Scope, caller: Caller, end: StreamEnd) -> None:
        self.scope = scope
        self.caller = caller
        self._end = end
        self._changes: deque[_Change] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()

    def put(self, changes: Iterable[_Change]) -> None:
        for change in changes:
            self._changes.append(change)
            self._bytes += change.size_bytes
        self._filled.set()
        if len(self._changes) > BUFFER_MESSAGES_MAX or self._bytes > BUFFER_BYTES_MAX:
            self._changes.clear()
            self._bytes = 0
            self._end.end(error_of(Reason.WATCH_TOO_SLOW))

    async def next(self) -> _Change:
        while not self._changes:
            self._filled.clear()
            await self._filled.wait()
        change = self._changes.popleft()
        self._bytes -= change.size_bytes
        return change

    def fail(self, message: str) -> None:
        self._end.end(error_of(Reason.NOT_LEADER, message, what_to_do="Watch again with the last resume token."))


class Watches:
    """All watches. `project` and `reset` are for the engine."""

    def __init__(self, engine: Engine, list_turns: ListTurns) -> None:
        self._engine = engine
        self._list_turns = list_turns
        self._by_scope: dict[Scope, set[_Subscription]] = {}

    # -- for the engine

    def project(self, entries: Sequence[Entry], state: ClusterState) -> Callable[[], None] | None:
        """What the watches are to be told of `entries` once these are durable."""
        if not self._by_scope:
            return None
        news: dict[_Subscription, list[_Change]] = {}
        for key in dict.fromkeys(key for entry in entries for key in jobs_touched(entry.event)):
            job = state.jobs.get(key)
            if job is not None:
                self._tell_of(job, state.seq, news)
        if not news:
            return None
        for changes in news.values():
            changes[-1] = changes[-1]._replace(last_of_seq=True)
        return lambda: _deliver(news)

    def reset(self) -> None:
        """The scheduler leads anew; what was durable is still true, so every watch can resume."""
        for subscription in [s for group in self._by_scope.values() for s in group]:
            subscription.fail("The scheduler has begun a new term.")

    # -- watching

    async def watch(
        self, request: job_pb2.WatchJobsRequest, caller: Caller, end: StreamEnd
    ) -> AsyncGenerator[job_pb2.WatchJobsResponse, None]:
        scope = self._scope(request, caller)
        place = Place(caller.rpc, caller.principal, [scope.tenant, scope.job_id], Reason.RESUME_TOKEN_INVALID)
        with self._subscribed(_Subscription(scope, caller, end)) as subscription:
            begin_seq = await self._engine.read(lambda state: state.seq)
            async with self._turn(caller, is_long=not scope.job_id):
                keys = [
                    key
                    for key in await self._to_tell(request, scope, place, begin_seq)
                    if caller.sees_jobs_of(key.partition("/")[0])
                ]
            told: dict[str, int] = {}
            for first in range(0, len(keys), CHUNK_JOBS):
                async with self._turn(caller, is_long=len(keys) > FEW_JOBS):
                    seq, jobs = await self._present(keys[first : first + CHUNK_JOBS], caller)
                for key, job in jobs:
                    told[key] = seq
                    yield job_pb2.WatchJobsResponse(job=job)
            token = place.token([begin_seq]).encode()
            yield job_pb2.WatchJobsResponse(caught_up=True, resume_token=token)
            newest_told = max(told.values(), default=0)
            while True:
                change = await subscription.next()
                if change.seq > newest_told:
                    told.clear()
                token = place.token([change.seq]).encode() if change.last_of_seq else b""
                # What the first listing already showed in a later state is not shown again in the earlier one.
                if change.seq > told.get(change.key, 0):
                    yield job_pb2.WatchJobsResponse(job=change.job, resume_token=token)

    async def until(self, key: str, caller: Caller, end: StreamEnd, test: Callable[[ClusterState], _T | None]) -> _T:
        """What `test` gives once it is not None, looked at after every durable change of the job `key`."""
        tenant, _, job_id = key.partition("/")
        with self._subscribed(_Subscription(Scope(tenant, job_id), caller, end)) as subscription:
            while True:
                found = await self._engine.read(test)
                if found is not None:
                    return found
                await subscription.next()

    # -- inside

    def _turn(self, caller: Caller, *, is_long: bool) -> AbstractAsyncContextManager[None]:
        return self._list_turns.of(caller.tenant) if is_long else nullcontext()

    def _scope(self, request: job_pb2.WatchJobsRequest, caller: Caller) -> Scope:
        tenant = convert.parse_parent(request.parent, wildcard=True)
        # An id without a tenant means the own one, where there is one.
        if tenant == convert.ALL_TENANTS and (caller.is_of_one_tenant if request.id else caller.is_confined):
            tenant = caller.tenant
        if tenant == convert.ALL_TENANTS:
            if request.id:
                raise invalid_field("id", "name the tenant too: ids are counted per tenant")
            return Scope(tenant, "")
        known = self._engine.state.tenants.get(tenant)
        if known is None or not caller.sees_jobs_of(tenant):
            raise convert.not_found(convert.tenant_name(tenant))
        if request.id and not (convert.is_job_id(request.id) and int(request.id.partition("_")[0]) < known.next_number):
            raise convert.not_found(f"{convert.tenant_name(tenant)}/jobs/{request.id}")
        return Scope(tenant, request.id)

    @contextmanager
    def _subscribed(self, subscription: _Subscription) -> Iterator[_Subscription]:
        group = self._by_scope.setdefault(subscription.scope, set())
        group.add(subscription)
        try:
            yield subscription
        finally:
            group.discard(subscription)
            if not group and self._by_scope.get(subscription.scope) is group:
                del self._by_scope[subscription.scope]

    def _tell_of(self, job: Job, seq: int, news: dict[_Subscription, list[_Change]]) -> None:
        scopes = {
            Scope(convert.ALL_TENANTS, ""),
            Scope(job.tenant, ""),
            Scope(job.tenant, job.id),
            Scope(job.tenant, job.array_id),
        }
        shown: dict[Hashable, _Change] = {}
        for scope in scopes:
            for subscription in self._by_scope.get(scope, ()):
                caller = subscription.caller
                view = view_of(caller, job, listing=True)
                if view is None:
                    continue
                # Whom else's jobs it names goes by tenant and reach; the foreign view names nobody's.
                kind = view if view is JobView.FOREIGN else (view, caller.tenant, caller.reach)
                if kind not in shown:
                    made = self._shown(job, view, caller)
                    shown[kind] = _Change(seq, job.key, made, made.ByteSize(), last_of_seq=False)
                news.setdefault(subscription, []).append(shown[kind])

    def _shown(self, job: Job, view: JobView, caller: Caller) -> job_pb2.Job:
        sees = caller.sees_jobs_of
        return convert.job(job, view, self._engine.now_ms(), self._engine.wait_of(job, sees), sees)

    def _listed(self, jobs: Iterable[Job], caller: Caller) -> dict[str, job_pb2.Job]:
        views = ((job, view_of(caller, job, listing=True)) for job in jobs)
        return {job.key: self._shown(job, view, caller) for job, view in views if view is not None}

    async def _to_tell(
        self, request: job_pb2.WatchJobsRequest, scope: Scope, place: Place, begin_seq: int
    ) -> list[str]:
        """Keys of the jobs that the watch begins with."""
        if request.resume_token:
            token = request.resume_token.decode("ascii", "replace")
            after_seq = place.cursor(token, (int,))[0]
            assert isinstance(after_seq, int)
            if not 0 <= after_seq <= begin_seq:
                raise error_of(Reason.RESUME_TOKEN_INVALID)
            if begin_seq - after_seq <= RESUME_ENTRIES_MAX:
                return await self._changed_since(after_seq, begin_seq, scope)
        return await self._engine.read(lambda state: _keys_in(state, scope))

    async def _changed_since(self, after_seq: int, until_seq: int, scope: Scope) -> list[str]:
        keys: dict[str, None] = {}
        while after_seq < until_seq:
            seq, touched = await self._engine.store_call(partial(_touched, after_seq, until_seq))
            keys.update(dict.fromkeys(key for key in touched if _in_scope(key, scope)))
            after_seq = seq
        return list(keys)

    async def _present(self, keys: list[str], caller: Caller) -> tuple[int, list[tuple[str, job_pb2.Job]]]:
        """The jobs as they are now, and the sequence of "now"; those that left memory from the history."""

        def look(state: ClusterState) -> tuple[int, dict[str, job_pb2.Job]]:
            return state.seq, self._listed((state.jobs[key] for key in keys if key in state.jobs), caller)

        seq, shown = await self._engine.read(look)
        for key in keys:
            if key not in shown:
                tenant, _, job_id = key.partition("/")
                row = await self._engine.store_call(lambda store, t=tenant, j=job_id: store.history_get(t, j))  # type: ignore[misc]
                if row is not None:
                    shown |= self._listed([job_from_history(row)], caller)
        return seq, [(key, shown[key]) for key in keys if key in shown]


def _keys_in(state: ClusterState, scope: Scope) -> list[str]:
    """Keys of the jobs in memory that are in scope, oldest first."""
    if scope.job_id:
        key = f"{scope.tenant}/{scope.job_id}"
        candidates = [key] if key in state.jobs else state.arrays.get(key, [])
    elif scope.tenant == convert.ALL_TENANTS:
        candidates = list(state.jobs)
    else:
        candidates = [key for key, job in state.jobs.items() if job.tenant == scope.tenant]
    return sorted(candidates, key=lambda key: state.jobs[key].submit_seq)


def _in_scope(key: str, scope: Scope) -> bool:
    tenant, _, job_id = key.partition("/")
    if scope.tenant not in (convert.ALL_TENANTS, tenant):
        return False
    return scope.job_id in ("", job_id, job_id.partition("_")[0])


def _touched(after_seq: int, until_seq: int, store: Store) -> tuple[int, list[str]]:
    """Jobs touched by the entries that follow `after_seq`, and how far that looked; runs in a reader thread."""
    records = store.read(after_seq, min(JOURNAL_PAGE, until_seq - after_seq))
    if not records:
        return until_seq, []
    keys = [key for record in records for key in jobs_touched(from_record(record).event)]
    return records[-1].seq, keys


def _deliver(news: dict[_Subscription, list[_Change]]) -> None:
    for subscription, changes in news.items():
        subscription.put(changes)
