"""Blocking calls in threads: a host that has no thread left for a moment costs nothing for good."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gpushare_agent.work import THREADS, Work


class NoThreads:
    """`threading.Thread.start` as of a host at its limit of processes, so long as `is_full`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        start = threading.Thread.start

        def refuse(thread: threading.Thread, *arguments: Any) -> None:
            if self.is_full:
                raise RuntimeError("can't start new thread")
            start(thread, *arguments)

        patch.setattr(threading.Thread, "start", refuse)


def test_calls_that_found_no_thread_leave_the_pool_as_it_was(monkeypatch: pytest.MonkeyPatch):
    host = NoThreads(monkeypatch)

    async def body() -> int:
        work = Work()
        for _ in range(THREADS):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await work.in_thread(len, "lost")
        host.is_full = False
        found = await asyncio.wait_for(work.in_thread(len, "seven77"), 10)
        await asyncio.wait_for(work.close(), 10)
        return found

    assert asyncio.run(body()) == 7


def test_a_thread_that_is_there_serves_the_calls_for_which_there_is_no_other(monkeypatch: pytest.MonkeyPatch):
    host = NoThreads(monkeypatch)

    async def body() -> list[int]:
        work = Work()
        host.is_full = False
        await work.in_thread(len, "one")
        host.is_full = True
        found = await asyncio.wait_for(asyncio.gather(*(work.in_thread(len, "x" * n) for n in range(20))), 10)
        await asyncio.wait_for(work.close(), 10)
        return found

    assert asyncio.run(body()) == list(range(20))
