"""`gpushare token ...`: who may call.

Imports click; the client only when a command runs. Invariant: a secret is printed once, on stdout, when it is made.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gpushare.cli.options import JSON, WIDE, output_option, tenant_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient

_ROLES = ("admin", "operator", "tenant-admin", "user", "viewer")
_COLUMNS = ("TOKEN", "USER", "ROLE", "TENANT", "UNIX USER", "EXPIRES", "REVOKED")
_WIDE_COLUMNS = (*_COLUMNS, "NODE", "CREATED")


@click.group()
def token() -> None:
    """Create, list and revoke tokens (admin; a tenant's admin for the own tenant and those below)."""


@token.command()
@click.option("--role", type=click.Choice(_ROLES), default="user", help="What it may do (user).")
@tenant_option
@click.option("--unix-user", default="", metavar="U", help="The account that this person's jobs run as.")
@click.option("--ttl", metavar="TIME", help="How long it is valid (for ever).")
@output_option
@click.argument("user", metavar="USER")
@with_client
async def create(
    client: AsyncClient, user: str, role: str, tenant: str, unix_user: str, ttl: str | None, output: str
) -> None:
    """Make a token for USER and print the line for their `gpushare login`, this once."""
    from gpushare.cli.output import print_json, short_name
    from gpushare.quantity import parse_duration_ms

    answer = await client.create_token(
        user,
        f"ROLE_{role.upper().replace('-', '_')}",
        tenant=tenant,
        unix_user=unix_user,
        ttl_ms=parse_duration_ms(ttl, "ttl") if ttl is not None else None,
    )
    if output == JSON:
        print_json(answer)
    else:
        print(f"token {short_name(answer.token.name)} for {user}; the line for `gpushare login`:", file=sys.stderr)
        print(answer.join)


@token.command("list")
@tenant_option
@output_option
@with_client
async def list_(client: AsyncClient, tenant: str, output: str) -> None:
    """List tokens; never their secrets."""
    from gpushare.cli import output as o
    from gpushare.cli.table import print_table
    from gpushare.client.messages import Role

    found = [each async for each in client.list_tokens(tenant=tenant)]
    if output == JSON:
        o.print_json_list("tokens", found)
        return
    wide = output == WIDE
    rows = []
    for each in found:
        cells = [
            o.short_name(each.name),
            each.user,
            o.word(Role, each.role).lower().replace("_", "-"),
            each.tenant,
            each.unix_user,
            o.time_text(each, "expire_time"),
            o.time_text(each, "revoke_time"),
        ]
        rows.append(cells + ([each.node, o.time_text(each, "create_time")] if wide else []))
    print_table(_WIDE_COLUMNS if wide else _COLUMNS, rows)


@token.command()
@output_option
@click.argument("name", metavar="TOKEN")
@with_client
async def revoke(client: AsyncClient, name: str, output: str) -> None:
    """Revoke a token by its id, as `gpushare token list` prints it; effective within a second."""
    from gpushare.cli.output import print_json

    revoked = await client.revoke_token(name if name.startswith("tokens/") else f"tokens/{name}")
    if output == JSON:
        print_json(revoked)
    else:
        print(f"revoked token {name} of {revoked.user}")
