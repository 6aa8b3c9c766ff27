"""When what runs now ends, and how much room there is by then: the known part of the future.

May import numpy. `Endings` is derived and kept between passes: only nodes that changed are read again. Unknown ends are
left out, so that nothing is counted on which may not come. Scratch that the fleet holds counts like what runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import copy

import numpy as np

from gpushare.core.kinds import AttemptState, Topology
from gpushare.core.model import Attempt, Slice
from gpushare.core.placement.ask import Ask
from gpushare.core.placement.claims import Booking
from gpushare.core.placement.fleet import Fleet, sure_end_ms
from gpushare.core.placement.policy import BoolArray, IntArray
from gpushare.core.placement.scores import Needs, task_counts
from gpushare.core.plan import Plan
from gpushare.core.state import ClusterState

# Rows of numbers as they are read, of cards and of hosts. Columns: when it surely ends (0: it is making way), its grace
# (or, as a guess, `runs_since`), a card or node id, and two amounts.
Rows = list[tuple[int, ...]]
_SURE, _GRACE, _PLACE, _FIRST, _SECOND = range(5)
_COLUMNS = 5


def end_ms(state: ClusterState, attempt: Attempt, now_ms: int) -> int | None:
    """When a live attempt has surely given up its cards; None when nobody knows. What was told to make way, or is past
    its limit, has its grace left."""
    if attempt.state is AttemptState.UNKNOWN or attempt.suspended_ms is not None:
        return None
    grace_ms = state.jobs[attempt.job_key].spec.grace_ms
    goes = attempt.desired_stop or attempt.desired_suspend
    sure_ms = _told_end_ms(state, attempt) if goes else sure_end_ms(state, attempt)
    if sure_ms is None or sure_ms > now_ms:
        return sure_ms
    return now_ms + grace_ms


def _told_end_ms(state: ClusterState, attempt: Attempt) -> int:
    """The end of the grace of what makes way; 0: at most its whole grace from now."""
    grace_ms = state.jobs[attempt.job_key].spec.grace_ms
    return 0 if attempt.told_ms is None else attempt.told_ms + grace_ms


def freed_by(attempt: Attempt) -> Slice:
    """What an attempt gives back when it makes way: one that suspends keeps its CPU and host memory. What is suspended
    has no more than these to give back, when it ends."""
    piece = attempt.slice
    if attempt.suspended_ms is not None:
        return host_alone(piece)
    return without_host(piece) if attempt.desired_suspend and not attempt.desired_stop else piece


def without_host(piece: Slice) -> Slice:
    """The same cards without CPU and host memory."""
    return Slice(
        task=piece.task,
        node=piece.node,
        gpu_uuids=piece.gpu_uuids,
        gpu_milli=piece.gpu_milli,
        gpu_memory_mib=piece.gpu_memory_mib,
        held_mib=piece.held_mib,
        charge_milli=piece.charge_milli,
        tier=piece.tier,
        enforcement=piece.enforcement,
        whole=piece.whole,
    )


def host_alone(piece: Slice) -> Slice:
    """CPU and host memory of a slice without its cards: what a suspended attempt still holds."""
    return Slice(task=piece.task, node=piece.node, cpu_milli=piece.cpu_milli, memory_mib=piece.memory_mib)


def give_own_host(plan: Plan, job_key: str) -> None:
    """A suspended job that waits for cards has its CPU and host memory: on `plan`, it may have them again."""
    job = plan.state.jobs.get(job_key)
    for attempt in job.live() if job is not None else []:
        if attempt.suspended_ms is not None:
            plan.give(attempt.tenant, host_alone(attempt.slice), job=job_key)


def runs_since(since_ms: int) -> int:
    """In place of a grace, for an end that nobody knows: it runs as long again from now on as it has since then."""
    return -1 - since_ms


def guessed_wait_ms(since_ms: IntArray | int, now_ms: int) -> IntArray:
    """Until the end of what runs as long again."""
    return np.maximum(1, now_ms - since_ms)


class Endings:
    """The known ends on all nodes of `fleet`. Tell `refresh` the nodes that the state touched, in each pass."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._layout = -1
        self._cards: list[IntArray] = []
        self._hosts: list[IntArray] = []
        self._read_at = np.zeros(0, np.int64)
        # All rows together; None once any have changed.
        self._joined: tuple[IntArray, IntArray] | None = None
        self._made: Timeline | None = None

    def refresh(self, touched: Iterable[str]) -> None:
        """Read again what was touched."""
        if self._layout != self.fleet.layout:
            return
        for name in touched:
            i = self.fleet.node_id.get(name)
            if i is not None:
                self._read_at[i] = -1

    def timeline(self, now_ms: int) -> Timeline:
        """The ends as of now, with what the fleet's scratch holds."""
        fleet = self.fleet
        if self._layout != fleet.layout:
            self._layout = fleet.layout
            nothing = np.zeros((0, _COLUMNS), np.int64)
            self._cards, self._hosts = [nothing] * len(fleet.names), [nothing] * len(fleet.names)
            self._read_at = np.full(len(fleet.names), -1, np.int64)
            self._joined = None
        for i in np.flatnonzero(fleet.changed_at > self._read_at).tolist():
            if self._read(i):
                self._joined = None
        made = self._made
        if made is not None and self._joined is not None and (made.now_ms == now_ms or not len(made.times)):
            return made
        if self._joined is None:
            self._joined = (_join(self._cards), _join(self._hosts))
        self._made = self._timeline(now_ms, *self._joined)
        return self._made

    def _timeline(self, now_ms: int, cards: IntArray, hosts: IntArray) -> Timeline:
        return Timeline(self.fleet, now_ms, cards, hosts)

    def _has_ends(self, i: int) -> bool:
        """Whether anything that runs on the node has a known end; much cheaper than to look at all that it holds."""
        state = self.fleet.state
        return not state.ending.isdisjoint(state.nodes[self.fleet.names[i]].attempts)

    def _read(self, i: int) -> bool:
        """Whether the node has known ends, or had."""
        before = len(self._hosts[i]) + len(self._cards[i])
        self._read_at[i] = self.fleet.changed_at[i]
        cards, hosts = self._rows(i)
        if not (before or cards or hosts):
            return False
        self._cards[i] = np.array(cards, dtype=np.int64).reshape(-1, _COLUMNS)
        self._hosts[i] = np.array(hosts, dtype=np.int64).reshape(-1, _COLUMNS)
        return True

    def _rows(self, i: int) -> tuple[Rows, Rows]:
        """Of the node's cards, and of the node."""
        if self._has_ends(i) or any(line.end_ms is not None for line in self.fleet.scratch_on(i)):
            return self._rows_of_bookings(i, {})
        return [], []

    def _rows_of_bookings(self, i: int, since_ms: Mapping[str, int]) -> tuple[Rows, Rows]:
        """Where nobody knows an end it is a guess for the jobs of `since_ms`, and left out for others."""
        fleet = self.fleet
        stops, suspends = _making_way(fleet.state, fleet.names[i])
        cards: Rows = []
        hosts: Rows = []
        for booking in fleet.bookings(i):
            job = fleet.state.jobs.get(booking.owner.job)
            grace_ms = 0 if job is None else job.spec.grace_ms
            told_ms = stops.get(booking.owner.job, suspends.get(booking.owner.job))
            sure_ms = booking.end_ms if told_ms is None else told_ms
            if sure_ms is None:
                if booking.owner.job not in since_ms:
                    continue
                sure_ms, grace_ms = 0, runs_since(since_ms[booking.owner.job])
            for uuid, (milli, mib) in booking.cards.items():
                cards.append((sure_ms, grace_ms, fleet.card_id[uuid], milli, mib))
            if booking.owner.job not in suspends:
                hosts.append((sure_ms, grace_ms, i, *booking.host))
        return cards, hosts


