"""The agent's side of the wire: one session with the scheduler after another, leases, orders in, reports out.

Imports protobuf and grpc, as few modules of the agent may (the import contract names them). Level-based: Hello and
Sync say everything, so nothing has to be remembered of a session that broke. Invariants: a session with a leader of an
older term is not followed; the lease counts from before its renewal was sent; a refusal or a dead scheduler never ends
the agent, because jobs may run; every wait has a limit, and a scheduler that grants nothing for a whole lease counts as
gone.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from gpushare.core.model import GpuCondition, GpuInventory
from gpushare.errors import GpushareError, UnavailableError, from_rpc_error
from gpushare.reasons import Reason
from gpushare.rpc import aio_channel
from gpushare.v1 import agent_pb2, agent_pb2_grpc, job_pb2, node_pb2
from gpushare_agent.channels import Channels
from gpushare_agent.channelstreams import ChannelStreams
from gpushare_agent.core import Refused, Report, ResumeOrder, StartOrder
from gpushare_agent.facts import HelloFacts, SyncFacts
from gpushare_agent.gpus.port import GpuSample
from gpushare_agent.logs import LogReads
from gpushare_agent.logstreams import WRITE_TIMEOUT_S, LogStreams, write
from gpushare_agent.orders import resume_order, start_order
from gpushare_agent.outbox import Outbox
from gpushare_agent.ownaddress import own_address_towards
from gpushare_agent.sharing.watchdog import JobUse

HANDSHAKE_TIMEOUT_S = 10.0
ENROLL_TIMEOUT_S = 10.0
RECONNECT_FIRST_S = 0.05
RECONNECT_MAX_S = 0.8
REFUSED_FIRST_S = 0.5
REFUSED_MAX_S = 15.0
RENEWALS_REMEMBERED = 16
TEXT_MAX_CHARS = 2000
SAY_AGAIN_EVERY_S = 60.0
# Of reports that follow one another closely the later ones wait together: to tell costs both sides more than what is
# told, and a short job may be over before there is need to say that it runs.
REPORTS_APART_S = 0.03
# Below the smallest cap on messages that a scheduler may set.
REPORTS_MAX_BYTES = 32 * 1024

# Answers that another try a moment later will get again: somebody has to do something first.
_PATIENT = frozenset(
    {Reason.UNAUTHENTICATED, Reason.PERMISSION_DENIED, Reason.DUPLICATE_AGENT, Reason.BAD_REPORT, Reason.STALE_TERM}
)

_ENFORCEMENT = {
    "NONE": job_pb2.ENFORCEMENT_UNSPECIFIED,
    "SOFT": job_pb2.ENFORCEMENT_SOFT,
    "SERVER": job_pb2.ENFORCEMENT_SERVER,
    "HARD": job_pb2.ENFORCEMENT_HARD,
}


class Node(Protocol):
    """What a session needs of the agent. No method waits."""

    outbox: Outbox
    reads: LogReads
    channels: Channels

    def hello(self) -> HelloFacts: ...

    def begin_term(self, term: int) -> Refused | None:
        """A leader answered; a refusal means not to follow it."""

    def sync(self) -> SyncFacts: ...

    def start(self, order: StartOrder) -> None: ...

    def stop(self, attempt_id: str, term: int, reason: str, grace_ms: int, detail: str) -> None: ...

    def suspend(self, attempt_id: str, term: int) -> None: ...

    def resume(self, order: ResumeOrder) -> None: ...

    def set_run_limit(self, attempt_id: str, term: int, run_limit_ms: int) -> None: ...

    def seal(self, attempt_id: str, term: int) -> None: ...

    def forget(self, attempt_id: str, term: int) -> None: ...

    def lease_granted(self, deadline_boot_ns: int) -> None: ...

    def renew_every_s(self, ttl_s: float) -> float: ...


class SessionEnd(Exception):
    """The session is over for a reason of our own; another one follows at once."""


def _stub(channel: grpc.aio.Channel) -> Any:
    return agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]


async def enroll(address: str, ca_pem: str, secret: str, instance_id: str) -> tuple[str, str]:
    """Exchanges a join secret for (node name, token). Raises GpushareError."""
    async with aio_channel(address, ca_pem=ca_pem) as channel:
        stub = _stub(channel)
        request = agent_pb2.EnrollRequest(secret=secret, instance_id=instance_id)
        try:
            answer = await stub.Enroll(request, timeout=ENROLL_TIMEOUT_S)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err, address) from err
        return answer.node, answer.token


class Backoff:
    """Pauses between sessions, with jitter: short while the scheduler is away, patient after a refusal."""

    def __init__(self, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._draw = draw
        self._refusals = 0
        self._failures = 0

    def after(self, reason: Reason) -> float:
        """Seconds to wait after a session that failed for this reason."""
        if reason in _PATIENT:
            self._refusals += 1
            ceiling_s = min(REFUSED_FIRST_S * 2 ** (self._refusals - 1), REFUSED_MAX_S)
            return self._draw(ceiling_s / 2, ceiling_s)
        self._refusals = 0
        self._failures += 1
        ceiling_s = min(RECONNECT_FIRST_S * 2**self._failures, RECONNECT_MAX_S)
        return self._draw(RECONNECT_FIRST_S, ceiling_s)

    def connected(self) -> None:
        """A session was accepted."""
        self._refusals = self._failures = 0


class SessionLoop:
    """Keeps one session alive until cancelled. `advertise`: where other nodes reach this one; "": as it reaches out."""

    def __init__(
        self, node: Node, node_name: str, address: str, ca_pem: str, token: str, log: Any, advertise: str = ""
    ) -> None:
        self._node = node
        self._advertise = advertise
        self._node_name = node_name
        self._address = address
        self._ca_pem = ca_pem
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._log = log
        self._backoff = Backoff()
        self._restart = asyncio.Event()
        self._said = ("", 0.0)
        self._containment = ""
        self._takes_reports = False
        self.connected = False

    def restart(self) -> None:
        """The inventory has changed: only a new session's Sync can say so."""
        self._restart.set()

    async def run(self) -> None:
        """Never returns; ends by cancellation alone."""
        while True:
            pause_s = RECONNECT_FIRST_S
            try:
                async with (
                    aio_channel(self._address, ca_pem=self._ca_pem) as channel,
                    # The connections of people have one of their own: it carries only so many streams.
                    aio_channel(self._address, ca_pem=self._ca_pem) as second,
                ):
                    await self._one(_stub(channel), _stub(second))
            except SessionEnd:
                self._log.info("the session is begun anew to tell of changed cards")
            except GpushareError as err:
                self._complain(err)
                pause_s = self._backoff.after(err.reason)
            except OSError as err:
                # This node's own disk: a term that cannot be kept is not followed.
                self._complain(UnavailableError(Reason.INTERNAL, f"This node cannot keep what it must: {err}."))
                pause_s = self._backoff.after(Reason.INTERNAL)
            finally:
                self.connected = False
            await asyncio.sleep(pause_s)

    def _complain(self, err: GpushareError) -> None:
        """Each new trouble once, and again every minute while it lasts."""
        said, at_s = self._said
        now_s = time.monotonic()
        if said == str(err) and now_s - at_s < SAY_AGAIN_EVERY_S:
            return
        self._said = (str(err), now_s)
        self._log.warning(
            "no session with the scheduler, running jobs go on",
            address=self._address,
            reason=str(err.reason),
            why=str(err),
        )

    async def _one(self, stub: Any, second: Any) -> None:
        """One session from Hello to its end. Raises GpushareError or SessionEnd."""
        self._restart.clear()
        call = stub.Session(metadata=self._metadata)
        try:
            ttl_s = await self._shake_hands(call)
            self.connected = True
            self._backoff.connected()
            self._said = ("", 0.0)
            reads = LogStreams(stub, self._metadata, self._node.reads, self._log)
            channels = ChannelStreams(second, self._metadata, self._node.channels, self._log)
            await self._talk(call, ttl_s, reads, channels)
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err, self._address) from err
        except asyncio.InvalidStateError as err:
            # grpc's word for writing on a call that has already ended: how it ended says why.
            raise await self._why_ended(call) from err
        except TimeoutError as err:
            raise self._silent() from err
        finally:
            call.cancel()

    def _silent(self) -> GpushareError:
        said = f"The scheduler at {self._address} stopped answering."
        return UnavailableError(Reason.SCHEDULER_UNREACHABLE, said)

    async def _why_ended(self, call: Any) -> GpushareError:
        """The error of a call that is over. One that does not say so in time counts as a scheduler that is silent."""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                code = await call.code()
                details = await call.details()
                trailing = await call.trailing_metadata()
        except TimeoutError:
            return self._silent()
        initial = grpc.aio.Metadata()
        return from_rpc_error(grpc.aio.AioRpcError(code, initial, trailing, details), self._address)

    async def _shake_hands(self, call: Any) -> float:
        """Hello, HelloAck, Sync. Returns the lease's ttl in seconds."""
        facts = self._node.hello()
        own_address = self._advertise or await own_address_towards(self._address)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await call.write(agent_pb2.AgentMessage(hello=_hello(facts, self._node_name)))
            first = await call.read()
        if first is grpc.aio.EOF:
            raise await self._why_ended(call)
        if first.WhichOneof("message") != "hello_ack":
            raise UnavailableError(Reason.INTERNAL, "The scheduler began its session without an answer to Hello.")
        ack = first.hello_ack
        refused = self._node.begin_term(ack.term)
        if refused is not None:
            raise UnavailableError(
                refused.reason, f"The scheduler at {self._address} is not followed: {refused.detail}."
            )
        if ack.node and ack.node != self._node_name:
            raise UnavailableError(
                Reason.BAD_REPORT,
                f"The scheduler takes this agent for {ack.node}, but it enrolled as {self._node_name}.",
            )
        # No wait between taking the facts and emptying the box: what changes later goes into it again.
        sync = self._node.sync()
        self._containment = sync.containment
        self._takes_reports = ack.takes_attempt_reports
        self._node.outbox.clear()
        await write(call, agent_pb2.AgentMessage(sync=_sync(sync, own_address)))
        self._log.info(
            "in session with the scheduler", address=self._address, term=ack.term, attempts=len(sync.reports)
        )
        ttl_ms: int = max(ack.lease_ttl_ms, 300)
        return ttl_ms / 1000

    async def _talk(self, call: Any, ttl_s: float, reads: LogStreams, channels: ChannelStreams) -> None:
        renewals: dict[int, int] = {}
        jobs = [
            asyncio.create_task(self._write_all(call, ttl_s, renewals), name="session-write"),
            asyncio.create_task(self._read_all(call, ttl_s, renewals, reads, channels), name="session-read"),
            asyncio.create_task(self._until_restart(), name="session-restart"),
        ]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            # The reader knows best why a session ended: the writer only sees that it did.
            for job in sorted(done, key=lambda each: each is not jobs[1]):
                job.result()
        finally:
            await _end_all([*jobs, *reads.tasks(), *channels.tasks()])

    async def _until_restart(self) -> None:
        await self._restart.wait()
        raise SessionEnd

    async def _write_all(self, call: Any, ttl_s: float, renewals: dict[int, int]) -> None:
        """Renewals when they are due, reports as they come; the one writer of the stream."""
        sequence = 0
        renewed_s = told_s = -math.inf
        while True:
            now_s = time.monotonic()
            if now_s >= renewed_s + self._node.renew_every_s(ttl_s):
                sequence += 1
                renewals[sequence] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                renewals.pop(sequence - RENEWALS_REMEMBERED, None)
                await write(call, agent_pb2.AgentMessage(renewal=agent_pb2.Renewal(sequence=sequence)))
                renewed_s = now_s
            batch = self._node.outbox.take()
            for message in self._report_messages(batch.reports):
                await write(call, message)
                told_s = time.monotonic()
            if batch.conditions or batch.samples is not None:
                told = agent_pb2.GpuReport(
                    conditions=[_condition(each) for each in batch.conditions],
                    samples={each.uuid: _sample(each) for each in batch.samples or () if not each.error},
                    attempt_use={each.attempt_id: _use(each) for each in batch.uses},
                )
                await write(call, agent_pb2.AgentMessage(gpu_report=told))
            await self._node.outbox.wait(max(0.0, renewed_s + self._node.renew_every_s(ttl_s) - time.monotonic()))
            too_soon_s = told_s + REPORTS_APART_S - time.monotonic()
            if too_soon_s > 0:
                await asyncio.sleep(too_soon_s)

    def _report_messages(self, reports: Sequence[Report]) -> Iterator[agent_pb2.AgentMessage]:
        """As few as this scheduler understands."""
        told = [_report(report, self._containment) for report in reports]
        if not self._takes_reports or len(told) <= 1:
            yield from (agent_pb2.AgentMessage(attempt_report=each) for each in told)
            return
        together: list[agent_pb2.AttemptReport] = []
        size_bytes = 0
        for each in told:
            if together and size_bytes + each.ByteSize() > REPORTS_MAX_BYTES:
                yield agent_pb2.AgentMessage(attempt_reports=agent_pb2.AttemptReports(reports=together))
                together, size_bytes = [], 0
            together.append(each)
            size_bytes += each.ByteSize()
        yield agent_pb2.AgentMessage(attempt_reports=agent_pb2.AttemptReports(reports=together))

    async def _read_all(
        self, call: Any, ttl_s: float, renewals: dict[int, int], reads: LogStreams, channels: ChannelStreams
    ) -> None:
        """Grants and orders, until the stream ends or no grant has come for a whole lease."""
        granted_s = time.monotonic()
        while True:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + granted_s + ttl_s - time.monotonic()):
                message = await call.read()
            if message is grpc.aio.EOF:
                raise await self._why_ended(call)
            for each in message.order_list.orders if message.HasField("order_list") else (message,):
                if each.HasField("lease_grant"):
                    sent_ns = renewals.pop(each.lease_grant.sequence, None)
                    if sent_ns is not None:
                        granted_s = time.monotonic()
                        self._node.lease_granted(sent_ns + int(ttl_s * 1e9))
                else:
                    self._obey(each, reads, channels)

    def _obey(self, message: agent_pb2.SchedulerMessage, reads: LogStreams, channels: ChannelStreams) -> None:
        match message.WhichOneof("message"):
            case "start_attempt":
                self._node.start(start_order(message.start_attempt))
            case "stop_attempt":
                stop = message.stop_attempt
                self._node.stop(stop.attempt_id, stop.term, stop.reason, stop.grace_ms, stop.detail)
            case "suspend_attempt":
                self._node.suspend(message.suspend_attempt.attempt_id, message.suspend_attempt.term)
            case "resume_attempt":
                self._node.resume(resume_order(message.resume_attempt))
            case "set_run_limit":
                limit = message.set_run_limit
                self._node.set_run_limit(limit.attempt_id, limit.term, limit.max_run_ms)
            case "seal_attempt":
                self._node.seal(message.seal_attempt.attempt_id, message.seal_attempt.term)
            case "forget_attempt":
                self._node.forget(message.forget_attempt.attempt_id, message.forget_attempt.term)
            case "read_logs":
                reads.begin(message.read_logs)
            case "cancel_read":
                reads.cancel(message.cancel_read.read_id)
            case "open_channel":
                channels.begin(message.open_channel)
            case "close_channel":
                channels.close(message.close_channel.channel_id)
            case other:
                # A newer scheduler may say more than we know.
                self._log.warning("message of the scheduler passed over", kind=str(other))


