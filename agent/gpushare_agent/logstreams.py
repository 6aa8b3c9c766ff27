"""The agent's side of log reads on the wire: each read has a stream of its own back to the scheduler.

Imports grpc, the generated messages and the log reads. At most 1 MiB of a read is unacknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from gpushare.v1 import agent_pb2, job_pb2
from gpushare_agent.logs import LogOrder, LogPiece, LogReads, Window

WRITE_TIMEOUT_S = 10.0
LOG_WINDOW_BYTES = 1 << 20
LOG_STALL_S = 60.0
READS_MAX = 90

_STREAMS = {job_pb2.OUTPUT_STREAM_STDOUT: "stdout", job_pb2.OUTPUT_STREAM_STDERR: "stderr"}
_STREAM_NUMBERS = {name: number for number, name in _STREAMS.items()}


class LogStreams:
    """The reads of one session, each with a stream of its own back to the scheduler."""

    def __init__(self, stub: Any, metadata: tuple[tuple[str, str], ...], reads: LogReads, log: Any) -> None:
        self._stub = stub
        self._metadata = metadata
        self._reads = reads
        self._log = log
        self._slots = asyncio.Semaphore(READS_MAX)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def tasks(self) -> list[asyncio.Task[None]]:
        """Reads that are under way."""
        return list(self._tasks.values())

    def begin(self, message: agent_pb2.ReadLogs) -> None:
        """Serve one read; an id that is being read already is the same read."""
        order = _log_order(message)
        if order.read_id in self._tasks:
            return
        task = asyncio.create_task(self._serve(order), name=f"read-{order.read_id}")
        self._tasks[order.read_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(order.read_id, None))

    def cancel(self, read_id: str) -> None:
        """The reader has gone."""
        task = self._tasks.get(read_id)
        if task is not None:
            task.cancel()

    async def _serve(self, order: LogOrder) -> None:
        async with self._slots:
            call = self._stub.SendLogs(metadata=self._metadata)
            window = Window(LOG_WINDOW_BYTES)
            acks = asyncio.create_task(_take_acks(call, window))
            try:
                async with contextlib.aclosing(self._reads.read(order)) as pieces:
                    await self._send(call, order, pieces, window, acks)
            except TimeoutError:
                self._log.info("a log reader took nothing for too long", attempt=order.attempt_id, read=order.read_id)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The reader hung up, or the session is ending: either way nobody waits for the rest.
                return
            finally:
                acks.cancel()
                call.cancel()

    async def _send(
        self, call: Any, order: LogOrder, pieces: AsyncIterator[LogPiece], window: Window, acks: asyncio.Task[None]
    ) -> None:
        async for piece in pieces:
            await write(call, _chunk(order, piece))
            await window.sent(len(piece.data), LOG_STALL_S)
            if acks.done():
                return
        await call.done_writing()
        # The last acknowledgement is the scheduler's word that it has the end.
        await asyncio.wait([acks], timeout=LOG_STALL_S)


async def _take_acks(call: Any, window: Window) -> None:
    while (ack := await call.read()) is not grpc.aio.EOF:
        window.confirmed(ack.bytes)


async def write(call: Any, message: Any) -> None:
    """One message. Raises TimeoutError where the other side does not take it."""
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await call.write(message)


def _log_order(message: agent_pb2.ReadLogs) -> LogOrder:
    return LogOrder(
        read_id=message.read_id,
        attempt_id=message.attempt_id,
        stream=_STREAMS.get(message.stream, ""),
        offset=message.offset,
        follow=message.follow,
    )


def _chunk(order: LogOrder, piece: LogPiece) -> agent_pb2.LogChunk:
    return agent_pb2.LogChunk(
        read_id=order.read_id,
        stream=_STREAM_NUMBERS.get(order.stream, job_pb2.OUTPUT_STREAM_UNSPECIFIED),
        offset=piece.offset,
        data=piece.data,
        skipped_bytes=piece.skipped_bytes,
        end=piece.end,
        error_reason=str(piece.error_reason or ""),
        error_detail=piece.error_detail,
    )
