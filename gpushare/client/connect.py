"""A two-way connection to one running task: to its input, to a process beside it, or to a port that it listens on.

Imports grpc.aio, `gpushare.errors` and the messages. Invariants: at most `WINDOW_BYTES` of what was sent are not yet
taken by the other end, and of what came no more than that waits for our caller; a connection is never opened again by
itself, because what it was to may be another process by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from gpushare.client.messages import (
    ConnectionOpened,
    ConnectionStart,
    ConnectRequest,
    ConnectResponse,
    EndOfInput,
    WindowSize,
)
from gpushare.errors import GpushareError, UnavailableError, from_rpc_error
from gpushare.reasons import Reason

WINDOW_BYTES = 256 << 10
CHUNK_BYTES = 64 << 10
PORTION_BYTES = WINDOW_BYTES // 4

# grpc.aio's stream calls have no public type that reads, writes and is cancelled.
StreamCall = Any


class Connection:
    """`async with client.connect(start) as connection`: open inside the block, and ended with it.

    `opened` says to what. One task may send while another iterates over `received`; whoever iterates says with `took`
    how much of the output it has dealt with. Raises GpushareError, at the opening or later, where the connection is
    refused or breaks.
    """

    opened: ConnectionOpened

    def __init__(self, call: StreamCall, start: ConnectionStart, address: str) -> None:
        self.untaken_bytes = 0
        self._taken_bytes = 0
        self._call = call
        self._start = start
        self._address = address
        self._writing = asyncio.Lock()
        self._room = asyncio.Event()
        self._responses: asyncio.Queue[ConnectResponse | GpushareError] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self._error: GpushareError | None = None

    async def __aenter__(self) -> Connection:
        try:
            await self._say(ConnectRequest(start=self._start))
            first = await self._hear()
            if first is None or not first.HasField("opened"):
                raise self._ended()
        except BaseException:
            self._call.cancel()
            raise
        self.opened = first.opened
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more; `untaken_bytes` is what the other end has not taken of it all."""
        for at in range(0, len(data), CHUNK_BYTES):
            chunk = data[at : at + CHUNK_BYTES]
            while self.untaken_bytes + len(chunk) > WINDOW_BYTES and self._error is None:
                self._room.clear()
                await self._room.wait()
            self.untaken_bytes += len(chunk)
            await self._say(ConnectRequest(input=chunk))

    async def end_input(self) -> None:
        """Nothing more is sent; what the other end says still comes."""
        await self._say(ConnectRequest(end_of_input=EndOfInput()))

    async def resize(self, window: WindowSize) -> None:
        await self._say(ConnectRequest(window=window))

    async def received(self) -> AsyncGenerator[ConnectResponse, None]:
        """Output and error output as they come, and the `end` at last."""
        while True:
            response = await self._responses.get()
            if isinstance(response, GpushareError):
                raise response
            yield response
            if response.HasField("end"):
                return

    async def took(self, size_bytes: int) -> None:
        """So much output was dealt with: as much more may come. Told in portions, which never hold up the other end."""
        self._taken_bytes += size_bytes
        if self._taken_bytes >= PORTION_BYTES:
            told = ConnectRequest(taken_bytes=self._taken_bytes)
            self._taken_bytes = 0
            with contextlib.suppress(GpushareError):  # `received` says why
                await self._say(told)

    async def _say(self, request: ConnectRequest) -> None:
        if self._error is not None:
            raise self._error
        try:
            async with self._writing:
                await self._call.write(request)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err, self._address) from err
        except asyncio.InvalidStateError:
            # The call is over; why, its reader is told.
            if self._reading is not None:
                await asyncio.wait((self._reading,))
                raise self._error or self._ended() from None
            await self._hear()
            raise self._ended() from None

    async def _hear(self) -> ConnectResponse | None:
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err, self._address) from err
        return None if response is grpc.aio.EOF else response

    async def _read(self) -> None:
        try:
            while (response := await self._hear()) is not None:
                if response.WhichOneof("message") == "taken_bytes":
                    self.untaken_bytes = max(0, self.untaken_bytes - response.taken_bytes)
                    self._room.set()
                else:
                    self._responses.put_nowait(response)
            self._error = self._ended()
        except GpushareError as err:
            self._error = err
        self._responses.put_nowait(self._error)
        self._room.set()

    def _ended(self) -> GpushareError:
        told = f"The scheduler at {self._address} ended the connection without a reason."
        return UnavailableError(Reason.SCHEDULER_UNREACHABLE, told)