async def _end_all(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=WRITE_TIMEOUT_S)


# -- values <-> messages


def _hello(facts: HelloFacts, node: str) -> agent_pb2.Hello:
    hello = agent_pb2.Hello(
        instance_id=facts.instance_id,
        boot_id=facts.boot_id,
        start_counter=facts.start_counter,
        agent_version=facts.agent_version,
        highest_term=facts.highest_term,
        node=node,
        takes_order_lists=True,
    )
    hello.wall_time.FromMilliseconds(int(time.time() * 1000))
    return hello


def _sync(facts: SyncFacts, own_address: str) -> agent_pb2.Sync:
    return agent_pb2.Sync(
        cpu_milli=facts.cpu_milli,
        memory_mib=facts.memory_mib,
        labels=facts.labels,
        containment=facts.containment,
        driver_version=facts.driver_version,
        gpus=[_gpu(each) for each in facts.gpus],
        conditions=[_condition(each) for each in facts.conditions],
        attempts=[_report(each, facts.containment) for each in facts.reports],
        address=own_address,
        shared_paths=facts.shared_paths,
        warnings=[_text(each) for each in facts.warnings],
    )


def _text(text: str) -> str:
    """What a message can carry: bytes of a file name that are no UTF-8 would fail every Sync from then on."""
    return text[:TEXT_MAX_CHARS].encode(errors="backslashreplace").decode()


