"""Windows of time in which capacity is promised, and what the promises of a state claim at a moment.

Pure. A window is the present or the next occurrence of a reservation, [start_ms, end_ms) in wall time. `claims` gives
everything that others must leave alone: the windows, the maintenance of nodes, and what is held for preemptors.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from gpushare.core.model import Attempt
from gpushare.core.placement.claims import Amount, Claim
from gpushare.core.promises import CapacityHold, Reservation
from gpushare.core.state import ClusterState

# Recurring windows are compared one by one up to so many; beyond that as if they came for ever, which is stricter.
_OCCURRENCES_MAX = 10_000

# How the ids of claims begin.
RESERVATION_CLAIM = "reservation "
HOLD_CLAIM = "hold "


class Window(NamedTuple):
    """From `start_ms` to before `end_ms`."""

    start_ms: int
    end_ms: int


def window(reservation: Reservation, now_ms: int) -> Window | None:
    """The window that is open at `now_ms`, else the next one; None when there is none any more."""
    start_ms, length_ms = reservation.start_ms, reservation.end_ms - reservation.start_ms
    if reservation.repeat_ms and now_ms >= reservation.end_ms:
        # The first occurrence that has not ended.
        missed = (now_ms - reservation.end_ms) // reservation.repeat_ms + 1
        start_ms += missed * reservation.repeat_ms
    if now_ms >= start_ms + length_ms:
        return None
    if reservation.until_ms and start_ms >= reservation.until_ms:
        return None
    return Window(start_ms, start_ms + length_ms)


def expired(state: ClusterState, now_ms: int) -> tuple[str, ...]:
    """Names of the reservations that have no window any more, to be deleted."""
    return tuple(name for name, r in sorted(state.reservations.items()) if window(r, now_ms) is None)


def next_change_ms(state: ClusterState, now_ms: int) -> int | None:
    """When the next window opens or closes; None when nothing is reserved."""
    found = [w for r in state.reservations.values() if (w := window(r, now_ms)) is not None]
    return min((w.start_ms if w.start_ms > now_ms else w.end_ms for w in found), default=None)


def claims(state: ClusterState, now_ms: int, *, is_netted: bool = True) -> list[Claim]:
    """What is promised at `now_ms`, and what the next windows promise. An open window counts at once. `is_netted`: what
    victims still have of a hold is left out of it; else it is claimed whole, as when they have gone."""
    made: list[Claim] = []
    for _, reservation in sorted(state.reservations.items()):
        found = window(reservation, now_ms)
        if found is None:
            continue
        made.append(claim_of(reservation, found, state))
        if reservation.repeat_ms and found.start_ms <= now_ms:
            following = window(reservation, found.end_ms)
            if following is not None:
                made.append(claim_of(reservation, following, state))
    made += [hold_claim(state, hold, is_netted=is_netted) for _, hold in sorted(state.holds.items())]
    return made


def claims_between(state: ClusterState, start_ms: int, end_ms: int | None) -> list[Claim]:
    """What recurring reservations promise while something else holds from `start_ms` to `end_ms` (None: for ever): the
    first window in which both count. The windows after it ask for the same again."""
    made: list[Claim] = []
    for _, reservation in sorted(state.reservations.items()):
        found = window(reservation, start_ms) if reservation.repeat_ms else None
        if found is not None and (end_ms is None or found.start_ms < end_ms):
            made.append(claim_of(reservation, found, state))
    return made


def claim_of(reservation: Reservation, found: Window, state: ClusterState) -> Claim:
    """What `reservation` claims in one of its windows. Maintenance entitles nobody."""
    hosts: dict[str, Amount] = {node: (cpu, mib) for node, cpu, mib in reservation.hosts}
    if reservation.maintenance:
        nodes = [state.nodes[n] for n in reservation.nodes if n in state.nodes]
        hosts = {node.name: (node.cpu_milli, node.memory_mib) for node in nodes}
    return Claim(
        id=f"{RESERVATION_CLAIM}{reservation.name} {found.start_ms}",
        start_ms=found.start_ms,
        end_ms=found.end_ms,
        tenant=reservation.tenant,
        users=reservation.users,
        cards={(c.node, c.gpu_uuid): (c.milli, c.mib) for c in reservation.cards},
        hosts=hosts,
        whole_node=reservation.maintenance,
    )


def hold_claim(
    state: ClusterState, hold: CapacityHold, *, is_netted: bool = True, suspends: frozenset[str] | None = None
) -> Claim:
    """What is kept for `hold.job`: its planned places, less what its victims still have of them. Nobody else can take
    that part before they end, and the rest of a card stays in use while they make way. `suspends`: the hold is new, its
    victims are only now told, and these of them keep CPU and host memory."""
    cards: Counter[tuple[str, str, int]] = Counter()
    hosts: Counter[tuple[str, int]] = Counter()
    for piece in hold.slices:
        for uuid, mib in zip(piece.gpu_uuids, piece.held_mib, strict=True):
            cards[piece.node, uuid, 0] += piece.gpu_milli
            cards[piece.node, uuid, 1] += mib
        hosts[piece.node, 0] += piece.cpu_milli
        hosts[piece.node, 1] += piece.memory_mib
    for attempt in _making_way(state, hold, suspends is not None) if is_netted else []:
        piece = attempt.slice
        for uuid, mib in zip(piece.gpu_uuids, piece.held_mib, strict=True):
            cards[piece.node, uuid, 0] -= piece.gpu_milli
            cards[piece.node, uuid, 1] -= mib
        if attempt.desired_stop or (suspends is not None and attempt.job_key not in suspends):
            hosts[piece.node, 0] -= piece.cpu_milli
            hosts[piece.node, 1] -= piece.memory_mib
    places = dict.fromkeys((p.node, uuid) for p in hold.slices for uuid in p.gpu_uuids)
    return Claim(
        id=f"{HOLD_CLAIM}{hold.job}",
        start_ms=hold.since_ms,
        job=hold.job,
        cards={(n, u): (max(0, cards[n, u, 0]), max(0, cards[n, u, 1])) for n, u in places},
        hosts={p.node: (max(0, hosts[p.node, 0]), max(0, hosts[p.node, 1])) for p in hold.slices},
    )


def _making_way(state: ClusterState, hold: CapacityHold, is_new: bool) -> list[Attempt]:
    """The victims' live attempts that still have their cards and were told to give them up."""
    live = [a for key in hold.victims if key in state.jobs for a in state.jobs[key].live() if a.suspended_ms is None]
    return [a for a in live if is_new or a.desired_stop or a.desired_suspend]


