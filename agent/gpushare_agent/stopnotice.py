"""The file in which a task finds that it is going to be stopped: why, by when, and with which signal.

Imports os, time and the shims' small modules. It lies in a directory that the agent's user alone can write, so that a
job can neither forge nor replace it; the job's user may read it. There is none until there is a notice, a reader sees
a whole one, and a newer one takes the place of an older one. A disk that does not take it must not keep the signal
from the job, so trouble with it is passed over.
"""

from __future__ import annotations

import os
import time

from gpushare_agent import records, tinyjson

NAME = "notice"
_SCRATCH = "notice.tmp"
_MS_PER_S = 1000
_DIRECTORY_MODE = 0o711


class StopNotice:
    """Of one attempt. `directory` "": it has none; else it is made with the first notice, since most attempts get none.
    `gid` is the group of the job's user, None: it runs as we do.
    """

    def __init__(self, directory: str, gid: int | None) -> None:
        self._directory = directory
        self._dirfd = -1
        self._gid = gid

    def tell(self, reason: str, detail: str, signal: str, grace_ms: int, left_ms: int) -> None:
        """`signal` comes with it; the SIGKILL comes in `left_ms` at the latest, `grace_ms` after the SIGTERM."""
        if not self._directory:
            return
        deadline_ms = time.time_ns() // 1_000_000 + left_ms
        seconds, ms = divmod(deadline_ms, _MS_PER_S)
        said: tinyjson.Flat = {
            "reason": reason,
            "detail": detail,
            "deadline": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{ms:03d}Z",
            "grace_s": grace_ms // _MS_PER_S,
            "signal": signal,
        }
        try:
            self._put(tinyjson.dumps(said) + b"\n")
        except OSError:
            return

    def clear(self) -> None:
        """What was told does not hold any more."""
        if self._dirfd >= 0:
            self._remove(NAME)

    def _open(self) -> None:
        if self._dirfd >= 0:
            return
        try:
            os.mkdir(self._directory, _DIRECTORY_MODE)
        except FileExistsError:
            pass  # by the agent of an earlier version, at the launch
        self._dirfd = records.open_directory(self._directory)
        # whatever the umask is
        os.fchmod(self._dirfd, _DIRECTORY_MODE)

    def _put(self, data: bytes) -> None:
        self._open()
        self._remove(_SCRATCH)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_SCRATCH, flags, 0o400, dir_fd=self._dirfd)
        try:
            if self._gid is not None and os.geteuid() == 0:
                os.fchown(fd, -1, self._gid)
                os.fchmod(fd, 0o440)
            os.write(fd, data)
        finally:
            os.close(fd)
        os.rename(_SCRATCH, NAME, src_dir_fd=self._dirfd, dst_dir_fd=self._dirfd)

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._dirfd)
        except OSError:
            return
