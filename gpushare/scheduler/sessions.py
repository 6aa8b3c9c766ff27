"""The agents' sessions: who is connected, what goes to whom and in which order, and who has fallen silent.

Imports the core's orders, the engine, the leases and the converters. One session a node, by the rule that keeps two
agents with one identity apart. Invariants: an order reaches a session only after the entry it follows from is durable,
and in the order of the journal; what was decided before a session's Sync is in the orders that follow it and never
sent twice ahead of them; a session that cannot take more ends, and its agent's next Sync makes good what it missed.
Samples are kept in memory alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import structlog

from gpushare.core.commands import Call, NodeLeaseExpired, NodeLeaseLapsed, NodeSessionClosed
from gpushare.core.events import Entry, NodeDeclaredDead, NodeSilent
from gpushare.core.kinds import Power, Role
from gpushare.core.model import SYSTEM, Attempt, Principal
from gpushare.core.orders import Order, orders_for
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, error_of
from gpushare.reasons import Reason
from gpushare.scheduler import convert_nodes
from gpushare.scheduler.api_gate import StreamEnd
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.leases import Leases, Overdue, Silence
from gpushare.scheduler.loads import Loads
from gpushare.v1 import agent_pb2, node_pb2

OUTGOING_MAX = 10_000
TOGETHER_MAX = 64
LOOK_EVERY_S = 0.5

Outgoing = Order | agent_pb2.SchedulerMessage

_log = structlog.get_logger(__name__)


class Session:
    """One connected agent. `send` never waits; `next_ones` gives what is to go out."""

    def __init__(self, node: str, hello: agent_pb2.Hello, term: int, end: StreamEnd) -> None:
        self.node = node
        self.hello = hello
        self.term = term
        self.closed = False
        # From its Sync's decision on, later orders are its own; earlier ones are in what follows the Sync.
        self.synced = False
        self._end = end
        self._sync_orders: list[Order] = []
        self._outgoing: deque[Outgoing] = deque()
        self._filled = asyncio.Event()

    def describe(self) -> str:
        return _describe(self.hello)

    def decided_sync(self, orders: list[Order]) -> None:
        """Right after the Sync was applied: what it asks for goes ahead of everything later, once that is durable."""
        self.synced = True
        self._sync_orders = orders

    def release_sync(self) -> None:
        """The Sync is durable."""
        orders, self._sync_orders = self._sync_orders, []
        for order in orders:
            self._put(order)

    def send(self, what: Outgoing) -> None:
        self.release_sync()
        self._put(what)

    def end(self, error: GpushareError) -> None:
        self.closed = True
        self._end.end(error)

    async def next_ones(self) -> list[Outgoing]:
        """What is to go out, at least one and at most `TOGETHER_MAX`."""
        while not self._outgoing:
            self._filled.clear()
            await self._filled.wait()
        return [self._outgoing.popleft() for _ in range(min(TOGETHER_MAX, len(self._outgoing)))]

    def _put(self, what: Outgoing) -> None:
        if self.closed:
            return
        if len(self._outgoing) >= OUTGOING_MAX:
            self.end(error_of(Reason.BUSY, f"Node {self.node} takes its orders too slowly; connect and sync again."))
            return
        self._outgoing.append(what)
        self._filled.set()


class NodeLive:
    """What a node's cards and attempts use now."""

    def __init__(self) -> None:
        self.samples: dict[str, node_pb2.GpuSample] = {}
        self.attempt_use: dict[str, agent_pb2.AttemptUse] = {}
        self.seen_ms = 0
        self.clock_skew_ms = 0


