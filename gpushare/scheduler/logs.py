"""Readers of task output, joined to the agents that hold it.

Imports the sessions and the wire's messages. A reader's ReadLogs goes down the node's session under a read id; the
agent opens SendLogs and sends chunks under that id. Invariants: what the reader has not taken is at most `WINDOW_BYTES`
a read, since only what it took is acknowledged; a reader that takes nothing for `STALL_S` is dropped; an agent can only
send for reads that were asked of its own node; when either side goes, the other is told.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime

import grpc

from gpushare.core.model import Principal
from gpushare.errors import GpushareError, error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.scheduler.api_gate import StreamEnd
from gpushare.scheduler.sessions import Session, Sessions
from gpushare.v1 import agent_pb2, job_pb2

WINDOW_BYTES = 1 << 20
#: An agent counts bytes and not messages: a little more than the window may be under way.
WINDOW_SLACK_BYTES = 256 << 10
STALL_S = 30.0
#: How long an agent may take to begin what it can answer at once.
FIRST_CHUNK_S = 15.0
LOOK_EVERY_S = 1.0
#: What an agent serves at once; one more would hang there instead of hearing why. A connection carries 100 streams.
READS_PER_NODE_MAX = 90
#: Of these, what one person may have: `gpushare run` follows up to 32 tasks at once, two streams each.
READS_PER_USER_MAX = 64
#: And one tenant: some are left to others.
READS_PER_TENANT_MAX = 72


class _Read:
    """One reader and, once it came, the agent's stream for it."""

    def __init__(self, node: str, person: str, session: Session, reader: StreamEnd) -> None:
        self.id = secrets.token_hex(8)
        self.node = node
        self.person = person
        self.session = session
        self.joined = False
        self.over = False
        # When the reader was given what it has not come back for; None while it waits for us.
        self.handed_at: float | None = None
        self._reader = reader
        self._agent: StreamEnd | None = None
        self._chunks: deque[agent_pb2.LogChunk] = deque()
        self._held_bytes = 0
        self._taken_bytes = 0
        self._changed = asyncio.Event()

    def join(self, agent: StreamEnd) -> None:
        self.joined = True
        self._agent = agent

    def put(self, chunk: agent_pb2.LogChunk) -> None:
        """A chunk from the agent. Raises BAD_REPORT for one beyond the window."""
        self._held_bytes += len(chunk.data)
        if self._held_bytes > WINDOW_BYTES + WINDOW_SLACK_BYTES:
            raise error_of(Reason.BAD_REPORT, f"More than {WINDOW_BYTES} bytes of log are unacknowledged.")
        self._chunks.append(chunk)
        self._changed.set()

    async def next(self) -> agent_pb2.LogChunk:
        """For the reader: the next chunk; what it got before is now taken."""
        self.handed_at = None
        while not self._chunks:
            await self._wait()
        chunk = self._chunks.popleft()
        self.handed_at = asyncio.get_running_loop().time()
        return chunk

    def took(self, chunk: agent_pb2.LogChunk) -> None:
        self._held_bytes -= len(chunk.data)
        self._taken_bytes += len(chunk.data)
        self._changed.set()

    async def acknowledge(self) -> int:
        """For the agent: bytes taken since the last call; waits for some. 0 once the read is over."""
        while not self._taken_bytes and not self.over:
            await self._wait()
        taken, self._taken_bytes = self._taken_bytes, 0
        return taken

    def finish(self) -> None:
        self.over = True
        self._changed.set()

    def fail(self, error: GpushareError) -> None:
        """Tells both sides."""
        self.over = True
        self._reader.end(error)
        if self._agent is not None:
            self._agent.end(error)
        self._changed.set()

    async def _wait(self) -> None:
        # Woken for either side's sake, so both look again.
        self._changed.clear()
        await self._changed.wait()


