"""Giving a job its input while it runs: what is typed, and the window it is typed in.

Imports the client. Invariants: the terminal is raw only while the job has one that takes input; a lost connection is
made again for as long as the job runs, and a person can leave all the while; of input that is no terminal's, none is
left out or sent twice: where that cannot be known, it ends with an error.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from gpushare.cli import terminal
from gpushare.cli.sink import STDERR_FD, STDOUT_FD, LogSink, TerminalSink, TextSink
from gpushare.client.messages import Attach, AttemptState, ConnectionStart, Job, WindowSize
from gpushare.errors import FailedPreconditionError, GpushareError, UnavailableError
from gpushare.reasons import Reason

if TYPE_CHECKING:
    from gpushare.client.aio import AsyncClient
    from gpushare.client.connect import Connection

# How much of what was printed is shown again to who comes back to a job.
BACKLOG_BYTES = 8 * 1024
_AGAIN_FIRST_S = 0.1
_AGAIN_LAST_S = 2.0
_PASSING = frozenset({Reason.NOT_RUNNING, Reason.CONNECTION_STALLED, Reason.BUSY})


def window_size() -> WindowSize:
    rows, columns = terminal.window()
    return WindowSize(rows=rows, columns=columns)


class Feeder:
    """Feeds one task of one job. `run` returns when the person leaves, and by itself never; `close` puts the terminal
    back. `offsets` says, by attempt and descriptor, up to where the output is old."""

    def __init__(self, client: AsyncClient, job: Job, task_index: int = 0) -> None:
        self.offsets: dict[tuple[int, int], int] = {}
        self.is_terminal = job.spec.pty
        self.sink: LogSink = TerminalSink() if self.is_terminal else TextSink()
        self._client = client
        self._name = job.name
        self._task_index = task_index
        self._raw = terminal.RawMode()
        self._running = asyncio.Event()
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._left = asyncio.Event()
        self._input_over = False
        self._resizing: set[asyncio.Task[None]] = set()

    def on_change(self, job: Job) -> None:
        """The job as it is now."""
        states = [each.state for each in job.tasks if each.task_index == self._task_index]
        if AttemptState.ATTEMPT_STATE_RUNNING in states:
            self._running.set()
        else:
            self._running.clear()

    async def look_back(self) -> None:
        """Before a job that runs already is followed: what it printed long ago is not shown again."""
        try:
            async with self._client.connect(self._start()) as connection:
                opened = connection.opened
        except GpushareError as err:
            if err.reason in _PASSING:
                return
            raise
        for fd, size_bytes in ((STDOUT_FD, opened.stdout_bytes), (STDERR_FD, opened.stderr_bytes)):
            self.offsets[opened.attempt, fd] = max(0, size_bytes - BACKLOG_BYTES)

    async def run(self) -> None:
        """Raises GpushareError where the person may not connect, or what was on its way is lost."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._window_changed)
        tasks = [asyncio.create_task(work) for work in (self._stay_connected(), self._type(), self._left.wait())]
        try:
            while not self._left.is_set():
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                # Input that came to its end is no reason to leave.
                tasks = [task for task in tasks if not task.done()]
        finally:
            for task in (*tasks, *self._resizing):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            loop.remove_signal_handler(signal.SIGWINCH)

    def close(self) -> None:
        self._raw.leave()

    # -- the connection

    def _start(self) -> ConnectionStart:
        attach = Attach(window=window_size() if self.is_terminal else None)
        return ConnectionStart(name=self._name, task_index=self._task_index, attach=attach)

    async def _stay_connected(self) -> None:
        again_s = _AGAIN_FIRST_S
        while True:
            await self._running.wait()
            try:
                async with self._client.connect(self._start()) as connection:
                    again_s = _AGAIN_FIRST_S
                    await self._hold(connection)
                # The attempt is over; until another one runs, the terminal is the person's own again.
                self._raw.leave()
                self._running.clear()
            except GpushareError as err:
                if err.reason not in _PASSING and not isinstance(err, UnavailableError):
                    raise
                await asyncio.sleep(again_s)
                again_s = min(again_s * 2, _AGAIN_LAST_S)

    async def _hold(self, connection: Connection) -> None:
        """Until the attempt is over. Raises GpushareError where the connection breaks before."""
        if not connection.opened.takes_input:
            self._input_over = True
        elif self.is_terminal:
            self._raw.enter()
        if self._input_over and connection.opened.takes_input:
            await connection.end_input()
        self._connection = connection
        self._connected.set()
        try:
            async for _ in connection.received():
                pass
        except GpushareError as err:
            if connection.untaken_bytes and not self.is_terminal:
                raise _lost(err) from err
            raise
        finally:
            self._connection = None
            self._connected.clear()

    def _window_changed(self) -> None:
        if self._connection is not None and self.is_terminal:
            task = asyncio.create_task(self._resize(self._connection))
            self._resizing.add(task)
            task.add_done_callback(self._resizing.discard)

    async def _resize(self, connection: Connection) -> None:
        try:
            await connection.resize(window_size())
        except GpushareError:
            return  # the next connection begins with the size of then

    # -- what is typed

    async def _type(self) -> None:
        # Not before somebody reads it: until then the terminal's own line editing and Ctrl-C hold.
        await self._connected.wait()
        keyboard, escape = terminal.Keyboard(), terminal.Escape()
        try:
            while not self._input_over:
                data = await keyboard.next()
                if not data:
                    await self._end_input()
                    return
                if self.is_terminal:
                    data, leaves = escape.feed(data)
                    if leaves:
                        self._left.set()
                        return
                if data:
                    await self._send(data)
        finally:
            keyboard.close()

    async def _send(self, data: bytes) -> None:
        """What is typed while there is no connection reaches nobody, so that it cannot come at a time when it means
        something else; anything else waits for one."""
        if not self.is_terminal:
            await self._connected.wait()
        connection = self._connection
        if connection is None:
            return
        try:
            await connection.send(data)
        except GpushareError as err:
            if not self.is_terminal:
                raise _lost(err) from err

    async def _end_input(self) -> None:
        self._input_over = True
        connection = self._connection
        if connection is not None and not self.is_terminal:
            try:
                await connection.end_input()
            except GpushareError:
                return  # the next connection begins with it


def _lost(err: GpushareError) -> GpushareError:
    return FailedPreconditionError(Reason.INPUT_LOST, f"Input was on its way when the connection broke: {err.message}")
