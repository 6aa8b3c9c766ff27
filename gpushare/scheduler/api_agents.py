"""AgentService: enrolment, sessions, and the bytes of logs.

Imports the gate, the sessions, the log reads and the converters. No decision is made here: what an agent says becomes
commands, what the core orders becomes messages. Invariants: an agent speaks for the node of its token alone; nothing
that cannot be true is taken over (its node is cordoned with BAD_REPORT instead); at most `IN_FLIGHT_MAX` words of one
agent wait for the store, renewals never do.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial

import structlog

from gpushare.core.commands import Call, CordonNode, EnrollNode, Outcome, ReportAttempt, ReportConditions
from gpushare.core.kinds import Role
from gpushare.core.model import ENDED_ATTEMPT_STATES, SYSTEM, Principal
from gpushare.core.orders import Order, orders_after_sync, stale_order
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.scheduler import convert_nodes, tokens
from gpushare.scheduler.api_gate import StreamEnd, commit
from gpushare.scheduler.auth import Caller
from gpushare.scheduler.channels import Channels
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.logins import LoginTokens
from gpushare.scheduler.logs import LogReads
from gpushare.scheduler.sessions import Outgoing, Session, Sessions
from gpushare.v1 import agent_pb2

IN_FLIGHT_MAX = 256
# Well below what a message may have (4 MiB).
ORDER_LIST_MAX_BYTES = 1 << 20
FIRST_WORD_TIMEOUT_S = 10.0
_INSTANCE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_BOOT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

_log = structlog.get_logger(__name__)


class AgentApi:
    """The servicer. One `_Conversation` a session. `login_ttl_ms` is how long a token on a host's word holds."""

    def __init__(
        self, engine: Engine, sessions: Sessions, logs: LogReads, channels: Channels, login_ttl_ms: int
    ) -> None:
        self._engine = engine
        self._sessions = sessions
        self._logs = logs
        self._channels = channels
        self._logins = LoginTokens(engine, login_ttl_ms)

    async def enroll(self, request: agent_pb2.EnrollRequest, caller: Caller) -> agent_pb2.EnrollResponse:
        """A single-use secret for the token of its node; the node's earlier tokens end."""
        if _INSTANCE_ID.fullmatch(request.instance_id) is None:
            raise invalid_field("instance_id", "accepted: 1 to 128 letters, digits, - and _")
        if not tokens.is_join_secret(request.secret):
            raise error_of(Reason.JOIN_SECRET_INVALID)
        secret_sha256 = tokens.token_sha256(request.secret)
        join = self._engine.state.join_tokens.get(secret_sha256)
        node = join.node if join else ""
        token = tokens.new_token()
        command = EnrollNode(
            secret_sha256=secret_sha256,
            instance_id=request.instance_id,
            token_id=secrets.token_hex(8),
            token_sha256=tokens.token_sha256(token),
        )
        call = Call(principal=Principal(user=node, role=Role.AGENT, node=node), method="Enroll")
        names = await commit(self._engine, command, call, lambda _state, outcome: outcome.names)
        return agent_pb2.EnrollResponse(node=names[0], token=token)

    async def issue_login_token(
        self, request: agent_pb2.IssueLoginTokenRequest, caller: Caller
    ) -> agent_pb2.IssueLoginTokenResponse:
        """For a person of the agent's host."""
        return await self._logins.issue(request, caller.principal)

    async def session(
        self, messages: AsyncIterator[agent_pb2.AgentMessage], caller: Caller, end: StreamEnd
    ) -> AsyncGenerator[agent_pb2.SchedulerMessage, None]:
        """A session, from Hello to its end."""
        hello = await _first_word(messages)
        node = caller.principal.node
        _check_hello(hello, node, self._engine.term)
        session = self._sessions.open(node, hello, end)
        _log.info("session opened", node=node, agent=session.describe())
        conversation = _Conversation(self._engine, self._sessions, session)
        listening = asyncio.create_task(conversation.listen(messages))
        listening.add_done_callback(lambda task: _ended_listening(task, session))
        try:
            yield agent_pb2.SchedulerMessage(
                hello_ack=agent_pb2.HelloAck(
                    term=session.term,
                    lease_ttl_ms=self._engine.settings.lease_ttl_ms,
                    node=node,
                    takes_attempt_reports=True,
                )
            )
            while True:
                for message in _joined(await session.next_ones(), session):
                    yield message
        finally:
            self._sessions.close(session)
            listening.cancel()
            _log.info("session closed", node=node)

    async def send_logs(
        self, chunks: AsyncIterator[agent_pb2.LogChunk], caller: Caller, end: StreamEnd
    ) -> AsyncGenerator[agent_pb2.LogAck, None]:
        """The bytes of one read; acknowledged as its reader takes them."""
        async for taken_bytes in self._logs.join(caller.principal.node, chunks, end):
            yield agent_pb2.LogAck(bytes=taken_bytes)

    def channel(
        self, outputs: AsyncIterator[agent_pb2.ChannelOutput], caller: Caller, end: StreamEnd
    ) -> AsyncGenerator[agent_pb2.ChannelInput, None]:
        """The node's end of one connection."""
        return self._channels.join(caller.principal.node, outputs, end)


