"""ReservationService: the servicer for windows of time in which capacity is promised.

Imports the gate, the core's windows and the converters. When room is promised is no secret, since it makes others wait;
for which tenant is shown to those who see its jobs, for whom of it and what for to that tenant, and to operators and
admins. An operator closes nodes for maintenance; what a tenant gets is an admin's to say.
"""

from __future__ import annotations

from gpushare.core.commands import CreateReservation, DeleteReservation, Outcome
from gpushare.core.kinds import Role
from gpushare.core.promises import Reservation
from gpushare.core.reservations import window
from gpushare.core.state import ClusterState
from gpushare.errors import error_of, invalid_field
from gpushare.reasons import Reason
from gpushare.scheduler import convert
from gpushare.scheduler.api_gate import call_of, commit
from gpushare.scheduler.api_paging import Place, page_size
from gpushare.scheduler.auth import Caller
from gpushare.scheduler.engine import Engine
from gpushare.v1 import node_pb2


class ReservationApi:
    def __init__(self, engine: Engine, page_max: int) -> None:
        self._engine = engine
        self._page_max = page_max

    async def create_reservation(
        self, request: node_pb2.CreateReservationRequest, caller: Caller
    ) -> node_pb2.CreateReservationResponse:
        call = call_of(caller, request)
        command = _command(request)
        if caller.principal.role is Role.OPERATOR and not command.maintenance:
            raise _admins_alone("reserve capacity for a tenant")

        def view(state: ClusterState, outcome: Outcome) -> node_pb2.CreateReservationResponse | None:
            made = state.reservations.get(outcome.names[0])
            if made is None:
                return None
            notices = outcome.notices.get("jobs_in_the_way", ())
            return node_pb2.CreateReservationResponse(reservation=self._shown(made, caller), jobs_in_the_way=notices)

        answer = await commit(self._engine, command, call, view)
        if answer is None:
            # A repeated request whose reservation is over or deleted.
            raise convert.not_found(convert.reservation_name(command.name))
        return answer

    async def list_reservations(
        self, request: node_pb2.ListReservationsRequest, caller: Caller
    ) -> node_pb2.ListReservationsResponse:
        size = page_size(request.page_size, self._page_max)
        place = Place(caller.rpc, caller.principal, [])
        after = str(place.cursor(request.page_token, (str,))[0]) if request.page_token else ""

        def look(state: ClusterState) -> list[node_pb2.Reservation]:
            names = sorted(name for name in state.reservations if name > after)
            return [self._shown(state.reservations[name], caller) for name in names[: size + 1]]

        found = await self._engine.read(look)
        token = place.token([convert.parse_reservation_name(found[size - 1].name)]) if len(found) > size else ""
        return node_pb2.ListReservationsResponse(reservations=found[:size], next_page_token=token)

    async def delete_reservation(
        self, request: node_pb2.DeleteReservationRequest, caller: Caller
    ) -> node_pb2.DeleteReservationResponse:
        call = call_of(caller, request)
        name = convert.parse_reservation_name(request.name)
        known = self._engine.state.reservations.get(name)
        if caller.principal.role is Role.OPERATOR and known is not None and not known.maintenance:
            raise _admins_alone("delete a tenant's reservation")
        await self._engine.execute(DeleteReservation(name), call)
        return node_pb2.DeleteReservationResponse()

    def _shown(self, found: Reservation, caller: Caller) -> node_pb2.Reservation:
        hidden = not found.maintenance and not caller.sees_tenant(found.tenant)
        tenant = found.tenant if found.maintenance or caller.sees_jobs_of(found.tenant) else ""
        made = node_pb2.Reservation(
            name=convert.reservation_name(found.name),
            tenant=tenant,
            maintenance=found.maintenance,
            nodes=found.nodes,
            cards=[
                node_pb2.ReservedCard(node=c.node, gpu_uuid=c.gpu_uuid, gpu_milli=c.milli, gpu_memory_mib=c.mib)
                for c in found.cards
            ],
            start_time=convert.timestamp(found.start_ms),
            end_time=convert.timestamp(found.end_ms),
            repeat=convert.duration(found.repeat_ms) if found.repeat_ms else None,
            until_time=convert.timestamp(found.until_ms or None),
            create_time=convert.timestamp(found.created_ms),
            redacted=hidden,
        )
        if not hidden:
            made.detail, made.created_by = found.detail, found.created_by
            made.users.extend(found.users)
        coming = window(found, self._engine.now_ms())
        if coming is not None:
            made.next_start_time.FromMilliseconds(coming.start_ms)
            made.next_end_time.FromMilliseconds(coming.end_ms)
        return made


def _command(request: node_pb2.CreateReservationRequest) -> CreateReservation:
    """Raises INVALID_FIELD for what has no counterpart in the core."""
    for field in ("start_time", "end_time"):
        if not request.HasField(field):
            raise invalid_field(field, "is unset; a reservation has a start and an end")
    return CreateReservation(
        name=request.reservation_id,
        tenant=request.tenant,
        users=tuple(request.users),
        maintenance=request.maintenance,
        nodes=tuple(request.nodes),
        gpus=request.gpus if request.HasField("gpus") else None,
        gpu_milli=request.gpu_milli if request.HasField("gpu_milli") else None,
        gpu_memory_mib=request.gpu_memory_mib if request.HasField("gpu_memory_mib") else None,
        gpu_model=request.gpu_model,
        start_ms=convert.stamp_ms(request.start_time),
        end_ms=convert.stamp_ms(request.end_time),
        repeat_ms=convert.duration_ms(request.repeat, "repeat") if request.HasField("repeat") else 0,
        until_ms=convert.stamp_ms(request.until_time) if request.HasField("until_time") else 0,
        detail=request.detail,
        force=request.force,
    )


def _admins_alone(act: str) -> Exception:
    return error_of(Reason.PERMISSION_DENIED, f"An operator closes nodes for maintenance; only an admin may {act}.")
