"""The file system under a SQLite store: what is refused before a byte is touched, the lock, and the ballast.

May import the standard library and the port. Invariant: nothing here opens, changes or removes the database itself; a
refusal leaves every stored byte as it was.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from gpushare.store.port import Refusal, StoreRefused

MIB = 1024 * 1024
#: A ballast is laid down only where this many times its size is free, so that it never is what fills the disk.
_BALLAST_HEADROOM = 4
_SQLITE_MAGIC = b"SQLite format 3\0"

#: statfs(2) types of file systems whose locks and shared memory do not hold between hosts, as in linux/magic.h.
NETWORK_FILESYSTEMS: Mapping[int, str] = MappingProxyType(
    {
        0x6969: "NFS",
        0x517B: "SMB",
        0xFE534D42: "SMB",
        0xFF534D42: "CIFS",
        0x00C36400: "Ceph",
        0x0BD00BD0: "Lustre",
        0x47504653: "GPFS",
        0x19830326: "BeeGFS",
        0x5346414F: "AFS",
        0x6B414653: "AFS",
        0x73757245: "Coda",
        0x7461636F: "OCFS2",
        0x01161970: "GFS2",
        0x20030528: "OrangeFS",
        0x01021997: "9P",
        0x786F4256: "VirtualBox shared folder",
    }
)


def filesystem_type(directory: Path) -> int:
    """The statfs(2) type of the file system that holds `directory`. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    # struct statfs opens with f_type, one machine word; the buffer is several times the structure.
    answer = ctypes.create_string_buffer(1024)
    if libc.statfs(os.fsencode(directory), answer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(directory))
    word = ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(answer.raw[:word], "little") & 0xFFFFFFFF


def refuse_network(directory: Path, types: Mapping[int, str] = NETWORK_FILESYSTEMS) -> None:
    """Raise `StoreRefused` where `directory` lies on a file system that several hosts can mount."""
    kind = types.get(filesystem_type(directory))
    if kind is not None:
        raise StoreRefused(
            Refusal.NETWORK_FILESYSTEM,
            f"the journal may not lie on {kind} ({directory}): its locks do not protect against another host; "
            "put the state directory on a local disk",
        )


def refuse_directory(directory: Path) -> None:
    """Raise `StoreRefused` unless files can be made in `directory`."""
    if not directory.is_dir():
        raise StoreRefused(
            Refusal.READ_ONLY,
            f"the state directory {directory} does not exist or is no directory; create it first",
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StoreRefused(
            Refusal.READ_ONLY,
            f"the state directory {directory} cannot be written by uid {os.geteuid()}; "
            "make it writable, or choose another one",
        )


def refuse_file(path: Path) -> bool:
    """Raise `StoreRefused` unless `path` is absent, or a database of ours that we may write; True if it exists."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise StoreRefused(Refusal.NOT_A_STORE, f"the journal {path} is no regular file; choose another path")
    if found.st_uid != os.geteuid():
        raise StoreRefused(
            Refusal.FOREIGN_OWNER,
            f"the journal {path} belongs to uid {found.st_uid}, but this scheduler runs as uid {os.geteuid()}; "
            "run it as the owner, or give it a state directory of its own",
        )
    # Root may write a file without its write bit; who took the bit away meant it all the same.
    if not found.st_mode & stat.S_IWUSR or not os.access(path, os.R_OK | os.W_OK):
        raise StoreRefused(
            Refusal.READ_ONLY,
            f"the journal {path} is read-only; make it writable (chmod u+rw), or choose another path",
        )
    with path.open("rb") as file:
        magic = file.read(len(_SQLITE_MAGIC))
    if magic and magic != _SQLITE_MAGIC:
        raise StoreRefused(
            Refusal.NOT_A_STORE,
            f"{path} is not a journal (no SQLite database); move it away, or choose another path",
        )
    return True


def refuse_open_to_others(path: Path) -> None:
    """Raise `StoreRefused` for a journal, with jobs in it, that other users may open (a copy made without its mode)."""
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StoreRefused(
            Refusal.UNSAFE_SETTINGS,
            f"the journal {path} holds the environments of jobs, and others may open it; run: chmod 600 {path}",
        )


class LockFile:
    """A lock between processes of one host, held for the life of an open store. The file itself stays: removing a lock
    file lets two holders lock two files of one name."""

    def __init__(self, path: Path, protects: Path) -> None:
        self._path = path
        self._protects = protects
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock at once, or raise `StoreRefused` with the holder's pid."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as failure:
            raise StoreRefused(
                Refusal.READ_ONLY,
                f"the lock file {self._path} cannot be opened ({failure.strerror}); "
                "remove it if no scheduler runs, and check who owns the directory",
            ) from failure
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as failure:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise StoreRefused(
                Refusal.LOCKED,
                f"another scheduler (pid {holder}) is using the journal {self._protects}; "
                "stop it first, or give this one a state directory of its own",
            ) from failure
        except OSError as failure:
            os.close(fd)
            why = Refusal.DISK_FULL if failure.errno in (errno.ENOSPC, errno.EDQUOT) else Refusal.READ_ONLY
            raise StoreRefused(
                why,
                f"the lock file {self._path} cannot be written ({failure.strerror}); "
                "free space on that disk, or choose another state directory",
            ) from failure
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; does nothing where none is held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Ballast:
    """Disk space held back, so that a full disk still takes what must be written once it is freed."""

    def __init__(self, path: Path, size_mib: int) -> None:
        if size_mib < 1:
            raise ValueError(f"the ballast is at least 1 MiB, not {size_mib}")
        self._path = path
        self._size_bytes = size_mib * MIB

    @property
    def needs_mib(self) -> int:
        """How much has to be free before the ballast is laid down."""
        return _BALLAST_HEADROOM * self._size_bytes // MIB

    def hold(self) -> bool:
        """Lay the ballast down where there is plenty of room; True when it is there."""
        try:
            if self._path.stat().st_size == self._size_bytes:
                return True
        except FileNotFoundError:
            pass
        space = os.statvfs(self._path.parent)
        if space.f_bavail * space.f_frsize < _BALLAST_HEADROOM * self._size_bytes:
            return False
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(fd, 0, self._size_bytes)
        except OSError:
            self._path.unlink(missing_ok=True)  # a quota can refuse what statvfs promised
            return False
        finally:
            os.close(fd)
        return True

    def release(self) -> bool:
        """Free the space; False where none was held."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True


def free_bytes(directory: Path) -> int:
    """What an ordinary user may still write to the file system of `directory`."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


def create_private(path: Path) -> None:
    """Make `path` an empty file for its owner alone, its name durable. Raises `StoreRefused`."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as failure:
        why = Refusal.DISK_FULL if failure.errno in (errno.ENOSPC, errno.EDQUOT) else Refusal.READ_ONLY
        raise StoreRefused(
            why,
            f"the journal {path} cannot be created ({failure.strerror}); free space, or choose another path",
        ) from failure
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
