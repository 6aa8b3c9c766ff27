"""`gpushare extend`, `requeue` and `resubmit`: a job's end put off, or its work begun again.

Imports click; the client only when a command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gpushare.cli.options import JSON, output_option
from gpushare.cli.session import with_client

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import Job

_LONGER = 'a plus and a time to add ("+6h"), or an equals sign and the whole limit ("=8h")'


@click.command()
@output_option
@click.argument("job", metavar="JOB")
@click.argument("limit", metavar="+TIME|=TIME")
@with_client
async def extend(client: AsyncClient, job: str, limit: str, output: str) -> None:
    """Give a job longer: +6h more, or =8h in all, up to its tenant's longest time."""
    from gpushare.cli.output import print_json_list, time_text
    from gpushare.cli.refs import find_all
    from gpushare.names import TextError
    from gpushare.quantity import format_duration_ms, parse_duration_ms

    if limit[:1] not in ("+", "="):
        raise TextError("TIME", limit, "says neither by how much nor to what", _LONGER)
    ms = parse_duration_ms(limit[1:], "TIME")
    found = await find_all(client, [job])
    longer_by_ms, max_run_ms = (ms, None) if limit[0] == "+" else (None, ms)
    extended = [await client.extend_job(each.name, longer_by_ms=longer_by_ms, max_run_ms=max_run_ms) for each in found]
    if output == JSON:
        print_json_list("jobs", extended)
        return
    for each in extended:
        ends = time_text(each, "expected_end_time")
        by = f", until {ends} at the latest" if ends else ""
        allowed = format_duration_ms(each.spec.max_run_duration.ToMilliseconds())
        print(f"job {_id(client, each)} may run for {allowed}{by}")


@click.command()
@output_option
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@with_client
async def requeue(client: AsyncClient, jobs: tuple[str, ...], output: str) -> None:
    """Stop jobs and queue them again, with their ids and their places kept."""
    from gpushare.cli.output import print_json_list
    from gpushare.cli.refs import find_all
    from gpushare.client.messages import JobState

    pairs = [(each, await client.requeue_job(each.name)) for each in await find_all(client, jobs)]
    if output == JSON:
        print_json_list("jobs", [new for _, new in pairs])
        return
    for old, new in pairs:
        waited = old.state == JobState.JOB_STATE_QUEUED
        print(f"job {_id(client, new)} {'waits already' if waited else 'is stopped and queued again'}")


@click.command()
@output_option
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@with_client
async def resubmit(client: AsyncClient, jobs: tuple[str, ...], output: str) -> None:
    """Submit jobs of yours anew, script and environment as they were; they may have ended long ago.

    Each child of an array becomes an array of its own with that one index.
    """
    from gpushare.cli.output import print_json_list
    from gpushare.cli.refs import find_all

    pairs = [(each, await client.resubmit_job(each.name)) for each in await find_all(client, jobs)]
    if output == JSON:
        print_json_list("jobs", [new for _, new in pairs])
        return
    for old, new in pairs:
        print(f"submitted job {_id(client, new)}, the same as {_id(client, old)}")


def _id(client: AsyncClient, job: Job) -> str:
    from gpushare.cli.output import job_id

    return job_id(job, client.settings.tenant)
