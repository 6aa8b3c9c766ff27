"""A scheduler's side of the agent wire, played by a test: it grants leases, gives orders, and keeps what it hears.

Runs on a free port of the loopback, without TLS. `sessions` holds what every session said, in order; `switches` make
it refuse sessions, stop granting, or answer as the leader of another term.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from gpushare.errors import GpushareError, to_status
from gpushare.v1 import agent_pb2, agent_pb2_grpc, job_pb2

NODE = "n1"
JOIN_SECRET = "gpj_" + "s" * 43
TOKEN = "gps_" + "t" * 43
STATES = job_pb2.AttemptState


@dataclass
class Switches:
    """How this scheduler behaves; changed by tests at any time."""

    term: int = 1
    lease_ttl_ms: int = 15_000
    grants: bool = True
    refuse_session: GpushareError | None = None
    refuse_enroll: GpushareError | None = None
    forgets: bool = False
    takes_attempt_reports: bool = False


@dataclass
class Session:
    """One session of the agent: what it said, and the way to order it about."""

    call: Any
    hello: agent_pb2.Hello
    sync: agent_pb2.Sync | None = None
    reports: list[agent_pb2.AttemptReport] = field(default_factory=list)
    # how many reports each message had
    report_counts: list[int] = field(default_factory=list)
    gpu_reports: list[agent_pb2.GpuReport] = field(default_factory=list)
    renewals: list[int] = field(default_factory=list)
    over: bool = False
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def order(self, **message: Any) -> None:
        """Send one message, e.g. `order(start_attempt=...)`."""
        async with self._writing:
            await self.call.write(agent_pb2.SchedulerMessage(**message))


class FakeScheduler(agent_pb2_grpc.AgentServiceServicer):
    """Use as an async context manager; `address` is where it listens."""

    def __init__(self, switches: Switches | None = None, port: int = 0) -> None:
        self.switches = switches or Switches()
        self.sessions: list[Session] = []
        self.tokens: list[str] = []
        self.enrolled: list[agent_pb2.EnrollRequest] = []
        self.chunks: dict[str, list[agent_pb2.LogChunk]] = defaultdict(list)
        self.ack_bytes = True
        self._changed = asyncio.Condition()
        self._port = port
        self._server: grpc.aio.Server | None = None
        self.address = ""

    async def __aenter__(self) -> FakeScheduler:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self.address = f"127.0.0.1:{self._port}"
        await self._server.start()

    async def stop(self) -> None:
        """As if the process had died: connections break at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    # -- what tests wait for

    async def until(self, condition: Callable[[], object], within_s: float = 15.0) -> None:
        """Wait until the condition holds of what was heard; TimeoutError with what was heard last if it never does."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: bool(condition())), within_s)
            except TimeoutError:
                raise TimeoutError(f"not within {within_s} s; heard: {self.summary()}") from None

    def summary(self) -> str:
        """For a failed test's message."""
        parts = [f"{len(self.sessions)} sessions"]
        for session in self.sessions[-1:]:
            parts += [f"{r.attempt_id} {STATES.Name(r.state)} {r.reason} {r.detail}" for r in session.reports[-5:]]
            parts += [
                f"{c.uuid} {c.state} {c.reason} {c.detail}" for g in session.gpu_reports[-3:] for c in g.conditions
            ]
        return "; ".join(parts)

    @property
    def session(self) -> Session:
        """The newest one."""
        return self.sessions[-1]

    async def synced(self, number: int = 1) -> Session:
        """Session `number` (from 1), once it has sent its Sync."""
        await self.until(lambda: len(self.sessions) >= number and self.sessions[number - 1].sync is not None)
        return self.sessions[number - 1]

    def last_report(self, attempt_id: str) -> agent_pb2.AttemptReport | None:
        """The newest word on an attempt, in a report or in a Sync."""
        for session in reversed(self.sessions):
            said = [*(session.sync.attempts if session.sync else ()), *session.reports]
            for report in reversed(said):
                if report.attempt_id == attempt_id:
                    return report
        return None

    async def state(self, attempt_id: str, *states: str, within_s: float = 15.0) -> agent_pb2.AttemptReport:
        """The attempt's newest report, once it is in one of these states."""
        wanted = {STATES.Value(f"ATTEMPT_STATE_{state}") for state in states}

        def reached() -> bool:
            report = self.last_report(attempt_id)
            return report is not None and report.state in wanted

        await self.until(reached, within_s)
        report = self.last_report(attempt_id)
        assert report is not None
        return report

    async def condition(
        self, uuid: str, test: Callable[[agent_pb2.GpuCondition], object], within_s: float = 15.0
    ) -> Any:
        """The newest condition of a card, once it passes the test."""

        def newest() -> agent_pb2.GpuCondition | None:
            session = self.session
            said = [*(session.sync.conditions if session.sync else ())]
            said += [condition for report in session.gpu_reports for condition in report.conditions]
            return next((condition for condition in reversed(said) if condition.uuid == uuid), None)

        await self.until(lambda: (found := newest()) is not None and test(found), within_s)
        return newest()

    async def read_logs(self, attempt_id: str, stream: str = "stdout", offset: int = 0, follow: bool = True) -> bytes:
        """All bytes of a read, until its end."""
        read_id = f"read-{len(self.chunks)}-{attempt_id}-{stream}-{offset}"
        self.chunks[read_id] = []
        await self.session.order(
            read_logs=agent_pb2.ReadLogs(
                read_id=read_id,
                attempt_id=attempt_id,
                stream=job_pb2.OutputStream.Value(f"OUTPUT_STREAM_{stream.upper()}"),
                offset=offset,
                follow=follow,
            )
        )
        await self.until(lambda: self.chunks[read_id] and self.chunks[read_id][-1].end)
        return b"".join(chunk.data for chunk in self.chunks[read_id])

    # -- the service

    async def Enroll(self, request: agent_pb2.EnrollRequest, context: Any) -> agent_pb2.EnrollResponse:  # noqa: N802
        self.enrolled.append(request)
        if self.switches.refuse_enroll is not None:
            await context.abort_with_status(to_status(self.switches.refuse_enroll))
        return agent_pb2.EnrollResponse(node=NODE, token=TOKEN)

    async def Session(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        if self.switches.refuse_session is not None:
            await context.abort_with_status(to_status(self.switches.refuse_session))
        first = await context.read()
        session = Session(call=context, hello=first.hello)
        self.sessions.append(session)
        ack = agent_pb2.HelloAck(
            term=self.switches.term,
            lease_ttl_ms=self.switches.lease_ttl_ms,
            node=NODE,
            takes_attempt_reports=self.switches.takes_attempt_reports,
        )
        await session.order(hello_ack=ack)
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await self._hear(session, message)
        finally:
            session.over = True

    async def _hear(self, session: Session, message: agent_pb2.AgentMessage) -> None:
        async with self._changed:
            match message.WhichOneof("message"):
                case "sync":
                    session.sync = message.sync
                case "renewal":
                    session.renewals.append(message.renewal.sequence)
                case "attempt_report":
                    session.reports.append(message.attempt_report)
                    session.report_counts.append(1)
                case "attempt_reports":
                    session.reports += message.attempt_reports.reports
                    session.report_counts.append(len(message.attempt_reports.reports))
                case "gpu_report":
                    session.gpu_reports.append(message.gpu_report)
            self._changed.notify_all()
        if message.WhichOneof("message") == "renewal" and self.switches.grants:
            await session.order(lease_grant=agent_pb2.LeaseGrant(sequence=message.renewal.sequence))
        if message.WhichOneof("message") == "attempt_report" and self.switches.forgets:
            report = message.attempt_report
            if report.state in (
                STATES.ATTEMPT_STATE_SUCCEEDED,
                STATES.ATTEMPT_STATE_FAILED,
                STATES.ATTEMPT_STATE_STOPPED,
            ):
                forget = agent_pb2.ForgetAttempt(attempt_id=report.attempt_id, term=self.switches.term)
                await session.order(forget_attempt=forget)

    async def SendLogs(self, request_iterator: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        while (chunk := await context.read()) is not grpc.aio.EOF:
            async with self._changed:
                self.chunks[chunk.read_id].append(chunk)
                self._changed.notify_all()
            if self.ack_bytes:
                with contextlib.suppress(grpc.aio.BaseError, asyncio.CancelledError):
                    await context.write(agent_pb2.LogAck(bytes=len(chunk.data)))


def start_order(attempt_id: str, *argv: str, **fields: Any) -> agent_pb2.StartAttempt:
    """An order for one CPU task; `fields` override."""
    _, job_id, task, number = attempt_id.split(".")
    settings: dict[str, Any] = {
        "attempt_id": attempt_id,
        "term": 1,
        "job_id": job_id,
        "task_index": int(task),
        "task_count": 1,
        "number": int(number),
        "argv": list(argv),
        "working_directory": "/",
        "cpu_milli": 1000,
        "grace_ms": 2000,
    }
    return agent_pb2.StartAttempt(**{**settings, **fields})
