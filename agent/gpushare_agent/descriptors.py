"""Reading and writing non-blocking descriptors in the event loop: terminals, pipes and sockets alike.

Imports asyncio and os. A writer takes its time and never loses order; what its other end no longer reads is thrown
away, because whoever writes has nothing to do with that.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

READ_BYTES = 64 * 1024


class Outlets:
    """Several descriptors read as one, each with a mark; they are closed at their ends, or by `close`."""

    def __init__(self, marks: Mapping[int, bool]) -> None:
        self._marks = dict(marks)
        self._ready = asyncio.Event()
        for fd in self._marks:
            os.set_blocking(fd, False)

    async def next(self, over: asyncio.Future[int], linger_s: float) -> tuple[bool, bytes] | None:
        """(mark, bytes), or None at the end of all; or where nothing came for `linger_s` although it is `over`: a
        process in the background may hold on to what it inherited for ever."""
        while True:
            found = self._read()
            if found is not None or not self._marks:
                return found
            if not await self._until_readable(over, linger_s):
                return None

    def close(self) -> None:
        for fd in list(self._marks):
            self._drop(fd)

    def _read(self) -> tuple[bool, bytes] | None:
        for fd, mark in list(self._marks.items()):
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""  # a terminal's or a broken connection's way to say that it is over
            if data:
                # the others are read before this one again
                self._marks[fd] = self._marks.pop(fd)
                return mark, data
            self._drop(fd)
        return None

    async def _until_readable(self, over: asyncio.Future[int], linger_s: float) -> bool:
        loop = asyncio.get_running_loop()
        self._ready.clear()
        for fd in self._marks:
            loop.add_reader(fd, self._ready.set)
        waiting = asyncio.ensure_future(self._ready.wait())
        try:
            was_over = over.done()
            waited: set[asyncio.Future[Any]] = {waiting} if was_over else {waiting, over}
            await asyncio.wait(
                waited,
                timeout=linger_s if was_over else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            return waiting.done() or not was_over
        finally:
            waiting.cancel()
            for fd in self._marks:
                loop.remove_reader(fd)

    def _drop(self, fd: int) -> None:
        del self._marks[fd]
        os.close(fd)


class Inlet:
    """One descriptor written to in order; closed by `close`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._broken = False
        os.set_blocking(fd, False)

    async def write(self, data: bytes) -> None:
        """Returns once all of it was taken, or nobody takes any more."""
        view = memoryview(data)
        while view and not self._broken:
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:
                await self._until_writable()
            except OSError:
                self._broken = True

    def close(self) -> None:
        """Nothing is written from now on."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self._broken = -1, True

    async def _until_writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        fd = self.fd
        loop.add_writer(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(fd)
