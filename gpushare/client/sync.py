"""The client for programs without an event loop: `AsyncClient`'s methods, called and iterated the ordinary way.

Imports the asynchronous client. Invariants: all clients of a process share one event loop in one daemon thread,
because grpc wants no second one; a call may come from any thread; an iterator that is dropped is closed at the
scheduler.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from gpushare.client.aio import DEFAULT_TIMEOUT_S, AsyncClient
from gpushare.client.settings import ConnectionSettings

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class _LoopThread:
    """The one event loop of this process's synchronous clients."""

    _lock = threading.Lock()
    _shared: _LoopThread | None = None

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gpushare-client", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> _LoopThread:
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Runs it to its end; an interrupt of the calling thread cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, start: Callable[[], AsyncGenerator[_Result, None]]) -> Iterator[_Result]:
        items = self.run(_started(start))
        try:
            while True:
                try:
                    yield self.run(_next(items))
                except StopAsyncIteration:
                    return
        finally:
            self.run(items.aclose())


async def _started(start: Callable[[], AsyncGenerator[_Result, None]]) -> AsyncGenerator[_Result, None]:
    """Inside the loop, where a connection must be opened."""
    return start()


async def _next(items: AsyncGenerator[_Result, None]) -> _Result:
    return await anext(items)


def _unary(
    method: Callable[Concatenate[AsyncClient, _Args], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[Client, _Args], _Result]:
    @functools.wraps(method)
    def call(self: Client, /, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        return self._thread.run(method(self._client, *args, **kwargs))

    return call


def _items(
    method: Callable[Concatenate[AsyncClient, _Args], AsyncGenerator[_Result, None]],
) -> Callable[Concatenate[Client, _Args], Iterator[_Result]]:
    @functools.wraps(method)
    def call(self: Client, /, *args: _Args.args, **kwargs: _Args.kwargs) -> Iterator[_Result]:
        return self._thread.iterate(lambda: method(self._client, *args, **kwargs))

    return call


class Client:
    """`AsyncClient` without `await`: the same names, arguments, results and errors.

    `with Client(load_settings()) as client: client.create_job(spec)`. Listings, `watch_jobs` and `stream_logs` are
    plain iterators.
    """

    def __init__(self, settings: ConnectionSettings, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._thread = _LoopThread.shared()
        self._client = AsyncClient(settings, timeout_s=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._thread.run(self._client.close())

    create_job = _unary(AsyncClient.create_job)
    batch_create_jobs = _unary(AsyncClient.batch_create_jobs)
    get_job = _unary(AsyncClient.get_job)
    list_jobs = _items(AsyncClient.list_jobs)
    cancel_job = _unary(AsyncClient.cancel_job)
    explain_job = _unary(AsyncClient.explain_job)
    watch_jobs = _items(AsyncClient.watch_jobs)
    wait_jobs = _unary(AsyncClient.wait_jobs)
    stream_logs = _items(AsyncClient.stream_logs)

    get_node = _unary(AsyncClient.get_node)
    list_nodes = _items(AsyncClient.list_nodes)
    cordon_node = _unary(AsyncClient.cordon_node)
    uncordon_node = _unary(AsyncClient.uncordon_node)
    drain_node = _unary(AsyncClient.drain_node)
    declare_node_dead = _unary(AsyncClient.declare_node_dead)
    update_node = _unary(AsyncClient.update_node)
    create_join_token = _unary(AsyncClient.create_join_token)
    plan_repack = _unary(AsyncClient.plan_repack)
    apply_repack = _unary(AsyncClient.apply_repack)

    create_reservation = _unary(AsyncClient.create_reservation)
    list_reservations = _items(AsyncClient.list_reservations)
    delete_reservation = _unary(AsyncClient.delete_reservation)

    create_tenant = _unary(AsyncClient.create_tenant)
    get_tenant = _unary(AsyncClient.get_tenant)
    list_tenants = _items(AsyncClient.list_tenants)
    update_tenant = _unary(AsyncClient.update_tenant)
    delete_tenant = _unary(AsyncClient.delete_tenant)
    preview_quota = _unary(AsyncClient.preview_quota)
    create_token = _unary(AsyncClient.create_token)
    list_tokens = _items(AsyncClient.list_tokens)
    get_own_token = _unary(AsyncClient.get_own_token)
    revoke_token = _unary(AsyncClient.revoke_token)

    get_usage = _unary(AsyncClient.get_usage)
    list_audit_events = _items(AsyncClient.list_audit_events)
