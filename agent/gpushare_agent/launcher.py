"""The launcher: a small single-threaded process that forks one shim per attempt, so that the agent, which has
threads, never forks.

Started by exec with the standard library's smallest parts only; the shim's code is loaded here, once, and
shared by all shims. It takes orders over one SOCK_SEQPACKET socket, each with the attempt's channel as a
passed descriptor, and ends when the agent is gone; the shims live on. It keeps no state: what it forked is
found through the attempts' directories.
"""

from __future__ import annotations

import _socket
import gc
import os
import select
import sys

from gpushare_agent import shim, signals, syscalls, task, tinyjson
from gpushare_agent.failpoints import failpoint

MAX_ORDER_BYTES = 16 * 1024
REAP_EVERY_MS = 1000
_INT_BYTES = 4


def main() -> None:
    """Arguments: the package's directory, and the inherited socket's and lease file's descriptors."""
    agent = _socket.socket(fileno=int(sys.argv[2]))
    lease_fd = int(sys.argv[3])
    syscalls.set_name("gpushare-launch")
    # its life is the agent's socket, not the terminal; and its shims are as deaf
    signals.ignore(task.DEAF_TO)
    # the shims share these pages for as long as nobody writes to them; what a shim allocates dies with it
    gc.collect()
    gc.freeze()
    gc.disable()
    poll = select.poll()
    poll.register(agent.fileno(), select.POLLIN)
    while True:
        if poll.poll(REAP_EVERY_MS) and not _take_order(agent, lease_fd):
            return
        _reap()


def _take_order(agent: _socket.socket, lease_fd: int) -> bool:
    """Fork the shim that one order asks for; False once the agent is gone."""
    data, ancillary, _, _ = agent.recvmsg(MAX_ORDER_BYTES, _socket.CMSG_SPACE(_INT_BYTES))
    if not data:
        return False
    passed = [int.from_bytes(item[:_INT_BYTES], sys.byteorder) for _, _, item in ancillary]
    if len(passed) != 1:
        return True
    channel = passed[0]
    os.set_inheritable(channel, False)
    try:
        order = tinyjson.loads(data)
        failpoint("launcher.before_fork")
        pid = os.fork()
    except (OSError, ValueError) as error:
        shim.refuse(channel, "INFRA", f"the launcher could not start a shim: {error}")
        os.close(channel)
        return True
    if pid == 0:
        agent.close()
        shim.main(order["directory"], channel, lease_fd)
    os.close(channel)
    failpoint("launcher.after_fork")
    return True


def _reap() -> None:
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
