"""What keeps a waiting job back before any card is looked at: dependencies, caps on running jobs, limits never met.

Pure. A gate answers with a reason, or None to let the job through.
"""

from __future__ import annotations

from collections import Counter

from gpushare.core import due
from gpushare.core.due import Readiness
from gpushare.core.kinds import JobState, Qos
from gpushare.core.model import Dependency, Job
from gpushare.core.quota import QuotaTree, least_room_ever
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason


class Gates:
    """The caps of one pass, with what the pass itself has started."""

    def __init__(self, state: ClusterState, tree: QuotaTree) -> None:
        self._state, self._tree = state, tree
        self._users: Counter[tuple[str, str]] = Counter()
        self._arrays: Counter[str] = Counter()

    def dependency(self, job: Job) -> tuple[Readiness, Dependency | None]:
        return due.waits_for(self._state, job)

    def cap(self, job: Job) -> Reason | None:
        """A cap on the number of running jobs that one more would pass. Suspended jobs count as running already."""
        if job.state is JobState.SUSPENDED:
            return None
        for branch in self._tree.path(job.tenant):
            most = branch.settings.max_running_jobs
            if most is not None and branch.running_jobs >= most:
                return Reason.TENANT_CAP
        if self._user_is_full(job):
            return Reason.USER_CAP
        cap = job.spec.array_max_running
        if cap and self._state.array_running[job.array_key] + self._arrays[job.array_key] >= cap:
            return Reason.ARRAY_CAP
        return None

    def never(self, job: Job, least_milli: int | None) -> Reason | None:
        """`least_milli`: the smallest charge of the whole job on any registered card."""
        return None if least_milli is None else waits_for_ever(self._tree, job, least_milli)

    def promised(self, job: Job) -> None:
        """Others make way for it: it counts as running from now on, as in the tree."""
        if job.state is JobState.QUEUED:
            self.started(job)

    def started(self, job: Job) -> None:
        self._users[job.tenant, job.created_by.user] += 1
        if job.array_id:
            self._arrays[job.array_key] += 1

    def _user_is_full(self, job: Job) -> bool:
        tenant = self._state.tenants[job.tenant]
        most = tenant.settings.max_running_per_user
        if most is None:
            return False
        user = job.created_by.user
        person = tenant.people.get(user)
        return (person.running_jobs if person else 0) + self._users[job.tenant, user] >= most


def waits_for_ever(tree: QuotaTree, job: Job, least_milli: int) -> Reason | None:
    """The limit or guarantee that `least_milli`, the job's smallest charge, passes even when nothing else runs."""
    if not tree.has_limits(job.tenant) and job.spec.qos is not Qos.GUARANTEED:
        return None
    most = least_room_ever((branch.settings for branch in tree.path(job.tenant)), job.spec.resources)
    if most is not None and least_milli > most:
        return Reason.TENANT_LIMIT_NEVER
    if job.spec.qos is Qos.GUARANTEED and least_milli > tree.guaranteed_ever(job):
        return Reason.QUOTA_NEVER
    return None
