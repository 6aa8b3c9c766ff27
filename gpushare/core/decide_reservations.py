"""Making and ending reservations: which cards, from when, and what stands in the way. Pure.

Cards are chosen when the reservation is made, among those where every job that runs now surely ends before the first
window opens and where no other reservation needs the room. Maintenance takes whole nodes and is never refused for jobs:
its notice names those that will still run. The answer is one event or a Rejection; nothing is changed here.
"""

from __future__ import annotations

from gpushare import names
from gpushare.core.commands import Call, CoreSettings, CreateReservation, DeleteReservation, Outcome, Rejection
from gpushare.core.events import ReservationCreated, ReservationDeleted
from gpushare.core.model import WHOLE_CARD_MILLI
from gpushare.core.promises import Reservation
from gpushare.core.reservation_cards import Refused, choose, is_gone, job_words, listed, refuse, when
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


def create(
    state: ClusterState, command: CreateReservation, call: Call, now_ms: int, settings: CoreSettings
) -> Decision:
    """INVALID_FIELD, NOT_FOUND, ALREADY_EXISTS; RESERVATION_NO_ROOM: no such cards exist; RESERVATION_CONFLICT: jobs
    (unless `force`) or other reservations are in the way."""
    try:
        draft = _draft(state, command, call, now_ms)
        if command.maintenance:
            return _maintenance(state, command, draft, now_ms)
        return _outcome(*choose(state, command, draft, now_ms))
    except Refused as refused:
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
        raise refuse("name", f"reservation {command.name} exists; choose another name", Reason.ALREADY_EXISTS)
    if len(state.reservations) >= _RESERVATIONS_MAX:
        raise refuse("name", f"there are {_RESERVATIONS_MAX} reservations; delete some", Reason.RESERVATION_CONFLICT)
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
        raise refuse("start_time", f"{start_ms} ms is before 1970")
    if length_ms <= 0:
        raise refuse("end_time", f"{when(command.end_ms)} is not after the start, {when(start_ms)}")
    if command.repeat_ms and not max(_REPEAT_MIN_MS, length_ms) <= command.repeat_ms <= _TEN_YEARS_MS:
        raise refuse(
            "repeat",
            f"every {command.repeat_ms} ms; accepted: 0 for once, else at least a minute and the window's own length, "
            f"{length_ms} ms, and at most ten years",
        )
    if command.until_ms and (not command.repeat_ms or command.until_ms <= start_ms):
        raise refuse("until_time", "is for a reservation that recurs, and after its start")
    for field, value in (("start_time", start_ms), ("end_time", command.end_ms), ("until_time", command.until_ms)):
        if value > last_ms:
            raise refuse(field, f"{when(value)} is more than ten years ahead")
    asked = Reservation(command.name, start_ms, command.end_ms, repeat_ms=command.repeat_ms, until_ms=command.until_ms)
    found = window(asked, now_ms)
    if found is None:
        over_ms = command.until_ms if command.repeat_ms else command.end_ms
        raise refuse("until_time" if command.repeat_ms else "end_time", f"{when(over_ms)} has passed")
    return found if command.repeat_ms else Window(max(found.start_ms, now_ms), found.end_ms)


def _check_holder(state: ClusterState, command: CreateReservation) -> None:
    if command.maintenance:
        if command.tenant or command.users:
            raise refuse("tenant", "maintenance entitles nobody; leave tenant and users out")
        return
    if not command.tenant:
        raise refuse("tenant", "is empty; name who the reservation is for, or ask for maintenance")
    if state.tenant(command.tenant) is None:
        raise refuse("tenant", f"tenant {names.shown(command.tenant)} does not exist", Reason.NOT_FOUND)
    if len(command.users) > _USERS_MAX:
        raise refuse("users", f"has {len(command.users)} users; accepted: {_USERS_MAX}")
    for user in command.users:
        names.check_account(user, "users")


def _check_nodes(state: ClusterState, nodes: tuple[str, ...]) -> tuple[str, ...]:
    for name in nodes:
        if name not in state.nodes:
            raise refuse("nodes", f"node {names.shown(name)} does not exist", Reason.NOT_FOUND)
    return tuple(sorted(set(nodes)))


def _check_amount(command: CreateReservation) -> None:
    share = (command.gpu_milli, command.gpu_memory_mib)
    is_share = share != (None, None)
    if command.maintenance:
        if command.gpus is not None or is_share or command.gpu_model:
            raise refuse("gpus", "maintenance takes whole nodes; leave amounts and model out")
        if not command.nodes:
            raise refuse("nodes", "is empty; name the nodes to maintain")
        return
    if command.gpu_model:
        names.check_text(command.gpu_model, "gpu_model", max_bytes=_DETAIL_MAX_BYTES)
    if command.gpus is not None and is_share:
        raise refuse("gpus", "whole cards exclude gpu_milli and gpu_memory_mib; make two reservations")
    if command.gpus is None and not is_share and not command.nodes:
        raise refuse("gpus", "is unset; give a number of cards, a share of one card, or the nodes to take whole")
    if command.gpus is not None and command.gpus < 1:
        raise refuse("gpus", f"is {command.gpus}; accepted: 1 or more")
    if command.gpu_milli is not None and not 1 <= command.gpu_milli <= WHOLE_CARD_MILLI:
        raise refuse("gpu_milli", f"is {command.gpu_milli}; accepted: 1 to {WHOLE_CARD_MILLI}")
    if command.gpu_memory_mib is not None and not 1 <= command.gpu_memory_mib < 2**31:
        raise refuse("gpu_memory_mib", f"is {command.gpu_memory_mib}; accepted: 1 MiB or more")


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
        raise refuse(
            "nodes",
            f"reserved there in that time: {listed(clashes)}; choose another time, or force it above them",
            Reason.RESERVATION_CONFLICT,
        )
    staying = [
        attempt
        for name in draft.nodes
        for attempt in state.live_attempts(state.nodes[name])
        if not is_gone(state, attempt, draft.start_ms, now_ms)
    ]
    return _outcome(draft, [job_words(state, a, now_ms) for a in staying])


def _outcome(made: Reservation, in_the_way: list[str]) -> Outcome:
    notices = {JOBS_IN_THE_WAY: tuple(dict.fromkeys(in_the_way))} if in_the_way else {}
    return Outcome(events=(ReservationCreated(reservation=made),), names=(made.name,), notices=notices)
