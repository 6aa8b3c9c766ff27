"""Tokens for people on the word of their host: the shell of `core.decide_logins`.

Imports the gate, the engine and the token functions. Invariants: the secret leaves once, in the answer; neither a host
nor a person can have the scheduler write more than a little, whatever is asked for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

import structlog

from gpushare.core.commands import Call, IssueLoginToken, Outcome
from gpushare.core.model import Principal
from gpushare.core.state import ClusterState
from gpushare.errors import error_of
from gpushare.ratelimit import RateLimit
from gpushare.reasons import Reason
from gpushare.scheduler import convert, tokens
from gpushare.scheduler.api_gate import commit
from gpushare.scheduler.engine import Engine
from gpushare.v1 import agent_pb2

# A host full of people who all come at nine, and one person there who starts much at once.
NODE_BURST: Final = 300
NODE_PER_S: Final = 5.0
PERSON_BURST: Final = 200
PERSON_PER_S: Final = 0.5

_log = structlog.get_logger(__name__)


class LoginTokens:
    """Issues them, to agents alone; each holds for `ttl_ms`."""

    def __init__(self, engine: Engine, ttl_ms: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._ttl_ms = ttl_ms
        self._clock_s = clock_s
        self._nodes = RateLimit(NODE_BURST, NODE_PER_S)
        self._people = RateLimit(PERSON_BURST, PERSON_PER_S)

    async def issue(
        self, request: agent_pb2.IssueLoginTokenRequest, agent: Principal
    ) -> agent_pb2.IssueLoginTokenResponse:
        """Raises HOST_NOT_TRUSTED, LOGIN_UNMAPPED, TENANT_AMBIGUOUS, LOGIN_DENIED, BUSY or INVALID_FIELD."""
        self._check_rate(agent.node, request.unix_user)
        secret = tokens.new_token()
        token_id = secrets.token_hex(8)
        command = IssueLoginToken(
            node=agent.node,
            unix_user=request.unix_user,
            groups=tuple(request.groups),
            tenant=request.tenant.removeprefix("tenants/"),
            token_id=token_id,
            sha256=tokens.token_sha256(secret),
            ttl_ms=self._ttl_ms,
        )

        def principal_of(state: ClusterState, outcome: Outcome) -> Principal:
            return state.tokens[token_id].principal

        who = await commit(self._engine, command, Call(principal=agent, method="IssueLoginToken"), principal_of)
        _log.info("login token issued", node=agent.node, user=who.user, tenant=who.tenant, token=token_id)
        return agent_pb2.IssueLoginTokenResponse(
            secret=secret, ttl=convert.duration(self._ttl_ms), user=who.user, tenant=who.tenant
        )

    def _check_rate(self, node: str, unix_user: str) -> None:
        now_s = self._clock_s()
        if not self._nodes.allows(node, now_s):
            raise error_of(Reason.BUSY, f"Host {node} asks for too many tokens.", what_to_do="Try again in a minute.")
        known = self._engine.state.nodes.get(node)
        # A host whose word does not count is refused for that, and spends nothing of a person's.
        trusted = known is not None and known.trust_logins
        if trusted and not self._people.allows((node, unix_user), now_s):
            raise error_of(
                Reason.BUSY,
                "Too many tokens were asked for this account on this host.",
                what_to_do="Try again in a minute.",
            )
