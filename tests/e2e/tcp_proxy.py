"""A TCP proxy that a test can cut: connections stay open and nothing passes, as when a cable is pulled."""

from __future__ import annotations

import asyncio
import contextlib


class TcpProxy:
    """Listens on a free port of the loopback and passes everything on to `port`. Use as an async context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._passing = asyncio.Event()
        self._passing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """From now on nothing passes, in either direction, and nobody is told."""
        self._passing.clear()

    def heal(self) -> None:
        """Everything passes again, what was held up first."""
        self._passing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            await self._passing.wait()
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
            with contextlib.closing(onward_writer):
                ways = [
                    asyncio.ensure_future(self._pass(reader, onward_writer)),
                    asyncio.ensure_future(self._pass(onward_reader, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        await self._passing.wait()
