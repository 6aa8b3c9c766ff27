"""`gpushare tenant ...`: who may use how much.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpushare.cli.options import JSON, WIDE, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import ModelQuota, Tenant

_Function = TypeVar("_Function", bound=Callable[..., Any])

_COLUMNS = (
    "TENANT", "LIMIT", "IN USE", "RUNNING", "QUEUED", "MAX QUEUED", "MAX PRIORITY", "TIME", "DEFAULT REQUEST",
)  # fmt: skip
_WIDE_COLUMNS = (
    "TENANT", "USED", "GUARANTEED", "LIMIT", "BORROWED", "WEIGHT", "AVERAGE", "MODELS", "RUNNING", "QUEUED", "CAPS",
    "MIN RUN", "MAX QUEUED", "MAX PRIORITY", "TIME", "DEFAULT REQUEST", "TAKES", "DISPLAY NAME", "CREATED",
)  # fmt: skip
_NO_LIMIT = "none"

_SETTINGS_OPTIONS = (
    click.option("--parent", metavar="T|none", help="The tenant that it stands below; none for the top."),
    click.option("--guaranteed", metavar="CARDS", help="Cards that are always its own, e.g. 4."),
    click.option(
        "--limit", metavar="CARDS|none", help="Cards that may be in use at once, e.g. 2.5; none for no limit."
    ),
    click.option("--weight", metavar="N", help="Its part of what is idle, next to its siblings (1)."),
    click.option(
        "--model-quota",
        "model_quotas",
        multiple=True,
        metavar="MODEL=G[:LIMIT]",
        help="Cards of one model: guaranteed, and limit, e.g. H100-80GB=2:4; MODEL=none takes it away; repeatable.",
    ),
    click.option("--max-running", metavar="N|none", help="Jobs that may run at once."),
    click.option("--max-running-per-user", metavar="N|none", help="Jobs of one user that may run at once."),
    click.option("--cpu-limit", metavar="CPUS|none", help="CPUs that may be in use at once, e.g. 64."),
    click.option("--memory-limit", metavar="SIZE|none", help="Host memory that may be in use at once, e.g. 512G."),
    click.option(
        "--min-run", metavar="TIME|none", help="How long its borrowing jobs run at least; none: as the cluster has it."
    ),
    click.option("--default-time", metavar="TIME|none", help="The time limit of a job that gives no --time."),
    click.option(
        "--max-time", metavar="TIME|none", help="The longest time limit that its jobs, and those below it, may have."
    ),
    click.option("--max-queued", metavar="N", help="Jobs that may be queued at once."),
    click.option("--max-priority", metavar="N", help="The highest priority that its users may ask for."),
    click.option("--default-gpus", metavar="N", help="What a job gets that names no cards, e.g. 0.25."),
    click.option("--default-gpu-memory", metavar="SIZE", help="The memory of that share."),
    click.option(
        "--isolated", type=click.Choice(["on", "off"]), help="on: nobody outside sees its jobs, and it sees nobody's."
    ),
    click.option("--display-name", metavar="TEXT", help="A name for people."),
    click.option(
        "--unix-group",
        "unix_groups",
        multiple=True,
        metavar="G|none",
        help="Members of this Unix group get a token for it on trusted hosts; repeatable, replaces those there were.",
    ),
    click.option(
        "--unix-user",
        "unix_users",
        multiple=True,
        metavar="U|none",
        help="The same for one Unix user, who counts before any group; repeatable.",
    ),
)


def _settings_options(function: _Function) -> _Function:
    for option in reversed(_SETTINGS_OPTIONS):
        function = option(function)
    return function


@click.group()
def tenant() -> None:
    """Create, show, change and delete tenants (admin; a tenant's admin those below the own)."""


@tenant.command()
@_settings_options
@output_option
@click.argument("name", metavar="TENANT")
@with_client
async def create(client: AsyncClient, /, name: str, output: str, **settings: Any) -> None:
    """Create a tenant."""
    from gpushare.cli.tenantsettings import settings_of

    _print_changed(await client.create_tenant(name, settings_of(settings)), output)


@tenant.command("set")
@_settings_options
@output_option
@click.argument("name", metavar="TENANT")
@with_client
async def set_(client: AsyncClient, /, name: str, output: str, **settings: Any) -> None:
    """Change the settings that are given, and no other."""
    from gpushare.cli.tenantsettings import settings_of

    if all(value in (None, ()) for value in settings.values()):
        raise click.UsageError("nothing to change; give at least one setting")
    _print_changed(await client.update_tenant(_resource(name), settings_of(settings)), output)


@tenant.command("list")
@output_option
@with_client
async def list_(client: AsyncClient, output: str) -> None:
    """List tenants; -o wide shows the tree, each with what is used in it, guaranteed and the limit."""
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


def _print_changed(found: Tenant, output: str) -> None:
    from gpushare.cli.inert import inert

    for notice in found.notices:
        print(f"note: {inert(notice)}", file=sys.stderr)
    _print_tenant(found, output)


def _print_tenant(found: Tenant, output: str) -> None:
    from gpushare.cli.output import print_json
    from gpushare.cli.table import print_fields

    if output == JSON:
        print_json(found)
    elif output == WIDE:
        _print_tenants([found], wide=True)
    else:
        print_fields((name.lower(), value) for name, value in zip(_WIDE_COLUMNS, _wide_row(found, 0), strict=True))


def _print_tenants(found: list[Tenant], *, wide: bool) -> None:
    from gpushare.cli.table import print_table

    if wide:
        print_table(_WIDE_COLUMNS, [_wide_row(each, depth) for each, depth in _tree(found)])
    else:
        print_table(_COLUMNS, [_row(each) for each in found])


def _tree(found: list[Tenant]) -> list[tuple[Tenant, int]]:
    """Each under its parent, with its depth; one whose parent is not in the list stands at the top."""
    known = {each.name for each in found}
    below: dict[str, list[Tenant]] = {}
    for each in found:
        below.setdefault(each.parent if each.parent in known else "", []).append(each)
    ordered: list[tuple[Tenant, int]] = []
    waiting = [(each, 0) for each in reversed(below.get("", []))]
    while waiting:
        each, depth = waiting.pop()
        ordered.append((each, depth))
        waiting += [(child, depth + 1) for child in reversed(below.get(each.name, []))]
    return ordered


def _row(each: Tenant) -> tuple[object, ...]:
    from gpushare.cli import output as o

    return (
        o.short_name(each.name),
        _limit_text(each, "limit_milli"),
        o.milli_text(each.running_charge_milli),
        each.running_jobs,
        each.queued_jobs,
        each.max_queued_jobs,
        each.max_priority,
        _time_text(each),
        o.request_sentence(each.default_request),
    )


def _wide_row(each: Tenant, depth: int) -> tuple[object, ...]:
    from gpushare.cli import output as o
    from gpushare.quantity import format_duration_ms

    return (
        "  " * depth + o.short_name(each.name),
        o.milli_text(each.used_charge_milli),
        o.milli_text(each.guaranteed_milli),
        _limit_text(each, "limit_milli"),
        o.milli_text(each.borrowed_charge_milli),
        each.weight,
        o.milli_text(each.average_charge_milli),
        _models_text(each),
        each.running_jobs,
        each.queued_jobs,
        _caps_text(each),
        format_duration_ms(each.min_run.ToMilliseconds()) if each.HasField("min_run") else "",
        each.max_queued_jobs,
        each.max_priority,
        _time_text(each),
        o.request_sentence(each.default_request),
        _takes_text(each),
        each.display_name,
        o.time_text(each, "create_time"),
    )


def _limit_text(message: Tenant | ModelQuota, field: str) -> str:
    from gpushare.cli.output import milli_text

    return milli_text(getattr(message, field)) if message.HasField(field) else _NO_LIMIT


def _time_text(each: Tenant) -> str:
    """ "1h, at most 8h": the limit of a job that gives none, and the cap."""
    from gpushare.quantity import format_duration_ms

    told = [format_duration_ms(each.default_run.ToMilliseconds())] if each.HasField("default_run") else []
    if each.HasField("max_run"):
        told.append(f"at most {format_duration_ms(each.max_run.ToMilliseconds())}")
    return ", ".join(told)


def _models_text(each: Tenant) -> str:
    """ "H100 1/2:4": in use, guaranteed and limit of each model that has a quota; in use alone of the others."""
    from gpushare.cli.output import milli_text

    used = {use.model: milli_text(use.charge_milli) for use in each.model_use}
    quotas = {q.model: f"/{milli_text(q.guaranteed_milli)}:{_limit_text(q, 'limit_milli')}" for q in each.model_quotas}
    return ", ".join(f"{model} {used.get(model, '0')}{quotas.get(model, '')}" for model in sorted({*used, *quotas}))


def _takes_text(each: Tenant) -> str:
    """Whose people it takes on trusted hosts: "@vision-lab, ada"."""
    return ", ".join([f"@{group}" for group in each.unix_groups] + list(each.unix_users))


def _caps_text(each: Tenant) -> str:
    from gpushare.cli import output as o

    caps = []
    if each.HasField("max_running_jobs"):
        caps.append(f"{each.max_running_jobs} jobs")
    if each.HasField("max_running_per_user"):
        caps.append(f"{each.max_running_per_user} jobs a user")
    if each.HasField("cpu_limit_milli"):
        caps.append(f"{o.cpus_text(each.allocated_cpu_milli)}/{o.cpus_text(each.cpu_limit_milli)} CPUs")
    if each.isolated:
        caps.append("isolated")
    if each.HasField("memory_limit_mib"):
        limit = o.memory_text(each.memory_limit_mib) or "0"
        caps.append(f"{o.memory_text(each.allocated_memory_mib) or '0'}/{limit} of memory")
    return ", ".join(caps)
