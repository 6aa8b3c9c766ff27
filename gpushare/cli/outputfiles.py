"""Where the output of a job is that named files of its own, for those who would look for it in its log.

Imports the paths' rules; the messages only for types. Invariant: nobody is left before an empty log without a word.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

from gpushare.outputpath import expand_output_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpushare.client.messages import Job, TaskAttempt


def elsewhere(job: Job, attempt: TaskAttempt, node: str) -> str:
    """ "stdout and stderr of job 42 go to gpu01:/home/ada/42.out", or "" where all of it goes to the log."""
    output, error = (_path(job, attempt, pattern) for pattern in (job.spec.output_path, job.spec.error_path))
    who = f"job {job.id}, task {attempt.task_index}," if job.spec.tasks > 1 else f"job {job.id}"
    if output and error in ("", output):
        return f"stdout and stderr of {who} go to {node}:{output}"
    if output:
        return f"stdout of {who} goes to {node}:{output}, stderr to {node}:{error}"
    return f"stderr of {who} goes to {node}:{error}" if error else ""


class OutputNotes:
    """Says once for each place where output goes to that is not the log."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._said: set[str] = set()

    def on_read(self, job: Job, attempt: TaskAttempt, number: int) -> None:
        """Try `number` of the task of `attempt` is about to be read; an earlier one may have been on another node."""
        text = elsewhere(job, attempt, attempt.node if number == attempt.number else "its node")
        if text and text not in self._said:
            self._said.add(text)
            self._tell(f"note: {text}")


def _path(job: Job, attempt: TaskAttempt, pattern: str) -> str:
    if not pattern:
        return ""
    name = expand_output_path(
        pattern, job_id=job.id, task=attempt.task_index, user=job.created_by.user, name=job.spec.name
    )
    return posixpath.join(job.spec.working_directory, name)
