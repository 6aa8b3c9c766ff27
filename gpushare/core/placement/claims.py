"""Capacity that is promised: held for a preemptor, owed to the head of the queue, reserved, or shut for maintenance.

Pure integers, no arrays. A device (a card, or a node's CPU and memory) has free now F. A task that takes x from now
until E may do so when at each instant t before E what others still hold, what is promised at t and x fit together.
What others hold only shrinks, so the instants to look at are now and the starts of claims before E. At such a t the
device owes `promised(t) - freed_by(t)`; the largest of these, if above 0, is the shortfall, and the task may use
F - shortfall. What a claim's holder already has on the device counts as a part of what it was promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

# So many instants are told apart; claims that start later are taken to start at the last of them, which is stricter.
MAX_STARTS = 16

Amount = tuple[int, int]


class Owner(NamedTuple):
    """Whose task it is; `job` is a job's key."""

    tenant: str = ""
    user: str = ""
    job: str = ""


NOBODY = Owner()


class Claim(NamedTuple):
    """`cards` in (milli, MiB), `hosts` in (cpu_milli, memory_mib), from `start_ms` to before `end_ms` (None: for ever).
    Its holder is a job, or a tenant (of it `users`, where named); `whole_node`: the nodes of `hosts` are shut for
    everybody, whatever the amounts."""

    id: str
    start_ms: int
    end_ms: int | None = None
    job: str = ""
    tenant: str = ""
    users: tuple[str, ...] = ()
    cards: Mapping[tuple[str, str], Amount] = {}
    hosts: Mapping[str, Amount] = {}
    whole_node: bool = False

    def entitles(self, owner: Owner) -> bool:
        if self.whole_node:
            return False
        if self.job:
            return owner.job == self.job
        return bool(self.tenant) and owner.tenant == self.tenant and (not self.users or owner.user in self.users)

    def is_active(self, at_ms: int) -> bool:
        return self.start_ms <= at_ms and (self.end_ms is None or at_ms < self.end_ms)


class Booking(NamedTuple):
    """What one task holds of one node; it surely ends at `end_ms` (None: nobody knows)."""

    owner: Owner
    cards: Mapping[str, Amount]
    host: Amount
    end_ms: int | None


class Shortfall(NamedTuple):
    """What of a node's free capacity a task may not use. `shut`: none of it may be used."""

    shut: bool = False
    host: Amount = (0, 0)
    cards: Mapping[str, Amount] = {}


class Claims:
    """All claims as of one moment. `nodes`: those that any claim touches."""

    def __init__(self, claims: Iterable[Claim], now_ms: int) -> None:
        self.now_ms = now_ms
        live = [c for c in claims if c.end_ms is None or c.end_ms > now_ms]
        self.starts = tuple(sorted({c.start_ms for c in live if c.start_ms > now_ms})[:MAX_STARTS])
        if self.starts:
            live = [c._replace(start_ms=min(c.start_ms, self.starts[-1])) for c in live]
        # The narrowest holder first: what somebody holds counts for one claim on a device.
        self.claims = tuple(sorted(live, key=lambda c: (not c.job, not c.users, c.start_ms, c.id)))
        self.job_ids = frozenset(c.id for c in live if c.job)
        self._by_node: dict[str, list[Claim]] = {}
        for claim in self.claims:
            for node in dict.fromkeys([*claim.hosts, *(node for node, _ in claim.cards)]):
                self._by_node.setdefault(node, []).append(claim)

    @property
    def nodes(self) -> Iterable[str]:
        return self._by_node.keys()

    @property
    def phase(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Equal claims in equal phases have equal shortfalls, however time went on between."""
        return self.starts, tuple(c.id for c in self.claims)

    def horizon(self, end_ms: int | None) -> int:
        """How many of `starts` a task meets that ends at `end_ms`: tasks of equal horizon see equal shortfalls."""
        return len(self.starts) if end_ms is None else sum(start < end_ms for start in self.starts)

    def own(self, owner: Owner) -> frozenset[str]:
        """The claims that `owner` may use: it does not see them."""
        return frozenset(c.id for c in self.claims if c.entitles(owner))

    def shuts(self, node: str, horizon: int) -> bool:
        return any(c.whole_node and self._is_met(c, horizon) for c in self._by_node.get(node, ()))

    def shortfall(self, node: str, bookings: Sequence[Booking], horizon: int, own: frozenset[str]) -> Shortfall:
        """What a task that meets the first `horizon` starts must leave alone on `node`, where `bookings` hold now."""
        if self.shuts(node, horizon):
            return Shortfall(shut=True)
        met = [c for c in self._by_node.get(node, ()) if self._is_met(c, horizon)]
        instants = sorted({max(c.start_ms, self.now_ms) for c in met if c.id not in own})
        host: Amount = (0, 0)
        cards: dict[str, Amount] = {}
        for at_ms in instants:
            active = [c for c in met if c.is_active(at_ms)]
            alive = [b for b in bookings if at_ms <= self.now_ms or b.end_ms is None or b.end_ms > at_ms]
            ended = [b for b in bookings if at_ms > self.now_ms and b.end_ms is not None and b.end_ms <= at_ms]
            if any(node in c.hosts for c in active):
                owed = _owed(
                    [c for c in active if node in c.hosts], own, alive, ended, lambda c: c.hosts[node], lambda b: b.host
                )
                host = _larger(host, owed)
            for uuid in dict.fromkeys(u for c in active for n, u in c.cards if n == node):
                key = (node, uuid)
                owed = _owed(
                    [c for c in active if key in c.cards],
                    own,
                    alive,
                    ended,
                    lambda c, key=key: c.cards[key],  # type: ignore[misc]
                    lambda b, uuid=uuid: b.cards.get(uuid, (0, 0)),  # type: ignore[misc]
                )
                cards[uuid] = _larger(cards.get(uuid, (0, 0)), owed)
        return Shortfall(False, host, {uuid: owed for uuid, owed in cards.items() if owed != (0, 0)})

    def _is_met(self, claim: Claim, horizon: int) -> bool:
        return claim.start_ms <= self.now_ms or (horizon > 0 and claim.start_ms <= self.starts[horizon - 1])


def _owed(
    active: Sequence[Claim],
    own: frozenset[str],
    alive: Sequence[Booking],
    ended: Sequence[Booking],
    promised: Callable[[Claim], Amount],
    held: Callable[[Booking], Amount],
) -> Amount:
    """Promised and not yet held by its holders, less what has been freed; below 0 when more was freed."""
    first = second = 0
    others = list(alive)
    for claim in active:
        mine = [b for b in others if claim.entitles(b.owner)]
        if mine:
            others = [b for b in others if not claim.entitles(b.owner)]
        if claim.id in own:
            continue
        want = promised(claim)
        first += max(0, want[0] - sum(held(b)[0] for b in mine))
        second += max(0, want[1] - sum(held(b)[1] for b in mine))
    return first - sum(held(b)[0] for b in ended), second - sum(held(b)[1] for b in ended)


def _larger(a: Amount, b: Amount) -> Amount:
    return max(a[0], b[0]), max(a[1], b[1])
