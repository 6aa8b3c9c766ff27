"""`gpushare quota preview`: who would wait, start or be reclaimed with other settings.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gpushare.cli.options import JSON, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import TenantSettings

_SETTABLE = (
    "parent", "guaranteed", "limit", "weight", "model-quota", "max-running", "max-running-per-user", "cpu-limit",
    "memory-limit", "min-run", "max-queued", "max-priority",
)  # fmt: skip
_ACCEPTED = f"TENANT.SETTING=VALUE, SETTING one of: {', '.join(_SETTABLE)}"


@click.group()
def quota() -> None:
    """Try other quotas before they are set (admin)."""


@quota.command()
@click.option(
    "--set",
    "changes",
    multiple=True,
    required=True,
    metavar="TENANT.SETTING=VALUE",
    help="As `tenant set` takes it, e.g. vision.guaranteed=6 or vision.model-quota=H100=2:4; repeatable.",
)
@output_option
@with_client
async def preview(client: AsyncClient, changes: tuple[str, ...], output: str) -> None:
    """Say which jobs would wait, start or be reclaimed; nothing is changed."""
    from gpushare.cli import output as o
    from gpushare.cli.table import print_table
    from gpushare.client.messages import QuotaEffect

    answer = await client.preview_quota(_settings_of(changes))
    if output == JSON:
        o.print_json(answer)
        return
    if not answer.jobs:
        print("no job would wait, start or be reclaimed")
        return
    rows = [
        (o.short_name(job.name), o.word(QuotaEffect, job.effect).lower().replace("_", " "), job.detail)
        for job in answer.jobs
    ]
    print_table(("JOB", "EFFECT", "BECAUSE"), rows)


def _settings_of(changes: tuple[str, ...]) -> dict[str, TenantSettings]:
    """By tenant's resource name. Raises TextError."""
    from gpushare.cli.tenantsettings import settings_of
    from gpushare.names import TextError

    options: dict[str, dict[str, Any]] = {}
    for text in changes:
        target, equals, value = text.partition("=")
        tenant, dot, setting = target.partition(".")
        if not equals or not dot or not tenant or setting not in _SETTABLE:
            raise TextError("set", text, "is no setting of a tenant", _ACCEPTED)
        given = options.setdefault(tenant, {})
        if setting == "model-quota":
            given.setdefault("model_quotas", []).append(value)
        elif setting.replace("-", "_") in given:
            raise TextError("set", text, "is given twice", _ACCEPTED)
        else:
            given[setting.replace("-", "_")] = value
    return {f"tenants/{tenant}": settings_of(given) for tenant, given in options.items()}
