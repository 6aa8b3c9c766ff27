"""The agent's end of the launcher: starts it by exec, hands it orders, notices its death.

Imports the standard library and the launch vocabulary, never grpc: the first launcher is started before the
agent imports it. A later one, when a launcher died, is started by vfork and exec in C, without running a
line of ours or of grpc between the two.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

from gpushare_agent import failpoints, tinyjson

SEND_TIMEOUT_S = 10.0
SEND_RETRY_S = 0.005
EXIT_TIMEOUT_S = 5.0
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from gpushare_agent.launcher import main; main()"


class LauncherGone(Exception):
    """The launcher is dead or does not take orders; the order was not handed over."""


class LauncherProcess:
    """One running launcher. `lease_fd` is what its shims will read their lease from, `max_files` the soft limit of
    open files that jobs get, `log` takes its rare words.
    """

    def __init__(self, lease_fd: int, max_files: int, log: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # no inherited environment: nothing of a tenant's or an admin's shell reaches the process that forks as root;
        # symbols are bound once here and not again in each of its forks
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LD_BIND_NOW": "1"}
        if failpoints.ENVIRONMENT_NAME in os.environ:
            environment[failpoints.ENVIRONMENT_NAME] = os.environ[failpoints.ENVIRONMENT_NAME]
        package_root = str(Path(__file__).resolve().parent.parent)
        arguments = [package_root, str(theirs.fileno()), str(lease_fd)]
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", _CODE, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                pass_fds=(theirs.fileno(), lease_fd),
                start_new_session=True,
            )
        # limits that every job gets, set from here, so that its process need not know how
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, (max_files, hard))
        resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))
        ours.setblocking(False)
        self._socket = ours

    @property
    def pid(self) -> int:
        """For figures and tests."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    async def order(self, directory: str, channel: socket.socket) -> None:
        """Ask for a shim for the attempt in `directory`, which gets `channel`. Raises LauncherGone."""
        message = tinyjson.dumps({"directory": directory})
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [channel.fileno()]))]
        deadline = asyncio.get_running_loop().time() + SEND_TIMEOUT_S
        while True:
            try:
                self._socket.sendmsg([message], passed)
                return
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise LauncherGone("the launcher takes no orders") from None
                await asyncio.sleep(SEND_RETRY_S)
            except OSError as error:
                raise LauncherGone(f"the launcher is gone: {error}") from None

    def close(self) -> None:
        """Let it end, which it does as soon as its socket closes; shims are not touched."""
        self._socket.close()
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_TIMEOUT_S)
