"""What holds capacity of one node, attempt by attempt and with its end: kept for claimed nodes alone.

Pure, no arrays. It follows the fleet's scratch line by line and undoes it in reverse, so that it is always what the
fleet's arrays sum up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gpushare.core.kinds import AttemptState
from gpushare.core.model import Attempt, Node, Slice
from gpushare.core.placement.claims import Booking, Owner
from gpushare.core.state import ClusterState


class Scratch(NamedTuple):
    """One line of the scratch journal: `sign` is +1 for a take, -1 for a give."""

    sign: int
    piece: Slice
    end_ms: int | None
    owner: Owner


def sure_end_ms(state: ClusterState, attempt: Attempt) -> int | None:
    """When the time limit ends a live attempt; None when nobody knows, as while it is suspended or out of reach."""
    limit_ms = state.jobs[attempt.job_key].spec.max_run_ms
    if not limit_ms or attempt.suspended_ms is not None or attempt.state is AttemptState.UNKNOWN:
        return None
    return (attempt.held_since_ms or attempt.started_ms or attempt.allocated_ms) + limit_ms


class Bookings:
    """`bookings` by a number that says nothing but which came first."""

    def __init__(self, state: ClusterState, node: Node) -> None:
        self.bookings: dict[int, Booking] = {}
        self._pieces: dict[int, Slice] = {}
        self._next = 0
        # What `follow` changed: (number, booking before or None, slice before or None).
        self._undo: list[tuple[int, Booking | None, Slice | None]] = []
        for attempt in state.live_attempts(node):
            owner = Owner(attempt.tenant, state.jobs[attempt.job_key].created_by.user, attempt.job_key)
            uuids = () if attempt.suspended_ms is not None else attempt.slice.gpu_uuids
            self._add(attempt.slice, _booking(attempt.slice, uuids, sure_end_ms(state, attempt), owner))

    def follow(self, line: Scratch) -> None:
        """Come in step with one more line of scratch."""
        piece = line.piece
        if line.sign > 0:
            number = self._add(piece, _booking(piece, piece.gpu_uuids, line.end_ms, line.owner))
            self._undo.append((number, None, None))
            return
        found = self._find(piece, line.owner)
        if found is None:
            # CPU and memory of a suspended attempt, which it keeps booked until it ends.
            self._undo.append((-1, None, None))
            return
        before = self.bookings[found]
        self._undo.append((found, before, self._pieces[found]))
        if piece.cpu_milli or piece.memory_mib or before.host == (0, 0):
            del self.bookings[found], self._pieces[found]
        else:
            self.bookings[found] = before._replace(cards={})

    def undo(self) -> None:
        """Take back the last `follow`."""
        number, booking, piece = self._undo.pop()
        if booking is not None and piece is not None:
            self.bookings[number], self._pieces[number] = booking, piece
        elif number >= 0:
            del self.bookings[number], self._pieces[number]

    def _add(self, piece: Slice, booking: Booking) -> int:
        self._next += 1
        self.bookings[self._next], self._pieces[self._next] = booking, piece
        return self._next

    def _find(self, piece: Slice, owner: Owner) -> int | None:
        """The booking of this very slice; else of an equal one; else of the same cards, given without their host."""
        same = [n for n, held in self._pieces.items() if held is piece]
        if not same:
            same = [n for n, held in self._pieces.items() if held == piece]
        if not same and piece.gpu_uuids:
            same = [
                n
                for n, held in self._pieces.items()
                if self.bookings[n].cards
                and (held.task, held.gpu_uuids, held.held_mib, held.gpu_milli)
                == (piece.task, piece.gpu_uuids, piece.held_mib, piece.gpu_milli)
            ]
        # Two attempts may hold equal slices.
        own = [n for n in same if self.bookings[n].owner.job == owner.job]
        own = own or [n for n in same if self.bookings[n].owner.tenant == owner.tenant]
        return next(iter(own or same), None)


def _booking(piece: Slice, uuids: Sequence[str], end_ms: int | None, owner: Owner) -> Booking:
    cards = {uuid: (piece.gpu_milli, mib) for uuid, mib in zip(uuids, piece.held_mib, strict=False)}
    return Booking(owner, cards, (piece.cpu_milli, piece.memory_mib), end_ms)
