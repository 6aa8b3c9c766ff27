"""What an attempt left on disk: the typed reading and the agent's own writing of the files that `records` lays
down.

Imports msgspec and this package's vocabulary. Nothing read here is trusted: a record that does not parse,
speaks of another attempt or does not make sense is None, and the attempt is then judged without it.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from gpushare.reasons import Reason
from gpushare_agent import records
from gpushare_agent.cgroups import Groups
from gpushare_agent.launchspec import FINAL_STATES, AttemptStatus, Containment, LaunchSpec

T = TypeVar("T")

ATTEMPT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,199}")


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """`intent`: what is to run, where, and by which marks it is found again. `script` is the stored script's path,
    `notice_dir` where the task reads that it will be stopped.
    """

    boot_id: str
    containment: Containment
    tag: str
    log_dir: str
    script: str | None
    groups: Groups | None
    spec: LaunchSpec
    notice_dir: str = ""


class ExecRecord(msgspec.Struct, frozen=True):
    """`exec`: the shim that took the attempt, or `void`: sealed, it never runs."""

    void: bool = False
    boot_id: str = ""
    shim_pid: int = 0
    shim_start: int = 0


class StopRecord(msgspec.Struct, frozen=True):
    """`stop`: the first cause for which somebody ended the attempt."""

    reason: Reason
    final_state: str
    detail: str = ""
    grace_ms: int = 0


class TaskRecord(msgspec.Struct, frozen=True):
    """`task` (weak containment only): the main process, whose pid is the session's id too, and its start in
    clock ticks.
    """

    pid: int
    start: int


def boot_id() -> str:
    """The kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def valid_attempt_id(attempt_id: str) -> bool:
    """True if it can name a file and a control group."""
    return ATTEMPT_ID.fullmatch(attempt_id) is not None


def read_intent(dirfd: int, attempt_id: str) -> Intent | None:
    """The intent, if it is whole and this attempt's."""
    found = _decode(dirfd, records.INTENT, Intent)
    return found if found is not None and found.spec.attempt_id == attempt_id else None


def read_exec(dirfd: int) -> ExecRecord | None:
    """The exec record, if there is a whole one."""
    return _decode(dirfd, records.EXEC, ExecRecord)


def read_stop(dirfd: int) -> StopRecord | None:
    """The stop record, if there is a whole one."""
    found = _decode(dirfd, records.STOP, StopRecord)
    return found if found is not None and found.final_state in FINAL_STATES else None


def read_task(dirfd: int) -> TaskRecord | None:
    """The task record, if there is a whole one."""
    return _decode(dirfd, "task", TaskRecord)


def read_exit(dirfd: int, attempt_id: str) -> AttemptStatus | None:
    """The exit record, if it is whole, this attempt's, and an end."""
    found = _decode(dirfd, records.EXIT, AttemptStatus)
    return found if found is not None and found.attempt_id == attempt_id and found.final else None


def write_intent(dirfd: int, intent: Intent) -> None:
    """On the disk on return, and so is the attempt's directory. The entries of intent and exec record get there with
    the exit record at the latest: until then a power cut may take them, and another boot judges without them.
    """
    records.create(dirfd, records.INTENT, msgspec.json.encode(intent), "agent.torn_intent")
    parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def write_exit(dirfd: int, status: AttemptStatus) -> None:
    """For attempts whose shim is dead: the agent's judgement, so that it is the same after the next restart."""
    records.replace(dirfd, records.EXIT, msgspec.json.encode(status))


def write_stop(dirfd: int, stop: StopRecord) -> bool:
    """False if a cause stands already."""
    return records.note(dirfd, records.STOP, msgspec.json.encode(stop))


def seal(dirfd: int) -> bool:
    """True if the attempt never ran and now never will; False if a shim had taken it before."""
    try:
        records.create(dirfd, records.EXEC, records.VOID)
    except FileExistsError:
        found = read_exec(dirfd)
        return found is not None and found.void
    os.fsync(dirfd)
    return True


def now_ms() -> int:
    """Wall time."""
    return time.time_ns() // 1_000_000


# Made while this module is imported: msgspec looks into a type at its first use, and crashes the process when two
# threads are the first at once, as after a restart that finds many attempts.
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Intent, ExecRecord, StopRecord, TaskRecord, AttemptStatus)
}


def _decode(dirfd: int, name: str, kind: type[T]) -> T | None:
    data = records.read(dirfd, name)
    if data is None:
        return None
    try:
        return cast(T, _DECODERS[kind].decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
