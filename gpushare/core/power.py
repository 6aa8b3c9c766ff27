"""Which idle nodes go to sleep, and which sleeping ones are woken for the jobs that wait.

Pure. `stage` is the last part of a scheduling pass: it looks at what the pass has left, and asks for no more than an
admin's hook can do. A node sleeps when it was idle for long, is promised to nobody soon, and no waiting job could start
with it; it is woken when a waiting job would then start, within its limits. So the same job never sends a node to sleep
and wakes it again in turn. What failed is asked for again after `power_wake_timeout_ms`, not sooner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice

from gpushare.core.commands import CoreSettings
from gpushare.core.events import AttemptResumed, AttemptsAllocated, CapacityHeld, Event, NodePowerRequested
from gpushare.core.kinds import JobState, NodeState, Power
from gpushare.core.model import Job, Node, Slice
from gpushare.core.placement.claims import Claim
from gpushare.core.power_rooms import WakePlan
from gpushare.core.reservations import claims
from gpushare.core.state import ClusterState
from gpushare.core.waiting import LineKey
from gpushare.reasons import Reason

# Waits that another node could end; the others are for a limit, a cap, another job or a time.
WAITS_FOR_ROOM = frozenset(
    {
        Reason.NODES_UNAVAILABLE,
        Reason.GPU_UNHEALTHY,
        Reason.HOST_CAPACITY,
        Reason.NO_CAPACITY,
        Reason.OCCUPIED,
        Reason.RESERVED,
        Reason.HELD,
    }
)
# Of one line of equal jobs, and in all: what more of them need is seen by a later pass.
_JOBS_PER_LINE = 64
_JOBS_MAX = 256
_WOKEN_MAX = 64


def stage(
    state: ClusterState,
    now_ms: int,
    settings: CoreSettings,
    waiting: Iterable[Job],
    decided: Collection[Event] = (),
) -> list[Event]:
    """What power changes now. `waiting`: jobs that wait for room alone, in their order (see `without_room`). `decided`:
    what the pass has decided so far, which `state` does not show yet."""
    asleep = _asleep(state)
    overdue = [node for node in asleep if _is_overdue(node, now_ms, settings)]
    late_s = settings.power_wake_timeout_ms // 1000
    late = f"it did not come back within {late_s} s of being asked to wake; look at the machine and at power_up_command"
    events: list[Event] = [NodePowerRequested(node=n.name, power=Power.DOWN, detail=late) for n in overdue]
    taken = {piece.node for piece in _slices(decided)}
    due = due_to_sleep(state, now_ms, settings, taken)
    if not asleep and not due:
        return events
    woken, wanted = _what_waits(state, now_ms, settings, waiting, decided, due)
    events += [NodePowerRequested(node=name, power=Power.WAKING) for name in woken]
    events += [NodePowerRequested(node=name, power=Power.DOWN) for name in due if name not in wanted]
    return events


def due_to_sleep(
    state: ClusterState, now_ms: int, settings: CoreSettings, taken: Collection[str] = ()
) -> tuple[str, ...]:
    """Nodes that have been idle for long enough, longest first; `power_keep_nodes` stay awake. `taken`: those that the
    present pass has given something on."""
    if not settings.power_idle_ms:
        return ()
    awake = [node for node in state.nodes.values() if node.is_placeable]
    idle = [
        node
        for node in awake
        if _idle_until_ms(node, settings) <= now_ms and not node.attempts and node.name not in taken
    ]
    if not idle:
        return ()
    promised = _promised_soon(claims(state, now_ms), now_ms, settings)
    due = sorted((node.idle_since_ms, node.name) for node in idle if node.name not in promised)
    most = max(0, len(awake) - settings.power_keep_nodes)
    return tuple(name for _, name in due[:most])


def to_wake(
    state: ClusterState,
    waiting: Iterable[Job],
    now_ms: int,
    settings: CoreSettings,
    decided: Collection[Event] = (),
) -> tuple[str, ...]:
    """The fewest sleeping nodes with which jobs of `waiting` could start; none for a job that its limits stop."""
    return _what_waits(state, now_ms, settings, waiting, decided, ())[0]


def next_due_ms(state: ClusterState, now_ms: int, settings: CoreSettings) -> int | None:
    """When time alone may change what `stage` says; None when it will not."""
    found: list[int] = []
    for node in _asleep(state):
        if node.power is Power.WAKING or node.power_detail:
            found.append(node.power_since_ms + settings.power_wake_timeout_ms)
    if settings.power_idle_ms:
        idle = (node for node in state.nodes.values() if node.idle_since_ms and node.is_placeable)
        found += [_idle_until_ms(node, settings) for node in idle]
        # Nodes that a window keeps awake may sleep after it.
        found += [claim.end_ms for claim in claims(state, now_ms) if claim.end_ms is not None]
    return min((at_ms for at_ms in found if at_ms > now_ms), default=None)


def without_room(state: ClusterState, waits: Mapping[LineKey, Reason], settled: Collection[str]) -> Iterator[Job]:
    """The jobs that a pass leaves waiting for room, the first of each line ahead: `waits` is its verdict on each line,
    in the order of the queue, `settled` are the jobs of which it has decided otherwise."""
    for key, reason in waits.items():
        if reason not in WAITS_FOR_ROOM:
            continue
        left = (state.jobs[job_key] for _, job_key in state.lines.line(key) if job_key not in settled)
        yield from islice(left, _JOBS_PER_LINE)


def _what_waits(
    state: ClusterState,
    now_ms: int,
    settings: CoreSettings,
    waiting: Iterable[Job],
    decided: Collection[Event],
    due: Collection[str],
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Nodes to wake for the jobs that wait, and those of `due` that one of these may use."""
    nodes = _asleep(state)
    asleep = [n for n in nodes if n.power is Power.DOWN and _may_come(n) and _may_ask(n, now_ms, settings)]
    coming = [n for n in nodes if n.power is Power.WAKING and _may_come(n) and not _is_overdue(n, now_ms, settings)]
    # What failed before is tried last.
    asleep.sort(key=lambda n: (bool(n.power_detail), n.name))
    plan: WakePlan | None = None
    for job in islice(waiting, _JOBS_MAX) if asleep or coming or due else ():
        if job.state is not JobState.QUEUED or job.not_before_ms > now_ms:
            continue
        plan = plan or WakePlan(state, now_ms, asleep, coming, due, decided)
        plan.consider(job)
        if len(plan.woken) >= _WOKEN_MAX:
            break
    return (tuple(plan.woken), frozenset(plan.wanted)) if plan else ((), frozenset())


