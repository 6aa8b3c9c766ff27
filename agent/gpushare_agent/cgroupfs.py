"""The few operations on control groups that a shim and its task need: join, look, kill.

Imports os alone. A group is named by its absolute directory. `populated 0` is the only proof that its
processes are gone; a group that no longer exists is empty.
"""

from __future__ import annotations

import errno
import os

# more than a file of one value holds
SHOWN_BYTES = 4096


def put(path: str, value: str) -> None:
    """Write one value into a control file that exists; OSError as the kernel gives it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def put_and_read_back(path: str, value: str) -> str:
    """The same, and what the kernel shows of it afterwards."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
        return os.pread(fd, SHOWN_BYTES, 0).decode()
    finally:
        os.close(fd)


def get(path: str) -> str:
    """The whole text of a control file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while chunk := os.read(fd, 65536):
            parts.append(chunk)
    finally:
        os.close(fd)
    return b"".join(parts).decode()


def join(directory: str) -> None:
    """Move the calling process into the group."""
    put(f"{directory}/cgroup.procs", "0")


def memberships() -> dict[str, str]:
    """The caller's own path per controller, as `/proc/self/cgroup` shows it; the key of the unified hierarchy
    is "".
    """
    found = {}
    for line in get("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def populated(directory: str) -> bool:
    """False once no process of the group or of one below it lives."""
    try:
        return "populated 1" in get(f"{directory}/cgroup.events")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise


def kill(directory: str) -> None:
    """SIGKILL to everything in the group and below it, new forks included."""
    try:
        put(f"{directory}/cgroup.kill", "1")
    except FileNotFoundError:
        return


def freeze(directory: str, frozen: bool) -> None:
    """Stop everything in the group and below it, later members included, or let it go on; FileNotFoundError where the
    group is gone. A stopped group can still be killed."""
    put(f"{directory}/cgroup.freeze", "1" if frozen else "0")


def frozen(directory: str) -> bool:
    """True once every process of the group and below it has stopped."""
    try:
        return "frozen 1" in get(f"{directory}/cgroup.events")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise


def processes(directory: str) -> set[int]:
    """Process ids in the group and in all groups below it; empty if it is gone."""
    found: set[int] = set()
    waiting = [directory]
    while waiting:
        group = waiting.pop()
        try:
            found.update(int(line) for line in get(f"{group}/cgroup.procs").split())
            waiting += [entry.path for entry in os.scandir(group) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            # gone meanwhile, or a threaded group, whose processes are listed in the one above it
            continue
    return found


def counter(path: str, key: str) -> int:
    """The value after `key` in a flat-keyed control file; 0 if the file or key is absent."""
    try:
        for line in get(path).splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        return 0
    return 0
