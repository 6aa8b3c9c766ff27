"""Which limit keeps a job from places that it would fit: of its tenant, of its tenant's guarantee, of CPU and memory.

Pure, without arrays itself. A pass finds that limits stand between a job and the room there is; this tells which, by
trying each alone.
"""

from __future__ import annotations

from gpushare.core.kinds import Qos
from gpushare.core.model import Job
from gpushare.core.placement.ask import NO_LIMIT, Ask, Room
from gpushare.core.placement.place import place_gang
from gpushare.core.plan import Plan
from gpushare.core.quota import QuotaTree
from gpushare.reasons import Reason


def which_limit(plan: Plan, tree: QuotaTree, job: Job, ask: Ask) -> Reason:
    """TENANT_LIMIT, QUOTA or HOST_LIMIT, for a job that only limits keep from starting; the plan stays as it was."""
    room = ask.room
    if room == NO_LIMIT:
        return Reason.TENANT_LIMIT
    if not _fits(plan, job, ask, tree.limit_room(job)):
        return Reason.TENANT_LIMIT
    if job.spec.qos is Qos.GUARANTEED and not _fits(plan, job, ask, Room(room.milli, room.by_model)):
        return Reason.QUOTA
    if not _fits(plan, job, ask, tree.host_room(job)):
        return Reason.HOST_LIMIT
    return Reason.TENANT_LIMIT


def _fits(plan: Plan, job: Job, ask: Ask, room: Room) -> bool:
    checkpoint = plan.checkpoint()
    found = place_gang(plan, ask._replace(room=room), job.spec.tasks, job.spec.least_tasks)
    plan.rollback(checkpoint)
    return found is not None