def _joined(outgoing: Sequence[Outgoing], session: Session) -> Iterator[agent_pb2.SchedulerMessage]:
    """The same in as few messages as this agent understands: to write one costs more than what is in it."""
    orders: list[agent_pb2.SchedulerMessage] = []
    size_bytes = 0
    for what in outgoing:
        if isinstance(what, agent_pb2.SchedulerMessage):
            message = what
        else:
            message = convert_nodes.order_message(what, session.term)
        size = message.ByteSize()
        if orders and (size_bytes + size > ORDER_LIST_MAX_BYTES or not session.hello.takes_order_lists):
            yield _list_of(orders)
            orders, size_bytes = [], 0
        orders.append(message)
        size_bytes += size
    if orders:
        yield _list_of(orders)


def _list_of(orders: list[agent_pb2.SchedulerMessage]) -> agent_pb2.SchedulerMessage:
    if len(orders) == 1:
        return orders[0]
    return agent_pb2.SchedulerMessage(order_list=agent_pb2.OrderList(orders=orders))


async def _first_word(messages: AsyncIterator[agent_pb2.AgentMessage]) -> agent_pb2.Hello:
    try:
        first = await asyncio.wait_for(anext(messages), FIRST_WORD_TIMEOUT_S)
    except (TimeoutError, StopAsyncIteration) as err:
        raise invalid_field("message", "a session begins with Hello") from err
    if first.WhichOneof("message") != "hello":
        raise invalid_field("message", "a session begins with Hello")
    return first.hello


def _check_hello(hello: agent_pb2.Hello, node: str, term: int) -> None:
    if hello.node and hello.node != node:
        raise error_of(
            Reason.PERMISSION_DENIED, f"The token is node {node}'s, and the agent says that it is another node."
        )
    for field, text in (("instance_id", hello.instance_id), ("boot_id", hello.boot_id)):
        if _BOOT_ID.fullmatch(text) is None:
            raise invalid_field(f"hello.{field}", "accepted: 1 to 128 letters, digits, - and _")
    if not 0 <= hello.start_counter < 2**62:
        raise invalid_field("hello.start_counter", "accepted: 0 to 2^62")
    if hello.highest_term > term:
        raise error_of(
            Reason.STALE_TERM,
            f"The agent has seen term {hello.highest_term}, and this scheduler's is {term}.",
            what_to_do="Another scheduler leads, or this one's database was restored from an old copy.",
        )


def _ended_listening(task: asyncio.Task[None], session: Session) -> None:
    if task.cancelled():
        return
    err = task.exception()
    if isinstance(err, GpushareError):
        session.end(err)
    elif err is not None:
        _log.error("a session's listener failed", node=session.node, exc_info=err)
        session.end(error_of(Reason.INTERNAL, "The scheduler failed here; connect again."))
    else:
        session.end(error_of(Reason.NODE_UNREACHABLE, "The agent closed its session."))


