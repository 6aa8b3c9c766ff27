"""What the command to connect to a running task changes: nothing but the journal, which is the audit. Pure.

Who may connect is the shell's to say; here stands to what one can: an attempt that its agent calls running, and that
nobody has asked to stop or to suspend.
"""

from __future__ import annotations

from gpushare import names
from gpushare.core.commands import Call, CoreSettings, OpenConnection, Outcome, Rejection
from gpushare.core.events import ConnectionOpened
from gpushare.core.kinds import AttemptState
from gpushare.core.model import Attempt, Job
from gpushare.core.state import ClusterState
from gpushare.reasons import Reason


def open_connection(
    state: ClusterState, command: OpenConnection, call: Call, now_ms: int, settings: CoreSettings
) -> Outcome | Rejection:
    """`names` of the outcome is the id of the attempt."""
    job = state.jobs.get(command.job)
    if job is None:
        return Rejection(Reason.NOT_FOUND, f"job {names.shown(command.job)} does not exist")
    if not 0 <= command.task < job.spec.tasks:
        return Rejection(Reason.NOT_FOUND, f"job {job.id} has {job.spec.tasks} tasks, counted from 0")
    attempt = connectable(job, command.task)
    if attempt is None:
        return Rejection(
            Reason.NOT_RUNNING, f"{_task_text(job, command.task)} does not run now; the job is {job.state}"
        )
    event = ConnectionOpened(job.key, attempt.id, command.kind, command.target)
    return Outcome(events=(event,), names=(attempt.id,))


def connectable(job: Job, task: int) -> Attempt | None:
    """The attempt that who connects to `task` now comes to."""
    attempt = next((a for a in job.live() if a.task == task and a.state is AttemptState.RUNNING), None)
    return None if attempt is None or attempt.desired_stop or attempt.desired_suspend else attempt


def _task_text(job: Job, task: int) -> str:
    return f"task {task} of job {job.id}" if job.spec.tasks > 1 else f"job {job.id}"
