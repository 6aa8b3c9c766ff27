"""Two-way connections of people to running tasks, joined to the agents that hold these.

Imports the sessions and the wire's messages. An OpenChannel order goes down the node's session under a channel id; the
agent opens Channel and speaks under that id; what either end says is passed on as it is. Invariants: each way at most
`WINDOW_BYTES` wait for an end that has not said that it took them, and never more than `FRAMES_MAX` messages; an end
that does not even read for `STALL_S` is dropped; an agent can only join what was asked of its own node; when either end
goes, the other is told.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Generic, TypeVar

import grpc

from gpushare import names
from gpushare.core.model import Principal, attempt_parts
from gpushare.errors import RETRY_AFTER_S, GpushareError, error_of, invalid_field
from gpushare.ratelimit import RateLimit
from gpushare.reasons import Reason
from gpushare.scheduler.api_gate import StreamEnd
from gpushare.scheduler.sessions import Session, Sessions
from gpushare.v1 import agent_pb2, job_pb2

WINDOW_BYTES = 256 << 10
#: An end counts bytes and not messages: one message more than the window may be under way.
WINDOW_SLACK_BYTES = 128 << 10
FRAMES_MAX = 4096
STALL_S = 30.0
FIRST_WORD_TIMEOUT_S = 10.0
#: How long an agent may take to open a channel, or to say why not.
OPEN_TIMEOUT_S = 15.0
LOOK_EVERY_S = 1.0
#: An agent's connection for channels carries 100 streams; one more would hang there instead of hearing why.
CHANNELS_PER_NODE_MAX = 90
CHANNELS_PER_USER_MAX = 64
#: Some are left to other tenants.
CHANNELS_PER_TENANT_MAX = 72
#: Each connection is a durable line of the audit, so a person may begin only so many: at once, and a second.
BEGUN_BURST = 120
BEGUN_PER_S = 5.0
EXEC_ARGV_MAX_BYTES = 32 << 10
TERM_MAX_CHARS = 64
TARGET_MAX_CHARS = 200
_PORT_MAX = 65_535

_Frame = TypeVar("_Frame")


class _Way(Generic[_Frame]):
    """One direction of a connection. `put` never waits; `next` waits for the other end."""

    def __init__(self) -> None:
        # When its reader was given what it has not come back for; None while it waits for us.
        self.handed_at: float | None = None
        self._frames: deque[_Frame] = deque()
        self._untaken_bytes = 0
        self._over = False
        self._filled = asyncio.Event()

    def put(self, frame: _Frame, size_bytes: int) -> bool:
        """False for what is beyond the window."""
        self._untaken_bytes += size_bytes
        if self._untaken_bytes > WINDOW_BYTES + WINDOW_SLACK_BYTES or len(self._frames) >= FRAMES_MAX:
            return False
        self._frames.append(frame)
        self._filled.set()
        return True

    def took(self, size_bytes: int) -> None:
        """The reader's end says so; it cannot have taken more than was sent."""
        self._untaken_bytes = max(0, self._untaken_bytes - max(0, size_bytes))

    def finish(self) -> None:
        self._over = True
        self._filled.set()

    async def next(self) -> _Frame | None:
        """None once there is no more."""
        self.handed_at = None
        while not self._frames:
            if self._over:
                return None
            self._filled.clear()
            await self._filled.wait()
        self.handed_at = asyncio.get_running_loop().time()
        return self._frames.popleft()


class _Relay:
    """One connection and, once it came, the agent's stream for it."""

    def __init__(self, node: str, person: str, session: Session, caller: StreamEnd) -> None:
        self.id = secrets.token_hex(8)
        self.node = node
        self.person = person
        self.session = session
        self.joined = False
        # The agent has said its last word; nobody waits for it any more.
        self.ended = False
        self.over = False
        self.to_agent: _Way[job_pb2.ConnectRequest] = _Way()
        self.to_caller: _Way[agent_pb2.ChannelOutput] = _Way()
        self._caller = caller
        self._agent: StreamEnd | None = None

    def join(self, agent: StreamEnd) -> None:
        self.joined = True
        self._agent = agent

    def hear_caller(self, request: job_pb2.ConnectRequest) -> None:
        """Raises INVALID_FIELD for what may not follow, or is too much."""
        kind = request.WhichOneof("message")
        if kind == "start":
            raise invalid_field("start", "a connection has one start")
        if kind == "taken_bytes":
            self.to_caller.took(request.taken_bytes)
        if kind == "window":
            _check_window(request.window, "window")
        if not self.to_agent.put(request, len(request.input)):
            raise invalid_field("input", f"more than {WINDOW_BYTES} bytes, or {FRAMES_MAX} messages, are not yet taken")

    def hear_agent(self, output: agent_pb2.ChannelOutput) -> None:
        """Raises BAD_REPORT for what is too much."""
        response = output.response
        kind = response.WhichOneof("message")
        if kind == "taken_bytes":
            self.to_agent.took(response.taken_bytes)
        self.ended = self.ended or kind == "end" or bool(output.error_reason)
        if not self.to_caller.put(output, len(response.output) + len(response.error_output)):
            raise error_of(Reason.BAD_REPORT, f"More than {WINDOW_BYTES} bytes of a connection are not yet taken.")

    def finish(self) -> None:
        self.over = True
        self.to_agent.finish()
        self.to_caller.finish()

    def fail(self, error: GpushareError) -> None:
        """Tells both ends; what serves them is cancelled."""
        self.over = True
        self._caller.end(error)
        if self._agent is not None:
            self._agent.end(error)

    def stalled(self, now_s: float) -> bool:
        """True where an end holds on to what it was given, and does not come back for more."""
        handed = (self.to_agent.handed_at, self.to_caller.handed_at)
        return any(at is not None and now_s - at > STALL_S for at in handed)


