"""`gpushare reservation ...`: windows of time in which capacity is for one tenant, or closed for maintenance.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from gpushare.cli.options import JSON, WIDE, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import CreateReservationRequest, Reservation

_COLUMNS = ("RESERVATION", "FOR", "WHAT", "NODES", "NEXT START", "NEXT END", "REPEAT")
_WIDE_COLUMNS = (*_COLUMNS, "USERS", "CARDS", "UNTIL", "BY", "CREATED", "DETAIL")


@click.group()
def reservation() -> None:
    """Keep capacity for a tenant, or close nodes for maintenance, in a window of time (admin)."""


@reservation.command()
@click.option("--tenant", default="", metavar="T", help="For whom.")
@click.option("--user", "users", multiple=True, metavar="U", help="For this user of the tenant alone; repeatable.")
@click.option("--maintenance", is_flag=True, help="Nothing runs on the nodes then; excludes tenant and cards.")
@click.option("--gpus", metavar="N", help='Whole cards, or a share of one card: "4", "0.5".')
@click.option("--gpu-memory", metavar="SIZE", help="Memory of that share, e.g. 12G; alone it sets the share, too.")
@click.option("--model", default="", metavar="A,B", help="Cards of these models alone.")
@click.option("--node", "nodes", multiple=True, metavar="N", help="On this node; repeatable.")
@click.option("--start", required=True, metavar="T", help="2026-12-01T09:00 (local, or with Z or +01:00), now, or +2h.")
@click.option("--end", metavar="T", help="As --start; or give --duration.")
@click.option("--duration", metavar="TIME", help="How long, e.g. 4h.")
@click.option("--repeat", metavar="daily|weekly|TIME", help="From one start to the next.")
@click.option("--until", metavar="T", help="With --repeat: no window starts after this.")
@click.option("--detail", default="", metavar="TEXT", help="What for; shown with it.")
@click.option("--force", is_flag=True, help="Although jobs may still be there when the window opens.")
@output_option
@click.argument("name", metavar="NAME")
@with_client
async def create(client: AsyncClient, /, name: str, output: str, **options: Any) -> None:
    """Make a reservation called NAME."""
    from gpushare.cli.output import print_json

    answer = await client.create_reservation(_request_of(name, options))
    if output == JSON:
        print_json(answer)
    else:
        _print([answer.reservation], wide=output == WIDE)
    for job in answer.jobs_in_the_way:
        print(f"note: may still be there when the window opens: {job}", file=sys.stderr)


@reservation.command("list")
@output_option
@with_client
async def list_(client: AsyncClient, output: str) -> None:
    """List reservations; those of other tenants without whom they are for."""
    from gpushare.cli.output import print_json_list

    found = [each async for each in client.list_reservations()]
    if output == JSON:
        print_json_list("reservations", found)
    else:
        _print(found, wide=output == WIDE)


@reservation.command()
@click.argument("name", metavar="NAME")
@with_client
async def delete(client: AsyncClient, name: str) -> None:
    """End a reservation now; jobs that run in it run on."""
    await client.delete_reservation(name if name.startswith("reservations/") else f"reservations/{name}")
    print(f"deleted reservation {name}")


def _request_of(name: str, options: dict[str, Any]) -> CreateReservationRequest:
    from gpushare.cli.output import now_ms
    from gpushare.cli.times import parse_moment_ms, parse_repeat_ms
    from gpushare.client.messages import CreateReservationRequest
    from gpushare.client.spec import request_of
    from gpushare.quantity import parse_duration_ms

    if (options["end"] is None) == (options["duration"] is None):
        raise click.UsageError("give one of --end and --duration")
    if options["until"] is not None and options["repeat"] is None:
        raise click.UsageError("--until is for --repeat")
    here_ms = now_ms()
    request = CreateReservationRequest(
        reservation_id=name,
        tenant=options["tenant"],
        users=options["users"],
        maintenance=options["maintenance"],
        nodes=[node.removeprefix("nodes/") for node in options["nodes"]],
        detail=options["detail"],
        force=options["force"],
    )
    asked = request_of(options["gpus"], options["gpu_memory"], options["model"])
    request.gpu_model = asked.gpu_model
    for field in ("gpus", "gpu_milli", "gpu_memory_mib"):
        if asked.HasField(field):
            setattr(request, field, getattr(asked, field))
    start_ms = parse_moment_ms(options["start"], "start", here_ms)
    if options["end"] is None:
        end_ms = start_ms + parse_duration_ms(options["duration"], "duration")
    else:
        end_ms = parse_moment_ms(options["end"], "end", here_ms)
    request.start_time.FromMilliseconds(start_ms)
    request.end_time.FromMilliseconds(end_ms)
    if options["repeat"] is not None:
        request.repeat.FromMilliseconds(parse_repeat_ms(options["repeat"]))
    if options["until"] is not None:
        request.until_time.FromMilliseconds(parse_moment_ms(options["until"], "until", here_ms))
    return request


def _print(found: list[Reservation], *, wide: bool) -> None:
    from gpushare.cli.table import print_table

    rows = [(*_row(each), *(_wide_cells(each) if wide else ())) for each in found]
    print_table(_WIDE_COLUMNS if wide else _COLUMNS, rows)


def _row(each: Reservation) -> tuple[object, ...]:
    from gpushare.cli import output as o
    from gpushare.quantity import format_duration_ms

    return (
        o.short_name(each.name),
        "maintenance" if each.maintenance else "(not shown to you)" if each.redacted else each.tenant,
        _what(each),
        ",".join(each.nodes),
        o.time_text(each, "next_start_time") or "over",
        o.time_text(each, "next_end_time"),
        format_duration_ms(each.repeat.ToMilliseconds()) if each.HasField("repeat") else "once",
    )


def _what(each: Reservation) -> str:
    from gpushare.cli.output import milli_text

    if each.maintenance:
        return "whole nodes"
    whole = sum(card.gpu_milli == 1000 for card in each.cards)
    shares = [f"{milli_text(card.gpu_milli)} of a card" for card in each.cards if card.gpu_milli != 1000]
    return " and ".join([f"{whole} card{'s' if whole > 1 else ''}"] * (whole > 0) + shares)


def _wide_cells(each: Reservation) -> tuple[object, ...]:
    from gpushare.cli import output as o

    return (
        ",".join(each.users),
        " ".join(f"{card.node}:{card.gpu_uuid}" for card in each.cards),
        o.time_text(each, "until_time"),
        each.created_by,
        o.time_text(each, "create_time"),
        each.detail,
    )
