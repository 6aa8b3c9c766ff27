"""The node's ends of connections: a task's own input, a process beside the task, a port that the task listens on.

Imports asyncio and this package's parts; knows nothing of the wire. Invariants: nothing is read faster than it is
taken, so that a slow caller holds up the process it connects to and nobody's memory; the process group that a
connection began ends with it (what left that group ends with its job), the task itself never does; a port is only
connected to where the task's own processes listen on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import socket
import struct
import termios
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from gpushare.reasons import Reason
from gpushare_agent import listeners, tinyjson
from gpushare_agent.attempttable import Asked
from gpushare_agent.connections import Connections, NotConnected
from gpushare_agent.descriptors import Inlet, Outlets
from gpushare_agent.inpassing import in_passing
from gpushare_agent.logfiles import segments
from gpushare_agent.streams import STREAMS

# After a process has ended: how long what it started in the background may still bring output.
LINGER_S = 0.2
CONNECT_TIMEOUT_S = 5.0
END_OF_TRANSMISSION = b"\x04"


class ChannelOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One connection to one attempt: `argv`, `pty` and `term` are an exec's, `port` a forward's; rows and columns 0
    leave the window as it is."""

    channel_id: str
    attempt_id: str
    term: int
    kind: Literal["attach", "exec", "forward"]
    argv: tuple[str, ...] = ()
    pty: bool = False
    terminal: str = ""
    rows: int = 0
    columns: int = 0
    port: int = 0


class Opened(msgspec.Struct, frozen=True):
    """What is told of a connection that was made."""

    pty: bool = False
    takes_input: bool = True
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class Piece(msgspec.Struct, frozen=True):
    """Bytes of output, of standard error where `is_error`; or the end, of an exec with its code."""

    data: bytes = b""
    is_error: bool = False
    end: bool = False
    exit_code: int | None = None


class LocalEnd(Protocol):
    """One open connection. `write` returns when what was given is taken; `pieces` ends with an `end`."""

    opened: Opened

    async def write(self, data: bytes) -> None: ...

    def end_input(self) -> None: ...

    def resize(self, rows: int, columns: int) -> None: ...

    def pieces(self) -> AsyncGenerator[Piece, None]: ...

    async def close(self) -> None: ...


class Channels:
    """Opens them. `pids` are the processes of an attempt, `log_dir` where it prints to, `term` the highest leader's."""

    def __init__(
        self,
        connections: Callable[[], Connections],
        pids: Callable[[str], set[int]],
        log_dir: Callable[[str], Path],
        term: Callable[[], int],
    ) -> None:
        self._connections = connections
        self._pids = pids
        self._log_dir = log_dir
        self._term = term

    async def open(self, order: ChannelOrder) -> LocalEnd:
        """Raises NotConnected."""
        if order.term < self._term():
            raise NotConnected(Reason.STALE_TERM, f"the order is of term {order.term}, and {self._term()} leads")
        connections = self._connections()
        try:
            match order.kind:
                case "attach":
                    return await _Attached.open(order, connections, self._opened_at(order.attempt_id))
                case "exec":
                    return await _Executed.open(order, connections)
                case "forward":
                    connections.spec(order.attempt_id)
                    return await _Forwarded.open(order, partial(self._pids, order.attempt_id))
        except OSError as error:
            raise NotConnected(Reason.INTERNAL, f"the node could not make the connection: {error}") from None

    def _opened_at(self, attempt_id: str) -> Opened:
        ends = [max((s.end for s in segments(self._log_dir(attempt_id), name)), default=0) for name in STREAMS]
        return Opened(stdout_bytes=ends[0], stderr_bytes=ends[1])


class _Attached:
    """To the task's input. Many may be attached at once: what each of them sends reaches the task."""

    def __init__(self, order: ChannelOrder, connections: Connections, opened: Opened, fd: int | None) -> None:
        self.opened = opened
        self._attempt_id = order.attempt_id
        self._connections = connections
        self._over = connections.over(order.attempt_id)
        self._inlet = Inlet(fd) if fd is not None else None

    @classmethod
    async def open(cls, order: ChannelOrder, connections: Connections, opened: Opened) -> _Attached:
        spec = connections.spec(order.attempt_id)
        fd = await connections.input_fd(order.attempt_id) if spec.stdin else None
        found = cls(order, connections, msgspec.structs.replace(opened, pty=spec.pty, takes_input=spec.stdin), fd)
        if spec.pty and fd is not None:
            # A program that fills the screen draws it anew, for whoever came. A change of size is what the kernel tells
            # it; a signal of ours would go to a number, which may be another program's by then.
            if order.rows:
                found.resize(order.rows + 1, order.columns)
            found.resize(order.rows, order.columns)
        return found

    async def write(self, data: bytes) -> None:
        if self._inlet is None and not self.opened.takes_input:
            raise NotConnected(Reason.NO_INPUT, "the job was submitted without an input")
        if self._inlet is not None:
            await self._inlet.write(data)

    def end_input(self) -> None:
        """The end of a pipe is the end for all who are attached; a terminal has none."""
        if self._inlet is not None and not self.opened.pty:
            self._inlet.close()
            self._connections.close_input(self._attempt_id)

    def resize(self, rows: int, columns: int) -> None:
        if self._inlet is not None and self.opened.pty:
            _set_window(self._inlet.fd, rows, columns)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        await self._over.wait()
        yield Piece(end=True)

    async def close(self) -> None:
        if self._inlet is not None:
            self._inlet.close()