class Sessions:
    """All sessions of this scheduler. `project` and `reset` are for the engine, `run` looks after the leases."""

    def __init__(self, engine: Engine, leases: Leases) -> None:
        self.loads = Loads()
        self._engine = engine
        self._leases = leases
        self._lease_ttl_ms = engine.settings.lease_ttl_ms
        self._sessions: dict[str, Session] = {}
        self._live: dict[str, NodeLive] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def of(self, node: str) -> Session | None:
        """The node's session, if it is connected."""
        session = self._sessions.get(node)
        return session if session is not None and not session.closed else None

    def live(self, node: str) -> NodeLive:
        """Samples and when the node was last heard, for display."""
        return self._live.get(node) or NodeLive()

    def open(self, node: str, hello: agent_pb2.Hello, end: StreamEnd) -> Session:
        """The node's session from now on. Raises DUPLICATE_AGENT while another agent holds it."""
        old = self.of(node)
        if old is not None and not self._replaces(hello, old):
            _log.error("two agents with one identity", node=node, connected=old.describe(), refused=_describe(hello))
            raise error_of(
                Reason.DUPLICATE_AGENT,
                f"Node {node} is connected as {old.describe()}; refused: {_describe(hello)}.",
                metadata={"node": node},
            )
        if old is not None:
            old.end(error_of(Reason.DUPLICATE_AGENT, f"The agent of node {node} was started again and took over."))
        session = Session(node, hello, self._engine.term, end)
        self._sessions[node] = session
        self.heard(session)
        self._compare_clocks(node, hello)
        return session

    def _compare_clocks(self, node: str, hello: agent_pb2.Hello) -> None:
        """For people alone: no lease, limit or charge counts by an agent's wall clock."""
        skew_ms = convert_nodes.clock_skew_ms(hello, time.time_ns() // 1_000_000)
        self._live[node].clock_skew_ms = skew_ms
        if skew_ms:
            _log.warning("a node's clock is wrong, or this host's", node=node, ahead_ms=skew_ms)

    def close(self, session: Session) -> None:
        session.closed = True
        if self._sessions.get(session.node) is session:
            del self._sessions[session.node]
            task = asyncio.ensure_future(self._tell_closed(session.node))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell_closed(self, node: str) -> None:
        """In the node's own lane, so that a Sync of its next session comes after it."""
        try:
            await self._engine.execute(NodeSessionClosed(node), Call(Principal(user=node, role=Role.AGENT, node=node)))
        except GpushareError as err:
            _log.info("the end of a session was not noted", node=node, error=str(err))

    def drop(self, node: str) -> None:
        """End its session: an agent that lives connects and syncs anew."""
        session = self.of(node)
        if session is not None:
            session.end(
                error_of(Reason.NODE_UNREACHABLE, f"Node {node} was asleep to the scheduler; connect and sync.")
            )

    def heard(self, session: Session) -> None:
        """A word from the agent: its lease runs from now."""
        self._leases.heard(session.node)
        self._live.setdefault(session.node, NodeLive()).seen_ms = self._engine.now_ms()

    def report_use(self, node: str, report: agent_pb2.GpuReport) -> None:
        """Live figures, of the node's own cards and attempts alone."""
        known = self._engine.state.nodes.get(node)
        if known is None:
            return
        live = self._live.setdefault(node, NodeLive())
        if report.samples:
            live.samples = {uuid: sample for uuid, sample in report.samples.items() if uuid in known.gpus}
            for uuid, sample in live.samples.items():
                if sample.HasField("sm_percent"):
                    self.loads.note(uuid, sample.sm_percent)
            live.attempt_use = {a: use for a, use in report.attempt_use.items() if a in known.attempts}

    def use_of(self, attempt: Attempt) -> agent_pb2.AttemptUse | None:
        """What a live attempt takes now; None while its node is away or has not measured it yet."""
        node = attempt.slice.node
        return self.live(node).attempt_use.get(attempt.id) if attempt.is_live and self.of(node) is not None else None

    def project(self, entries: Sequence[Entry], state: ClusterState) -> Callable[[], None] | None:
        """For the engine: the orders that follow from `entries`, sent once these are durable."""
        outgoing: list[tuple[Session, Order]] = []
        dropped: list[Session] = []
        for entry in entries:
            for order in orders_for(entry, state):
                session = self.of(order.node)
                if session is not None and session.synced:
                    outgoing.append((session, order))
            if isinstance(entry.event, NodeSilent | NodeDeclaredDead):
                session = self.of(entry.event.node)
                if session is not None:
                    dropped.append(session)
        if not outgoing and not dropped:
            return None
        return lambda: _deliver(outgoing, dropped)

    def reset(self) -> None:
        """For the engine: it leads anew, so every agent has to say hello and sync again."""
        error = error_of(Reason.NOT_LEADER, "The scheduler has begun a new term; connect and sync again.")
        for session in list(self._sessions.values()):
            session.end(error)
        self._leases.restart()

    async def run(self) -> None:
        """Declares silent nodes silent, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._engine.leading:
                await self._end_leases(self._leases.look(list(self._engine.state.nodes)))

    async def _end_leases(self, overdue: Iterable[Overdue]) -> None:
        for each in overdue:
            command = NodeLeaseExpired(each.node) if each.silence is Silence.EXPIRED else NodeLeaseLapsed(each.node)
            try:
                await self._engine.execute(command, Call(principal=SYSTEM))
            except GpushareError as err:
                _log.warning("the end of a lease waits", node=each.node, lease=each.silence.value, error=str(err))
                return
            self._leases.done(each)
            node = self._engine.state.nodes.get(each.node)
            if node is not None and node.power is not Power.ON:
                _log.info("node asleep", node=each.node, lease=each.silence.value)
            else:
                _log.warning("node silent", node=each.node, lease=each.silence.value)

    def _replaces(self, hello: agent_pb2.Hello, old: Session) -> bool:
        """The same agent started again replaces its older session at once. Where the older one said nothing for half a
        lease, though renewals come every third, its connection died unnoticed and the same agent may come back;
        another one must wait until the lease is over."""
        silent_ms = self._leases.silent_ms(old.node)
        if hello.instance_id != old.hello.instance_id:
            return silent_ms > self._lease_ttl_ms
        return hello.start_counter > old.hello.start_counter or silent_ms > self._lease_ttl_ms // 2


def _describe(hello: agent_pb2.Hello) -> str:
    return f"instance {hello.instance_id}, boot {hello.boot_id}, start {hello.start_counter}"


def _deliver(outgoing: list[tuple[Session, Order]], dropped: list[Session]) -> None:
    for session, order in outgoing:
        session.send(order)
    for session in dropped:
        session.end(error_of(Reason.NODE_UNREACHABLE, f"The lease of node {session.node} ran out; connect and sync."))
