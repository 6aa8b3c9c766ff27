"""What a person calls a job -> its names in the API.

Imports the client. A person may write 42, 42_3, vision/42, tenants/vision/jobs/42, a name that they gave ("train"),
or @last; each with /TASK behind it where one task is meant. The API takes exact names only, so this is where names
are looked up. Invariants: a number is always an id, never a name; a given name means the newest own job of that name;
an array's id means all of its children.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpushare.client.aio import ALL_TENANTS, AsyncClient, job_name
from gpushare.errors import GpushareError, NotFoundError, invalid_field
from gpushare.names import TextError
from gpushare.reasons import Reason

if TYPE_CHECKING:
    from gpushare.client.messages import Job

LAST = "@last"
ACCEPTED = "JOB is 42, 42_3, TENANT/42, a job's name or @last; add /TASK for one task"
# How far back the newest own job is looked for among jobs of others.
_LOOK_BACK_JOBS = 2000

_ID = re.compile(r"[1-9][0-9]{0,18}(?:_(?:0|[1-9][0-9]{0,9}))?")
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_TASK = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class JobRef:
    """What was written. `id` or `name` is set, `last` is @last; `tenant` "" is the caller's own."""

    text: str
    tenant: str = ""
    id: str = ""
    name: str = ""
    last: bool = False
    task_index: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The jobs that a reference means: one, or the children of an array in index order."""

    jobs: tuple[Job, ...]
    task_index: int | None
    array_id: str = ""

    @property
    def names(self) -> list[str]:
        return [job.name for job in self.jobs]


def parse_ref(text: str, *, with_task: bool = False) -> JobRef:
    """Raises TextError for what can be no job."""
    parts = text.split("/")
    if len(parts) >= 4 and parts[0] == "tenants" and parts[2] == "jobs":
        parts = [parts[1], *parts[3:]]
    task_index: int | None = None
    if len(parts) > 1 and with_task and _TASK.fullmatch(parts[-1]) and (len(parts) == 3 or _is_job_alone(parts[0])):
        task_index = int(parts.pop())
    elif len(parts) == 2 and with_task and parts[1] == "0":
        task_index = int(parts.pop())  # no job has the number 0, so the part before it is a job's name
    if len(parts) == 2 and _NAME.fullmatch(parts[0]) and _ID.fullmatch(parts[1]):
        return JobRef(text, tenant=parts[0], id=parts[1], task_index=task_index)
    if len(parts) == 1 and parts[0] == LAST:
        return JobRef(text, last=True, task_index=task_index)
    if len(parts) == 1 and _ID.fullmatch(parts[0]):
        return JobRef(text, id=parts[0], task_index=task_index)
    if len(parts) == 1 and _NAME.fullmatch(parts[0]):
        return JobRef(text, name=parts[0], task_index=task_index)
    raise TextError("JOB", text, "is no job" if with_task or len(parts) < 3 else "names a task", ACCEPTED)


def _is_job_alone(part: str) -> bool:
    """Whether the part before a slash is a job by itself; else it is a tenant, or a job's name, which only the
    scheduler can tell apart."""
    return part == LAST or _ID.fullmatch(part) is not None


async def find(client: AsyncClient, text: str, *, with_task: bool = False) -> Found:
    """The jobs that `text` means, as they are now. Raises TextError, or NotFoundError where there are none."""
    ref = parse_ref(text, with_task=with_task)
    try:
        return await _look_up(client, ref)
    except NotFoundError as err:
        name, _, task = text.partition("/")
        if not (with_task and ref.tenant and ref.task_index is None and _TASK.fullmatch(task)):
            raise
        first = err
    # "train/1" is job 1 of tenant train, or task 1 of the job that was named train.
    try:
        return await _look_up(client, JobRef(text, name=name, task_index=int(task)))
    except NotFoundError:
        raise first from None


async def resource_of(client: AsyncClient, text: str) -> str:
    """The resource name of the job, or of the whole array, that `text` means. An id is not looked up: the scheduler
    says whether it is there."""
    ref = parse_ref(text)
    tenant = ref.tenant or client.settings.tenant
    if ref.id and tenant:
        return job_name(tenant, ref.id)
    found = await _look_up(client, ref)
    first = found.jobs[0]
    return job_name(first.tenant, found.array_id or first.id)


async def find_all(client: AsyncClient, texts: Iterable[str]) -> list[Job]:
    """The jobs of several references in their order, each once."""
    jobs: dict[str, Job] = {}
    for text in texts:
        for job in (await find(client, text)).jobs:
            jobs.setdefault(job.name, job)
    return list(jobs.values())


async def _look_up(client: AsyncClient, ref: JobRef) -> Found:
    if ref.last or ref.name:
        newest = await _newest_own(client, ref)
        if not newest.array_id:
            return Found((newest,), ref.task_index)
        return await _children(client, newest.tenant, newest.array_id, ref.task_index)
    tenant = ref.tenant or client.settings.tenant
    if not tenant:
        raise invalid_field("JOB", f"{ref.text!r} needs its tenant, as in vision/{ref.text}: yours is not known here")
    try:
        return Found((await client.get_job(job_name(tenant, ref.id)),), ref.task_index)
    except NotFoundError:
        if "_" in ref.id:
            raise
    return await _children(client, tenant, ref.id, ref.task_index)


async def _children(client: AsyncClient, tenant: str, array_id: str, task_index: int | None) -> Found:
    listing = client.list_jobs(parent=f"tenants/{tenant}", array_id=array_id, show_ended=True)
    jobs = [job async for job in listing]
    if not jobs:
        raise _not_found(f"There is no job {tenant}/{array_id} that you may see.")
    jobs.sort(key=lambda job: job.array_index)
    return Found(tuple(jobs), task_index, array_id)


async def _newest_own(client: AsyncClient, ref: JobRef) -> Job:
    """The newest job of the caller, by its given name or of all; a listing shows the jobs of others redacted."""
    own = client.settings
    listing = client.list_jobs(
        parent=f"tenants/{own.tenant}" if own.tenant else ALL_TENANTS,
        user=own.user,
        named=ref.name,
        show_ended=True,
        page_size=20,
    )
    looked_at = 0
    async for job in listing:
        if not job.redacted:
            return job
        looked_at += 1
        if looked_at >= _LOOK_BACK_JOBS:
            break
    what = f"You have no job named {ref.name!r}." if ref.name else "You have submitted no job."
    raise _not_found(what)


def _not_found(message: str) -> GpushareError:
    return NotFoundError(Reason.NOT_FOUND, message, what_to_do="`gpushare jobs -a` lists jobs that ended, too.")
