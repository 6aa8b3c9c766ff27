"""One command's connection: the root's flags become settings, and an async command runs to its end with a client.

Imports click; the client, and grpc with it, only when a command runs. Invariant: one event loop a process, closed
with its connection before the process ends.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.settings import ConnectionSettings

_Args = ParamSpec("_Args")

DEFAULT_TIMEOUT_S = 10.0


def root_flags() -> dict[str, str | None]:
    """The options that were given before the command's name."""
    flags: dict[str, str | None] = click.get_current_context().find_root().obj
    return flags


def settings_of_flags(tenant: str = "") -> ConnectionSettings:
    """Flags, then environment, then context file, then this host's agent, which is told for which `tenant` where one is
    named. Raises GpushareError where no scheduler is known."""
    from gpushare.client.settings import load_settings

    flags = root_flags()
    return load_settings(
        server=flags["server"], token=flags["token"], ca_file=flags["ca"], context=flags["context"], tenant=tenant
    )


def timeout_s_of_flags() -> float:
    """How long one call may be tried."""
    from gpushare.quantity import parse_duration_ms

    text = root_flags()["timeout"]
    return DEFAULT_TIMEOUT_S if text is None else parse_duration_ms(text, "timeout") / 1000


def quiet_grpc() -> None:
    """Before grpc is imported: its own log lines on stderr are not for people who run a command."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def run_with_client(work: Callable[[AsyncClient], Coroutine[Any, Any, int | None]], tenant: str = "") -> int | None:
    """Runs `work` to its end with a client of the scheduler that the flags, the environment or the context name, or
    that this host's agent knows; `tenant` is for whom, where that is named."""
    import asyncio

    quiet_grpc()
    from gpushare.client.aio import AsyncClient

    async def connected() -> int | None:
        async with AsyncClient(settings_of_flags(tenant), timeout_s=timeout_s_of_flags()) as client:
            await client.know_caller()
            return await work(client)

    return asyncio.run(connected())


def with_client(
    command: Callable[Concatenate[AsyncClient, _Args], Coroutine[Any, Any, int | None]],
) -> Callable[_Args, int | None]:
    """Makes an async command, whose first argument is the client, an ordinary one that click can call."""

    @functools.wraps(command)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> int | None:
        return run_with_client(lambda client: command(client, *args, **kwargs))

    return run
