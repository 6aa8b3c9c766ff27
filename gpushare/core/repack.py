"""Which suspendable jobs could move to other cards of their node, so that whole cards come free; and how they do it.

Pure. Only jobs that asked to be suspended rather than stopped, and that can be, move: one task on a part of one card,
to another card of the same kind on the same node, which is in use already and has the room now. Nothing moves by
itself: a plan is shown with its cost, and carried out on command. A job that moves is suspended; its new place is held
for it from that moment on, and it resumes there.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gpushare.core.brain import Brain
from gpushare.core.commands import CoreSettings
from gpushare.core.cycle import Cycle
from gpushare.core.events import AttemptSuspendRequested, CapacityHeld, Event
from gpushare.core.kinds import JobState
from gpushare.core.model import WHOLE_CARD_MILLI, Attempt, Gpu, Node, Slice
from gpushare.core.placement.endings import without_host
from gpushare.core.placement.place import place_on
from gpushare.core.plan import Plan
from gpushare.core.promises import CapacityHold
from gpushare.core.state import ClusterState
from gpushare.core.victims import can_suspend
from gpushare.core.whatif import World
from gpushare.reasons import Reason

DETAIL = "repack"
_CARDS_TRIED = 64


class RepackMove(msgspec.Struct, frozen=True):
    """One job from one card of `node` to another, at `slice`. `gpu_memory_mib` is copied to the host and back while the
    job pauses: its memory on the card, which is the cost of the move."""

    job: str
    attempt: str
    node: str
    from_uuid: str
    to_uuid: str
    gpu_memory_mib: int
    slice: Slice


class RepackPlan(msgspec.Struct, frozen=True):
    """`opened`: by node, how many whole cards come free. Shares are thousandths of a card; `fragmentation_*`: of all
    that is free on cards, how many thousandths are not whole cards. Every move is one pause of its job."""

    moves: tuple[RepackMove, ...] = ()
    opened: tuple[tuple[str, int], ...] = ()
    largest_share_before_milli: int = 0
    largest_share_after_milli: int = 0
    fragmentation_before_milli: int = 0
    fragmentation_after_milli: int = 0

    def only(self, jobs: Iterable[str]) -> RepackPlan:
        """The moves of these jobs alone; what comes free is then at most what is told."""
        chosen = frozenset(jobs)
        return msgspec.structs.replace(self, moves=tuple(m for m in self.moves if m.job in chosen))

    @property
    def gpu_memory_mib(self) -> int:
        """What is copied in all."""
        return sum(move.gpu_memory_mib for move in self.moves)


def plan_repack(state: ClusterState, now_ms: int, settings: CoreSettings, brain: Brain | None = None) -> RepackPlan:
    """The moves worth making now, after all that the next pass would start. Changes nothing."""
    return RepackQuestion(state, now_ms, settings, brain).answer()


class RepackQuestion:
    """A `plan_repack` in two steps, like `explain.Question`."""

    def __init__(self, state: ClusterState, now_ms: int, settings: CoreSettings, brain: Brain | None = None) -> None:
        self._world = World(state, now_ms, settings, brain)

    def answer(self) -> RepackPlan:
        return _plan(self._world)


def _plan(world: World) -> RepackPlan:
    cycle = world.look().cycle
    free = _Free(cycle.plan)
    before = free.largest_milli(), free.fragmentation_milli()
    moves: list[RepackMove] = []
    opened: list[tuple[str, int]] = []
    for name in sorted(world.state.nodes):
        node = world.state.nodes[name]
        if node.is_placeable:
            found, cards = _empty_cards_of(cycle, node)
            moves += found
            if cards:
                opened.append((name, cards))
    if not moves:
        moves = _one_larger_share(cycle)
    return RepackPlan(
        moves=tuple(moves),
        opened=tuple(opened),
        largest_share_before_milli=before[0],
        largest_share_after_milli=free.largest_milli(),
        fragmentation_before_milli=before[1],
        fragmentation_after_milli=free.fragmentation_milli(),
    )


def moves_events(moves: Iterable[RepackMove], now_ms: int) -> list[Event]:
    """What carries them out: each job is suspended, and its new place held for it."""
    events: list[Event] = []
    for move in moves:
        hold = CapacityHold(job=move.job, slices=(move.slice,), victims=(move.job,), since_ms=now_ms)
        events.append(CapacityHeld(hold=hold))
        events.append(AttemptSuspendRequested(attempt=move.attempt, reason=Reason.ADMIN, detail=DETAIL))
    return events


# -- what is free


class _Free:
    """What a plan has free on cards that take new work."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        nodes = [node for node in plan.state.nodes.values() if node.is_placeable]
        self._gpus = [gpu for node in nodes for gpu in node.gpus.values() if gpu.is_placeable]

    def largest_milli(self) -> int:
        shares = [share_free(self._plan, gpu) for gpu in self._gpus]
        return max(shares, default=0)

    def fragmentation_milli(self) -> int:
        """Free thousandths that are not whole cards, of a thousand that are free."""
        shares = [share_free(self._plan, gpu) for gpu in self._gpus]
        broken = sum(s for s in shares if s < WHOLE_CARD_MILLI)
        return 1000 * broken // sum(shares) if any(shares) else 0


def share_free(plan: Plan, gpu: Gpu) -> int:
    """Thousandths of a card that one share could have of `gpu`, with memory in proportion."""
    by_memory = WHOLE_CARD_MILLI * plan.free_mib(gpu) // max(1, gpu.inventory.usable_mib)
    return max(0, min(WHOLE_CARD_MILLI, plan.free_milli(gpu), by_memory))


