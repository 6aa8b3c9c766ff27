"""Reads of task output: what one reader asked for becomes chunks, from disk, at the reader's own pace.

Imports asyncio, msgspec and the log files' reader; knows nothing of the wire. Invariants: a chunk is at most 64 KiB and
names its offset, so a gap made by the size cap is visible; a reader that follows gets its end only after the
attempt's end is durable and everything printed was sent; a slow reader holds up nobody, because the task writes to
disk.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

import msgspec

from gpushare.reasons import Reason
from gpushare_agent import logfiles
from gpushare_agent.logwatch import LogWatch
from gpushare_agent.streams import STREAMS

CHUNK_BYTES = 64 * 1024
POLL_FIRST_S = 0.02
POLL_LAST_S = 0.25
# Directories that one sweep removes: it runs on the agent's only thread.
SWEEP_MOST = 100


class LogOrder(msgspec.Struct, frozen=True):
    """One read: from byte `offset` of one stream ("stdout", "stderr") of one attempt."""

    read_id: str
    attempt_id: str
    stream: str
    offset: int
    follow: bool


class LogPiece(msgspec.Struct, frozen=True):
    """Bytes at an offset, `skipped_bytes` behind where the last piece ended; or the end, or why there is nothing."""

    offset: int
    data: bytes = b""
    skipped_bytes: int = 0
    end: bool = False
    error_reason: Reason | None = None
    error_detail: str = ""


class LogSource(Protocol):
    """Where the output of attempts lies."""

    def log_dir(self, attempt_id: str) -> Path:
        """The directory, whether or not it exists."""

    def may_grow(self, attempt_id: str) -> bool:
        """True until the attempt's end is durable; False for one that is unknown."""

    def has_ended(self, attempt_id: str) -> bool:
        """True for one that ended here not long ago: without output it printed nothing, or never ran."""


class LogReads:
    """All readers of this node; `changed` wakes those of one attempt."""

    def __init__(self, source: LogSource) -> None:
        self._source = source
        self._waiting: dict[str, asyncio.Event] = {}
        self._followers: Counter[str] = Counter()
        self._watch = LogWatch(self.changed)

    def changed(self, attempt_id: str) -> None:
        """The attempt's state has changed: whoever follows it looks again at once."""
        event = self._waiting.pop(attempt_id, None)
        if event is not None:
            event.set()

    async def read(self, order: LogOrder) -> AsyncGenerator[LogPiece, None]:
        """The pieces of one read; the last one carries `end` or an error."""
        self._followers[order.attempt_id] += order.follow
        try:
            async with aclosing(self._read(order)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._followers[order.attempt_id] -= order.follow
            if not self._followers[order.attempt_id]:
                del self._followers[order.attempt_id]
                self._watch.remove(order.attempt_id)

    async def _read(self, order: LogOrder) -> AsyncGenerator[LogPiece, None]:
        offset = order.offset
        pause_s = POLL_FIRST_S
        if order.stream not in STREAMS or offset < 0:
            detail = f"there is no output stream {order.stream!r} with offset {offset}"
            yield LogPiece(offset, end=True, error_reason=Reason.INVALID_FIELD, error_detail=detail)
            return
        while True:
            # Asked before the read: what was printed before the end is then surely seen.
            growing = self._source.may_grow(order.attempt_id)
            directory = self._source.log_dir(order.attempt_id)
            if order.follow and growing:
                # Also before the read, so that nothing that is printed after it goes unnoticed.
                self._watch.add(order.attempt_id, directory)
            if not growing and not directory.is_dir() and not self._source.has_ended(order.attempt_id):
                detail = f"the output of {order.attempt_id} is no longer kept on this node"
                yield LogPiece(offset, end=True, error_reason=Reason.LOGS_GONE, error_detail=detail)
                return
            piece = logfiles.read_slice(directory, order.stream, offset, CHUNK_BYTES)
            if piece.data:
                yield LogPiece(piece.offset, piece.data, piece.skipped_bytes)
                offset = piece.offset + len(piece.data)
                pause_s = POLL_FIRST_S
            elif growing and order.follow:
                await self._pause(order.attempt_id, pause_s)
                pause_s = min(pause_s * 1.5, POLL_LAST_S)
            else:
                yield LogPiece(offset, end=True)
                return

    async def _pause(self, attempt_id: str, pause_s: float) -> None:
        event = self._waiting.setdefault(attempt_id, asyncio.Event())
        try:
            await asyncio.wait_for(event.wait(), pause_s)
        except TimeoutError:
            return


class Window:
    """How much of a stream the reader has not confirmed; `limit_bytes` is the most."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._open_bytes = 0
        self._freed = asyncio.Event()

    async def sent(self, size_bytes: int, timeout_s: float | None) -> None:
        """Counts what was sent; returns when more may follow. Raises TimeoutError for a reader that stands still so
        long."""
        self._open_bytes += size_bytes
        while self._open_bytes >= self._limit_bytes:
            self._freed.clear()
            await asyncio.wait_for(self._freed.wait(), timeout_s)

    def confirmed(self, size_bytes: int) -> None:
        """The reader took that much more."""
        self._open_bytes = max(0, self._open_bytes - size_bytes)
        self._freed.set()


def sweep(
    logs_dir: Path,
    keep_s: float,
    live: Collection[str],
    now_s: float,
    most: int = SWEEP_MOST,
    remove: Callable[[Path], None] = shutil.rmtree,
) -> list[str]:
    """Removes the output of at most `most` attempts that ended longer ago than `keep_s`; returns their names.

    A directory's age is that of the youngest file in it. What cannot be removed now is tried again by the next sweep.
    """
    removed: list[str] = []
    try:
        names = sorted(path.name for path in logs_dir.iterdir())
    except OSError:
        return removed
    for name in names:
        if len(removed) >= most:
            break
        if name in live:
            continue
        path = logs_dir / name
        try:
            youngest = max(entry.lstat().st_mtime for entry in (path, *path.iterdir()))
            if now_s - youngest > keep_s:
                remove(path)
                removed.append(name)
        except OSError:
            continue
    return removed
