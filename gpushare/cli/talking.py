"""One connection between this process's own streams and a process or a port of a job, until either end has enough.

Imports the client. Used by `exec` and `ssh-proxy`. Invariants: bytes pass unchanged; the terminal, where it was made
raw, is put back; Ctrl-C, SIGTERM and a lost terminal end the connection, and what it began with it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpushare.cli import terminal
from gpushare.cli.exits import EXIT_OWN_FAILURE
from gpushare.cli.feeding import window_size
from gpushare.cli.sink import STDERR_FD, STDOUT_FD, Writer
from gpushare.errors import GpushareError

if TYPE_CHECKING:
    from gpushare.cli.interrupts import Interrupts
    from gpushare.client.connect import Connection
    from gpushare.client.messages import ConnectResponse


async def talk(
    connection: Connection, interrupts: Interrupts, take_first_line: Callable[[bytes], None] | None = None
) -> int:
    """The exit code of the process at the other end; 128 + n where signal n ended ours. `take_first_line`, where given,
    gets the first line of output, which is not passed on. Raises GpushareError, or the OSError of an output that cannot
    be written."""
    raw = terminal.RawMode()
    loop = asyncio.get_running_loop()
    if connection.opened.pty:
        raw.enter()
        loop.add_signal_handler(signal.SIGWINCH, lambda: resizing.add(asyncio.ensure_future(_resize(connection))))
    resizing: set[asyncio.Future[None]] = set()
    sending = asyncio.create_task(_send_all(connection))
    receiving = asyncio.create_task(_receive_all(connection, take_first_line))
    leaving: list[asyncio.Task[Any]] = [
        asyncio.create_task(each.wait()) for each in (interrupts.cancel, interrupts.leave)
    ]
    try:
        while True:
            watched: set[asyncio.Task[Any]] = {receiving, *leaving} | ({sending} if not sending.done() else set())
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
            if any(task.done() for task in leaving):
                return interrupts.exit_code
            if sending.result():
                return 128 + signal.SIGHUP
    finally:
        tasks: list[asyncio.Future[Any]] = [sending, receiving, *leaving, *resizing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if connection.opened.pty:
            loop.remove_signal_handler(signal.SIGWINCH)
        raw.leave()


async def _resize(connection: Connection) -> None:
    await connection.resize(window_size())


async def _send_all(connection: Connection) -> bool:
    """True where the person typed the escape; False at the end of the input, or where nobody takes it any more."""
    keyboard, escape = terminal.Keyboard(), terminal.Escape()
    try:
        while data := await keyboard.next():
            if connection.opened.pty:
                data, leaves = escape.feed(data)
                if leaves:
                    return True
            await connection.send(data)
        await connection.end_input()
    except GpushareError:
        return False  # `received` says why
    finally:
        keyboard.close()
    return False


async def _receive_all(connection: Connection, take_first_line: Callable[[bytes], None] | None) -> int:
    writer = Writer()
    head = b""
    async for response in connection.received():
        if response.HasField("end"):
            await writer.close()
            return response.end.exit_code if response.end.HasField("exit_code") else EXIT_OWN_FAILURE
        fd, data = _output(response)
        taken_bytes = len(data)
        if take_first_line is not None and fd == STDOUT_FD:
            head += data
            line, newline, data = head.partition(b"\n")
            if newline:
                take_first_line(line)
                take_first_line = None
        await writer.write(fd, data)
        await connection.took(taken_bytes)
    return EXIT_OWN_FAILURE


def _output(response: ConnectResponse) -> tuple[int, bytes]:
    if response.WhichOneof("message") == "error_output":
        return STDERR_FD, response.error_output
    return STDOUT_FD, response.output
