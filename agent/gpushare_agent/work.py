"""Blocking calls in a few threads, and tasks that end with their owner.

Imports asyncio, queue and threading. Leaner than a ThreadPoolExecutor under asyncio, of whose two futures and locks a
call costs as much as most of what is called: every attempt makes several.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

THREADS = 8


class Call:
    """One call on its way. `answer` is settled in the loop, whether or not anybody still waits."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        self.loop = loop
        self.function = function
        self.arguments = arguments
        self.answer: asyncio.Future[Any] = loop.create_future()

    def run(self) -> None:
        """In a thread."""
        try:
            result, error = self.function(*self.arguments), None
        except BaseException as err:
            result, error = None, err
        # a loop that is closed has nobody who waits
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(error)


class Work:
    """Of one owner. Threads start with the first calls; they are daemons, for no end waits for a dead disk."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._threads = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Future[Any]] = set()

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a blocking call."""
        call = Call(asyncio.get_running_loop(), function, arguments)
        if self._threads <= len(self._calls) and self._threads < THREADS:
            self._start_thread()
        self._calls.add(call.answer)
        call.answer.add_done_callback(self._calls.discard)
        self._queue.put(call)
        # a caller that is cancelled leaves the call to itself
        result: T = await asyncio.shield(call.answer)
        return result

    def _start_thread(self) -> None:
        """RuntimeError where the host has no thread left and there is none yet to serve the call."""
        try:
            threading.Thread(target=self._serve, name="executor", daemon=True).start()
            self._threads += 1
        except RuntimeError:
            if not self._threads:
                raise

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            call.run()
            del call

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run beside everything else until it is done or `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End the tasks, wait for the threads' calls."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # awaited and not joined: a call that hangs on a dead disk must not stop the loop that is being left
        await asyncio.gather(*self._calls, return_exceptions=True)
        for _ in range(self._threads):
            self._queue.put(None)
        self._threads = 0
