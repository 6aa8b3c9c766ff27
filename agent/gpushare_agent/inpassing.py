"""A blocking call in a thread of its own, for which no end of the agent waits: a dead disk may hold it for ever.

Imports asyncio, queue and threading. A few threads that have come back are kept for the next calls: to start one costs
more than most of what is called. One that is held is simply never lent again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from gpushare_agent.work import Call

T = TypeVar("T")

KEPT_THREADS = 4

_Lane = SimpleQueue[Call]
# what threads wait for that have nothing to do
_idle: list[_Lane] = []


async def in_passing(work: Callable[[], T]) -> T:
    """What `work` returns or raises."""
    call = Call(asyncio.get_running_loop(), work, ())
    _lane().put(call)
    answer: T = await call.answer
    return answer


def _lane() -> _Lane:
    try:
        return _idle.pop()
    except IndexError:
        lane = _Lane()
        threading.Thread(target=_serve, args=(lane,), name="in-passing", daemon=True).start()
        return lane


def _serve(lane: _Lane) -> None:
    while True:
        lane.get().run()
        if len(_idle) >= KEPT_THREADS:
            return
        _idle.append(lane)