class Channels:
    """All connections under way. `run` drops stalled ones and those whose node is gone."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._relays: dict[str, _Relay] = {}
        self._begun = RateLimit(BEGUN_BURST, BEGUN_PER_S)

    def count(self, who: Principal) -> None:
        """One more connection that is begun. Raises BUSY."""
        if not self._begun.allows(_person(who), asyncio.get_running_loop().time()):
            told = f"You began more than {BEGUN_BURST} connections at once; {BEGUN_PER_S:g} a second are let in."
            raise error_of(Reason.BUSY, told, metadata={RETRY_AFTER_S: "1"})

    def check(self, node: str, who: Principal) -> Session:
        """What `connect` would go through. Raises NODE_UNREACHABLE or BUSY."""
        session = self._sessions.of(node)
        if session is None or not session.synced:
            raise _unreachable(node)
        there = [each.person for each in self._relays.values() if each.node == node]
        if len(there) >= CHANNELS_PER_NODE_MAX:
            raise error_of(
                Reason.BUSY, f"{CHANNELS_PER_NODE_MAX} connections to node {node} are open; try again later."
            )
        if there.count(_person(who)) >= CHANNELS_PER_USER_MAX:
            told = f"You have {CHANNELS_PER_USER_MAX} connections to node {node}; end some of them first."
            raise error_of(Reason.BUSY, told)
        if sum(each.startswith(f"{who.tenant}/") for each in there) >= CHANNELS_PER_TENANT_MAX:
            told = (
                f"Your tenant has {CHANNELS_PER_TENANT_MAX} connections to node {node}; end some, or try again later."
            )
            raise error_of(Reason.BUSY, told)
        return session

    async def connect(
        self,
        node: str,
        order: agent_pb2.OpenChannel,
        requests: AsyncIterator[job_pb2.ConnectRequest],
        who: Principal,
        end: StreamEnd,
    ) -> AsyncGenerator[job_pb2.ConnectResponse, None]:
        """Opens a channel on `node` and passes on what both ends say. Raises NODE_UNREACHABLE, BUSY, or the agent's
        own reason."""
        session = self.check(node, who)
        relay = self._new_relay(node, who, session, end)
        parts = attempt_parts(order.attempt_id)
        assert parts is not None
        order.channel_id, order.term = relay.id, session.term
        session.send(agent_pb2.SchedulerMessage(open_channel=order))
        listening = asyncio.create_task(_listen(relay, requests, end))
        try:
            output = await self._first(relay)
            while output is not None:
                if output.error_reason:
                    raise _agents_error(output, node)
                if output.response.HasField("opened"):
                    output.response.opened.node = node
                    output.response.opened.attempt = parts[2]
                yield output.response
                if output.response.HasField("end"):
                    return
                output = await relay.to_caller.next()
        finally:
            listening.cancel()
            del self._relays[relay.id]
            relay.finish()
            if not session.closed:
                close = agent_pb2.CloseChannel(channel_id=relay.id)
                session.send(agent_pb2.SchedulerMessage(close_channel=close))

    async def join(
        self, node: str, outputs: AsyncIterator[agent_pb2.ChannelOutput], end: StreamEnd
    ) -> AsyncGenerator[agent_pb2.ChannelInput, None]:
        """For Channel of `node`: takes what it says and yields what the caller says, until the caller has gone."""
        first = await anext(outputs, None)
        if first is None:
            return
        relay = self._relays.get(first.channel_id)
        if relay is None or relay.node != node or relay.joined:
            raise error_of(Reason.NOT_FOUND, "No such connection is under way; its caller has gone.")
        relay.join(end)
        relay.hear_agent(first)
        receiving = asyncio.create_task(_receive(relay, outputs))
        try:
            while (request := await relay.to_agent.next()) is not None:
                yield agent_pb2.ChannelInput(request=request)
        finally:
            receiving.cancel()
            if not relay.ended and not relay.over:
                relay.fail(_unreachable(node))

    async def run(self) -> None:
        """Looks after the connections until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now_s = asyncio.get_running_loop().time()
            for relay in list(self._relays.values()):
                if relay.stalled(now_s):
                    relay.fail(error_of(Reason.CONNECTION_STALLED))
                elif relay.session.closed and not relay.joined:
                    relay.fail(_unreachable(relay.node))

    def _new_relay(self, node: str, who: Principal, session: Session, end: StreamEnd) -> _Relay:
        relay = _Relay(node, _person(who), session, end)
        self._relays[relay.id] = relay
        return relay

    async def _first(self, relay: _Relay) -> agent_pb2.ChannelOutput | None:
        try:
            return await asyncio.wait_for(relay.to_caller.next(), OPEN_TIMEOUT_S)
        except TimeoutError:
            raise error_of(
                Reason.NODE_UNREACHABLE,
                f"Node {relay.node} has not opened the connection within {OPEN_TIMEOUT_S:g} s.",
                metadata={"node": relay.node},
            ) from None


