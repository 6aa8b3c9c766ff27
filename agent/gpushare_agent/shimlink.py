"""The agent's connection to one shim: its messages, its death, orders to it.

Imports asyncio and this package's vocabulary. A shim is known by its pid and start time, held by a pidfd, so
neither a signal nor a wait ever meets a process that got the same number later. The link reports; it decides
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

from gpushare_agent import procscan, records, tinyjson

MAX_MESSAGE_BYTES = 64 * 1024
RECONNECT_FIRST_S = 0.05
RECONNECT_LAST_S = 2.0

Message = dict[str, Any]


class ShimLink:
    """`on_message(dict)` for each message; `on_dead()` once, when the shim's process is gone and all it said
    was heard.

    `on_cut()` whenever the channel ended though the process lives: what was asked through it is answered no more.
    Before the first status nothing is known about the process: then the end of the channel counts as its
    death.
    """

    def __init__(
        self,
        directory: str,
        on_message: Callable[[Message], None],
        on_dead: Callable[[], None],
        on_cut: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._on_message = on_message
        self._on_dead = on_dead
        self._on_cut = on_cut
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._closed = False
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = RECONNECT_FIRST_S
        self.shim_pid = 0

    def attach(self, channel: socket.socket) -> None:
        """Use a connected socket."""
        channel.setblocking(False)
        self._socket = channel
        self._loop.add_reader(channel.fileno(), self._read_one)

    def hold(self, pid: int, start: int) -> bool:
        """Take the process's pidfd; False if it is not the one that started then, or is gone."""
        if self._pidfd >= 0:
            return True
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        if not procscan.alive(pid, start):
            os.close(pidfd)
            return False
        self._pidfd = pidfd
        self.shim_pid = pid
        self._loop.add_reader(pidfd, self._died)
        return True

    def connect(self) -> bool:
        """Reach the shim through the socket in its attempt's directory; False if nobody is there.

        A process that we hold, or one whose queue of connections is full, lives but does not answer yet:
        that is tried again.
        """
        try:
            channel = _connect(self._directory)
        except OSError as error:
            if self._pidfd < 0 and error.errno != errno.EAGAIN:
                return False
            self._connect_later()
            return True
        self._retry_s = RECONNECT_FIRST_S
        self.attach(channel)
        return True

    def send(self, order: tinyjson.Flat) -> bool:
        """True if the order is on its way; one that is not must be repeated when the shim is heard again."""
        return self.send_with(tinyjson.dumps(order), ())

    def send_with(self, order: bytes, fds: Sequence[int]) -> bool:
        """The same for an order that takes descriptors along; they stay ours, too."""
        if self._socket is None:
            return False
        try:
            socket.send_fds(self._socket, [order], fds) if fds else self._socket.send(order)
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL to the shim, whose task dies with it."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Forget the shim; it does not notice more than a closed connection."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._close_socket()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _read_one(self) -> bool:
        """One message; where there are more, the loop calls again. False where there is nothing to read now."""
        if self._socket is None:
            return False
        fds: list[int] = []
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._channel_ended()
            return False
        try:
            message = tinyjson.loads(data)
        except ValueError:
            for fd in fds:
                os.close(fd)
            return True
        if fds:
            message["fd"] = fds[0]
        self._on_message(message)
        return True

    def _channel_ended(self) -> None:
        self._close_socket()
        if self._closed:
            return
        if self._pidfd < 0:
            self._dead()
        else:
            self._on_cut()
            self._connect_later()

    def _connect_later(self) -> None:
        """A shim drops a peer that does not read; it takes it back through its socket."""
        self._retry = self._loop.call_later(self._retry_s, self._reconnect)
        self._retry_s = min(2 * self._retry_s, RECONNECT_LAST_S)

    def _reconnect(self) -> None:
        if not self._closed and self._socket is None:
            self.connect()

    def _died(self) -> None:
        while self._read_one():
            pass
        self._dead()

    def _dead(self) -> None:
        if not self._closed:
            self.close()
            self._on_dead()

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None


def _connect(directory: str) -> socket.socket:
    dirfd = records.open_directory(directory)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.setblocking(False)
        channel.connect(f"/proc/self/fd/{dirfd}/{records.SOCKET}")
    except OSError:
        channel.close()
        raise
    finally:
        os.close(dirfd)
    return channel
