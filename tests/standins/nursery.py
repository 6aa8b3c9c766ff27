"""Daemons that need not load their libraries: forked from a process that has, one a worker.

Loading them took a scheduler most of a second and an agent half of that, hundreds of times. What is forked has its own
session, environment, log and command line, and runs the daemon's main module as `python -m` does; only `/proc` still
shows the nursery's command line and environment. The nursery has no threads of its own and has not imported grpc, for a
process that has must not fork. That daemons start from nothing, too, is seen where `gpushare up` and their own command
lines start them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

REQUEST_MAX_BYTES = 1 << 20
# What the daemons' modules import, as far as that does without grpc.
PRELOADED = (
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.x509",
    "gpushare.core.brain",
    "gpushare.core.explain",
    "gpushare.host.commands",
    "gpushare.store.sqlite",
    "gpushare.v1.agent_pb2",
    "gpushare.v1.tenant_pb2",
    "gpushare.v1.usage_pb2",
    "gpushare_agent.starting",
    "sqlalchemy.dialects.sqlite",
)


class Forked:
    """A process of the nursery, as far as it can be used like a `subprocess.Popen`."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid = pid
        self._status = status
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        return self._look(0)

    def poll(self) -> int | None:
        """Its exit code once it has ended."""
        return self._look(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0.0)
        return code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, within_s: float | None) -> int | None:
        if self._code is None and select.select([self._status], [], [], within_s)[0]:
            told = self._status.recv(16)
            assert told, f"the nursery has ended before pid {self.pid}"
            self._code = int(told)
            self._status.close()
        return self._code


class Nursery:
    """The process that forks, started at the first call of `start`; it ends with its worker."""

    _channel: socket.socket | None = None
    _process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, module: str, arguments: list[str], environ: Mapping[str, str], log_fd: int) -> Forked:
        """`python -m MODULE ARGUMENTS`, or `python MODULE ARGUMENTS` for a path that ends with .py, with its output on
        `log_fd`; returns when the process exists. What the daemons' modules read of the environment while they load
        they have read already."""
        if cls._channel is None:
            cls._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
            with theirs:
                cls._process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
                )
            atexit.register(cls._end, cls._channel)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps({"module": module, "arguments": arguments, "environ": dict(environ)}).encode()
        with theirs:
            socket.send_fds(cls._channel, [request], [log_fd, theirs.fileno()])
        return Forked(int(ours.recv(16)), ours)

    @classmethod
    def _end(cls, channel: socket.socket) -> None:
        channel.close()
        cls._process.wait()


def main() -> None:
    for module in PRELOADED:
        __import__(module)
    assert "grpc" not in sys.modules
    gc.collect()
    gc.freeze()
    channel = socket.socket(fileno=int(sys.argv[1]))
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    children: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready != channel.fileno():
                poll.unregister(ready)
                os.close(ready)
                pid, status = children.pop(ready)
                with contextlib.suppress(OSError), status:
                    status.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                continue
            data, passed, _, _ = socket.recv_fds(channel, REQUEST_MAX_BYTES, 2)
            if not data:
                return
            pid = os.fork()
            if pid == 0:
                _become(json.loads(data), passed[0])
            os.close(passed[0])
            status = socket.socket(fileno=passed[1])
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (pid, status)
            poll.register(pidfd, select.POLLIN)
            status.send(b"%d" % pid)


def _become(request: Mapping[str, object], log_fd: int) -> None:
    """The daemon, to its end."""
    code: object = 1
    try:
        os.setsid()
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        os.closerange(3, 1 + max(int(name) for name in os.listdir("/proc/self/fd")))
        gc.unfreeze()
        os.environ.clear()
        os.environ.update(request["environ"])  # type: ignore[call-overload]
        sys.argv = [str(request["module"]), *request["arguments"]]  # type: ignore[misc]
        # As of `python -m`: what lies beside this file is not on the path of a daemon.
        sys.path[0] = os.getcwd()
        if sys.argv[0].endswith(".py"):
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as err:
        code = err.code
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    main()
