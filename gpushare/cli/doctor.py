"""`gpushare doctor`: what stands in the way of jobs on this host, and the command that mends it.

Imports click; the gathering and the client only when it runs. Works without a scheduler; where the user's settings name
one, it is asked too.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import click

from gpushare.cli.exits import EXIT_FAILED
from gpushare.cli.options import JSON, output_option

if TYPE_CHECKING:
    from gpushare.host.facts import SchedulerFacts

ASK_LIMIT_S = 5.0


@click.command()
@click.option("--unix-user", "users", multiple=True, metavar="NAME", help="An account that jobs run as; repeatable.")
@output_option
def doctor(users: tuple[str, ...], output: str) -> int | None:
    """Look at this host: driver, MPS, control groups, users, clock, ports, others on the same cards.

    Root sees more. Exit code 1 where something is FAIL.
    """
    import msgspec

    from gpushare.cli.output import print_json
    from gpushare.cli.table import print_table
    from gpushare.host.findings import Level, findings
    from gpushare.host.gather import gather

    facts = msgspec.structs.replace(gather(users), scheduler=_scheduler())
    found = findings(facts)
    if output == JSON:
        print_json({"findings": [each._asdict() for each in found]})
    else:
        print_table(("CHECK", "LEVEL", "FOUND", "WHAT MENDS IT"), found)
    return EXIT_FAILED if any(each.level is Level.FAIL for each in found) else None


def _scheduler() -> SchedulerFacts | None:
    """What the scheduler of the flags, the environment or the context says of this host; None without one."""
    from gpushare.cli.session import quiet_grpc, settings_of_flags
    from gpushare.errors import GpushareError
    from gpushare.host.facts import SchedulerFacts

    try:
        settings = settings_of_flags()
    except GpushareError:
        return None
    quiet_grpc()
    from gpushare.client.aio import AsyncClient

    host = socket.gethostname()

    async def ask() -> SchedulerFacts:
        async with AsyncClient(settings, timeout_s=ASK_LIMIT_S) as client:
            async for node in client.list_nodes():
                name = node.name.removeprefix("nodes/")
                if name in (host, host.partition(".")[0]):
                    return SchedulerFacts(
                        address=settings.server,
                        node=name,
                        ready=node.ready,
                        clock_skew_ms=node.clock_skew_ms,
                        warnings=tuple(node.warnings),
                    )
        return SchedulerFacts(address=settings.server)

    try:
        return asyncio.run(ask())
    except GpushareError as err:
        return SchedulerFacts(address=settings.server, trouble=err.message)
