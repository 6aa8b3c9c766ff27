"""The scheduler's front: all services on one port, and the tasks that stand behind them.

Imports everything of the API. Invariants: every service of `gpushare.v1` is served through the gate; beside them there
is the health service alone, which says SERVING only while this scheduler leads (no reflection); a fault in what is told
to agents or watchers makes these begin anew, it never stops the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from gpushare import rpc
from gpushare.config import SchedulerConfig
from gpushare.core.events import Entry
from gpushare.core.kinds import Power
from gpushare.core.model import TenantSettings
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, error_of, refuse
from gpushare.join import encode_join
from gpushare.reasons import Reason
from gpushare.scheduler.api_agents import AgentApi
from gpushare.scheduler.api_gate import Gate, OpenStreams, only_message, parse
from gpushare.scheduler.api_jobs import JobApi
from gpushare.scheduler.api_nodes import NodeApi
from gpushare.scheduler.api_reservations import ReservationApi
from gpushare.scheduler.api_tenants import TenantApi
from gpushare.scheduler.api_usage import UsageApi
from gpushare.scheduler.auth import Authenticator, Visibility
from gpushare.scheduler.channels import Channels
from gpushare.scheduler.denials import Denials
from gpushare.scheduler.engine import Engine, Projector, Thunk
from gpushare.scheduler.leases import Leases
from gpushare.scheduler.logs import LogReads
from gpushare.scheduler.places import ListTurns
from gpushare.scheduler.power import PowerHooks
from gpushare.scheduler.sessions import Sessions
from gpushare.scheduler.watch import Watches
from gpushare.v1 import agent_pb2, job_pb2, node_pb2, tenant_pb2, usage_pb2

SERVICES: Final[tuple[ServiceDescriptor, ...]] = tuple(
    service
    for file in (job_pb2, tenant_pb2, node_pb2, usage_pb2, agent_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
HEALTH_EVERY_S = 0.25
HEALTH_WATCHES_MAX = 64
HEALTH_ASKING_MAX = 256
_RESTART_S = 1.0

_log = structlog.get_logger(__name__)


class ApiServer:
    """Bind a port to `server` (`rpc.bind`), set `join_address` ("host:port" for join lines), then `start`. `ca_pem` is
    the CA that clients are told to trust, "" without TLS."""

    def __init__(self, engine: Engine, config: SchedulerConfig, *, ca_pem: str) -> None:
        self.join_address = config.advertise or config.listen
        self._engine = engine
        self._ca_pem = ca_pem
        authenticator = Authenticator(lambda: engine.state, engine.now_ms, Visibility(config.visibility))
        self._streams = OpenStreams(authenticator, lambda: engine.state)
        self._denials = Denials(engine)
        self.sessions = Sessions(engine, Leases(engine.settings.lease_ttl_ms, config.recovery_grace_s * 1000))
        engine.set_loads(self.sessions.loads.percent)
        hooks = {Power.DOWN: config.power_down_command, Power.WAKING: config.power_up_command}
        self._power = PowerHooks(engine, hooks, config.power_command_timeout_s, drop=self.sessions.drop)
        list_turns = ListTurns()
        self._watches = Watches(engine, list_turns)
        self._logs = LogReads(self.sessions)
        self._channels = Channels(self.sessions)
        self._health = _Health()
        self.server = rpc.aio_server(message_max_bytes=config.caps.message_max_bytes)
        self._serve(Gate(engine, authenticator, self._denials, self._streams, list_turns), config)
        self._tasks: list[asyncio.Task[None]] = []
        self._attach()

    def join_line(self, secret: str) -> str:
        """What a person pastes: where this scheduler is, whom to trust, and the secret."""
        return encode_join(self.join_address, secret, self._ca_pem)

    async def start(self) -> None:
        await self._tell_health()
        background = {
            "leases": self.sessions.run,
            "logs": self._logs.run,
            "channels": self._channels.run,
            "denials": self._denials.run,
            "power": self._power.run,
            "expiry": self._streams.run,
            "health": self._watch_health,
        }
        self._tasks = [asyncio.create_task(_forever(name, work), name=name) for name, work in background.items()]
        await self.server.start()

    async def stop(self, grace_s: float) -> None:
        """Tells everybody, waits a moment for answers under way, closes the port."""
        await self._health.enter_graceful_shutdown()
        self._streams.end_all(error_of(Reason.NOT_LEADER, "The scheduler is stopping."))
        await self.server.stop(grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._denials.flush()

    def _serve(self, gate: Gate, config: SchedulerConfig) -> None:
        page_max = config.caps.page_max
        fresh = TenantSettings(max_queued_jobs=config.caps.queued_per_tenant)
        servicers: dict[str, object] = {
            "JobService": JobApi(self._engine, self.sessions, self._watches, self._logs, self._channels, page_max),
            "TenantService": TenantApi(self._engine, self.join_line, fresh, page_max),
            "NodeService": NodeApi(self._engine, self.sessions, self.join_line, page_max),
            "ReservationService": ReservationApi(self._engine, page_max),
            "UsageService": UsageApi(self._engine, self._denials, page_max),
            "AgentService": AgentApi(
                self._engine, self.sessions, self._logs, self._channels, config.login_token_ttl_s * 1000
            ),
        }
        self.server.add_generic_rpc_handlers(
            tuple(gate.handlers(service, servicers[service.name]) for service in SERVICES)
        )
        self.server.add_generic_rpc_handlers((self._health.handlers(),))

    def _attach(self) -> None:
        for projector, begin_anew in (
            (self.sessions.project, self.sessions.reset),
            (self._watches.project, self._watches.reset),
            (self._power.project, self._power.reset),
            (self._streams.project, self._end_streams),
        ):
            self._engine.add_projector(_careful(projector, begin_anew))
        self._engine.add_reset_listener(self.sessions.reset)
        self._engine.add_reset_listener(self._watches.reset)
        self._engine.add_reset_listener(self._power.reset)

    def _end_streams(self) -> None:
        self._streams.end_all(error_of(Reason.NOT_LEADER, "The scheduler had to begin anew; connect again."))

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            await self._tell_health()

    async def _tell_health(self) -> None:
        status = health_pb2.HealthCheckResponse
        now = status.SERVING if self._engine.leading else status.NOT_SERVING
        for name in ("", *(service.full_name for service in SERVICES)):
            await self._health.set(name, now)


class _Health(health.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Health for everybody, but only so many calls of it: they need no token. Those that say at once what they ask have
    room for themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._watches = 0
        self._asking = 0

    def handlers(self) -> grpc.GenericRpcHandler:
        """To grpc each takes a stream of messages, as those of the gate."""
        made = health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self._check, response_serializer=made),
                "Watch": grpc.stream_stream_rpc_method_handler(self._watch, response_serializer=made),
            },
        )

    async def _check(self, _requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        asked = await self._asked(context)
        return health_pb2.HealthCheckResponse() if asked is None else await self.Check(asked, context)

    async def _watch(self, _requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        asked = await self._asked(context)
        if asked is None:
            return
        if self._watches >= HEALTH_WATCHES_MAX:
            refuse(context, error_of(Reason.BUSY, "Too many watches of the health; ask with Check instead."))
            return
        self._watches += 1
        try:
            await self.Watch(asked, context)
        finally:
            self._watches -= 1

    async def _asked(self, context: grpc.aio.ServicerContext[Any, Any]) -> health_pb2.HealthCheckRequest | None:
        """None for who was refused."""
        if self._asking >= HEALTH_ASKING_MAX:
            refuse(context, error_of(Reason.BUSY, "Too many calls of the health have not said what they ask."))
            return None
        self._asking += 1
        try:
            return parse(health_pb2.HealthCheckRequest, await only_message(context))
        except GpushareError as err:
            refuse(context, err)
            return None
        finally:
            self._asking -= 1


def _careful(projector: Projector, begin_anew: Thunk) -> Projector:
    """Nothing that goes wrong in telling others may stop the engine; then they are made to ask again."""

    def project(entries: Sequence[Entry], state: ClusterState) -> Thunk | None:
        try:
            thunk = projector(entries, state)
        except Exception as err:
            _log.error("not projected", seq=state.seq, exc_info=err)
            return begin_anew
        return None if thunk is None else lambda: deliver(thunk)

    def deliver(thunk: Thunk) -> None:
        try:
            thunk()
        except Exception as err:
            _log.error("not delivered", exc_info=err)
            begin_anew()

    return project


async def _forever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception as err:
            _log.error("a background task failed and is started again", task=name, exc_info=err)
        await asyncio.sleep(_RESTART_S)