# -- choosing


def _movable(state: ClusterState, gpu: Gpu) -> list[Attempt]:
    """The attempts on a card that can move; empty when one of them cannot, or when there is none."""
    attempts = [state.attempts[attempt_id] for attempt_id in sorted(gpu.holds)]
    return attempts if all(_can_move(state, attempt) for attempt in attempts) else []


def _can_move(state: ClusterState, attempt: Attempt) -> bool:
    job = state.jobs[attempt.job_key]
    is_still = job.state is JobState.RUNNING and not attempt.desired_stop and not attempt.desired_suspend
    return is_still and not attempt.slice.whole and job.key not in state.holds and can_suspend(state, job, job.live())


def _empty_cards_of(cycle: Cycle, node: Node) -> tuple[list[RepackMove], int]:
    """Cards of one node emptied one by one, the least memory to copy first, as far as the others take their jobs."""
    state, plan = cycle.state, cycle.plan
    sources = [gpu for gpu in node.gpus.values() if gpu.is_placeable and _movable(state, gpu)]
    sources.sort(key=lambda g: (g.used_mib, len(g.holds), g.inventory.index))
    taken: set[str] = set()
    moves: list[RepackMove] = []
    opened = 0
    for gpu in sources:
        if gpu.uuid in taken or plan.holders(gpu) != len(gpu.holds):
            # Others are moving here, or the next pass starts something.
            continue
        checkpoint = plan.checkpoint()
        found = [_move(cycle, node, gpu, attempt) for attempt in _largest_first(_movable(state, gpu))]
        done = [move for move in found if move is not None]
        if len(done) < len(found):
            # The tenants' tree stays right: the amounts are the same on both cards.
            plan.rollback(checkpoint)
            continue
        moves += done
        opened += 1
        taken |= {gpu.uuid, *(move.to_uuid for move in done)}
    return moves, opened


def _largest_first(attempts: list[Attempt]) -> list[Attempt]:
    return sorted(attempts, key=lambda a: (-a.slice.gpu_milli, -sum(a.slice.held_mib), a.id))


def _move(cycle: Cycle, node: Node, source: Gpu, attempt: Attempt) -> RepackMove | None:
    """Take a place for `attempt` on another card, the fullest that takes it, and give up the old one."""
    state, plan = cycle.state, cycle.plan
    job = state.jobs[attempt.job_key]
    targets = [g for g in node.gpus.values() if g.uuid != source.uuid and _is_target(plan, source, g)]
    # A card that was emptied stays empty; one that has taken a job already is as good as any.
    targets = [g for g in targets if plan.holders(g) > 0]
    for gpu in sorted(targets, key=lambda g: (plan.free_milli(g), plan.free_mib(g), g.inventory.index)):
        checkpoint = plan.checkpoint()
        plan.give(job.tenant, attempt.slice, job=job.key)
        cycle.count(job, [attempt.slice], -1)
        piece = place_on(plan, cycle.ask(job), (gpu.uuid,), attempt.task)
        if piece is None or piece.gpu_milli != attempt.slice.gpu_milli or piece.tier != attempt.slice.tier:
            plan.rollback(checkpoint)
            cycle.count(job, [attempt.slice], +1)
            continue
        cycle.count(job, [piece], +1)
        return RepackMove(
            job=job.key,
            attempt=attempt.id,
            node=node.name,
            from_uuid=source.uuid,
            to_uuid=gpu.uuid,
            gpu_memory_mib=sum(attempt.slice.held_mib),
            slice=without_host(piece),
        )
    return None


def _is_target(plan: Plan, source: Gpu, gpu: Gpu) -> bool:
    """A card of the same kind, where the same slice means the same."""
    one, other = source.inventory, gpu.inventory
    same = (one.model, one.usable_mib, one.tiers) == (other.model, other.usable_mib, other.tiers)
    return same and gpu.is_placeable


def _one_larger_share(cycle: Cycle) -> list[RepackMove]:
    """Where no card can be emptied: the moves off that card which leaves the largest share of all free."""
    plan = cycle.plan
    largest = _Free(plan).largest_milli()
    here = [
        (node, gpu)
        for node in cycle.state.nodes.values()
        if node.is_placeable
        for gpu in node.gpus.values()
        if gpu.is_placeable and gpu.holds
    ]
    here.sort(key=lambda each: (-share_free(plan, each[1]), each[0].name, each[1].inventory.index))
    best: tuple[int, Node, Gpu] | None = None
    for node, gpu in here[:_CARDS_TRIED]:
        checkpoint = plan.checkpoint()
        _clear(cycle, node, gpu)
        share = share_free(plan, gpu)
        plan.rollback(checkpoint)
        if share > largest:
            largest, best = share, (share, node, gpu)
    return [] if best is None else _clear(cycle, *best[1:])


def _clear(cycle: Cycle, node: Node, gpu: Gpu) -> list[RepackMove]:
    """Take off a card what can go elsewhere."""
    attempts = [cycle.state.attempts[attempt_id] for attempt_id in sorted(gpu.holds)]
    movable = [attempt for attempt in attempts if _can_move(cycle.state, attempt)]
    found = [_move(cycle, node, gpu, attempt) for attempt in _largest_first(movable)]
    return [move for move in found if move is not None]
