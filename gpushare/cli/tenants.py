"""`gpushare tenant ...`: who may use how much.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpushare.cli.options import JSON, WIDE, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Tenant, TenantSettings

_Function = TypeVar("_Function", bound=Callable[..., Any])

_COLUMNS = ("TENANT", "LIMIT", "IN USE", "RUNNING", "QUEUED", "MAX QUEUED", "MAX PRIORITY", "DEFAULT REQUEST")
_WIDE_COLUMNS = (*_COLUMNS, "DISPLAY NAME", "CREATED")
_NO_LIMIT = "none"

_SETTINGS_OPTIONS = (
    click.option(
        "--limit", metavar="CARDS|none", help="Cards that may be in use at once, e.g. 2.5; none for no limit."
    ),
    click.option("--max-queued", metavar="N", help="Jobs that may be queued at once."),
    click.option("--max-priority", metavar="N", help="The highest priority that its users may ask for."),
    click.option("--default-gpus", metavar="N", help="What a job gets that names no cards, e.g. 0.25."),
    click.option("--default-gpu-memory", metavar="SIZE", help="The memory of that share."),
    click.option("--display-name", metavar="TEXT", help="A name for people."),
)


def _settings_options(function: _Function) -> _Function:
    for option in reversed(_SETTINGS_OPTIONS):
        function = option(function)
    return function


@click.group()
def tenant() -> None:
    """Create, show, change and delete tenants (admin)."""


@tenant.command()
@_settings_options
@output_option
@click.argument("name", metavar="TENANT")
@with_client
async def create(client: AsyncClient, /, name: str, output: str, **settings: str | None) -> None:
    """Create a tenant."""
    _print_tenant(await client.create_tenant(name, _settings_of(settings)), output)


@tenant.command("set")
@_settings_options
@output_option
@click.argument("name", metavar="TENANT")
@with_client
async def set_(client: AsyncClient, /, name: str, output: str, **settings: str | None) -> None:
    """Change the settings that are given, and no other."""
    if all(value is None for value in settings.values()):
        raise click.UsageError("nothing to change; give at least one setting")
    _print_tenant(await client.update_tenant(_resource(name), _settings_of(settings)), output)


@tenant.command("list")
@output_option
@with_client
async def list_(client: AsyncClient, output: str) -> None:
    """List tenants."""
    from gpushare.cli.output import print_json_list

    found = [each async for each in client.list_tenants()]
    if output == JSON:
        print_json_list("tenants", found)
    else:
        _print_tenants(found, wide=output == WIDE)


@tenant.command()
@output_option
@click.argument("name", metavar="TENANT")
@with_client
async def show(client: AsyncClient, name: str, output: str) -> None:
    """Show one tenant."""
    _print_tenant(await client.get_tenant(_resource(name)), output)


@tenant.command()
@click.argument("name", metavar="TENANT")
@with_client
async def delete(client: AsyncClient, name: str) -> None:
    """Delete a tenant that has no jobs that have not ended."""
    await client.delete_tenant(_resource(name))
    print(f"deleted tenant {name}")


def _resource(name: str) -> str:
    return name if name.startswith("tenants/") else f"tenants/{name}"


def _settings_of(options: dict[str, str | None]) -> TenantSettings:
    from gpushare.client.messages import TenantSettings
    from gpushare.client.spec import request_of
    from gpushare.quantity import parse_int

    settings = TenantSettings()
    limit, max_queued, max_priority = options["limit"], options["max_queued"], options["max_priority"]
    if limit == _NO_LIMIT:
        settings.no_limit = True
    elif limit is not None:
        settings.limit_milli = _limit_milli(limit)
    if max_queued is not None:
        settings.max_queued_jobs = parse_int(max_queued, "max_queued")
    if max_priority is not None:
        settings.max_priority = parse_int(max_priority, "max_priority", minimum=-(2**63), maximum=2**63 - 1)
    if options["display_name"] is not None:
        settings.display_name = options["display_name"]
    if options["default_gpus"] is not None or options["default_gpu_memory"] is not None:
        settings.default_request.CopyFrom(request_of(options["default_gpus"], options["default_gpu_memory"]))
    return settings


def _limit_milli(text: str) -> int:
    """Thousandths of a card. Cards are written as CPUs are ("2.5"), but none is a limit, too."""
    from gpushare.names import TextError
    from gpushare.quantity import QuantityError, parse_cpu_milli

    accepted = 'cards in steps of 0.001 ("4", "2.5", "0"), or none'
    try:
        if text.endswith("m"):
            raise TextError("limit", text, "is not a number of cards", accepted)
        return 0 if text == "0" else parse_cpu_milli(text, "limit")
    except QuantityError as err:
        raise TextError("limit", text, err.why, accepted) from err


def _print_tenant(found: Tenant, output: str) -> None:
    from gpushare.cli.output import print_json

    if output == JSON:
        print_json(found)
    else:
        _print_tenants([found], wide=output == WIDE)


def _print_tenants(found: list[Tenant], *, wide: bool) -> None:
    from gpushare.cli import output as o
    from gpushare.cli.table import print_table

    rows = []
    for each in found:
        cells = [
            o.short_name(each.name),
            o.milli_text(each.limit_milli) if each.HasField("limit_milli") else _NO_LIMIT,
            o.milli_text(each.running_charge_milli),
            each.running_jobs,
            each.queued_jobs,
            each.max_queued_jobs,
            each.max_priority,
            o.request_sentence(each.default_request),
        ]
        rows.append(cells + ([each.display_name, o.time_text(each, "create_time")] if wide else []))
    print_table(_WIDE_COLUMNS if wide else _COLUMNS, rows)
