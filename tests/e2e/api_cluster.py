"""A scheduler for API tests: the real engine on the reference store behind the real gRPC server, in this process.

Tokens of every role are made beside two tenants; `WireAgent` speaks the agents' protocol by hand, so that a test
decides what an agent says and when.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from gpushare import rpc
from gpushare.config import Caps, SchedulerConfig
from gpushare.core.commands import Call, CoreSettings, CreateJoinToken, CreateTenant, CreateToken, EnrollNode
from gpushare.core.kinds import Role
from gpushare.core.model import SYSTEM, TenantSettings
from gpushare.errors import GpushareError, from_rpc_error
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.server import ApiServer
from gpushare.scheduler.tokens import new_token, token_sha256
from gpushare.store.memory import MemoryDisk, MemoryStore
from gpushare.store.port import Store
from gpushare.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    tenant_pb2_grpc,
    usage_pb2_grpc,
)

T = TypeVar("T")
DEADLINE_S = 20.0
STUBS: dict[str, Any] = {
    "JobService": job_pb2_grpc.JobServiceStub,
    "TenantService": tenant_pb2_grpc.TenantServiceStub,
    "NodeService": node_pb2_grpc.NodeServiceStub,
    "ReservationService": node_pb2_grpc.ReservationServiceStub,
    "UsageService": usage_pb2_grpc.UsageServiceStub,
    "AgentService": agent_pb2_grpc.AgentServiceStub,
}
# (name, role, tenant) of the people every cluster has.
PEOPLE = (
    ("root", Role.ADMIN, "vision"),
    ("olga", Role.OPERATOR, ""),
    ("tina", Role.TENANT_ADMIN, "vision"),
    ("ann", Role.USER, "vision"),
    ("bob", Role.USER, "vision"),
    ("vera", Role.VIEWER, "vision"),
    ("nina", Role.USER, "nlp"),
)


class ApiCluster:
    """`jobs`, `tenants`, `nodes`, `usage`, `agents` give the stubs of a person (or of a raw token)."""

    def __init__(self, engine: Engine, server: ApiServer, address: str) -> None:
        self.engine = engine
        self.server = server
        self.address = address
        self.tokens: dict[str, str] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, who: str) -> grpc.aio.Channel:
        if who not in self._channels:
            self._channels[who] = rpc.aio_channel(self.address, token=self.tokens.get(who, who))
        return self._channels[who]

    def stub(self, service: str, who: str) -> Any:
        return STUBS[service](self.channel(who))

    def jobs(self, who: str) -> Any:
        return self.stub("JobService", who)

    def tenants(self, who: str) -> Any:
        return self.stub("TenantService", who)

    def nodes(self, who: str) -> Any:
        return self.stub("NodeService", who)

    def reservations(self, who: str) -> Any:
        return self.stub("ReservationService", who)

    def usage(self, who: str) -> Any:
        return self.stub("UsageService", who)

    def agents(self, who: str) -> Any:
        return self.stub("AgentService", who)

    async def submit(self, who: str = "ann", tenant: str = "vision", **spec: Any) -> job_pb2.Job:
        answer = await self.jobs(who).CreateJob(create(tenant, **spec))
        return answer.jobs[0]

    async def add_token(self, who: str, role: Role, tenant: str, ttl_ms: int | None = None) -> str:
        secret = new_token()
        token_id = f"token{len(self.tokens)}"
        command = CreateToken(token_id, token_sha256(secret), who, role, tenant, ttl_ms=ttl_ms)
        await self.engine.execute(command, Call(SYSTEM))
        self.tokens[who] = secret
        return token_id

    async def enroll(self, node: str) -> None:
        """An agent's token under the node's name."""
        secret = new_token()
        await self.engine.execute(CreateJoinToken(node, f"join-{node}", 60_000), Call(SYSTEM))
        command = EnrollNode(f"join-{node}", f"instance-{node}", uuid.uuid4().hex, token_sha256(secret))
        await self.engine.execute(command, Call(SYSTEM))
        self.tokens[node] = secret

    async def agent(self, node: str, **options: Any) -> WireAgent:
        """An enrolled, connected and synced agent."""
        if node not in self.tokens:
            await self.enroll(node)
        agent = WireAgent(self, node, **options)
        await agent.connect()
        await agent.sync()
        return agent

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


@asynccontextmanager
async def api_cluster(state_dir: Path, store: Store | None = None, **options: Any) -> AsyncIterator[ApiCluster]:
    """`lease_ttl_ms` and `grace_s` set the leases, `wall_ms` is the scheduler's wall clock; `people=False` leaves an
    existing store as it is; `visibility` is that setting; all else are caps."""
    settings = CoreSettings(lease_ttl_ms=options.pop("lease_ttl_ms", 15_000))
    people = options.pop("people", True)
    engine = Engine(
        store or MemoryStore(MemoryDisk()),
        settings,
        wall_ms=options.pop("wall_ms", lambda: time.time_ns() // 1_000_000),
        holder="test",
        reload_backoff_s=0.01,
    )
    config = SchedulerConfig(
        listen="127.0.0.1:0",
        state_dir=state_dir,
        insecure=True,
        recovery_grace_s=options.pop("grace_s", 0),
        visibility=options.pop("visibility", "cluster"),
        caps=Caps(**options),
    )
    await engine.start()
    server = ApiServer(engine, config, ca_pem="")
    address = str(rpc.bind(server.server, config.listen, None))
    server.join_address = address
    await server.start()
    cluster = ApiCluster(engine, server, address)
    try:
        if people:
            for tenant in ("vision", "nlp"):
                await engine.execute(CreateTenant(tenant, TenantSettings()), Call(SYSTEM))
            for who, role, tenant in PEOPLE:
                await cluster.add_token(who, role, tenant)
        yield cluster
    finally:
        await cluster.close()
        await server.stop(0.2)
        await engine.stop()


def create(tenant: str = "vision", **spec: Any) -> job_pb2.CreateJobRequest:
    """A valid request for a quarter of a card; `spec` are fields of JobSpec."""
    fields: dict[str, Any] = {
        "argv": ["true"],
        "working_directory": "/tmp",
        "resources": job_pb2.Resources(gpu_milli=250),
        **spec,
    }
    return job_pb2.CreateJobRequest(
        parent=f"tenants/{tenant}", job=job_pb2.JobSpec(**fields), request_id=uuid.uuid4().hex
    )


class WireAgent:
    """One agent by hand: `sync`, `report` and `renew` say something, `order` waits for what it is told."""

    def __init__(self, cluster: ApiCluster, node: str, **options: Any) -> None:
        self.node = node
        self.cards = options.pop("cards", 1)
        self.hello = agent_pb2.Hello(
            instance_id=options.pop("instance", "i1"),
            boot_id=options.pop("boot", "b1"),
            start_counter=options.pop("counter", 1),
            agent_version="test",
            node=options.pop("says", node),
            takes_order_lists=options.pop("lists", False),
        )
        assert not options, options
        # A channel of its own, so that closing it is the loss of a connection.
        self.channel = rpc.aio_channel(cluster.address, token=cluster.tokens[node])
        self.stub: Any = agent_pb2_grpc.AgentServiceStub(self.channel)
        self.ack = agent_pb2.HelloAck()
        self._told: list[agent_pb2.SchedulerMessage] = []

    async def connect(self) -> None:
        self.call = self.stub.Session()
        await self.call.write(agent_pb2.AgentMessage(hello=self.hello))
        self.ack = (await self._read()).hello_ack

    async def sync(self, **fields: Any) -> None:
        base: dict[str, Any] = {
            "cpu_milli": 64_000,
            "memory_mib": 262_144,
            "containment": "weak",
            "gpus": [card(self.node, place) for place in range(self.cards)],
        }
        await self.call.write(agent_pb2.AgentMessage(sync=agent_pb2.Sync(**{**base, **fields})))

    async def report(self, attempt_id: str, state: str, **fields: Any) -> None:
        told = agent_pb2.AttemptReport(attempt_id=attempt_id, state=f"ATTEMPT_STATE_{state}", **fields)
        await self.call.write(agent_pb2.AgentMessage(attempt_report=told))

    async def renew(self, sequence: int = 1) -> None:
        await self.call.write(agent_pb2.AgentMessage(renewal=agent_pb2.Renewal(sequence=sequence)))

    async def order(self, kind: str) -> Any:
        """The next order of this kind; others that come first are kept."""
        for place, message in enumerate(self._told):
            if message.WhichOneof("message") == kind:
                return getattr(self._told.pop(place), kind)
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while True:
            message = await asyncio.wait_for(self._read(), deadline - asyncio.get_running_loop().time())
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)
            self._told.append(message)

    async def ended(self) -> GpushareError:
        """How the scheduler ended the session."""
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while True:
            try:
                await asyncio.wait_for(self._read(), deadline - asyncio.get_running_loop().time())
            except GpushareError as err:
                return err

    async def run(self, attempt_id: str) -> None:
        await self.report(attempt_id, "RUNNING")

    async def finish(self, attempt_id: str, exit_code: int = 0) -> None:
        state, reason = ("FAILED", "EXIT_CODE") if exit_code else ("SUCCEEDED", "COMPLETED")
        await self.report(attempt_id, state, reason=reason, exit_code=exit_code)

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close()

    async def _read(self) -> agent_pb2.SchedulerMessage:
        try:
            message = await self.call.read()
        except grpc.aio.AioRpcError as err:
            raise from_rpc_error(err) from err
        assert message is not grpc.aio.EOF, "the scheduler ended the session without an error"
        return message


def card(node: str, place: int = 0, **fields: Any) -> agent_pb2.GpuInventory:
    base: dict[str, Any] = {
        "uuid": f"GPU-{node}-{place}",
        "index": place,
        "model": "H100-80GB",
        "total_mib": 81_559,
        "usable_mib": 81_559,
        "simulated": True,
        "tiers": [
            node_pb2.TierOffer(tier="exclusive", enforcement=job_pb2.ENFORCEMENT_HARD),
            node_pb2.TierOffer(tier="timeslice", enforcement=job_pb2.ENFORCEMENT_SOFT),
        ],
    }
    return agent_pb2.GpuInventory(**{**base, **fields})


async def refusal(call: Any) -> GpushareError:
    """How a call was refused; a call that is not refused fails the test."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as err:
        return from_rpc_error(err)
    raise AssertionError("the call was not refused")


async def until(condition: Callable[[], Awaitable[T]], what: str) -> T:
    """The first true answer of `condition`."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        found = await condition()
        if found:
            return found
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))
