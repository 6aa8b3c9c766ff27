"""Files of an attempt that must survive a power cut: written once, whole, and known to be on disk before anyone
acts on them.

Imports os and the failpoints alone; the agent and the shims share it. All paths are names inside an open
directory, never followed through a symbolic link. Reading never trusts: a record that is torn, empty, too
long or owned by somebody else reads as None.

An attempt's directory holds: `intent` (what to run), `exec` (who ran it, or `void`: sealed, never to run),
`stop` (who asked for its end), `exit` (how it ended) and `sock` (the shim's socket).
"""

from __future__ import annotations

import os
import stat

from gpushare_agent.failpoints import failpoint

INTENT = "intent"
EXEC = "exec"
STOP = "stop"
EXIT = "exit"
SOCKET = "sock"
VOID = b'{"void":true}'

MAX_RECORD_BYTES = 4 * 1024 * 1024


def open_directory(path: str) -> int:
    """A descriptor of a directory that is not a symbolic link; OSError otherwise."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def create(dirfd: int, name: str, data: bytes, torn_failpoint: str = "") -> None:
    """Make `name` with `data` on the disk; FileExistsError if it is there already, whatever it holds.

    That the directory's entry of it survives a power cut takes an fsync of the directory more, where it matters.
    """
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dirfd)
    try:
        if torn_failpoint:
            failpoint(torn_failpoint)
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(dirfd: int, name: str, data: bytes, written_failpoint: str = "") -> None:
    """Put `data` in place of `name` in one step, durable on return: a reader sees the old file or the new one."""
    scratch = name + ".tmp"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dirfd)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    if written_failpoint:
        failpoint(written_failpoint)
    os.rename(scratch, name, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    os.fsync(dirfd)


def note(dirfd: int, name: str, data: bytes) -> bool:
    """Make `name` whole and at once, the first writer wins; survives any process, not a power cut. False if it
    was there.
    """
    scratch = f"{name}.{os.getpid()}.tmp"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dirfd)
    try:
        try:
            _write_all(fd, data)
        finally:
            os.close(fd)
        os.link(scratch, name, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    except FileExistsError:
        return False
    finally:
        # a full disk leaves a part of it, which would only keep the disk full
        os.unlink(scratch, dir_fd=dirfd)
    return True


def read(dirfd: int, name: str) -> bytes | None:
    """The record's bytes; None if it is absent, empty, oversized, no plain file, or not ours."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dirfd)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size > MAX_RECORD_BYTES:
            return None
        return os.read(fd, MAX_RECORD_BYTES) or None
    except OSError:
        return None
    finally:
        os.close(fd)


def exists(dirfd: int, name: str) -> bool:
    """True if anything at all bears that name, even a torn record or a foreign file."""
    try:
        os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