async def _listen(relay: _Relay, requests: AsyncIterator[job_pb2.ConnectRequest], end: StreamEnd) -> None:
    """What the caller says, until it has no more to say; it may go on to listen."""
    try:
        async for request in requests:
            relay.hear_caller(request)
    except GpushareError as err:
        end.end(err)
    except grpc.RpcError:
        return


async def _receive(relay: _Relay, outputs: AsyncIterator[agent_pb2.ChannelOutput]) -> None:
    try:
        async for output in outputs:
            if output.channel_id not in ("", relay.id):
                raise invalid_field("channel_id", "one Channel is for one connection")
            relay.hear_agent(output)
            if relay.ended:
                return
    except GpushareError as err:
        relay.fail(err)
    except grpc.RpcError:
        # The agent's connection went; the answering side of the same call ends the relay.
        return


def _person(who: Principal) -> str:
    return f"{who.tenant}/{who.user}"


def _unreachable(node: str) -> GpushareError:
    return error_of(
        Reason.NODE_UNREACHABLE, f"Node {node}, which runs the task, is out of reach.", metadata={"node": node}
    )


def _agents_error(output: agent_pb2.ChannelOutput, node: str) -> GpushareError:
    known = output.error_reason in Reason.__members__
    reason = Reason[output.error_reason] if known else Reason.INTERNAL
    return error_of(reason, f"Node {node}: {output.error_detail[:500] or output.error_reason}")


# -- what a caller asks for


async def first_start(requests: AsyncIterator[job_pb2.ConnectRequest]) -> job_pb2.ConnectionStart:
    """The start of a connection. Raises INVALID_FIELD where it begins otherwise, or not at all."""
    try:
        first = await asyncio.wait_for(anext(requests), FIRST_WORD_TIMEOUT_S)
    except (TimeoutError, StopAsyncIteration) as err:
        raise invalid_field("start", "a connection begins with start") from err
    if first.WhichOneof("message") != "start":
        raise invalid_field("start", "a connection begins with start")
    return first.start


def target_of(start: job_pb2.ConnectionStart) -> tuple[str, str]:
    """(kind, what it is to) as the audit shows it. Raises INVALID_FIELD for a start that cannot be."""
    if start.task_index < 0:
        raise invalid_field("task_index", f"is {start.task_index}; accepted: 0 and above")
    match start.WhichOneof("kind"):
        case "attach":
            _check_window(start.attach.window, "attach.window")
            return "attach", ""
        case "exec":
            return "exec", _exec_target(start.exec)
        case "forward":
            if not 1 <= start.forward.port <= _PORT_MAX:
                raise invalid_field("forward.port", f"is {start.forward.port}; accepted: 1 to {_PORT_MAX}")
            return "forward", str(start.forward.port)
        case _:
            raise invalid_field("start", "names neither attach nor exec nor forward")


def _exec_target(wanted: job_pb2.Exec) -> str:
    size_bytes = sum(len(argument.encode()) + 1 for argument in wanted.argv)
    if not wanted.argv or not wanted.argv[0]:
        raise invalid_field("exec.argv", "is empty; name a command")
    if size_bytes > EXEC_ARGV_MAX_BYTES:
        raise invalid_field("exec.argv", f"has {size_bytes} bytes; accepted: up to {EXEC_ARGV_MAX_BYTES}")
    if any("\0" in argument for argument in wanted.argv):
        raise invalid_field("exec.argv", "holds a NUL, which no argument of a program can")
    if len(wanted.term) > TERM_MAX_CHARS or not (wanted.term.isascii() and wanted.term.isprintable()):
        raise invalid_field("exec.term", f"{names.shown(wanted.term)} is no terminal's name")
    _check_window(wanted.window, "exec.window")
    return " ".join(wanted.argv)[:TARGET_MAX_CHARS]


def _check_window(window: job_pb2.WindowSize, field: str) -> None:
    if not (0 <= window.rows <= names.WINDOW_MAX and 0 <= window.columns <= names.WINDOW_MAX):
        raise invalid_field(field, f"is {window.columns}x{window.rows}; accepted: 1 to {names.WINDOW_MAX} each way")
