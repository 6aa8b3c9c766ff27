"""A blocking call in a thread of its own, for which no end of the agent waits: a dead disk may hold it for ever.

Imports asyncio and threading. Not for what is done often: each call costs a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_passing(work: Callable[[], T]) -> T:
    """What `work` returns or raises."""
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as err:
            answer.set_exception(err)

    threading.Thread(target=run, name="in-passing", daemon=True).start()
    return await asyncio.wrap_future(answer)
