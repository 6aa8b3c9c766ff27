"""`gpushare wait`: until jobs have ended, with their code.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpushare.cli.options import JSON, WIDE, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient


@click.command()
@output_option
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@with_client
async def wait(client: AsyncClient, jobs: tuple[str, ...], output: str) -> int:
    """Wait for jobs to end and return their code: of several, the first that is not 0.

    JOB may be an array's id. A job that was ended by a signal has 128 plus its number, one that ran out of time 124.
    """
    from gpushare.cli.follow import first_nonzero, job_code
    from gpushare.cli.jobs import print_ends
    from gpushare.cli.output import print_json_list
    from gpushare.cli.refs import find_all

    names = [job.name for job in await find_all(client, jobs)]
    ended = await client.wait_jobs(names)
    in_order = [ended[name] for name in names]
    if output == JSON:
        print_json_list("jobs", in_order)
    else:
        print_ends(in_order, client.settings.tenant, wide=output == WIDE)
    return first_nonzero([job_code(job) for job in in_order])
