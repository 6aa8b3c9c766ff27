"""The task's three streams as the shim holds them: pipes or a terminal on one side, capped logs on the other. Its input
is empty, or what the agent writes to the end that it is lent.

Imports the small shared modules alone. Reading never waits, so a task is never blocked by a log's reader,
and a full disk costs bytes of log and nothing else. Once a log throws bytes away again, its stream is read
at no more than PACE_BYTES_PER_S: the pipe fills and holds the printing task, and neither this process nor
the disk is busy with output that nobody will see.
"""

from __future__ import annotations

import errno
import os
import termios
import time

from gpushare_agent import records
from gpushare_agent.streams import STREAMS, StreamLog

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from collections.abc import Callable
    from typing import Any

    Watch = Callable[[int, Callable[[], None]], None]
    Unwatch = Callable[[int], None]

READ_BYTES = 64 * 1024
PACE_BYTES_PER_S = 32 * 1024 * 1024
DRAIN_BYTES = 4 * 1024 * 1024
TERMINAL_ROWS = 24
TERMINAL_COLUMNS = 80


class _Stream:
    """One source descriptor, the log it feeds, and when it may be read again."""

    def __init__(self, source: int, log: StreamLog) -> None:
        self.source = source
        self.log = log
        self.resume_at: float | None = None


class Outputs:
    """Holds the log directory from the start (OSError if there is none); a log's file is made with its first byte."""

    def __init__(self, log_dir: str, spec: dict[str, Any]) -> None:
        log_fd = records.open_directory(log_dir)
        cap_bytes: int = spec["log_cap_bytes"]
        pty: bool = spec["pty"]
        self._pty = pty
        self._stdin: bool = spec["stdin"]
        self._window = (spec["window_rows"] or TERMINAL_ROWS, spec["window_columns"] or TERMINAL_COLUMNS)
        # What feeds the task, for whoever may; None where it has no input, or no longer.
        self.input_fd: int | None = None
        self._logs = [StreamLog(log_fd, name, cap_bytes) for name in (STREAMS[:1] if pty else STREAMS)]
        self._streams: list[_Stream] = []
        self._child_ends: tuple[int, ...] = ()

    def open(self) -> tuple[int, int, int]:
        """The child's stdin, stdout and stderr."""
        if self._pty:
            master, slave = os.openpty()
            termios.tcsetwinsize(slave, self._window)
            sources, ends = [master], (slave, slave, slave)
            self.input_fd = master if self._stdin else None
        else:
            stdin = self._open_stdin()
            out_read, out_write = os.pipe()
            err_read, err_write = os.pipe()
            sources, ends = [out_read, err_read], (stdin, out_write, err_write)
        for source in sources:
            os.set_blocking(source, False)
        self._streams = [_Stream(source, log) for source, log in zip(sources, self._logs, strict=True)]
        self._child_ends = ends
        return ends

    def _open_stdin(self) -> int:
        if not self._stdin:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        read, write = os.pipe()
        os.set_blocking(write, False)
        self.input_fd = write
        return read

    def close_input(self) -> None:
        """A task that reads from a pipe comes to the end of its input; a terminal has no such end."""
        if self.input_fd is not None and not self._pty:
            os.close(self.input_fd)
            self.input_fd = None

    def close_child_ends(self) -> None:
        """In the shim, after the fork: so that the task's death is the end of the stream."""
        for fd in set(self._child_ends):
            os.close(fd)

    def watch(self, watch: Watch, unwatch: Unwatch) -> None:
        """Let the loop call back when there is something to read."""
        self._unwatch = unwatch
        for stream in self._streams:
            watch(stream.source, self._reader(stream))

    def resume(self, watch: Watch) -> None:
        """Put paused streams whose time has come back into the loop."""
        for stream in self._streams:
            if stream.resume_at is not None and time.monotonic() >= stream.resume_at:
                stream.resume_at = None
                watch(stream.source, self._reader(stream))

    def next_resume_ms(self) -> int | None:
        """Milliseconds until the first paused stream may be read again; None if none is paused."""
        paused = [stream.resume_at for stream in self._streams if stream.resume_at is not None]
        return max(0, int((min(paused) - time.monotonic()) * 1000) + 1) if paused else None

    def tell(self, text: str) -> None:
        """A line of ours among what the task prints: on stderr, or on its terminal."""
        log = self._logs[-1]
        end = "\r\n" if self._pty else "\n"
        log.write(f"{'' if log.at_line_start else end}gpushare: {text}{end}".encode())

    def drain(self) -> None:
        """When every process of the task is gone: what still stands in the pipes, but not what a stranger keeps
        writing.
        """
        for stream in self._streams:
            for _ in range(DRAIN_BYTES // READ_BYTES):
                data = _read(stream.source)
                if not data:
                    break
                stream.log.write(data)
            stream.log.close()

    def totals(self) -> dict[str, int]:
        """Bytes that each stream carried, kept or not: `stdout_bytes`, `stderr_bytes`."""
        return {f"{name}_bytes": log.offset for name, log in zip(STREAMS, self._logs, strict=False)}

    def _reader(self, stream: _Stream) -> Callable[[], None]:
        return lambda: self._take(stream)

    def _take(self, stream: _Stream) -> None:
        data = _read(stream.source)
        if data is None:
            return
        if not data:
            self._unwatch(stream.source)
            return
        stream.log.write(data)
        if stream.log.past_head:
            self._unwatch(stream.source)
            stream.resume_at = time.monotonic() + len(data) / PACE_BYTES_PER_S


def _read(source: int) -> bytes | None:
    """What is there; b"" at the end of the stream, None if there is nothing as yet."""
    try:
        return os.read(source, READ_BYTES)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno == errno.EIO:  # a terminal's way to say that its last user is gone
            return b""
        raise
