"""When what runs now may end, where nobody knows: the guess is that it runs as long again as it has run.

May import numpy. For choosing a place alone: what begins is never let in because of a guess.
"""

from __future__ import annotations

from gpushare.core.model import Attempt
from gpushare.core.placement.claims import Booking
from gpushare.core.placement.endings import Endings, Timeline, guessed_wait_ms, runs_since
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.policy import IntArray


class GuessedEndings(Endings):
    """All ends on `fleet`, the unknown ones guessed; what has only been planned in this pass has none."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        # Of the node that is being read: since when its jobs run there.
        self._since_ms: dict[str, int] = {}

    def _timeline(self, now_ms: int, cards: IntArray, hosts: IntArray) -> Timeline:
        return _GuessedTimeline(self.fleet, now_ms, cards, hosts)

    def _may_end(self, i: int) -> bool:
        """Anything may, by a guess."""
        state, self._since_ms = self.fleet.state, {}
        for attempt in state.live_attempts(state.nodes[self.fleet.names[i]]):
            since_ms = _since_ms(attempt)
            self._since_ms[attempt.job_key] = min(since_ms, self._since_ms.get(attempt.job_key, since_ms))
        return True

    def _unknown_end(self, booking: Booking) -> int | None:
        since_ms = self._since_ms.get(booking.owner.job)
        return None if since_ms is None else runs_since(since_ms)


class _GuessedTimeline(Timeline):
    def _end_ms(self, attempt: Attempt) -> int | None:
        known_ms = super()._end_ms(attempt)
        return self.now_ms + int(guessed_wait_ms(_since_ms(attempt), self.now_ms)) if known_ms is None else known_ms


def _since_ms(attempt: Attempt) -> int:
    return attempt.started_ms or attempt.allocated_ms
