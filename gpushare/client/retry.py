"""When a call is tried again, how long to wait between two tries, and when to give up.

Imports asyncio, random and `gpushare.errors`. Invariants: only what may succeed later is tried again; every wait is
jittered, so that a restarted scheduler is not met by all clients at once, and bounded by the caller's deadline.
"""

from __future__ import annotations

import asyncio
import random
import re
import time

from gpushare.errors import GpushareError, UnavailableError
from gpushare.reasons import Reason

FIRST_WAIT_S = 0.1
MAX_WAIT_S = 2.0

# A certificate does not become the right one by waiting.
_LASTING = re.compile(
    r"CERTIFICATE|certificate|WRONG_VERSION|wrong version|HTTP_REQUEST|PACKET_LENGTH|PROTOCOL_VERSION"
    r"|UNSUPPORTED_PROTOCOL|Hostname Verification"
)


def may_pass(error: GpushareError) -> bool:
    """Whether the same call can succeed by itself a moment later."""
    if not isinstance(error, UnavailableError) or error.reason == Reason.NODE_UNREACHABLE:
        return False
    return _LASTING.search(error.metadata.get("grpc", "")) is None


class Backoff:
    """Waits that grow from `FIRST_WAIT_S` to `MAX_WAIT_S`, each drawn from its upper half, until `limit_s` is over."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._deadline = time.monotonic() + limit_s
        self._next_wait_s = FIRST_WAIT_S

    @property
    def remaining_s(self) -> float:
        """Seconds left; zero or less when the limit is over."""
        return self._deadline - time.monotonic()

    async def wait(self) -> bool:
        """Waits for one interval; False, at once, where that would pass the limit."""
        wait_s = self._next_wait_s * random.uniform(0.5, 1.0)
        if wait_s >= self.remaining_s:
            return False
        self._next_wait_s = min(self._next_wait_s * 2, MAX_WAIT_S)
        await asyncio.sleep(wait_s)
        return True

    def succeeded(self) -> None:
        """Something came through: the next trouble starts with a short wait and the whole limit."""
        self._deadline = time.monotonic() + self.limit_s
        self._next_wait_s = FIRST_WAIT_S
