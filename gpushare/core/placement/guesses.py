"""When what runs now may end, where nobody knows: the guess is that it runs as long again as it has run.

May import numpy. For choosing a place alone: what begins is never let in because of a guess.
"""

from __future__ import annotations

from gpushare.core.model import Attempt
from gpushare.core.placement.endings import Endings, Rows, Timeline, guessed_wait_ms, runs_since
from gpushare.core.placement.policy import IntArray


class GuessedEndings(Endings):
    """All ends on `fleet`, the unknown ones guessed; what has only been planned in this pass has none."""

    def _timeline(self, now_ms: int, cards: IntArray, hosts: IntArray) -> Timeline:
        return _GuessedTimeline(self.fleet, now_ms, cards, hosts)

    def _rows(self, i: int) -> tuple[Rows, Rows]:
        state = self.fleet.state
        here = [state.attempts[key] for key in state.nodes[self.fleet.names[i]].attempts]
        since_ms: dict[str, int] = {}
        for attempt in here:
            at_ms, job = _since_ms(attempt), attempt.job_key
            since_ms[job] = min(at_ms, since_ms.get(job, at_ms))
        if self._has_ends(i) or self.fleet.scratch_on(i):
            return self._rows_of_bookings(i, since_ms)
        return self._rows_of_guesses(i, here, since_ms)

    def _rows_of_guesses(self, i: int, here: list[Attempt], since_ms: dict[str, int]) -> tuple[Rows, Rows]:
        """What `_rows_of_bookings` finds where every end is a guess, much faster."""
        cards: Rows = []
        hosts: Rows = []
        card_id = self.fleet.card_id
        for attempt in here:
            piece, since = attempt.slice, runs_since(since_ms[attempt.job_key])
            if attempt.suspended_ms is None:
                for uuid, mib in zip(piece.gpu_uuids, piece.held_mib, strict=True):
                    cards.append((0, since, card_id[uuid], piece.gpu_milli, mib))
            hosts.append((0, since, i, piece.cpu_milli, piece.memory_mib))
        return cards, hosts


class _GuessedTimeline(Timeline):
    def _end_ms(self, attempt: Attempt) -> int | None:
        known_ms = super()._end_ms(attempt)
        return self.now_ms + int(guessed_wait_ms(_since_ms(attempt), self.now_ms)) if known_ms is None else known_ms


def _since_ms(attempt: Attempt) -> int:
    return attempt.started_ms or attempt.allocated_ms
