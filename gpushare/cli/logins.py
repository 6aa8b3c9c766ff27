"""`gpushare login`, `logout`, `contexts` and `whoami`: connecting to clusters, choosing one, and as whom one is there.

Imports click; the client only when a command runs. Invariants: a login is kept only after the scheduler has accepted
it; a logout forgets nothing that it could not end, unless it is told to.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gpushare.cli.options import JSON, output_option
from gpushare.cli.session import quiet_grpc, root_flags, timeout_s_of_flags, with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Token
    from gpushare.client.settings import ConnectionSettings


@click.command()
@click.option("--name", default="", metavar="NAME", help="What to call the context (the scheduler's host).")
@click.option("--tenant", default="", metavar="T", help="The tenant to submit for, where it is not your own.")
@click.argument("join", metavar="[JOIN]", default="")
def login(name: str, tenant: str, join: str) -> None:
    """Connect to a cluster with the line an admin gave you; JOIN - reads it from standard input.

    Without JOIN this host's agent says who you are; then nothing needs to be pasted, and the token is renewed by
    itself.
    """
    import asyncio
    from dataclasses import replace

    quiet_grpc()
    from gpushare.client.settings import context_path, save_context

    found = _by_line(join, tenant) if join else _by_host(tenant)
    settings = asyncio.run(_accepted(found, tenant, timeout_s_of_flags()))
    name = name or settings.server.rpartition(":")[0].strip("[]").replace(":", "-")
    path = context_path()
    # By the host's word the tenant is the cluster's to say, also when that changes, unless one was asked for.
    save_context(path, name, replace(settings, tenant=tenant) if settings.socket else settings)
    print(f"logged in to {settings.server} as {settings.user}" + (f" of {settings.tenant}" if settings.tenant else ""))
    print(f"context {name!r} is now the current one in {path}")
    if not settings.tenant:
        print("your own tenant is not known: give --tenant with each submit, or log in with --tenant")


def _by_line(join: str, tenant: str) -> ConnectionSettings:
    from gpushare.client.settings import settings_of_join
    from gpushare.errors import invalid_field
    from gpushare.join import decode_join

    parts = decode_join(sys.stdin.readline() if join == "-" else join)
    if parts.is_for_agent:
        raise invalid_field("join", "this line enrols an agent; ask for one that `gpushare token create` printed")
    return settings_of_join(parts, tenant=tenant)


def _by_host(tenant: str) -> ConnectionSettings:
    from gpushare.client import hostlogin
    from gpushare.errors import error_of
    from gpushare.reasons import Reason

    socket = hostlogin.find_socket()
    if not socket:
        raise error_of(
            Reason.CONFIG_INVALID,
            "There is no agent on this host that could say who you are.",
            what_to_do="Run `gpushare login JOIN` with a line from the admin, or log in on a host of the cluster.",
        )
    return hostlogin.log_in(socket, tenant, fresh=True)


async def _accepted(settings: ConnectionSettings, tenant: str, timeout_s: float) -> ConnectionSettings:
    """The settings with who the caller is, by the scheduler's word; raises where it refuses them."""
    from dataclasses import replace

    from gpushare.client.aio import AsyncClient

    async with AsyncClient(settings, timeout_s=timeout_s) as client:
        who = await client.who_am_i()
        if tenant:
            await client.get_tenant(f"tenants/{tenant}")
    return replace(settings, user=who.user, tenant=tenant or who.tenant)


@click.command()
@click.option("--local", is_flag=True, help="Forget it here alone: the token stays valid.")
def logout(local: bool) -> None:
    """Leave the current cluster (or that of --context): revoke the own token, and forget the connection."""
    import asyncio

    quiet_grpc()
    from gpushare.client.settings import context_path, forget_context

    path = context_path()
    name, settings = _logged_in()
    if settings is not None and not local:
        asyncio.run(_end_token(settings, timeout_s_of_flags()))
    _forget_host_login(name)
    if name:
        forget_context(path, name)
        print(f"logged out: context {name!r} is no longer in {path}")
    else:
        print("logged out")


