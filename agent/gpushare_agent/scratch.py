"""A directory of its own for each attempt on this node, gone when the attempt is over: GPUSHARE_SCRATCH.

Imports the standard library, the launch vocabulary and the removal. Invariants: the directory above is the agent's
own and nobody else may write there, so no name in it was put there by a job; one agent at a time uses it; what is a
user's is made by its descriptor and removed without following a link. What is left by an agent that died is swept at
the next start.
"""

from __future__ import annotations

import fcntl
import os
import queue
import stat
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from gpushare.reasons import Reason
from gpushare_agent import treeremoval
from gpushare_agent.attemptfiles import why_out_of_reach
from gpushare_agent.launchspec import LaunchRefused, UnixUser


class ScratchUnusable(Exception):
    """The directory above cannot be used; says why and what to do."""


class ScratchSpace:
    """Makes and removes them. `complain` hears of a directory that could not be removed, from another thread."""

    def __init__(self, directory: Path, complain: Callable[[str], None]) -> None:
        self._directory = directory
        self._complain = complain
        self._fd = -1
        # None ends the thread that removes.
        self._unwanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def open(self) -> None:
        """Make the directory above if need be, and take it for this agent alone. Raises ScratchUnusable."""
        try:
            self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as err:
            raise ScratchUnusable(f"scratch_dir {self._directory} cannot be used: {err.strerror}") from err
        found = os.fstat(self._fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise ScratchUnusable(
                f"scratch_dir {self._directory} must belong to the agent's user (uid {os.geteuid()}), and nobody else "
                "may write to it (chmod 0711 it, or name a directory inside of it)"
            )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            text = f"another agent uses scratch_dir {self._directory}; give each agent one of its own"
            raise ScratchUnusable(text) from None
        threading.Thread(target=self._remove_unwanted, name="scratch-removal", daemon=True).start()

    def path(self, attempt_id: str) -> Path:
        """Where the attempt's directory is."""
        return self._directory / attempt_id

    def make(self, attempt_id: str, user: UnixUser) -> None:
        """The attempt's directory, empty, of mode 0700, its user's. Raises LaunchRefused."""
        cause = why_out_of_reach(self._directory, user) if user.uid != os.geteuid() else ""
        if cause:
            raise LaunchRefused(Reason.LAUNCH_DENIED, cause)
        try:
            os.mkdir(attempt_id, 0o700, dir_fd=self._fd)
            if os.geteuid() == 0:
                os.chown(attempt_id, user.uid, user.gid, dir_fd=self._fd, follow_symlinks=False)
        except OSError as err:
            text = f"the job's scratch directory {self.path(attempt_id)} cannot be made: {err.strerror}"
            raise LaunchRefused(Reason.INFRA, text) from None

    def drop(self, attempt_id: str) -> None:
        """The attempt is over: its directory goes, beside everything else. Repeatable."""
        self._unwanted.put(attempt_id)

    def sweep(self, live: Collection[str]) -> None:
        """At start: whatever belongs to no live attempt goes."""
        for name in os.listdir(self._fd):
            if name not in live:
                self.drop(name)

    def close(self) -> None:
        """Give it up; what is unwanted still goes, or at the next start."""
        self._unwanted.put(None)
        os.close(self._fd)

    def _remove_unwanted(self) -> None:
        while (attempt_id := self._unwanted.get()) is not None:
            path = self.path(attempt_id)
            if not treeremoval.remove(path):
                self._complain(str(path))
