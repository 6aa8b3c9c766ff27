"""Waiting for jobs to end, without asking again and again: one watch a tenant, and one look at what it cannot show.

Imports the client's own modules. Invariant: a job that ended at any moment, before the wait or during it, is noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TYPE_CHECKING

from gpushare.client.messages import ENDED_JOB_STATES, Job
from gpushare.client.streams import RECONNECT_LIMIT_S, OnReconnect

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient


def has_ended(job: Job) -> bool:
    """Whether the job's state is one of the three that never change again."""
    return job.state in ENDED_JOB_STATES


async def follow_jobs(
    client: AsyncClient,
    names: Iterable[str],
    *,
    limit_s: float = RECONNECT_LIMIT_S,
    on_reconnect: OnReconnect | None = None,
) -> AsyncGenerator[Job, None]:
    """Each of these jobs as it is now and at every change, until all have ended.

    `names` are resource names of one tenant. A job may come twice in the same state. Raises GpushareError where one
    does not exist, or an outage lasts longer than `limit_s`.
    """
    open_names = set(names)
    listed: set[str] = set()
    if not open_names:
        return
    tenants = {name.split("/jobs/", 1)[0] for name in open_names}
    if len(tenants) != 1:
        raise ValueError(f"jobs of several tenants in one watch: {sorted(tenants)}")
    only_id = next(iter(open_names)).rsplit("/", 1)[1] if len(open_names) == 1 else ""
    changes = client.watch_jobs(parent=tenants.pop(), job_id=only_id, limit_s=limit_s, on_reconnect=on_reconnect)
    try:
        async for change in changes:
            if change.HasField("job") and change.job.name in open_names:
                listed.add(change.job.name)
                if has_ended(change.job):
                    open_names.discard(change.job.name)
                yield change.job
            if change.caught_up:
                # What ended long ago is in no watch.
                for name in sorted(open_names - listed):
                    job = await client.get_job(name)
                    if has_ended(job):
                        open_names.discard(name)
                        yield job
                listed.clear()
            if not open_names:
                return
    finally:
        await changes.aclose()


async def wait_jobs(
    client: AsyncClient,
    names: Iterable[str],
    *,
    limit_s: float = RECONNECT_LIMIT_S,
    on_reconnect: OnReconnect | None = None,
    on_change: Callable[[Job], None] | None = None,
) -> dict[str, Job]:
    """The jobs as they ended, by name, in the order of `names`, which may be of several tenants."""
    wanted = list(dict.fromkeys(names))
    by_tenant: dict[str, list[str]] = {}
    for name in wanted:
        by_tenant.setdefault(name.split("/jobs/", 1)[0], []).append(name)
    ended: dict[str, Job] = {}

    async def wait_in_tenant(members: list[str]) -> None:
        async for job in follow_jobs(client, members, limit_s=limit_s, on_reconnect=on_reconnect):
            if on_change is not None:
                on_change(job)
            if has_ended(job):
                ended[job.name] = job

    waits = [asyncio.ensure_future(wait_in_tenant(members)) for members in by_tenant.values()]
    try:
        await asyncio.gather(*waits)
    finally:
        for each in waits:
            each.cancel()
    return {name: ended[name] for name in wanted}