# -- do two of them ever meet?


def overlap(one: Reservation, other: Reservation) -> bool:
    """Whether any window of `one` overlaps any of `other`."""
    counts = [(_occurrences(r), r.name, r) for r in (one, other)]
    known = [(count, name, r) for count, name, r in counts if count is not None and count <= _OCCURRENCES_MAX]
    if not known:
        return _overlap_some_day(one, other)
    count, _, walked = min(known, key=lambda k: k[:2])
    against = other if walked is one else one
    length_ms = walked.end_ms - walked.start_ms
    for place in range(count):
        start_ms = walked.start_ms + place * walked.repeat_ms
        met = window(against, start_ms)
        if met is None:
            return False
        if met.start_ms < start_ms + length_ms:
            return True
    return False


def _occurrences(reservation: Reservation) -> int | None:
    """How many windows it has; None: for ever."""
    if not reservation.repeat_ms:
        return 1
    if not reservation.until_ms:
        return None
    return max(0, -(-(reservation.until_ms - reservation.start_ms) // reservation.repeat_ms))


def _overlap_some_day(one: Reservation, other: Reservation) -> bool:
    """Both recur for ever: the distances between their starts take every value that is congruent to the first one
    modulo the greatest common divisor; they overlap when one of these is short enough."""
    step_ms = math.gcd(one.repeat_ms, other.repeat_ms)
    after_ms = (other.start_ms - one.start_ms) % step_ms
    return after_ms < one.end_ms - one.start_ms or step_ms - after_ms < other.end_ms - other.start_ms