def _join(rows: list[IntArray]) -> IntArray:
    return np.concatenate(rows) if rows else np.zeros((0, _COLUMNS), np.int64)


def _making_way(state: ClusterState, node: str) -> tuple[dict[str, int], dict[str, int]]:
    """Jobs all of whose attempts on `node` were told to stop, or to suspend, with their `_told_end_ms`."""
    stops: dict[str, int] = {}
    suspends: dict[str, int] = {}
    stay: set[str] = set()
    for attempt in state.live_attempts(state.nodes[node]):
        goes = attempt.state is not AttemptState.UNKNOWN and attempt.suspended_ms is None
        if goes and (attempt.desired_stop or attempt.desired_suspend):
            told = stops if attempt.desired_stop else suspends
            told[attempt.job_key] = _told_end_ms(state, attempt)
        else:
            stay.add(attempt.job_key)
    return (
        {key: ms for key, ms in stops.items() if key not in stay},
        {key: ms for key, ms in suspends.items() if key not in stay and key not in stops},
    )


class Timeline:
    """The known ends in order, as of `now_ms`. `times`: the distinct moments after now at which something ends."""

    def __init__(self, fleet: Fleet, now_ms: int, cards: IntArray, hosts: IntArray) -> None:
        self.fleet, self.now_ms = fleet, now_ms
        self._cards, self._card_ends = _in_order(cards, now_ms)
        self._hosts, self._host_ends = _in_order(hosts, now_ms)
        self.times: IntArray = np.unique(np.concatenate((self._card_ends, self._host_ends)))

    def ended(self, at_ms: int, nodes: IntArray) -> int:
        """How many of the ends on `nodes` there have been by then."""
        done = self._hosts[: np.searchsorted(self._host_ends, at_ms, side="right"), _PLACE]
        return int(np.isin(done, nodes).sum())

    def counts(self, needs: Needs, at_ms: int) -> IntArray:
        """How many tasks each node holds at `at_ms`, when all that is known to end has ended and nothing began; claims
        aside, and never too few."""
        fleet = self.fleet
        view = copy(fleet)
        done = self._cards[: np.searchsorted(self._card_ends, at_ms, side="right")]
        size = len(fleet.uuids)
        view.free_milli = fleet.free_milli + _sums(done[:, _PLACE], done[:, _FIRST], size)
        view.free_mib = fleet.free_mib + _sums(done[:, _PLACE], done[:, _SECOND], size)
        view.holders = fleet.holders - np.bincount(done[:, _PLACE], minlength=size)
        view.open_milli = np.where(fleet.open, view.free_milli, -1)
        view.is_empty = fleet.open & (view.holders == 0) & ~fleet.strangers
        gone = self._hosts[: np.searchsorted(self._host_ends, at_ms, side="right")]
        size = len(fleet.names)
        view.free_cpu_milli = fleet.free_cpu_milli + _sums(gone[:, _PLACE], gone[:, _FIRST], size)
        view.free_memory_mib = fleet.free_memory_mib + _sums(gone[:, _PLACE], gone[:, _SECOND], size)
        return task_counts(view, needs, fleet.all_nodes)

    def _end_ms(self, attempt: Attempt) -> int | None:
        return end_ms(self.fleet.state, attempt, self.now_ms)

    def give(self, plan: Plan, at_ms: int, nodes: Iterable[int]) -> None:
        """Put back on `plan` what has ended by `at_ms` on these nodes."""
        state, fleet = self.fleet.state, self.fleet
        for i in nodes:
            held = Counter(_key(b.owner.job, tuple(b.cards), b.host) for b in fleet.bookings(i))
            over: list[tuple[str, Slice, str]] = []
            for attempt in state.live_attempts(state.nodes[fleet.names[i]]):
                piece = attempt.slice
                uuids = () if attempt.suspended_ms is not None else piece.gpu_uuids
                key = _key(attempt.job_key, uuids, (piece.cpu_milli, piece.memory_mib))
                if not held[key]:
                    continue
                held[key] -= 1
                ends_ms = self._end_ms(attempt)
                if ends_ms is not None and ends_ms <= at_ms:
                    over.append((attempt.tenant, freed_by(attempt), attempt.job_key))
            for booking in fleet.bookings(i):
                key = _key(booking.owner.job, tuple(booking.cards), booking.host)
                if held[key] and booking.end_ms is not None and booking.end_ms <= at_ms:
                    held[key] -= 1
                    over.append((booking.owner.tenant, _piece_of(booking, fleet.names[i]), booking.owner.job))
            for tenant, piece, job in over:
                plan.give(tenant, piece, job=job)


