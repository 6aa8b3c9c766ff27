"""NodeService: the servicer for nodes and their cards.

Imports the gate, the sessions (live figures) and the converters. Capacity is open to everybody who may submit or look;
whose attempts and whose foreign processes sit on a card is told to those who see that tenant's jobs.
"""

from __future__ import annotations

from gpushare.core.commands import (
    ApplyRepack,
    CordonNode,
    CreateJoinToken,
    DeclareNodeDead,
    Outcome,
    SetNode,
    UncordonNode,
)
from gpushare.core.model import Node
from gpushare.core.repack import RepackQuestion
from gpushare.core.state import ClusterState
from gpushare.errors import GpushareError, error_of
from gpushare.reasons import Reason
from gpushare.scheduler import convert, convert_nodes, tokens
from gpushare.scheduler.api_gate import call_of, commit
from gpushare.scheduler.api_paging import PAGE_BYTES_MAX, Place, page_size
from gpushare.scheduler.api_tenants import JoinLine
from gpushare.scheduler.auth import Caller, Reach
from gpushare.scheduler.engine import Engine
from gpushare.scheduler.sessions import Sessions
from gpushare.v1 import node_pb2

JOIN_TTL_MS = 3_600_000


class NodeApi:
    def __init__(self, engine: Engine, sessions: Sessions, join_line: JoinLine, page_max: int) -> None:
        self._engine = engine
        self._sessions = sessions
        self._join_line = join_line
        self._page_max = page_max

    async def get_node(self, request: node_pb2.GetNodeRequest, caller: Caller) -> node_pb2.Node:
        name = convert.parse_node_name(request.name)
        found = await self._engine.read(
            lambda state: self._shown(state.nodes[name], caller) if name in state.nodes else None
        )
        if found is None:
            raise convert.not_found(request.name)
        return found

    async def list_nodes(self, request: node_pb2.ListNodesRequest, caller: Caller) -> node_pb2.ListNodesResponse:
        size = page_size(request.page_size, self._page_max)
        place = Place(caller.rpc, caller.principal, [])
        after = str(place.cursor(request.page_token, (str,))[0]) if request.page_token else ""

        def look(state: ClusterState) -> tuple[list[node_pb2.Node], str]:
            page: list[node_pb2.Node] = []
            last, page_bytes = "", 0
            for name in sorted(name for name in state.nodes if name > after):
                if len(page) == size or page_bytes > PAGE_BYTES_MAX:
                    return page, last
                page.append(self._shown(state.nodes[name], caller))
                page_bytes += page[-1].ByteSize()
                last = name
            return page, ""

        found, last = await self._engine.read(look)
        return node_pb2.ListNodesResponse(nodes=found, next_page_token=place.token([last]) if last else "")

    async def cordon_node(self, request: node_pb2.CordonNodeRequest, caller: Caller) -> node_pb2.Node:
        return await self._change(CordonNode(convert.parse_node_name(request.name), request.detail), request, caller)

    async def uncordon_node(self, request: node_pb2.UncordonNodeRequest, caller: Caller) -> node_pb2.Node:
        return await self._change(UncordonNode(convert.parse_node_name(request.name)), request, caller)

    async def drain_node(self, request: node_pb2.DrainNodeRequest, caller: Caller) -> node_pb2.Node:
        return await self._change(
            CordonNode(convert.parse_node_name(request.name), request.detail, drain=True), request, caller
        )

    async def declare_node_dead(self, request: node_pb2.DeclareNodeDeadRequest, caller: Caller) -> node_pb2.Node:
        return await self._change(DeclareNodeDead(convert.parse_node_name(request.name)), request, caller)

    async def update_node(self, request: node_pb2.UpdateNodeRequest, caller: Caller) -> node_pb2.Node:
        command = SetNode(
            convert.parse_node_name(request.name),
            request.compute_overcommit_milli if request.HasField("compute_overcommit_milli") else None,
            request.trust_logins if request.HasField("trust_logins") else None,
        )
        return await self._change(command, request, caller)

    async def plan_repack(self, request: node_pb2.PlanRepackRequest, caller: Caller) -> node_pb2.RepackPlan:
        now_ms, settings = self._engine.now_ms(), self._engine.settings
        plan = await self._engine.ask(lambda state, brain: RepackQuestion(state, now_ms, settings, brain))
        return convert_nodes.repack_plan(plan)

    async def apply_repack(self, request: node_pb2.ApplyRepackRequest, caller: Caller) -> node_pb2.RepackPlan:
        call = call_of(caller, request)
        keys = ["/".join(convert.parse_job_name(name)) for name in request.jobs]
        return await commit(self._engine, ApplyRepack(tuple(keys)), call, convert_nodes.moves_under_way)

    async def create_join_token(
        self, request: node_pb2.CreateJoinTokenRequest, caller: Caller
    ) -> node_pb2.CreateJoinTokenResponse:
        secret = tokens.new_join_secret()
        sha256 = tokens.token_sha256(secret)
        ttl_ms = convert.duration_ms(request.ttl, "ttl") if request.HasField("ttl") else JOIN_TTL_MS

        def expiry_ms(state: ClusterState, outcome: Outcome) -> int | None:
            made = state.join_tokens.get(sha256)
            return None if made is None else made.expires_ms

        command = CreateJoinToken(request.node, sha256, ttl_ms)
        expires_ms = await commit(self._engine, command, call_of(caller, request), expiry_ms)
        if expires_ms is None:
            raise _shown_before(request.node)
        return node_pb2.CreateJoinTokenResponse(join=self._join_line(secret), expire_time=convert.timestamp(expires_ms))

    async def _change(self, command: _Change, request: _ChangeRequest, caller: Caller) -> node_pb2.Node:
        def view(state: ClusterState, outcome: Outcome) -> node_pb2.Node:
            return self._shown(state.nodes[command.node], caller)

        return await commit(self._engine, command, call_of(caller, request), view)

    def _shown(self, node: Node, caller: Caller) -> node_pb2.Node:
        live = self._sessions.live(node.name)
        full = caller.reach is Reach.ALL
        seen = {a for a in node.attempts if caller.sees_jobs_of(a.partition(".")[0])}
        return convert_nodes.node(
            node,
            last_seen_ms=max(live.seen_ms, node.last_seen_ms),
            clock_skew_ms=live.clock_skew_ms,
            samples=live.samples,
            visible_attempts=seen,
            full=full,
            names_strangers=full or caller.sees_jobs_of(""),
        )


_Change = CordonNode | UncordonNode | DeclareNodeDead | SetNode
_ChangeRequest = (
    node_pb2.CordonNodeRequest
    | node_pb2.UncordonNodeRequest
    | node_pb2.DrainNodeRequest
    | node_pb2.DeclareNodeDeadRequest
    | node_pb2.UpdateNodeRequest
)


def _shown_before(node: str) -> GpushareError:
    return error_of(
        Reason.ALREADY_EXISTS,
        f"This request was done before: its join line for node {node} was in that answer only.",
        what_to_do="If the answer is lost, ask for another line with a new request id.",
    )
