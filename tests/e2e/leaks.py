"""What a cluster in a directory may leave behind: processes, control groups, descriptors, a journal in disorder.

A process belongs to the directory `home` if its command line, its environment, its working directory or an open file of
it names a path below. Everything found that way was started by the cluster; it is ended by pid.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from gpushare.core.invariants import check
from gpushare.scheduler.recovery import load_state
from gpushare.store.sqlite import SqliteStore

GROUPS = Path("/sys/fs/cgroup")
END_LIMIT_S = 10.0


def processes_of(home: Path) -> list[int]:
    """Processes that belong to `home`, this one and zombies left out."""
    needle = str(home).encode()
    return [pid for pid in _pids() if pid != os.getpid() and _is_of(pid, needle)]


def describe(pids: Collection[int]) -> list[str]:
    """pid, state and command line of each."""
    return [
        f"{pid} {_state(pid)} {read_of(pid, 'cmdline').replace(bytes(1), b' ').decode(errors='replace')}"
        for pid in pids
    ]


def end_processes_of(home: Path) -> None:
    """SIGKILL until none is left."""
    deadline_s = time.monotonic() + END_LIMIT_S
    while pids := processes_of(home):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline_s, f"these do not end: {describe(pids)}"
        time.sleep(0.02)


def end_processes_named(home: Path, names: Collection[str]) -> None:
    """SIGKILL to those of `home` whose command line has one of these names."""
    for pid in processes_of(home):
        if any(name.encode() in read_of(pid, "cmdline") for name in names):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def groups_of(instances: Collection[str]) -> list[Path]:
    """Control groups of these agents, the deepest first."""
    tops = [top for name in instances for top in _instance_groups(name)]
    return [Path(folder) for top in tops for folder, _, _ in os.walk(top, topdown=False)]


def remove_groups_of(instances: Collection[str]) -> None:
    """Kill what is in them, and remove them."""
    deadline_s = time.monotonic() + END_LIMIT_S
    while groups := groups_of(instances):
        for group in groups:
            with contextlib.suppress(OSError):
                (group / "cgroup.kill").write_text("1")
            with contextlib.suppress(OSError):
                group.rmdir()
        assert time.monotonic() < deadline_s, f"these control groups cannot be removed: {groups}"
        time.sleep(0.02)


def descriptors(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sorted(found)


def check_journal(path: Path) -> None:
    """The journal replays into a state that keeps its invariants and holds nothing any more."""
    store = SqliteStore(path)
    store.open()
    try:
        state = load_state(store)
        check(state)
        held = [attempt.id for job in state.jobs.values() for attempt in job.attempts if attempt.is_live]
        assert held == [], f"attempts hold cards though every job has ended: {held}"
    finally:
        store.close()


def _instance_groups(instance_id: str) -> Iterator[Path]:
    """In v2 the top has it; in v1 it may lie below the group that the agent was started in."""
    for hierarchy in (GROUPS, *(GROUPS / name for name in _names(GROUPS))):
        for depth in ("", "*/", "*/*/"):
            yield from hierarchy.glob(f"{depth}gpushare/{instance_id}")


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_of(pid: int, needle: bytes) -> bool:
    if _state(pid) in "ZX":
        return False
    if needle in read_of(pid, "cmdline") or needle in read_of(pid, "environ"):
        return True
    return any(needle in target.encode() for target in [*descriptors(pid), _cwd(pid)])


def _state(pid: int) -> str:
    stat = read_of(pid, "stat")
    return stat[stat.rfind(b")") + 2 :][:1].decode() or "X"


def _cwd(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd")
    return ""


def read_of(pid: int, name: str) -> bytes:
    """/proc/<pid>/<name>; empty once the process has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""
