"""Refused calls, for the audit: noted at a bounded rate, written to the store's own table in the background.

Imports the engine, the store's port and structlog. Anyone can cause denials, so the same one is written at most once a
second (the next line says how many were left out) and the buffer is bounded. Invariant: nothing of a credential is ever
in a line.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import structlog

from gpushare.core.kinds import Role
from gpushare.core.model import Principal
from gpushare.errors import GpushareError
from gpushare.scheduler.engine import Engine
from gpushare.store.port import Denial

SAME_EVERY_MS = 1_000
KINDS_REMEMBERED = 4_096
PENDING_MAX = 1_000
FLUSH_EVERY_S = 0.25

_log = structlog.get_logger(__name__)


class _Kind:
    """The same caller refused the same way: when it was last written, and how often it was not since."""

    __slots__ = ("left_out", "written_ms")

    def __init__(self, written_ms: int) -> None:
        self.written_ms = written_ms
        self.left_out = 0


class Denials:
    """The recorder. `note` never waits; `run` writes until cancelled; `flush` writes what is pending now."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kinds: OrderedDict[tuple[str, ...], _Kind] = OrderedDict()
        self._pending: list[Denial] = []
        self._writing = asyncio.Lock()

    def note(self, rpc: str, error: GpushareError, who: Principal | None, peer: str) -> None:
        """One refused call. `who` is None where the token told nothing; then `peer` stands for the caller."""
        now_ms = self._engine.now_ms()
        host = _host(peer)
        user = who.user if who else ""
        # An agent speaks for many people, and each who was refused is a line of its own.
        person = error.message if who and who.role is Role.AGENT else ""
        key = (rpc, str(error.reason), user, who.tenant if who else "", person if who else host)
        kind = self._kinds.get(key)
        if kind is not None and now_ms - kind.written_ms < SAME_EVERY_MS:
            kind.left_out += 1
            return
        left_out = kind.left_out if kind else 0
        self._remember(key, now_ms)
        if len(self._pending) >= PENDING_MAX:
            return
        detail = f"from {host}: {error.message}"
        if left_out:
            detail += f" ({left_out} more of the same before)"
        self._pending.append(
            Denial(
                at_ms=now_ms,
                user=user,
                role=who.role.value if who else "",
                tenant=who.tenant if who else "",
                rpc=rpc,
                reason=str(error.reason),
                detail=detail,
            )
        )

    async def flush(self) -> None:
        """Returns when everything noted before the call is in the store, or could not be written and is dropped."""
        async with self._writing:
            batch, self._pending = self._pending, []
            if not batch:
                return
            try:
                await self._engine.store_call(lambda store: store.add_denials(batch))
            except GpushareError as err:
                _log.warning("denials not written", count=len(batch), error=str(err))

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await self.flush()

    async def newest(self, limit: int) -> Sequence[Denial]:
        """The newest refused calls first, those of a moment ago included."""
        await self.flush()
        return await self._engine.store_call(lambda store: store.list_denials(limit))

    def _remember(self, key: tuple[str, ...], now_ms: int) -> None:
        self._kinds[key] = _Kind(now_ms)
        self._kinds.move_to_end(key)
        while len(self._kinds) > KINDS_REMEMBERED:
            self._kinds.popitem(last=False)


def _host(peer: str) -> str:
    """ "ipv4:10.0.0.7:51234" -> "10.0.0.7": the port differs with each connection."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return rest.rpartition(":")[0].replace("%5B", "[").replace("%5D", "]")
