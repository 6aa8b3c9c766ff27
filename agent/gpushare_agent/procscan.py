"""Finding the processes of an attempt without control groups, by reading /proc.

Imports os, the standard library's signal primitives and nothing else; shims and agent share it. A process
belongs to an attempt if the attempt's shim is its ancestor, if it is in the task's session, or if it is ours
and its environment carries the attempt's tag. A process that cleared its environment and left both session
and ancestry is not found: that is what "weak" containment means.
"""

from __future__ import annotations

import os

from gpushare_agent import signals

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from collections.abc import Callable

TAG_NAME = "GPUSHARE_ATTEMPT_TAG"


class Proc:
    """One line of /proc/<pid>/stat; `start` is in clock ticks since boot."""

    __slots__ = ("parent", "pid", "session", "start", "state")

    def __init__(self, pid: int, state: str, parent: int, session: int, start: int) -> None:
        self.pid = pid
        self.state = state
        self.parent = parent
        self.session = session
        self.start = start


class Scope:
    """What marks an attempt's processes: the shim's pid (0: dead), the task's session (0: none), the tag, and the
    earliest start, which is the session leader's own."""

    __slots__ = ("session", "shim_pid", "since", "tag")

    def __init__(self, shim_pid: int, session: int, tag: str, since: int) -> None:
        self.shim_pid = shim_pid
        self.session = session
        self.tag = tag
        self.since = since


def stat_of(pid: int) -> Proc | None:
    """The process as it stands; None if there is none."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 4096).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(fd)
    # the command's name may hold blanks and parentheses: the fields start behind the last ")"
    fields = text[text.rfind(")") + 2 :].split()
    return Proc(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def alive(pid: int, start: int) -> bool:
    """True if `pid` is still the process that began at `start`, and no zombie."""
    found = stat_of(pid)
    return found is not None and found.start == start and found.state not in "ZX"


def snapshot() -> list[Proc]:
    """Every process of the host that is no zombie."""
    found = (stat_of(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [proc for proc in found if proc is not None and proc.state not in "ZX"]


class Scan:
    """The processes of one moment; the environment of each is read at most once, however many attempts ask."""

    __slots__ = ("_tags", "processes")

    def __init__(self) -> None:
        self.processes = snapshot()
        self._tags: dict[int, tuple[bytes, ...]] = {}

    def carries(self, pid: int, tag: str) -> bool:
        """True for a process of our own user whose environment names the attempt's tag."""
        tags = self._tags.get(pid)
        if tags is None:
            tags = self._tags[pid] = _tags_of(pid)
        return tag.encode() in tags


def members(scope: Scope, scan: Scan | None = None) -> set[int]:
    """The attempt's processes in `scan` (default: now), the shim itself left out."""
    scan = scan or Scan()
    young = [proc for proc in scan.processes if proc.start >= scope.since and proc.pid != scope.shim_pid]
    found = _descendants(scope.shim_pid, young) if scope.shim_pid else set()
    session = scope.session
    if any(proc.pid == session and proc.start != scope.since for proc in scan.processes):
        session = 0  # its number went to somebody else meanwhile
    for proc in young:
        if proc.pid in found:
            continue
        if scan.carries(proc.pid, scope.tag) or (session and proc.session == session and _ours(proc.pid)):
            found.add(proc.pid)
    found.discard(os.getpid())
    return found


def all_stopped(pids: set[int]) -> bool:
    """True if each of them is stopped by a signal, or dead."""
    return all((proc := stat_of(pid)) is None or proc.state in "TtZX" for pid in pids)


def signal_all(find: Callable[[], set[int]], number: int) -> int:
    """Send a signal to each process that `find` names twice, before and after its pidfd was taken, so that a
    recycled pid is never hit. Returns how many got it.
    """
    handles: dict[int, int] = {}
    try:
        for pid in find():
            try:
                handles[pid] = os.pidfd_open(pid)
            except OSError:
                continue
        sent = 0
        for pid in find() & handles.keys() if handles else ():
            sent += signals.send(handles[pid], number)
        return sent
    finally:
        for handle in handles.values():
            os.close(handle)


def _descendants(ancestor: int, processes: list[Proc]) -> set[int]:
    children: dict[int, list[int]] = {}
    for proc in processes:
        children.setdefault(proc.parent, []).append(proc.pid)
    found: set[int] = set()
    waiting = [ancestor]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def _ours(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False


def _tags_of(pid: int) -> tuple[bytes, ...]:
    if not _ours(pid):
        return ()
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        parts = []
        while chunk := os.read(fd, 65536):
            parts.append(chunk)
    except OSError:
        return ()
    finally:
        os.close(fd)
    name = f"{TAG_NAME}=".encode()
    return tuple(each[len(name) :] for each in b"".join(parts).split(b"\0") if each.startswith(name))
