"""Making and ending reservations: which cards, from when, and what stands in the way. Pure.

Cards are chosen when the reservation is made, among those where every job that runs now surely ends before the first
window opens and where no other reservation needs the room. Maintenance takes whole nodes and is never refused for jobs:
its notice names those that will still run. The answer is one event or a Rejection; nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from gpushare import names
from gpushare.core.capacity import share_on
from gpushare.core.commands import Call, CoreSettings, CreateReservation, DeleteReservation, Outcome, Rejection
from gpushare.core.events import ReservationCreated, ReservationDeleted
from gpushare.core.model import WHOLE_CARD_MILLI, Attempt, Gpu, Job, Node, NodeState, TaskRequest
from gpushare.core.placement.endings import end_ms
from gpushare.core.promises import Reservation, ReservedCard
from gpushare.core.reservations import Window, overlap, window
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason

Decision = Outcome | Rejection

# Notices of an Outcome.
JOBS_IN_THE_WAY = "jobs_in_the_way"

_TEN_YEARS_MS = 3653 * 24 * 3600 * 1000
_REPEAT_MIN_MS = 60_000
_RESERVATIONS_MAX = 1000
_USERS_MAX = 1000
_DETAIL_MAX_BYTES = 1024
_SHOWN = 5


class _Refused(Exception):
    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


def _refuse(field: str, detail: str, reason: Reason = Reason.INVALID_FIELD) -> _Refused:
    return _Refused(Rejection(reason, f"{field}: {detail}", field=field))


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


def create(
    state: ClusterState, command: CreateReservation, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    """INVALID_FIELD, NOT_FOUND, ALREADY_EXISTS; RESERVATION_NO_ROOM: no such cards exist; RESERVATION_CONFLICT: jobs
    (unless `force`) or other reservations are in the way."""
    try:
        draft = _draft(state, command, call, now_ms)
        if command.maintenance:
            return _maintenance(state, command, draft, now_ms)
        return _reserve(state, command, draft, now_ms)
    except _Refused as refused:
        return refused.rejection
    except names.TextError as err:
        return Rejection(Reason.INVALID_FIELD, str(err), field=err.field)


def delete(
    state: ClusterState, command: DeleteReservation, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    """End a reservation now; jobs that run in it run on."""
    if command.name not in state.reservations:
        return Rejection(Reason.NOT_FOUND, f"reservation {names.shown(command.name)} does not exist", field="name")
    return Outcome(events=(ReservationDeleted(name=command.name),), names=(command.name,))


# -- the request's own shape


def _draft(state: ClusterState, command: CreateReservation, call: Call, now_ms: int) -> Reservation:
    """The reservation without its cards, from fields that were all checked."""
    names.check_name(command.name, "name")
    if command.name in state.reservations:
        raise _refuse("name", f"reservation {command.name} exists; choose another name", Reason.ALREADY_EXISTS)
    if len(state.reservations) >= _RESERVATIONS_MAX:
        raise _refuse("name", f"there are {_RESERVATIONS_MAX} reservations; delete some", Reason.RESERVATION_CONFLICT)
    names.check_text(command.detail, "detail", max_bytes=_DETAIL_MAX_BYTES)
    found = _window_of(command, now_ms)
    _check_holder(state, command)
    nodes = _check_nodes(state, command.nodes)
    _check_amount(command)
    return Reservation(
        name=command.name,
        start_ms=found.start_ms,
        end_ms=found.end_ms,
        tenant=command.tenant,
        users=tuple(sorted(set(command.users))),
        maintenance=command.maintenance,
        nodes=nodes,
        repeat_ms=command.repeat_ms,
        until_ms=command.until_ms,
        detail=command.detail,
        created_by=call.principal.user,
        created_ms=now_ms,
    )


def _window_of(command: CreateReservation, now_ms: int) -> Window:
    """The first window that is not over. One that has begun begins now; a recurring one keeps its hours."""
    start_ms, last_ms = command.start_ms, now_ms + _TEN_YEARS_MS
    length_ms = command.end_ms - start_ms
    if start_ms < 0:
        raise _refuse("start_time", f"{start_ms} ms is before 1970")
    if length_ms <= 0:
        raise _refuse("end_time", f"{_when(command.end_ms)} is not after the start, {_when(start_ms)}")
    if command.repeat_ms < 0 or 0 < command.repeat_ms < max(_REPEAT_MIN_MS, length_ms):
        raise _refuse(
            "repeat",
            f"every {command.repeat_ms} ms; accepted: 0 for once, else at least a minute and the window's own length, "
            f"{length_ms} ms",
        )
    if command.until_ms and (not command.repeat_ms or command.until_ms <= start_ms):
        raise _refuse("until_time", "is for a reservation that recurs, and after its start")
    for field, value in (("start_time", start_ms), ("end_time", command.end_ms), ("until_time", command.until_ms)):
        if value > last_ms:
            raise _refuse(field, f"{_when(value)} is more than ten years ahead")
    asked = Reservation(command.name, start_ms, command.end_ms, repeat_ms=command.repeat_ms, until_ms=command.until_ms)
    found = window(asked, now_ms)
    if found is None:
        over_ms = command.until_ms if command.repeat_ms else command.end_ms
        raise _refuse("until_time" if command.repeat_ms else "end_time", f"{_when(over_ms)} has passed")
    return found if command.repeat_ms else Window(max(found.start_ms, now_ms), found.end_ms)


def _check_holder(state: ClusterState, command: CreateReservation) -> None:
    if command.maintenance:
        if command.tenant or command.users:
            raise _refuse("tenant", "maintenance entitles nobody; leave tenant and users out")
        return
    if not command.tenant:
        raise _refuse("tenant", "is empty; name who the reservation is for, or ask for maintenance")
    if state.tenant(command.tenant) is None:
        raise _refuse("tenant", f"tenant {names.shown(command.tenant)} does not exist", Reason.NOT_FOUND)
    if len(command.users) > _USERS_MAX:
        raise _refuse("users", f"has {len(command.users)} users; accepted: {_USERS_MAX}")
    for user in command.users:
        names.check_name(user, "users")


def _check_nodes(state: ClusterState, nodes: tuple[str, ...]) -> tuple[str, ...]:
    for name in nodes:
        if name not in state.nodes:
            raise _refuse("nodes", f"node {names.shown(name)} does not exist", Reason.NOT_FOUND)
    return tuple(sorted(set(nodes)))


def _check_amount(command: CreateReservation) -> None:
    share = (command.gpu_milli, command.gpu_memory_mib)
    is_share = share != (None, None)
    if command.maintenance:
        if command.gpus is not None or is_share or command.gpu_model:
            raise _refuse("gpus", "maintenance takes whole nodes; leave amounts and model out")
        if not command.nodes:
            raise _refuse("nodes", "is empty; name the nodes to maintain")
        return
    if command.gpu_model:
        names.check_text(command.gpu_model, "gpu_model", max_bytes=_DETAIL_MAX_BYTES)
    if command.gpus is not None and is_share:
        raise _refuse("gpus", "whole cards exclude gpu_milli and gpu_memory_mib; make two reservations")
    if command.gpus is None and not is_share and not command.nodes:
        raise _refuse("gpus", "is unset; give a number of cards, a share of one card, or the nodes to take whole")
    if command.gpus is not None and command.gpus < 1:
        raise _refuse("gpus", f"is {command.gpus}; accepted: 1 or more")
    if command.gpu_milli is not None and not 1 <= command.gpu_milli <= WHOLE_CARD_MILLI:
        raise _refuse("gpu_milli", f"is {command.gpu_milli}; accepted: 1 to {WHOLE_CARD_MILLI}")
    if command.gpu_memory_mib is not None and not 1 <= command.gpu_memory_mib < 2**31:
        raise _refuse("gpu_memory_mib", f"is {command.gpu_memory_mib}; accepted: 1 MiB or more")


# -- maintenance


def _maintenance(state: ClusterState, command: CreateReservation, draft: Reservation, now_ms: int) -> Outcome:
    """Whole nodes. Reservations there are refused, for a person must weigh the two; `force` puts it above them."""
    wanted = set(draft.nodes)
    clashes = [
        other.name
        for _, other in sorted(state.reservations.items())
        if not other.maintenance and wanted & {c.node for c in other.cards} and overlap(draft, other)
    ]
    if clashes and not command.force:
        raise _refuse(
            "nodes",
            f"reserved there in that time: {_listed(clashes)}; choose another time, or force it above them",
            Reason.RESERVATION_CONFLICT,
        )
    staying = [
        attempt
        for name in draft.nodes
        for attempt in state.live_attempts(state.nodes[name])
        if not _is_gone(state, attempt, draft.start_ms, now_ms)
    ]
    return _outcome(draft, [_job_words(state, a, now_ms) for a in staying])


# -- cards


def _reserve(state: ClusterState, command: CreateReservation, draft: Reservation, now_ms: int) -> Outcome:
    spots = _spots(state, command, draft, now_ms)
    chosen = _choose_share(spots, command.force) if _is_share(command) else _choose_whole(spots, command)
    draft = _with_cards(draft, chosen)
    host_jobs = _lacking_host(state, draft, now_ms)
    if host_jobs and not command.force:
        raise _in_the_way(draft, host_jobs, (), "CPU and host memory of the node")
    in_the_way = dict.fromkeys([*(job for s in chosen for job in s.jobs), *host_jobs])
    return _outcome(draft, list(in_the_way))


def _outcome(made: Reservation, in_the_way: list[str]) -> Outcome:
    notices = {JOBS_IN_THE_WAY: tuple(dict.fromkeys(in_the_way))} if in_the_way else {}
    return Outcome(events=(ReservationCreated(reservation=made),), names=(made.name,), notices=notices)


def _is_share(command: CreateReservation) -> bool:
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
            if _is_share(command):
                milli, mib = share_on(request, card.usable_mib)[:2]
            if milli <= WHOLE_CARD_MILLI and mib <= card.usable_mib:
                spots.append(_spot(state, draft, others, node, gpu, (milli, mib), now_ms))
    least = 1 if command.gpus is None else command.gpus
    if len(spots) < least:
        where = f" on {_listed(draft.nodes)}" if draft.nodes else ""
        kind = f" of model {command.gpu_model}" if command.gpu_model else ""
        what = "such a share" if _is_share(command) else f"{least} cards"
        raise _refuse(
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
        if not _is_entitled(state, draft, a) and not _is_gone(state, a, draft.start_ms, now_ms)
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
        tuple(_job_words(state, a, now_ms) for a in staying) if in_the_way else (),
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
    return Reservation(
        name=draft.name,
        start_ms=draft.start_ms,
        end_ms=draft.end_ms,
        tenant=draft.tenant,
        users=draft.users,
        nodes=tuple(milli_by_node),
        cards=tuple(ReservedCard(s.node.name, s.gpu.uuid, s.milli, s.mib) for s in chosen),
        hosts=tuple(hosts),
        repeat_ms=draft.repeat_ms,
        until_ms=draft.until_ms,
        detail=draft.detail,
        created_by=draft.created_by,
        created_ms=draft.created_ms,
    )


def _lacking_host(state: ClusterState, draft: Reservation, now_ms: int) -> list[str]:
    """Jobs of others that may leave too little CPU or host memory for the reserved cards."""
    told: list[str] = []
    for name, cpu_milli, memory_mib in draft.hosts:
        node = state.nodes[name]
        staying = [
            a
            for a in state.live_attempts(node)
            if not _is_entitled(state, draft, a) and not _is_gone(state, a, draft.start_ms, now_ms)
        ]
        cpu_left = node.cpu_milli - cpu_milli - sum(a.slice.cpu_milli for a in staying)
        memory_left = node.memory_mib - memory_mib - sum(a.slice.memory_mib for a in staying)
        if cpu_left < 0 or memory_left < 0:
            told += [_job_words(state, a, now_ms) for a in staying]
    return list(dict.fromkeys(told))


# -- who stands in the way


def _is_entitled(state: ClusterState, draft: Reservation, attempt: Attempt) -> bool:
    if draft.maintenance or attempt.tenant != draft.tenant:
        return False
    return not draft.users or state.jobs[attempt.job_key].created_by.user in draft.users


def _is_gone(state: ClusterState, attempt: Attempt, at_ms: int, now_ms: int) -> bool:
    over_ms = end_ms(state, attempt, now_ms)
    return over_ms is not None and over_ms <= at_ms


def _job_words(state: ClusterState, attempt: Attempt, now_ms: int) -> str:
    job: Job = state.jobs[attempt.job_key]
    over_ms = end_ms(state, attempt, now_ms)
    if over_ms is not None:
        return f"{job.key} (ends by {_when(over_ms)})"
    return f"{job.key} ({'end not known' if job.spec.max_run_ms else 'no time limit'})"


def _blocked(spots: list[_Spot], what: str) -> _Refused:
    jobs = dict.fromkeys(job for s in spots for job in s.jobs)
    reservations = dict.fromkeys(name for s in spots for name in s.reservations)
    return _conflict(what, jobs, reservations)


def _in_the_way(draft: Reservation, jobs: Iterable[str], reservations: Iterable[str], what: str) -> _Refused:
    return _conflict(f"{what} {_listed(draft.nodes)} would be short", jobs, reservations)


def _conflict(what: str, jobs: Iterable[str], reservations: Iterable[str]) -> _Refused:
    jobs, reservations = list(jobs), list(reservations)
    told = [f"jobs {_listed(jobs)}"] if jobs else []
    told += [f"reservations {_listed(reservations)}"] if reservations else []
    hint = "; force it to let the jobs run on and have the cards after them" if jobs else ""
    return _Refused(
        Rejection(
            Reason.RESERVATION_CONFLICT,
            f"{what}; in the way: {' and '.join(told)}{hint}",
            field="start_time",
            metadata={"jobs": ", ".join(jobs[:64]), "reservations": ", ".join(reservations[:64])},
        )
    )


def _listed(words: Iterable[str]) -> str:
    told = list(words)
    return ", ".join(told[:_SHOWN]) + (f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")


def _when(at_ms: int) -> str:
    """UTC to the second; whatever no calendar holds is shown in ms."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"
