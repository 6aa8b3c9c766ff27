"""Which cards a reservation gets, and who would stand in its way. Pure.

A card is clear when every job of others that runs there surely ends before the first window, and no other reservation
needs the room; what the reservation's own holder runs there is no obstacle. Whole cards come from as few nodes as can
be, a share from the card that it fills best. A refusal is raised as `Refused` and names whoever is in the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from gpushare.core.capacity import share_on
from gpushare.core.commands import CreateReservation, Rejection
from gpushare.core.kinds import NodeState
from gpushare.core.model import WHOLE_CARD_MILLI, Attempt, Gpu, Node, TaskRequest
from gpushare.core.placement.endings import end_ms
from gpushare.core.promises import Reservation, ReservedCard
from gpushare.core.reservations import overlap
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason

_SHOWN = 5


class Refused(Exception):
    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


def refuse(field: str, detail: str, reason: Reason = Reason.INVALID_FIELD) -> Refused:
    return Refused(Rejection(reason, f"{field}: {detail}", field=field))


class _Spot(NamedTuple):
    """One card as a place for the reservation, with who stands in the way."""

    node: Node
    gpu: Gpu
    milli: int
    mib: int
    # Room that stays free there beside the reservation; below 0 with jobs in the way.
    left_milli: int
    jobs: tuple[str, ...]
    reservations: tuple[str, ...]

    @property
    def is_clear(self) -> bool:
        return not self.jobs and not self.reservations


def choose(
    state: ClusterState, command: CreateReservation, draft: Reservation, now_ms: int
) -> tuple[Reservation, list[str]]:
    """`draft` with its cards, and the jobs that stay in the way (none without `force`). Raises Refused."""
    spots = _spots(state, command, draft, now_ms)
    for _ in range(len(state.nodes) + 1):
        chosen = _choose_share(spots, command.force) if is_share(command) else _choose_whole(spots, command)
        made = _with_cards(draft, chosen)
        short = _lacking_host(state, made, now_ms)
        fresh = [s for s in spots if s.is_clear and s.node.name in short]
        if not fresh:
            break
        # Their cards are clear, but not the CPU and memory that come with them: look elsewhere first.
        spots = [s._replace(jobs=short[s.node.name]) if s in fresh else s for s in spots]
    return made, list(dict.fromkeys(job for s in chosen for job in s.jobs))


def is_share(command: CreateReservation) -> bool:
    return command.gpu_milli is not None or command.gpu_memory_mib is not None


def _spots(state: ClusterState, command: CreateReservation, draft: Reservation, now_ms: int) -> list[_Spot]:
    """Every card that could be reserved, in the order of names and indexes. RESERVATION_NO_ROOM: too few exist."""
    models = command.gpu_model.split("|") if command.gpu_model else []
    nodes = [state.nodes[name] for name in (draft.nodes or sorted(state.nodes))]
    others = [r for _, r in sorted(state.reservations.items()) if overlap(draft, r)]
    request = TaskRequest(gpu_milli=command.gpu_milli, gpu_memory_mib=command.gpu_memory_mib)
    spots: list[_Spot] = []
    for node in nodes:
        if node.state is NodeState.LOST or (node.cordoned and not draft.nodes):
            continue
        for gpu in sorted(node.gpus.values(), key=lambda g: g.inventory.index):
            card = gpu.inventory
            if not gpu.is_placeable or card.usable_mib < 1 or (models and card.model not in models):
                continue
            milli, mib = WHOLE_CARD_MILLI, card.usable_mib
            if is_share(command):
                milli, mib = share_on(request, card.usable_mib)[:2]
            if milli <= WHOLE_CARD_MILLI and mib <= card.usable_mib:
                spots.append(_spot(state, draft, others, node, gpu, (milli, mib), now_ms))
    least = 1 if command.gpus is None else command.gpus
    if len(spots) < least:
        where = f" on {listed(draft.nodes)}" if draft.nodes else ""
        kind = f" of model {command.gpu_model}" if command.gpu_model else ""
        what = "such a share" if is_share(command) else f"{least} cards"
        raise refuse(
            "gpus",
            f"{what}{kind}{where} cannot be: {len(spots)} cards in service are large enough",
            Reason.RESERVATION_NO_ROOM,
        )
    return spots


def _spot(
    state: ClusterState,
    draft: Reservation,
    others: list[Reservation],
    node: Node,
    gpu: Gpu,
    need: tuple[int, int],
    now_ms: int,
) -> _Spot:
    """What stays on the card when the window opens: jobs that may still run, and what others have reserved."""
    staying = [
        a
        for a in (state.attempts[i] for i in sorted(gpu.holds))
        if not _is_entitled(state, draft, a) and not is_gone(state, a, draft.start_ms, now_ms)
    ]
    shut = [r.name for r in others if r.maintenance and node.name in r.nodes]
    reserved = [(r.name, c) for r in others for c in r.cards if c.gpu_uuid == gpu.uuid]
    whole = need[0] == WHOLE_CARD_MILLI
    capacity = WHOLE_CARD_MILLI if whole else gpu.capacity_milli
    left_milli = capacity - need[0] - sum(c.milli for _, c in reserved)
    left_mib = gpu.inventory.usable_mib - need[1] - sum(c.mib for _, c in reserved)
    is_full = left_milli < 0 or left_mib < 0
    held_milli, held_mib = sum(gpu.holds[a.id].milli for a in staying), sum(gpu.holds[a.id].mib for a in staying)
    in_the_way = staying and (whole or left_milli < held_milli or left_mib < held_mib)
    return _Spot(
        node,
        gpu,
        need[0],
        need[1],
        left_milli - held_milli,
        tuple(job_words(state, a, now_ms) for a in staying) if in_the_way else (),
        (*shut, *(name for name, _ in reserved if is_full)),
    )


def _choose_share(spots: list[_Spot], force: bool) -> list[_Spot]:
    """The card that is left with the smallest piece."""
    clear = [s for s in spots if s.is_clear] or [s for s in spots if force and not s.reservations]
    if not clear:
        raise _blocked(spots, "no card has room for the share in that time")
    return [min(clear, key=lambda s: (len(s.jobs), s.left_milli))]


def _choose_whole(spots: list[_Spot], command: CreateReservation) -> list[_Spot]:
    """Clear cards on as few nodes as possible; with `force` also such where jobs stay."""
    wanted = len(spots) if command.gpus is None else command.gpus
    clear = [s for s in spots if s.is_clear]
    if len(clear) >= wanted:
        return _on_few_nodes(clear, wanted)
    open_to_force = [s for s in spots if not s.reservations] if command.force else []
    if len(open_to_force) >= wanted:
        return _on_few_nodes(open_to_force, wanted)
    raise _blocked(spots, f"{len(clear)} of the {wanted} cards asked for are free in that time")


def _on_few_nodes(spots: list[_Spot], wanted: int) -> list[_Spot]:
    """The largest nodes first; the last one is the smallest that does. Within a node, cards without jobs first."""
    by_node: dict[str, list[_Spot]] = {}
    for spot in spots:
        by_node.setdefault(spot.node.name, []).append(spot)
    for here in by_node.values():
        here.sort(key=lambda s: (len(s.jobs), s.gpu.inventory.index))
    chosen: list[_Spot] = []
    while len(chosen) < wanted:
        missing = wanted - len(chosen)
        enough = [name for name, here in by_node.items() if len(here) >= missing]
        if enough:
            name = min(enough, key=lambda n: (sum(len(s.jobs) for s in by_node[n][:missing]), len(by_node[n]), n))
        else:
            name = min(by_node, key=lambda n: (-len(by_node[n]), n))
        chosen += by_node.pop(name)[:missing]
    return sorted(chosen, key=lambda s: (s.node.name, s.gpu.inventory.index))


def _with_cards(draft: Reservation, chosen: list[_Spot]) -> Reservation:
    """The cards, and with them their part of each node's CPU and memory."""
    milli_by_node: dict[str, int] = {}
    node_of: dict[str, Node] = {}
    for spot in chosen:
        milli_by_node[spot.node.name] = milli_by_node.get(spot.node.name, 0) + spot.milli
        node_of[spot.node.name] = spot.node
    hosts = []
    for name, milli in milli_by_node.items():
        node = node_of[name]
        whole = WHOLE_CARD_MILLI * max(1, len(node.gpus))
        hosts.append((name, node.cpu_milli * milli // whole, node.memory_mib * milli // whole))
    cards = tuple(ReservedCard(s.node.name, s.gpu.uuid, s.milli, s.mib) for s in chosen)
    return msgspec.structs.replace(draft, nodes=tuple(milli_by_node), cards=cards, hosts=tuple(hosts))


def _lacking_host(state: ClusterState, made: Reservation, now_ms: int) -> dict[str, tuple[str, ...]]:
    """By node, the jobs of others that may leave too little CPU or host memory for the reserved cards."""
    short: dict[str, tuple[str, ...]] = {}
    for name, cpu_milli, memory_mib in made.hosts:
        node = state.nodes[name]
        staying = [
            a
            for a in state.live_attempts(node)
            if not _is_entitled(state, made, a) and not is_gone(state, a, made.start_ms, now_ms)
        ]
        cpu_left = node.cpu_milli - cpu_milli - sum(a.slice.cpu_milli for a in staying)
        memory_left = node.memory_mib - memory_mib - sum(a.slice.memory_mib for a in staying)
        if staying and (cpu_left < 0 or memory_left < 0):
            short[name] = tuple(dict.fromkeys(job_words(state, a, now_ms) for a in staying))
    return short


# -- who stands in the way


def _is_entitled(state: ClusterState, draft: Reservation, attempt: Attempt) -> bool:
    if draft.maintenance or attempt.tenant != draft.tenant:
        return False
    return not draft.users or state.jobs[attempt.job_key].created_by.user in draft.users


def is_gone(state: ClusterState, attempt: Attempt, at_ms: int, now_ms: int) -> bool:
    over_ms = end_ms(state, attempt, now_ms)
    return over_ms is not None and over_ms <= at_ms


def job_words(state: ClusterState, attempt: Attempt, now_ms: int) -> str:
    job = state.jobs[attempt.job_key]
    over_ms = end_ms(state, attempt, now_ms)
    if over_ms is not None:
        return f"{job.key} (ends by {when(over_ms)})"
    return f"{job.key} ({'end not known' if job.spec.max_run_ms else 'no time limit'})"


def _blocked(spots: list[_Spot], what: str) -> Refused:
    jobs = dict.fromkeys(job for s in spots for job in s.jobs)
    reservations = dict.fromkeys(name for s in spots for name in s.reservations)
    return _conflict(what, jobs, reservations)


def _conflict(what: str, jobs: Iterable[str], reservations: Iterable[str]) -> Refused:
    jobs, reservations = list(jobs), list(reservations)
    told = [f"jobs {listed(jobs)}"] if jobs else []
    told += [f"reservations {listed(reservations)}"] if reservations else []
    hint = "; force it to let the jobs run on and have the cards after them" if jobs else ""
    return Refused(
        Rejection(
            Reason.RESERVATION_CONFLICT,
            f"{what}; in the way: {' and '.join(told)}{hint}",
            field="start_time",
            metadata={"jobs": ", ".join(jobs[:64]), "reservations": ", ".join(reservations[:64])},
        )
    )


def listed(words: Iterable[str]) -> str:
    told = list(words)
    return ", ".join(told[:_SHOWN]) + (f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")


def when(at_ms: int) -> str:
    """UTC to the second; whatever no calendar holds is shown in ms."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"
