"""A child process held by its pidfd: started without a shell, reaped without a thread, never waited for
without end.

Imports the standard library alone. The pidfd, not the pid, names the process, so a number that the kernel
gives to somebody else is never signalled. A child that does not die is dropped by closing the pidfd;
nothing here joins it.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence


class ChildProcess:
    """One running process: a child of ours (`spawn`) or one that an earlier agent left behind (`adopt`)."""

    def __init__(self, pid: int, pidfd: int, *, ours: bool) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._ours = ours
        self._ended = False

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
        new_session: bool = False,
    ) -> ChildProcess:
        """Start a program with exactly this environment and no other descriptor of ours. OSError if it
        cannot.
        """
        popen = subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            close_fds=True,
            start_new_session=new_session,
        )
        pidfd = os.pidfd_open(popen.pid)
        # From here on the pidfd owns the child: Popen must neither reap it nor complain that it outlives
        # us.
        popen.returncode = 0
        return cls(popen.pid, pidfd, ours=True)

    @classmethod
    def adopt(cls, pid: int) -> ChildProcess:
        """Hold a process that is not our child. ProcessLookupError if there is none."""
        return cls(pid, os.pidfd_open(pid), ours=False)

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not. Reaps our own child."""
        if self._ended:
            return False
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if not poller.poll(0):
            return True
        self._reap()
        return False

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the end. True if it came within the time."""
        if not self.alive():
            return True
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        # A copy, so that two waiters do not take each other's place in the loop's table.
        watched = os.dup(self._pidfd)
        loop.add_reader(watched, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), timeout_s)
        except TimeoutError:
            return not self.alive()
        finally:
            loop.remove_reader(watched)
            os.close(watched)
        return not self.alive()

    def send(self, signum: signal.Signals) -> None:
        """Signal it; nothing happens if it has ended."""
        if self._ended:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Let go of it, running or not."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._ended = True

    def _reap(self) -> None:
        self._ended = True
        if not self._ours:
            return
        try:
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return  # somebody else in this process reaped it: it is gone all the same
