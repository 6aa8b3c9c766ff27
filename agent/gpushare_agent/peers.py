"""The agents on a shim's socket: who listens, what they hear, and what they say.

Runs in the shim; imports the shims' small modules alone. Agents come and go, several may listen at once. Invariants: at
most `MAX_PEERS`, the one that started the attempt among them; one that does not read is let go, and is told everything
when it comes back; descriptors that came with a message are closed once it was obeyed.
"""

from __future__ import annotations

import _socket
import os
import sys

from gpushare_agent import execs, records, tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from collections.abc import Callable
    from typing import Any

    #: (peer, what it says, the descriptors that came with it).
    Obey = Callable[[int, dict[str, Any], list[int]], None]

MAX_PEERS = 4
MAX_MESSAGE_BYTES = 64 * 1024
_INT_BYTES = 4


def listen(dirfd: int) -> _socket.socket:
    """The attempt's socket. Raises OSError."""
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    if records.exists(dirfd, records.SOCKET):
        # of a shim that died before it took the attempt; had it taken it, the exec record would stop us
        os.unlink(records.SOCKET, dir_fd=dirfd)
    # through the descriptor: a socket's path may not be longer than 107 bytes, a state directory's may
    listener.bind(f"/proc/self/fd/{dirfd}/{records.SOCKET}")
    listener.listen(MAX_PEERS)
    listener.setblocking(False)
    return listener


class Peers:
    """`hello` makes what a newcomer is told; `gone` hears of each that has left. What `obey` raises for an order that
    makes no sense ends the connection."""

    def __init__(
        self,
        listener: _socket.socket,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        hello: Callable[[], bytes],
        obey: Obey,
        gone: Callable[[int], None],
    ) -> None:
        self._listener, self._watch, self._unwatch = listener, watch, unwatch
        self._hello, self._obey, self._gone = hello, obey, gone
        self._peers: set[int] = set()

    def begin(self) -> None:
        """Let agents come."""
        self._watch(self._listener.fileno(), self._accept)

    def add(self, fd: int) -> None:
        """Tell `fd` every change from now on, and take orders from it."""
        os.set_blocking(fd, False)
        self._peers.add(fd)
        self._watch(fd, lambda: self._hear(fd))

    def tell_all(self, message: bytes) -> None:
        for fd in tuple(self._peers):
            self.tell(fd, message)

    def tell(self, fd: int, message: bytes) -> None:
        """Nobody, where that one has left."""
        if fd not in self._peers:
            return
        try:
            os.write(fd, message)
        except OSError:
            # a peer that does not read comes back through the socket and is told everything then
            self._drop(fd)

    def pass_on(self, fd: int, message: bytes, passed: int) -> None:
        """One message with one descriptor. Raises OSError."""
        link = _socket.socket(fileno=fd)
        try:
            rights = passed.to_bytes(_INT_BYTES, sys.byteorder)
            link.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        finally:
            link.detach()

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        os.set_inheritable(fd, False)
        if len(self._peers) >= MAX_PEERS:
            os.close(fd)
            return
        self.add(fd)
        self.tell(fd, self._hello())

    def _hear(self, fd: int) -> None:
        passed: list[int] = []
        try:
            data, passed = _receive(fd)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            if data:
                self._obey(fd, tinyjson.loads(data), passed)
            else:
                self._drop(fd)
        except (ValueError, KeyError, TypeError, OSError):
            self._drop(fd)
        finally:
            for each in passed:
                os.close(each)

    def _drop(self, fd: int) -> None:
        if fd not in self._peers:
            return
        self._unwatch(fd)
        self._peers.discard(fd)
        os.close(fd)
        self._gone(fd)


def _receive(peer: int) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it."""
    link = _socket.socket(fileno=peer)
    try:
        room = _socket.CMSG_SPACE(execs.STREAMS_PASSED * _INT_BYTES)
        data, ancillary, _, _ = link.recvmsg(MAX_MESSAGE_BYTES, room, _socket.MSG_CMSG_CLOEXEC)
    finally:
        link.detach()
    passed = b"".join(item for level, kind, item in ancillary if kind == _socket.SCM_RIGHTS)
    fds = [passed[at : at + _INT_BYTES] for at in range(0, len(passed) - _INT_BYTES + 1, _INT_BYTES)]
    return data, [int.from_bytes(fd, sys.byteorder) for fd in fds]