class LogReads:
    """All reads under way. `run` drops stalled readers and reads whose node is gone."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._reads: dict[str, _Read] = {}

    async def read(
        self, node: str, order: agent_pb2.ReadLogs, who: Principal, end: StreamEnd
    ) -> AsyncGenerator[job_pb2.StreamLogsResponse, None]:
        """The bytes of one stream of one attempt. Raises NODE_UNREACHABLE, LOGS_GONE, BUSY, LOG_READER_STALLED."""
        session = self._sessions.of(node)
        if session is None or not session.synced:
            raise self._unreachable(node)
        person = f"{who.tenant}/{who.user}"
        there = [each.person for each in self._reads.values() if each.node == node]
        if len(there) >= READS_PER_NODE_MAX:
            raise error_of(Reason.BUSY, f"{READS_PER_NODE_MAX} logs of node {node} are being read; try again later.")
        if there.count(person) >= READS_PER_USER_MAX:
            raise error_of(Reason.BUSY, f"You read {READS_PER_USER_MAX} logs of node {node}; end some of them first.")
        if sum(each.startswith(f"{who.tenant}/") for each in there) >= READS_PER_TENANT_MAX:
            told = (
                f"Your tenant reads {READS_PER_TENANT_MAX} logs of node {node}; end some of them, or try again later."
            )
            raise error_of(Reason.BUSY, told)
        read = _Read(node, person, session, end)
        self._reads[read.id] = read
        order.read_id = read.id
        session.send(agent_pb2.SchedulerMessage(read_logs=order))
        try:
            while True:
                chunk = await self._next(read, follow=order.follow)
                if chunk.error_reason:
                    raise _agents_error(chunk, node)
                if chunk.data or chunk.skipped_bytes:
                    yield job_pb2.StreamLogsResponse(
                        offset=chunk.offset, data=chunk.data, skipped_bytes=chunk.skipped_bytes
                    )
                    read.took(chunk)
                if chunk.end:
                    return
        finally:
            self._reads.pop(read.id, None)
            read.finish()
            if not session.closed:
                cancel = agent_pb2.CancelRead(read_id=read.id)
                session.send(agent_pb2.SchedulerMessage(cancel_read=cancel))

    async def join(
        self, node: str, chunks: AsyncIterator[agent_pb2.LogChunk], end: StreamEnd
    ) -> AsyncGenerator[int, None]:
        """For SendLogs of `node`: takes its chunks and yields how many bytes more were taken by the reader."""
        first = await anext(chunks, None)
        if first is None:
            return
        read = self._reads.get(first.read_id)
        if read is None or read.node != node or read.joined:
            raise error_of(Reason.NOT_FOUND, "No such read is under way; its reader has gone.")
        read.join(end)
        read.put(first)
        receiving = asyncio.create_task(_receive(read, chunks))
        try:
            while taken_bytes := await read.acknowledge():
                yield taken_bytes
        finally:
            receiving.cancel()
            if not read.over:
                read.fail(self._unreachable(node))

    async def run(self) -> None:
        """Looks after the reads until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = asyncio.get_running_loop().time()
            for read in list(self._reads.values()):
                if read.handed_at is not None and now - read.handed_at > STALL_S:
                    read.fail(error_of(Reason.LOG_READER_STALLED))
                elif read.session.closed and not read.joined:
                    read.fail(self._unreachable(read.node))

    async def _next(self, read: _Read, *, follow: bool) -> agent_pb2.LogChunk:
        # Whoever follows may wait long for the first byte; everything else is on the node's disk.
        if follow or read.joined:
            return await read.next()
        try:
            return await asyncio.wait_for(read.next(), FIRST_CHUNK_S)
        except TimeoutError as err:
            raise self._unreachable(read.node) from err

    def _unreachable(self, node: str) -> GpushareError:
        seen_ms = self._sessions.live(node).seen_ms
        since = datetime.fromtimestamp(seen_ms / 1000, UTC).isoformat(timespec="seconds") if seen_ms else "this start"
        return error_of(
            Reason.NODE_UNREACHABLE,
            f"Node {node}, which holds this output, is out of reach since {since}.",
            metadata={"node": node, "since": since},
        )


async def _receive(read: _Read, chunks: AsyncIterator[agent_pb2.LogChunk]) -> None:
    try:
        async for chunk in chunks:
            if chunk.read_id != read.id:
                raise invalid_field("read_id", "one SendLogs is for one read")
            read.put(chunk)
            if chunk.end or chunk.error_reason:
                return
    except GpushareError as err:
        read.fail(err)
    except grpc.RpcError:
        # The agent's connection went; the answering side of the same call ends the read.
        return


def _agents_error(chunk: agent_pb2.LogChunk, node: str) -> GpushareError:
    known = chunk.error_reason in Reason.__members__
    reason = Reason[chunk.error_reason] if known else Reason.INTERNAL
    return error_of(reason, f"Node {node}: {chunk.error_detail[:500] or chunk.error_reason}")