def _logged_in() -> tuple[str, ConnectionSettings | None]:
    """The context to leave ("" for none) and its connection, where it has a token. Raises where there is neither."""
    from gpushare.client import hostlogin
    from gpushare.client.settings import context_path, read_contexts
    from gpushare.errors import error_of
    from gpushare.reasons import Reason

    contexts = read_contexts(context_path())
    name = root_flags()["context"] or contexts.current
    known = contexts.contexts.get(name)
    if name and known is None:
        raise error_of(Reason.NOT_FOUND, f"There is no context {name!r}.", what_to_do="`gpushare contexts` lists them.")
    if known is not None and not known.socket:
        return name, known
    kept = hostlogin.peek(*_place(known))
    if known is None and kept is None:
        raise error_of(Reason.NOT_FOUND, "You are not logged in.", what_to_do="There is nothing to do.")
    return name, kept


def _place(known: ConnectionSettings | None) -> tuple[str, str]:
    """The socket of a login by this host, and the tenant that was asked for."""
    import os

    from gpushare.client.hostlogin import find_socket
    from gpushare.client.settings import TENANT_ENV

    wanted = os.environ.get(TENANT_ENV, "")
    return (known.socket, wanted or known.tenant) if known is not None else (find_socket(), wanted)


async def _end_token(settings: ConnectionSettings, timeout_s: float) -> None:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Role
    from gpushare.errors import UnauthenticatedError, error_of
    from gpushare.reasons import Reason

    async with AsyncClient(settings, timeout_s=timeout_s) as client:
        try:
            own = await client.get_own_token()
            if own.role == Role.ROLE_ADMIN:
                raise error_of(
                    Reason.PERMISSION_DENIED,
                    "This is an admin's token, and it may be the last: it was neither revoked nor forgotten.",
                    what_to_do="Forget it here with `gpushare logout --local`; `gpushare token revoke` ends it.",
                )
            await client.revoke_token(own.name)
        except UnauthenticatedError:
            return  # It had ended before.


def _forget_host_login(name: str) -> None:
    """What is kept of a login by this host, for the context or without one."""
    from gpushare.client import hostlogin
    from gpushare.client.settings import context_path, read_contexts

    known = read_contexts(context_path()).contexts.get(name)
    if known is None or known.socket:
        hostlogin.forget(*_place(known))


@click.command()
@output_option
@click.argument("context", metavar="[NAME]", default="")
def contexts(context: str, output: str) -> None:
    """List the clusters that you are logged in to; with NAME, make that the current one."""
    from gpushare.cli.output import print_json
    from gpushare.cli.table import print_table
    from gpushare.client.settings import choose_context, context_path, read_contexts

    if context:
        settings = choose_context(context_path(), context)
        if output != JSON:
            print(f"context {context!r} is now the current one: {settings.server}")
            return
    known = read_contexts(context_path())
    rows = [(name, each.server, each.user, each.tenant) for name, each in known.contexts.items()]
    if output == JSON:
        keys = ("name", "server", "user", "tenant")
        print_json({"current": known.current, "contexts": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    print_table(
        ("CONTEXT", "CURRENT", "SERVER", "USER", "TENANT"),
        ((name, "*" if name == known.current else "", *rest) for name, *rest in rows),
    )


@click.command()
@output_option
@with_client
async def whoami(client: AsyncClient, output: str) -> None:
    """Who you are to which scheduler, and until when."""
    from gpushare.cli.output import as_json, print_json
    from gpushare.cli.table import print_fields

    own = await client.get_own_token()
    settings = client.settings
    if output == JSON:
        print_json({"server": settings.server, "submitsFor": settings.tenant, **as_json(own)})
        return
    print_fields(
        (
            ("user", own.user),
            ("tenant", own.tenant),
            ("submits for", settings.tenant if settings.tenant != own.tenant else ""),
            ("role", _role_text(own)),
            ("runs as", own.unix_user),
            ("server", settings.server),
            ("token", own.name.removeprefix("tokens/")),
            ("expires", _expiry_text(own, renewed=settings.renew is not None)),
        )
    )


def _role_text(own: Token) -> str:
    from gpushare.cli import output as o
    from gpushare.client.messages import Role

    return o.word(Role, own.role).lower().replace("_", "-")


def _expiry_text(own: Token, *, renewed: bool) -> str:
    from gpushare.cli.output import time_text

    if not own.HasField("expire_time"):
        return "never"
    return time_text(own, "expire_time") + (", renewed by this host" if renewed else "")
