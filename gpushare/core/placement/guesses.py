"""When what runs now may end, where nobody knows: the guess is that it runs as long again as it has run.

May import numpy. For choosing a place alone: what begins is never let in because of a guess.
"""

from __future__ import annotations

from gpushare.core.model import Attempt, Job
from gpushare.core.placement.claims import Booking
from gpushare.core.placement.endings import Endings, Timeline
from gpushare.core.placement.fleet import Fleet
from gpushare.core.placement.policy import IntArray


class GuessedEndings(Endings):
    """All ends on `fleet` as of `now_ms`, the unknown ones guessed. Made for one question."""

    def __init__(self, fleet: Fleet, now_ms: int) -> None:
        super().__init__(fleet)
        self._now_ms = now_ms

    def _timeline(self, now_ms: int, cards: IntArray, hosts: IntArray) -> Timeline:
        return _GuessedTimeline(self.fleet, now_ms, cards, hosts)

    def _may_end(self, i: int) -> bool:
        return True

    def _end_ms(self, booking: Booking) -> int | None:
        """None for what has only been planned in this pass."""
        job = self.fleet.state.jobs.get(booking.owner.job)
        return _guess_ms(job, self._now_ms) if booking.end_ms is None and job is not None else booking.end_ms


class _GuessedTimeline(Timeline):
    def _end_ms(self, attempt: Attempt) -> int | None:
        known_ms = super()._end_ms(attempt)
        return _guess_ms(self.fleet.state.jobs[attempt.job_key], self.now_ms) if known_ms is None else known_ms


def _guess_ms(job: Job, now_ms: int) -> int | None:
    since_ms = min((a.started_ms or a.allocated_ms for a in job.live()), default=None)
    return None if since_ms is None else now_ms + max(1, now_ms - since_ms)
