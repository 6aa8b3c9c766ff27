"""How busy each card was lately: the agents' samples of SM use, smoothed so that one spike moves nothing.

Imports the standard library alone; the clock is given and counts this process's own seconds, since agents' clocks may
be wrong. Kept in memory only: a scheduler that starts anew knows nothing and takes every card for idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: What was measured so long ago counts half.
HALF_LIFE_S = 30.0
#: Without a sample for so long a card's use is not known.
FRESH_S = 60.0


class _Load:
    """`average` as of `at_s`; `last` is what was measured then and holds until the next sample."""

    def __init__(self, at_s: float) -> None:
        self.average = 0.0
        self.last = 0
        self.at_s = at_s

    def at(self, now_s: float) -> float:
        weight: float = 1.0 - 0.5 ** ((now_s - self.at_s) / HALF_LIFE_S)
        return self.average + weight * (self.last - self.average)


class Loads:
    """An average of each card over time, halved every `HALF_LIFE_S`. It begins at 0, so that a card counts as busy only
    after it was so for a while."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._cards: dict[str, _Load] = {}

    def note(self, uuid: str, sm_percent: int) -> None:
        """A sample that has just arrived."""
        now_s = self._clock_s()
        load = self._cards.get(uuid)
        if load is None or now_s - load.at_s > FRESH_S:
            load = self._cards[uuid] = _Load(now_s)
        load.average, load.last, load.at_s = load.at(now_s), max(0, min(100, sm_percent)), now_s

    def percent(self) -> dict[str, int]:
        """SM use of each card that was measured lately, in whole percent, by UUID."""
        now_s = self._clock_s()
        for uuid in [u for u, load in self._cards.items() if now_s - load.at_s > FRESH_S]:
            del self._cards[uuid]
        return {uuid: round(load.at(now_s)) for uuid, load in self._cards.items()}