def _asleep(state: ClusterState) -> list[Node]:
    """Those whose power is not on."""
    return [state.nodes[name] for name in sorted(state.asleep)]


def _slices(decided: Iterable[Event]) -> Iterator[Slice]:
    for event in decided:
        if isinstance(event, AttemptsAllocated):
            yield from event.slices
        elif isinstance(event, AttemptResumed):
            yield event.slice
        elif isinstance(event, CapacityHeld):
            yield from event.hold.slices


def _idle_until_ms(node: Node, settings: CoreSettings) -> int:
    """When an idle node may sleep; after a failure not before the same wait as for a wake."""
    again_ms = node.power_since_ms + settings.power_wake_timeout_ms if node.power_detail else 0
    return max(node.idle_since_ms + settings.power_idle_ms, again_ms)


def _may_ask(node: Node, now_ms: int, settings: CoreSettings) -> bool:
    return not node.power_detail or node.power_since_ms + settings.power_wake_timeout_ms <= now_ms


def _is_overdue(node: Node, now_ms: int, settings: CoreSettings) -> bool:
    return node.power is Power.WAKING and node.power_since_ms + settings.power_wake_timeout_ms <= now_ms


def _may_come(node: Node) -> bool:
    """Out of reach is how a sleeping node looks."""
    return not node.cordoned and node.state in (NodeState.ACTIVE, NodeState.UNREACHABLE)


def _promised_soon(promises: Iterable[Claim], now_ms: int, settings: CoreSettings) -> set[str]:
    """Nodes that somebody may use now, or by the time that one which sleeps now is worth it."""
    soon = [c for c in promises if c.start_ms <= now_ms + settings.power_idle_ms]
    return {node for c in soon for node in (*c.hosts, *(node for node, _ in c.cards))}