def _gpu(card: GpuInventory) -> agent_pb2.GpuInventory:
    return agent_pb2.GpuInventory(
        uuid=card.uuid,
        index=card.index,
        model=card.model,
        total_mib=card.total_mib,
        usable_mib=card.usable_mib,
        simulated=card.simulated,
        domain=card.domain,
        tiers=[
            node_pb2.TierOffer(
                tier=offer.tier,
                enforcement=_ENFORCEMENT[offer.enforcement.name],
                absent_because=offer.absent_because,
                can_suspend=offer.can_suspend,
            )
            for offer in card.tiers
        ],
    )


def _report(report: Report, containment: str) -> agent_pb2.AttemptReport:
    message = agent_pb2.AttemptReport(
        attempt_id=report.attempt_id,
        state=f"ATTEMPT_STATE_{report.state}",
        reason=str(report.reason or ""),
        detail=_text(report.detail),
        exit_code=report.exit_code,
        signal=report.signal,
        containment=containment,
    )
    if report.started_ms is not None:
        message.start_time.FromMilliseconds(report.started_ms)
    if report.ended_ms is not None:
        message.end_time.FromMilliseconds(report.ended_ms)
    return message


def _condition(condition: GpuCondition) -> agent_pb2.GpuCondition:
    return agent_pb2.GpuCondition(
        uuid=condition.uuid,
        state=f"GPU_STATE_{condition.state}",
        reason=condition.reason,
        detail=_text(condition.detail),
        strangers=[
            node_pb2.Stranger(pid=each.pid, user=_text(each.user), memory_mib=each.memory_mib)
            for each in condition.strangers
        ],
    )


def _sample(sample: GpuSample) -> node_pb2.GpuSample:
    message = node_pb2.GpuSample(
        used_mib=sample.used_mib,
        free_mib=sample.free_mib,
        sm_percent=sample.sm_percent,
        power_mw=sample.power_mw,
        energy_mj=sample.energy_mj,
        temperature_c=sample.temperature_c,
    )
    message.sample_time.FromMilliseconds(int(time.time() * 1000))
    return message


def _use(use: JobUse) -> agent_pb2.AttemptUse:
    return agent_pb2.AttemptUse(used_mib=use.used_mib, sm_percent=use.sm_percent)