def _key(job: str, uuids: tuple[str, ...], host: tuple[int, int]) -> tuple[object, ...]:
    return (job, uuids, host)


def _piece_of(booking: Booking, node: str) -> Slice:
    """The amounts of what was only planned in this pass; its task and tier do not matter here."""
    held = tuple(booking.cards.values())
    return Slice(
        task=0,
        node=node,
        gpu_uuids=tuple(booking.cards),
        gpu_milli=held[0][0] if held else 0,
        gpu_memory_mib=min((mib for _, mib in held), default=0),
        held_mib=tuple(mib for _, mib in held),
        cpu_milli=booking.host[0],
        memory_mib=booking.host[1],
    )


def _in_order(rows: IntArray, now_ms: int) -> tuple[IntArray, IntArray]:
    """The rows by when they end, and these ends."""
    sure, grace = rows[:, _SURE], rows[:, _GRACE]
    waits = np.where(grace < 0, guessed_wait_ms(-1 - grace, now_ms), grace)
    ends = np.where(sure > now_ms, sure, now_ms + waits)
    order = np.argsort(ends, kind="stable")
    return rows[order], ends[order]


def _sums(places: IntArray, amounts: IntArray, size: int) -> IntArray:
    return np.bincount(places, weights=amounts, minlength=size).astype(np.int64)


