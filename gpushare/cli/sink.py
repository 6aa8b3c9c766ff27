"""Where followed output goes: raw bytes to a pipe, harmless text to a terminal, or JSON.

Imports the standard library and `inert`; the messages only as types. Invariants: a reader that stops reading stops
the log stream and not the command, which still hears Ctrl-C; at most `_CHUNKS_MAX` chunks wait; with several tasks a
line of one never mixes with a line of another.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gpushare.cli.inert import SGR_RESET, TerminalFilter

if TYPE_CHECKING:
    from gpushare.client.messages import StreamLogsResponse

STDOUT_FD = 1
STDERR_FD = 2

_CHUNKS_MAX = 16
# A line that is longer is shown in pieces of this size where lines of several tasks are kept apart.
_LINE_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """One output stream of one attempt of one task. `label` tells it from the others, "" where there is only one."""

    job_name: str
    task_index: int
    attempt: int
    fd: int
    label: str = ""


class LogSink(Protocol):
    """Takes what was read, in the order of each source."""

    async def chunk(self, source: Source, answer: StreamLogsResponse) -> None: ...

    async def end(self, source: Source) -> None: ...

    async def close(self) -> None: ...


class Writer:
    """Writes to descriptors from a thread, because a write to a stopped reader does not return."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(_CHUNKS_MAX)
        self._chunks: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._error: OSError | None = None
        # A daemon, so that a reader who never reads again cannot keep the command from ending.
        threading.Thread(target=self._write_all, name="output", daemon=True).start()

    async def write(self, fd: int, data: bytes) -> None:
        """Raises the OSError (BrokenPipeError) that an earlier write met."""
        if self._error is not None:
            raise self._error
        if data:
            await self._room.acquire()
            self._chunks.put((fd, data))

    async def close(self) -> None:
        """Waits until everything is written."""
        for _ in range(_CHUNKS_MAX):
            await self._room.acquire()
        self._chunks.put(None)
        if self._error is not None:
            raise self._error

    def _write_all(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            fd, data = chunk
            try:
                view = memoryview(data)
                while view and self._error is None:
                    view = view[os.write(fd, view) :]
            except OSError as err:
                self._error = err
            if self._loop.is_closed():
                return
            self._loop.call_soon_threadsafe(self._room.release)


class _Lines:
    """Cuts one stream into whole lines, each with its label before it."""

    def __init__(self, label: str) -> None:
        self._label = f"[{label}] ".encode()
        self._pending = b""

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        lines = (self._pending + data).split(b"\n")
        self._pending = lines.pop()
        if self._pending and (final or len(self._pending) > _LINE_MAX_BYTES):
            lines.append(self._pending)
            self._pending = b""
        return b"".join(self._label + line + b"\n" for line in lines)


class TextSink:
    """stdout to stdout and stderr to stderr. A terminal gets what cannot harm it, a pipe the bytes as they are."""

    def __init__(self) -> None:
        self._writer = Writer()
        self._is_terminal = {fd: os.isatty(fd) for fd in (STDOUT_FD, STDERR_FD)}
        self._filters: dict[Source, TerminalFilter] = {}
        self._lines: dict[Source, _Lines] = {}

    async def chunk(self, source: Source, answer: StreamLogsResponse) -> None:
        if answer.skipped_bytes:
            where = f"{source.label}: " if source.label else ""
            note = f"note: {where}{answer.skipped_bytes} bytes of output were over the size cap and are gone\n"
            await self._writer.write(STDERR_FD, note.encode())
        await self._writer.write(source.fd, self._shown(source, answer.data, final=False))

    async def end(self, source: Source) -> None:
        await self._writer.write(source.fd, self._shown(source, b"", final=True))
        seen = self._filters.pop(source, None)
        self._lines.pop(source, None)
        if seen is not None and seen.coloured:
            await self._writer.write(source.fd, SGR_RESET.encode())

    async def close(self) -> None:
        await self._writer.close()

    def _shown(self, source: Source, data: bytes, *, final: bool) -> bytes:
        if self._is_terminal[source.fd]:
            text = self._filters.setdefault(source, TerminalFilter()).feed(data, final=final)
            data = text.encode(errors="backslashreplace")
        if source.label:
            data = self._lines.setdefault(source, _Lines(source.label)).feed(data, final=final)
        return data


class TerminalSink:
    """What a job's own terminal shows, as it is: for who sits at it, and gives it its input."""

    def __init__(self) -> None:
        self._writer = Writer()

    async def chunk(self, source: Source, answer: StreamLogsResponse) -> None:
        await self._writer.write(source.fd, answer.data)

    async def end(self, source: Source) -> None:
        pass

    async def close(self) -> None:
        await self._writer.close()


class JsonSink:
    """One JSON array on stdout, one chunk a line: base64 `data`, and `text` where it is UTF-8."""

    def __init__(self) -> None:
        self._writer = Writer()
        self._count = 0

    async def chunk(self, source: Source, answer: StreamLogsResponse) -> None:
        # int64 is text in protobuf's JSON, and so are these.
        item = {
            "name": source.job_name,
            "taskIndex": source.task_index,
            "attempt": source.attempt,
            "stream": "OUTPUT_STREAM_STDOUT" if source.fd == STDOUT_FD else "OUTPUT_STREAM_STDERR",
            "offset": str(answer.offset),
            "skippedBytes": str(answer.skipped_bytes),
            "data": base64.b64encode(answer.data).decode(),
            "text": answer.data.decode(errors="replace"),
        }
        opening = ",\n" if self._count else "[\n"
        self._count += 1
        await self._writer.write(STDOUT_FD, f"{opening}{json.dumps(item)}".encode())

    async def end(self, source: Source) -> None:
        pass

    async def close(self) -> None:
        await self._writer.write(STDOUT_FD, b"\n]\n" if self._count else b"[]\n")
        await self._writer.close()
