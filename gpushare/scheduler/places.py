"""How many calls may be in progress at once, so that nobody takes the places of all; and whose list is made next.

Imports the caller's noun and errors. grpc answers RESOURCE_EXHAUSTED to everybody once `rpc.RPCS_MAX` calls are open.
Invariants: tenants together, and those without a token, leave `RESERVED` of these to agents, operators and admins; no
tenant has more than `TENANT_MAX`, whatever number of tokens its people hold; a call has its place as soon as its token
is known, which is before its message is read.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpushare.core.kinds import Role
from gpushare.errors import error_of
from gpushare.reasons import Reason
from gpushare.rpc import RPCS_MAX
from gpushare.scheduler.auth import Caller

RESERVED = 2048
TENANT_MAX = 2048
# Enrolments and the like.
ANONYMOUS_MAX = 256
LIST_PAUSE_MAX_S = 1.0
_ANYBODY = ""
_RESERVED_FOR = frozenset({Role.ADMIN, Role.OPERATOR, Role.AGENT})


class Places:
    """The calls in progress, by tenant."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._shared = 0

    def take(self, caller: Caller) -> str | None:
        """Whose place it is, to be given back; None where nothing is counted. Raises BUSY."""
        if caller.token_id and caller.principal.role in _RESERVED_FOR:
            return None
        whose, most = (caller.tenant, TENANT_MAX) if caller.token_id else (_ANYBODY, ANONYMOUS_MAX)
        if self._taken[whose] >= most:
            raise error_of(
                Reason.BUSY, f"{most} calls of {whose or 'callers without a token'} are open; end some first."
            )
        if self._shared >= RPCS_MAX - RESERVED:
            raise error_of(Reason.BUSY, "As many calls are open as the scheduler takes from tenants; try again later.")
        self._taken[whose] += 1
        self._shared += 1
        return whose

    def give(self, whose: str | None) -> None:
        """The call is over."""
        if whose is None:
            return
        self._shared -= 1
        self._taken[whose] -= 1
        if not self._taken[whose]:
            del self._taken[whose]


class ListTurns:
    """Of each tenant one list, or one part of a long one, is made at a time: it takes up to a tenth of a second of
    everybody's time. The next waits for as long again as this one took, so that all others come to their turn however
    many lists are asked for."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """The tenant's turn, once it has come."""
        lock, loop = self._locks.setdefault(tenant, asyncio.Lock()), asyncio.get_running_loop()
        await lock.acquire()
        began_s = loop.time()
        try:
            yield
        finally:
            loop.call_later(min(loop.time() - began_s, LIST_PAUSE_MAX_S), lock.release)
