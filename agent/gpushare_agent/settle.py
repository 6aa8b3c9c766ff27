"""What became of an attempt whose shim is dead: make sure that nothing of it lives, then judge by what it left
on disk.

Imports this package's vocabulary. The judgement is a function of the disk alone, so it is the same however
often agents die over it: exit record -> what it says; another boot -> NODE_REBOOTED; never taken by a shim
-> sealed, NOT_STARTED; somebody had asked for its end -> that; else INFRA, and the exit code is unknown. It
never guesses success.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from gpushare.reasons import Reason
from gpushare_agent import checkpoint, procscan, records, taskset
from gpushare_agent.cgroups import Groups
from gpushare_agent.checkpoint import ExecRecord, Intent, StopRecord
from gpushare_agent.launchspec import AttemptStatus

KILL_STEP_S = 0.01
TAKEN_BY_UNKNOWN = b"{}"


def remains(directory: Path, intent: Intent | None, groups: Groups | None, tag: str, boot_id: str) -> taskset.Task:
    """Everything of an attempt that may still live after its shim. `groups` and `tag` are what it has if its
    intent is unreadable.
    """
    known = intent.groups if intent is not None else groups
    if known is not None:
        return taskset.GroupedTask(known.attempt_dir)
    dirfd = records.open_directory(str(directory))
    try:
        started = checkpoint.read_task(dirfd)
        taken = checkpoint.read_exec(dirfd)
    finally:
        os.close(dirfd)
    session = since = 0
    if started is not None and taken is not None and taken.boot_id == boot_id:
        # a number from another boot names somebody else
        session, since = started.pid, started.start
    return taskset.ScannedTask(procscan.Scope(0, session, intent.tag if intent is not None else tag, since))


def kill_for(task: taskset.Task, seconds: float) -> bool:
    """Kill until it is proven gone, or the time is up; True for the proof. Blocks: call it in a thread."""
    deadline = time.monotonic() + seconds
    while not task.end_step():
        if time.monotonic() > deadline:
            return False
        time.sleep(KILL_STEP_S)
    return True


class Found(NamedTuple):
    """What an attempt's directory tells at first sight; `boot_id` is the boot it lived in, "" if nothing says."""

    intent: Intent | None
    stop: StopRecord | None
    finished: AttemptStatus | None
    boot_id: str


def look(directory: Path, attempt_id: str) -> Found:
    """Read what stands there. A directory that is missing while the attempt's control group exists is made
    again, with a mark that some shim had taken the attempt: whatever ran is not known any more. OSError if
    the disk does not serve.
    """
    lost = not directory.exists()
    if lost:
        directory.mkdir(mode=0o700)
    dirfd = records.open_directory(str(directory))
    try:
        if lost:
            records.create(dirfd, records.EXEC, TAKEN_BY_UNKNOWN)
        intent = checkpoint.read_intent(dirfd, attempt_id)
        boot_id = _boot_of(intent, checkpoint.read_exec(dirfd))
        return Found(intent, checkpoint.read_stop(dirfd), checkpoint.read_exit(dirfd, attempt_id), boot_id)
    finally:
        os.close(dirfd)


def was_taken(directory: Path) -> bool:
    """True if a shim made its exec record, whole or torn."""
    dirfd = records.open_directory(str(directory))
    try:
        return records.exists(dirfd, records.EXEC)
    finally:
        os.close(dirfd)


def seal(directory: Path) -> ExecRecord | None:
    """Seal the attempt: None if it never ran and now never will, else what is known of the shim that had taken
    it before.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    dirfd = records.open_directory(str(directory))
    try:
        if checkpoint.seal(dirfd):
            return None
        return checkpoint.read_exec(dirfd) or ExecRecord()
    finally:
        os.close(dirfd)


def note_stop(directory: Path, stop: StopRecord) -> None:
    """Leave a word on why the attempt is being ended, for whoever has to judge it. A disk that does not take it
    must not keep a job alive, and a launch that is still being prepared has no directory: both are passed
    over, the shim is told anyway.
    """
    try:
        dirfd = records.open_directory(str(directory))
    except OSError:
        return
    try:
        checkpoint.write_stop(dirfd, stop)
    except OSError:
        return
    finally:
        os.close(dirfd)


def finished(directory: Path, attempt_id: str) -> AttemptStatus | None:
    """The exit record, if there is one."""
    dirfd = records.open_directory(str(directory))
    try:
        return checkpoint.read_exit(dirfd, attempt_id)
    finally:
        os.close(dirfd)


def judge(directory: Path, attempt_id: str, boot_id: str) -> AttemptStatus:
    """The end of an attempt of which no process lives, made durable. OSError if the disk does not take it."""
    dirfd = records.open_directory(str(directory))
    try:
        status = checkpoint.read_exit(dirfd, attempt_id)
        if status is None:
            status = _verdict(dirfd, attempt_id, boot_id)
            checkpoint.write_exit(dirfd, status)
        return status
    finally:
        os.close(dirfd)


def _verdict(dirfd: int, attempt_id: str, boot_id: str) -> AttemptStatus:
    intent = checkpoint.read_intent(dirfd, attempt_id)
    taken = checkpoint.read_exec(dirfd)
    stop = checkpoint.read_stop(dirfd)
    lived_in = _boot_of(intent, taken) or boot_id
    rebooted = lived_in != boot_id
    # after a power cut a missing exec record proves nothing: it may have been on its way to the disk
    if checkpoint.seal(dirfd) and not rebooted:
        return _ended(attempt_id, lived_in, Reason.NOT_STARTED, "no shim had taken it; it never ran", "STOPPED")
    if stop is not None:
        how = "the node rebooted" if rebooted else "its shim died and what was left was ended by SIGKILL"
        detail = "; ".join(part for part in (stop.detail, how) if part)
        final = "FAILED" if stop.final_state == "FAILED" else "STOPPED"
        sent = None if rebooted else int(signal.SIGKILL)
        return _ended(attempt_id, lived_in, stop.reason, detail, final, sent)
    if rebooted:
        return _ended(attempt_id, lived_in, Reason.NODE_REBOOTED, "the node rebooted before it ended")
    detail = "its shim died and left no exit record; what was left was ended by SIGKILL, the exit code is unknown"
    return _ended(attempt_id, lived_in, Reason.INFRA, detail)


def _boot_of(intent: Intent | None, taken: ExecRecord | None) -> str:
    return (taken.boot_id if taken is not None else "") or (intent.boot_id if intent is not None else "")


def _ended(
    attempt_id: str, boot_id: str, reason: Reason, detail: str, state: str = "FAILED", sent: int | None = None
) -> AttemptStatus:
    return AttemptStatus(
        attempt_id=attempt_id,
        state="STOPPED" if state == "STOPPED" else "FAILED",
        boot_id=boot_id,
        reason=reason,
        detail=detail,
        signal=sent,
        stop_signal=sent,
        ended_ms=checkpoint.now_ms(),
    )
