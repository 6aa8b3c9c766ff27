"""Jobs that may have to make way, what each would free, and the cheapest sets of them that free enough of a place.

Pure. Costs compare as tuples: fewest that made way for the same tenant the last time, then the smallest charge, then
the youngest. A set is found by trying all where they are few, else greedily, and is never larger than it has to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from gpushare.core.kinds import AttemptState, PreemptionMode
from gpushare.core.model import Attempt, Job, Slice
from gpushare.core.placement.endings import without_host
from gpushare.core.state import ClusterState

# All subsets are tried of so many at most.
_TRIED_MAX = 6

Amounts = tuple[int, ...]


class Cost(NamedTuple):
    """Compared in this order; the smallest is best. `age` is minus the start of the oldest, in ms."""

    repeated: int = 0
    charge_milli: int = 0
    age: int = -(2**62)
    host: int = 0


class Victim(NamedTuple):
    """A job that may be stopped, or suspended; `pieces` are what that frees, on whatever node."""

    job: Job
    pieces: tuple[Slice, ...]
    is_suspended: bool
    charge_milli: int
    cpu_milli: int
    started_ms: int
    is_repeated: bool
    key: str


class Part(NamedTuple):
    """A victim and what it frees of one place, in as many amounts as are looked at together."""

    victim: Victim
    amounts: Amounts


def cost_of(victims: Iterable[Victim]) -> Cost:
    repeated = charge_milli = host = 0
    oldest_ms = 2**62
    for victim in victims:
        repeated += victim.is_repeated
        charge_milli += victim.charge_milli
        host += victim.cpu_milli
        oldest_ms = min(oldest_ms, victim.started_ms)
    return Cost(repeated, charge_milli, -oldest_ms, host)


class Victims:
    """Whom `claimant` may have make way. `allowed` is asked once a job."""

    def __init__(
        self, state: ClusterState, claimant: Job, allowed: Callable[[Job], bool], *, with_suspend: bool
    ) -> None:
        self._state, self._claimant, self._allowed = state, claimant, allowed
        self._with_suspend = with_suspend
        self._known: dict[str, Victim | None] = {}
        self.has_suspended = False

    def of(self, key: str) -> Victim | None:
        if key not in self._known:
            self._known[key] = self._judge(self._state.jobs[key])
        return self._known[key]

    def on(self, node: str) -> list[Victim]:
        """Those that hold something of `node`, by key."""
        attempts = self._state.attempts
        keys = sorted({attempts[i].job_key for i in self._state.nodes[node].attempts})
        return [v for v in map(self.of, keys) if v is not None]

    def _judge(self, job: Job) -> Victim | None:
        claimant = self._claimant
        if job is claimant or not self._allowed(job) or job.preempted_for == claimant.key:
            return None
        live = job.live()
        if not live or any(_is_out_of_reach(a) for a in live):
            return None
        suspends = self._with_suspend and can_suspend(self._state, job, live)
        self.has_suspended = self.has_suspended or suspends
        held = [a.slice for a in live if a.suspended_ms is None]
        pieces = tuple(without_host(piece) if suspends else piece for piece in held)
        return Victim(
            job,
            pieces,
            suspends,
            sum(piece.charge_milli for piece in held),
            sum(piece.cpu_milli for piece in pieces),
            min(a.held_since_ms or a.started_ms or a.allocated_ms for a in live),
            job.preempted_for.split("/")[0] == claimant.tenant,
            job.key,
        )


def _is_out_of_reach(attempt: Attempt) -> bool:
    """It makes way already, or nobody can tell it to."""
    return attempt.desired_stop or attempt.desired_suspend or attempt.state is AttemptState.UNKNOWN


def can_suspend(state: ClusterState, job: Job, live: Sequence[Attempt]) -> bool:
    """One running task on one card, of a tier that can suspend there, of a job that asked for it."""
    if job.spec.preemption is not PreemptionMode.SUSPEND or job.spec.tasks != 1 or len(live) != 1:
        return False
    attempt = live[0]
    if attempt.state is not AttemptState.RUNNING or len(attempt.slice.gpu_uuids) != 1:
        return False
    gpu = state.nodes[attempt.slice.node].gpus.get(attempt.slice.gpu_uuids[0])
    return gpu is not None and any(
        o.can_suspend and not o.absent_because for o in gpu.inventory.tiers if o.tier == attempt.slice.tier
    )


def cover(parts: Sequence[Part], lack: Amounts, given: frozenset[str] = frozenset()) -> frozenset[str] | None:
    """Keys of the cheapest victims that free `lack` of a place, beside those `given` already; None: not enough."""
    left = lack
    for part in parts:
        if part.victim.key in given:
            left = tuple(a - b for a, b in zip(left, part.amounts, strict=True))
    if all(amount <= 0 for amount in left):
        return frozenset()
    lacking = [place for place, amount in enumerate(left) if amount > 0]
    useful = [p for p in parts if p.victim.key not in given and any(p.amounts[k] > 0 for k in lacking)]
    if not _frees(useful, left):
        return None
    found = _least_of_all(useful, left) if len(useful) <= _TRIED_MAX else _greedy(useful, left)
    return frozenset(p.victim.key for p in found)


def _frees(parts: Iterable[Part], lack: Amounts) -> bool:
    left = list(lack)
    for part in parts:
        for place, amount in enumerate(part.amounts):
            left[place] -= amount
    return all(amount <= 0 for amount in left)


def _least_of_all(parts: Sequence[Part], lack: Amounts) -> Sequence[Part]:
    best: Sequence[Part] = parts
    best_cost = cost_of(p.victim for p in parts)
    for size in range(1, len(parts)):
        for chosen in combinations(parts, size):
            if _frees(chosen, lack):
                cost = cost_of(p.victim for p in chosen)
                if cost < best_cost:
                    best, best_cost = chosen, cost
    return best


def _greedy(parts: Sequence[Part], lack: Amounts) -> Sequence[Part]:
    """The better of the cheapest that is enough alone, and the cheapest first less those that are not needed then."""
    ranked = sorted(parts, key=lambda p: cost_of([p.victim]))
    chosen: list[Part] = []
    for part in ranked:
        chosen.append(part)
        if _frees(chosen, lack):
            break
    for part in reversed(list(chosen)):
        rest = [p for p in chosen if p is not part]
        if _frees(rest, lack):
            chosen = rest
    alone = next((p for p in ranked if _frees([p], lack)), None)
    if alone is not None and cost_of([alone.victim]) < cost_of(p.victim for p in chosen):
        return [alone]
    return chosen
