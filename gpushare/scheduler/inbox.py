"""The engine's inbox: one bounded queue per lane (tenant, node), served in turns.

Pure bookkeeping, used on one event loop. A flood in one lane fills that lane alone; the others wait for one item of
it at most per turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpushare.core.commands import Call, Command, Outcome
from gpushare.core.state import ClusterState


class Item(NamedTuple):
    """A command that waits, how its answer is to be computed, and who waits for it."""

    command: Command
    call: Call
    view: Callable[[ClusterState, Outcome], Any] | None
    future: asyncio.Future[Any]


class Inbox:
    """`put` answers False for a full lane; `take` goes round the lanes, one item of each at a time."""

    def __init__(self, per_lane: int) -> None:
        self.per_lane = per_lane
        self._lanes: dict[str, deque[Item]] = {}
        self._turns: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def put(self, lane: str, item: Item) -> bool:
        queue = self._lanes.get(lane)
        if queue is None:
            queue = self._lanes[lane] = deque()
            self._turns.append(lane)
        if len(queue) >= self.per_lane:
            return False
        queue.append(item)
        return True

    def take(self, most: int | None) -> Iterator[Item]:
        """Up to `most` items (all for None). A caller that has gone away is passed over: it asked for nothing yet."""
        taken = 0
        while self._turns and (most is None or taken < most):
            lane = self._turns.popleft()
            queue = self._lanes[lane]
            item = queue.popleft()
            if queue:
                self._turns.append(lane)
            else:
                del self._lanes[lane]
            if not item.future.cancelled():
                taken += 1
                yield item
