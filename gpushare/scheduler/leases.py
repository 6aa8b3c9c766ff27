"""Which nodes have been silent for too long, on the boot-time clock.

Imports the standard library alone; the clock is given. A node's lease runs from the last word heard of it; at this
scheduler's start every node counts as heard. Invariants: the wall clock plays no part; a pause of this process itself
(stopped, swapped out, the loop held up) is never laid to a node's charge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

#: What a renewal may need on its way beyond the ttl before its node counts as silent.
MARGIN_MS = 500
#: After the ttl by this factor and this long, a task that stops itself at the end of its lease surely has.
LAPSE_FACTOR = 1.01
LAPSE_EXTRA_MS = 5_000
#: A look that comes later than this was held up with everything else here.
LATE_LOOK_MS = 2_000


def boot_time_ms() -> int:
    """CLOCK_BOOTTIME: runs on while the host sleeps, never set."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Silence(Enum):
    EXPIRED = "expired"
    LAPSED = "lapsed"


class Overdue(NamedTuple):
    node: str
    silence: Silence


class Leases:
    """When each node was last heard. `look` says what is due, `done` that it was dealt with. Nobody is silent before
    `grace_ms` after the start."""

    def __init__(self, ttl_ms: int, grace_ms: int = 0, clock_ms: Callable[[], int] = boot_time_ms) -> None:
        self._ttl_ms = ttl_ms
        self._clock_ms = clock_ms
        # As if heard this much after the start, so that a grace longer than a lease holds.
        self._ahead_ms = max(0, grace_ms - ttl_ms)
        self._looked_ms = clock_ms()
        self._start_ms = self._looked_ms + self._ahead_ms
        self._heard_ms: dict[str, int] = {}
        self._done: set[Overdue] = set()

    def restart(self) -> None:
        """A new term begins: every node has the grace to come back."""
        self._looked_ms = self._clock_ms()
        self._start_ms = self._looked_ms + self._ahead_ms
        self._heard_ms.clear()
        self._done.clear()

    def heard(self, node: str) -> None:
        self._heard_ms[node] = self._clock_ms()
        for silence in Silence:
            self._done.discard(Overdue(node, silence))

    def silent_ms(self, node: str) -> int:
        """How long nothing was heard of it."""
        return self._clock_ms() - self._heard_ms.get(node, self._start_ms)

    def look(self, nodes: Iterable[str]) -> list[Overdue]:
        """What became due and is not done yet."""
        now_ms = self._clock_ms()
        late_ms = now_ms - self._looked_ms
        self._looked_ms = now_ms
        if late_ms > LATE_LOOK_MS:
            # Whatever arrived meanwhile is still unread: everybody gets that time back.
            self._start_ms += late_ms
            self._heard_ms = {node: min(now_ms, ms + late_ms) for node, ms in self._heard_ms.items()}
            return []
        expired_ms = self._ttl_ms + MARGIN_MS
        lapsed_ms = int(self._ttl_ms * LAPSE_FACTOR) + LAPSE_EXTRA_MS
        due = []
        for node in nodes:
            silent_ms = self.silent_ms(node)
            if silent_ms > expired_ms:
                due.append(Overdue(node, Silence.EXPIRED))
            if silent_ms > lapsed_ms:
                due.append(Overdue(node, Silence.LAPSED))
        return [each for each in due if each not in self._done]

    def done(self, overdue: Overdue) -> None:
        self._done.add(overdue)