class Search:
    """Where on a timeline `least` tasks of `ask` may fit: moments that are worth a try in full."""

    def __init__(self, timeline: Timeline, ask: Ask, least: int) -> None:
        fleet = timeline.fleet
        self.timeline, self._least = timeline, least
        self._needs = fleet.scores.of(ask.request).needs
        self._is_together = ask.topology is not Topology.ANY
        self._outside: BoolArray | None = None
        if ask.only is not None:
            self._outside = np.array([name not in ask.only for name in fleet.names], dtype=np.bool_)
        claimed = [] if fleet.claims is None else [fleet.node_id[n] for n in fleet.claims.nodes if n in fleet.node_id]
        self._claimed: IntArray = np.array(claimed, dtype=np.int64)
        self._kept: dict[int, IntArray] = {}

    def next_after(self, at_ms: int) -> int | None:
        """The first end after `at_ms` by which the head may fit and room has grown since; None: there is none."""
        times = self.timeline.times
        low, high = int(np.searchsorted(times, at_ms, side="right")), len(times)
        if low == high:
            return None
        base = self._grown(at_ms)
        if not self._is_worth(int(times[high - 1]), base):
            return None
        while low < high - 1:
            middle = (low + high - 1) // 2
            if self._is_worth(int(times[middle]), base):
                high = middle + 1
            else:
                low = middle + 1
        return int(times[high - 1])

    def is_enough(self, at_ms: int) -> bool:
        counts = self._counts(at_ms)
        held = int(counts.max(initial=0)) if self._is_together else int(counts.sum())
        return held >= self._least

    def nodes(self, at_ms: int) -> list[int]:
        """The nodes that hold a task by then, by id."""
        return [int(i) for i in np.flatnonzero(self._counts(at_ms))]

    def _is_worth(self, at_ms: int, base: int) -> bool:
        return self.is_enough(at_ms) and self._grown(at_ms) > base

    def _grown(self, at_ms: int) -> int:
        """Larger when more fits. Where others have claims, any end may be the one that matters."""
        total = int(self._counts(at_ms).sum())
        return total + self.timeline.ended(at_ms, self._claimed) if len(self._claimed) else total

    def _counts(self, at_ms: int) -> IntArray:
        counts = self._kept.get(at_ms)
        if counts is None:
            counts = self.timeline.counts(self._needs, at_ms)
            if self._outside is not None:
                counts[self._outside] = 0
            self._kept[at_ms] = counts
        return counts