class _Executed:
    """To a process beside the task."""

    def __init__(self, order: ChannelOrder, connections: Connections, asked: Asked, inlet: Inlet, outlets: Outlets):
        self.opened = Opened(pty=order.pty)
        self._attempt_id = order.attempt_id
        self._connections = connections
        self._asked = asked
        self._inlet = inlet
        self._outlets = outlets
        self._failed: Piece | None = None
        self._code: int | None = None

    @classmethod
    async def open(cls, order: ChannelOrder, connections: Connections) -> _Executed:
        private_dir = await in_passing(partial(connections.private_dir, order.attempt_id))
        env = {"GPUSHARE_PRIVATE_DIR": str(private_dir)} | ({"TERM": order.terminal} if order.terminal else {})
        with contextlib.ExitStack() as theirs:
            streams, inlet, outlets = _terminal(order, theirs) if order.pty else _pipes(theirs)
            why_read, why_write = os.pipe()
            theirs.callback(os.close, why_write)
            why = Outlets({why_read: False})
            try:
                asked = await connections.start(
                    order.attempt_id, order.argv, pty=order.pty, env=env, streams=(*streams, why_write)
                )
            except BaseException:
                why.close()
                inlet.close()
                outlets.close()
                raise
        found = cls(order, connections, asked, inlet, outlets)
        try:
            await found._await_exec(why)
        except BaseException:
            await found.close()
            raise
        finally:
            why.close()
        return found

    async def _await_exec(self, why: Outlets) -> None:
        """Silence to the end means that the exec went through; words mean that it did not."""
        said = b""
        while (heard := await why.next(self._asked.ended, LINGER_S)) is not None:
            said += heard[1]
        if not said:
            return
        failure = tinyjson.loads(said)
        if failure["stage"] != "exec":
            reason = Reason.WORKDIR if failure["stage"] == "workdir" else Reason.LAUNCH_DENIED
            raise NotConnected(reason, f"{failure['stage']}: {failure['text']}")
        # As a shell tells it: where the program's own words would come, and with a code that says which kind it was.
        line = f"{failure['text']}\r\n" if self.opened.pty else f"{failure['text']}\n"
        self._failed = Piece(line.encode(), is_error=not self.opened.pty)
        self._code = failure["exit_code"]

    async def write(self, data: bytes) -> None:
        await self._inlet.write(data)

    def end_input(self) -> None:
        if not self.opened.pty:
            self._inlet.close()
            return
        with contextlib.suppress(OSError):
            os.write(self._inlet.fd, END_OF_TRANSMISSION)

    def resize(self, rows: int, columns: int) -> None:
        if self.opened.pty:
            _set_window(self._inlet.fd, rows, columns)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        if self._failed is not None:
            yield self._failed
            yield Piece(end=True, exit_code=self._code)
            return
        while (found := await self._outlets.next(self._asked.ended, LINGER_S)) is not None:
            yield Piece(found[1], is_error=found[0])
        try:
            # However long that takes: a command may close its output, or send it elsewhere, and go on.
            code = await asyncio.shield(self._asked.ended)
        except ConnectionError as error:
            raise NotConnected(Reason.NOT_RUNNING, f"how the command ended is not known: {error}") from None
        yield Piece(end=True, exit_code=code)

    async def close(self) -> None:
        self._connections.end(self._attempt_id, self._asked)
        self._inlet.close()
        self._outlets.close()


class _Forwarded:
    """To a port."""

    opened = Opened()

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._inlet = Inlet(os.dup(connected.fileno()))
        self._outlets = Outlets({os.dup(connected.fileno()): False})

    @classmethod
    async def open(cls, order: ChannelOrder, pids: Callable[[], set[int]]) -> _Forwarded:
        found = await in_passing(lambda: listeners.targets(order.port, pids()))
        for target, inodes in found.items():
            try:
                connected = await _connect(target, order.port)
            except (OSError, TimeoutError):
                continue
            # Whoever listened before listens still, so it was to nobody else.
            now = await in_passing(lambda: listeners.targets(order.port, pids()))
            if now.get(target) == inodes:
                return cls(connected)
            connected.close()
        raise NotConnected(Reason.PORT_CLOSED, f"nothing of this task listens on port {order.port}")

    async def write(self, data: bytes) -> None:
        await self._inlet.write(data)

    def end_input(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def resize(self, rows: int, columns: int) -> None:
        """A port has no window."""

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        while (found := await self._outlets.next(never, LINGER_S)) is not None:
            yield Piece(found[1])
        yield Piece(end=True)

    async def close(self) -> None:
        self._inlet.close()
        self._outlets.close()
        self._socket.close()


def _terminal(order: ChannelOrder, theirs: contextlib.ExitStack) -> tuple[tuple[int, int, int], Inlet, Outlets]:
    master, slave = pty.openpty()
    theirs.callback(os.close, slave)
    _set_window(slave, order.rows or 24, order.columns or 80)
    return (slave, slave, slave), Inlet(os.dup(master)), Outlets({master: False})


def _pipes(theirs: contextlib.ExitStack) -> tuple[tuple[int, int, int], Inlet, Outlets]:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    for fd in (in_read, out_write, err_write):
        theirs.callback(os.close, fd)
    return (in_read, out_write, err_write), Inlet(in_write), Outlets({out_read: False, err_read: True})


def _set_window(fd: int, rows: int, columns: int) -> None:
    if rows and columns and fd >= 0:
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


async def _connect(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(made, (host, port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        made.close()
        raise
    return made