class _Conversation:
    """What one agent says. Words go to the engine in order, without waiting for each to be durable."""

    def __init__(self, engine: Engine, sessions: Sessions, session: Session) -> None:
        self._engine = engine
        self._sessions = sessions
        self._session = session
        self._call = Call(principal=Principal(user=session.node, role=Role.AGENT, node=session.node))
        self._free = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._in_flight: set[asyncio.Task[None]] = set()

    async def listen(self, messages: AsyncIterator[agent_pb2.AgentMessage]) -> None:
        """Until the agent says no more. Raises GpushareError for what ends the session."""
        try:
            async for message in messages:
                if self._session.closed:
                    return
                self._sessions.heard(self._session)
                await self._take(message)
        finally:
            for task in self._in_flight:
                task.cancel()

    async def _take(self, message: agent_pb2.AgentMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "renewal":
            self._renew(message.renewal)
        elif kind == "attempt_report":
            await self._start(partial(self._report, message.attempt_report))
        elif kind == "attempt_reports":
            for report in message.attempt_reports.reports:
                await self._start(partial(self._report, report))
        elif kind == "gpu_report":
            self._sessions.report_use(self._session.node, message.gpu_report)
            if message.gpu_report.conditions:
                await self._start(lambda: self._conditions(message.gpu_report))
        elif kind == "sync":
            await self._start(lambda: self._sync(message.sync))
        elif kind == "hello":
            raise invalid_field("message", "Hello comes once, as the first message")

    def _renew(self, renewal: agent_pb2.Renewal) -> None:
        # Only a leader may extend a lease.
        if self._engine.leading:
            grant = agent_pb2.LeaseGrant(sequence=renewal.sequence)
            self._session.send(agent_pb2.SchedulerMessage(lease_grant=grant))

    async def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        while self._free.locked():
            # The store stands still, not the agent: what it says waits unread.
            self._sessions.heard(self._session)
            await asyncio.wait(self._in_flight, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        await self._free.acquire()
        task = asyncio.ensure_future(self._finish(work))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _finish(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except GpushareError as err:
            if err.reason is Reason.BAD_REPORT:
                await self._quarantine(err)
            self._session.end(err)
        except Exception as err:
            _log.error("an agent's word was not taken", node=self._session.node, exc_info=err)
            self._session.end(error_of(Reason.INTERNAL, "The scheduler failed on this report; connect again."))
        finally:
            self._free.release()

    async def _sync(self, sync: agent_pb2.Sync) -> None:
        session = self._session
        command = convert_nodes.sync_command(session.node, session.hello, sync)

        def after(state: ClusterState, outcome: Outcome) -> None:
            session.decided_sync(orders_after_sync(state, state.nodes[session.node], command.attempts))

        await commit(self._engine, command, self._call, after)
        session.release_sync()
        _log.info("node synced", node=session.node, gpus=len(sync.gpus), attempts=len(sync.attempts))

    async def _conditions(self, report: agent_pb2.GpuReport) -> None:
        command = ReportConditions(self._session.node, convert_nodes.conditions(report.conditions))
        await self._engine.execute(command, self._call)

    async def _report(self, told: agent_pb2.AttemptReport) -> None:
        report = convert_nodes.attempt_report(told)
        ended = report.state in ENDED_ATTEMPT_STATES
        try:
            outcome = await commit(
                self._engine, ReportAttempt(self._session.node, report), self._call, lambda _state, outcome: outcome
            )
        except GpushareError as err:
            if err.reason is not Reason.STALE_ATTEMPT:
                raise
            self._send(stale_order(self._session.node, report.attempt, ended=ended))
            return
        if ended and not outcome.events:
            # The end was known: the agent missed that it may forget.
            self._send(stale_order(self._session.node, report.attempt, ended=True))

    def _send(self, order: Order) -> None:
        if self._session.synced:
            self._session.send(order)

    async def _quarantine(self, err: GpushareError) -> None:
        """No new task starts on a node whose agent says what cannot be true, until a person has looked."""
        _log.error("bad report, node cordoned", node=self._session.node, error=err.message)
        command = CordonNode(self._session.node, detail=err.message[:500], reason=Reason.BAD_REPORT)
        try:
            await self._engine.execute(command, Call(principal=SYSTEM))
        except GpushareError as failed:
            _log.error("node not cordoned", node=self._session.node, error=str(failed))
