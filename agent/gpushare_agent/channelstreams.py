"""The agent's side of connections on the wire: each has a stream of its own to the scheduler.

Imports grpc, the generated messages and the channels. Invariants: of each way at most `WINDOW_BYTES` are not yet taken,
by the caller's own word or by ours; a connection ends here when the scheduler's side of it ends, whatever the caller
was doing; the one writer of a call is whoever holds its lock.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from gpushare.reasons import Reason
from gpushare.v1 import agent_pb2, job_pb2
from gpushare_agent.channels import ChannelOrder, Channels, LocalEnd, Piece
from gpushare_agent.connections import NotConnected
from gpushare_agent.logs import Window
from gpushare_agent.logstreams import write

WINDOW_BYTES = 256 << 10
PORTION_BYTES = WINDOW_BYTES // 4
CHANNELS_MAX = 90
# What the process has not read yet: an end of input counts no bytes, so that messages are counted, too.
FRAMES_MAX = 4096
# How long the scheduler may take to hang up after our last word.
GOODBYE_S = 10.0


class ChannelStreams:
    """The connections of one session."""

    def __init__(self, stub: Any, metadata: tuple[tuple[str, str], ...], channels: Channels, log: Any) -> None:
        self._stub = stub
        self._metadata = metadata
        self._channels = channels
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def tasks(self) -> list[asyncio.Task[None]]:
        """Connections that are open."""
        return list(self._tasks.values())

    def begin(self, message: agent_pb2.OpenChannel) -> None:
        """Open one. More than the scheduler should ask for are passed over; it hears nothing and gives up."""
        order = _order(message)
        if order.channel_id in self._tasks or len(self._tasks) >= CHANNELS_MAX:
            return
        task = asyncio.create_task(self._serve(order), name=f"channel-{order.channel_id}")
        self._tasks[order.channel_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(order.channel_id, None))

    def close(self, channel_id: str) -> None:
        """Nobody waits for it any more."""
        task = self._tasks.get(channel_id)
        if task is not None:
            task.cancel()

    async def _serve(self, order: ChannelOrder) -> None:
        call = self._stub.Channel(metadata=self._metadata)
        try:
            try:
                end = await self._channels.open(order)
            except NotConnected as refused:
                await write(call, _refusal(order, refused))
                await _until_hung_up(call)
                return
            try:
                await _Conversation(call, order, end).run()
            finally:
                await end.close()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            # The caller has gone, or the session is ending: nobody waits for the rest.
            return
        except Exception as error:
            self._log.error("a connection failed", attempt=order.attempt_id, kind=order.kind, why=repr(error))
        finally:
            call.cancel()


class _Conversation:
    """One open connection, from its opening to whichever end ends it first."""

    def __init__(self, call: Any, order: ChannelOrder, end: LocalEnd) -> None:
        self._call = call
        self._order = order
        self._end = end
        self._window = Window(WINDOW_BYTES)
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        opened = self._end.opened
        await self._say(
            job_pb2.ConnectResponse(
                opened=job_pb2.ConnectionOpened(
                    pty=opened.pty,
                    takes_input=opened.takes_input,
                    stdout_bytes=opened.stdout_bytes,
                    stderr_bytes=opened.stderr_bytes,
                )
            ),
            self._order.channel_id,
        )
        # What comes in is taken apart from what waits for the process to read it: an acknowledgement must not wait.
        inbox: asyncio.Queue[job_pb2.ConnectRequest] = asyncio.Queue(FRAMES_MAX)
        listening = asyncio.create_task(self._listen(inbox))
        feeding = asyncio.create_task(self._feed(inbox))
        speaking = asyncio.create_task(self._speak())
        tasks = (listening, feeding, speaking)
        try:
            await asyncio.wait((listening, speaking), return_when=asyncio.FIRST_COMPLETED)
            if speaking.done():
                await speaking
                await asyncio.wait((listening,), timeout=GOODBYE_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, inbox: asyncio.Queue[job_pb2.ConnectRequest]) -> None:
        """Until the scheduler hangs up, or more is said than the inbox holds."""
        while (message := await self._call.read()) is not grpc.aio.EOF:
            request = message.request
            match request.WhichOneof("message"):
                case "taken_bytes":
                    self._window.confirmed(max(0, request.taken_bytes))
                case "window":
                    self._end.resize(request.window.rows, request.window.columns)
                case "input" if not request.input:
                    continue
                case _ if inbox.full():
                    refused = NotConnected(Reason.INVALID_FIELD, f"more than {FRAMES_MAX} messages are not yet taken")
                    async with self._writing:
                        await write(self._call, _refusal(self._order, refused))
                    await _until_hung_up(self._call)
                    return
                case _:
                    inbox.put_nowait(request)

    async def _feed(self, inbox: asyncio.Queue[job_pb2.ConnectRequest]) -> None:
        taken_bytes = 0
        try:
            while True:
                request = await inbox.get()
                match request.WhichOneof("message"):
                    case "input":
                        await self._end.write(request.input)
                        taken_bytes += len(request.input)
                    case "end_of_input":
                        self._end.end_input()
                if taken_bytes >= PORTION_BYTES or (taken_bytes and inbox.empty()):
                    await self._say(job_pb2.ConnectResponse(taken_bytes=taken_bytes))
                    taken_bytes = 0
        except NotConnected as refused:
            async with self._writing:
                await write(self._call, _refusal(self._order, refused))

    async def _speak(self) -> None:
        try:
            async with aclosing(self._end.pieces()) as pieces:
                async for piece in pieces:
                    await self._say(_response(piece))
                    if piece.data:
                        await self._window.sent(len(piece.data), None)
        except NotConnected as refused:
            async with self._writing:
                await write(self._call, _refusal(self._order, refused))

    async def _say(self, response: job_pb2.ConnectResponse, channel_id: str = "") -> None:
        async with self._writing:
            await write(self._call, agent_pb2.ChannelOutput(channel_id=channel_id, response=response))


async def _until_hung_up(call: Any) -> None:
    async with asyncio.timeout(GOODBYE_S):
        while await call.read() is not grpc.aio.EOF:
            pass


def _order(message: agent_pb2.OpenChannel) -> ChannelOrder:
    start = message.start
    window = start.exec.window if start.HasField("exec") else start.attach.window
    return ChannelOrder(
        channel_id=message.channel_id,
        attempt_id=message.attempt_id,
        term=message.term,
        kind=start.WhichOneof("kind") or "attach",
        argv=tuple(start.exec.argv),
        pty=start.exec.pty,
        terminal=start.exec.term,
        rows=window.rows,
        columns=window.columns,
        port=start.forward.port,
    )


def _response(piece: Piece) -> job_pb2.ConnectResponse:
    if piece.end:
        return job_pb2.ConnectResponse(end=job_pb2.ConnectionEnd(exit_code=piece.exit_code))
    if piece.is_error:
        return job_pb2.ConnectResponse(error_output=piece.data)
    return job_pb2.ConnectResponse(output=piece.data)


def _refusal(order: ChannelOrder, refused: NotConnected) -> agent_pb2.ChannelOutput:
    return agent_pb2.ChannelOutput(
        channel_id=order.channel_id, error_reason=str(refused.reason), error_detail=refused.detail
    )
