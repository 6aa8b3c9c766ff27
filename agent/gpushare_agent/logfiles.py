"""Reading what `streams` wrote: slices of a task's output by byte offset, with the gaps named.

Imports os and msgspec. May run while the shim is writing: a segment deleted under the reader shows as a gap,
never as wrong bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpushare_agent.streams import STREAMS


class Segment(NamedTuple):
    """One file of a stream: its name and the stream offsets [start, end) that it holds at the moment."""

    name: str
    start: int
    end: int


class LogSlice(msgspec.Struct, frozen=True):
    """`data` begins at `offset`, which is `skipped_bytes` behind the offset that was asked for. Empty data:
    nothing more as yet.
    """

    offset: int
    data: bytes
    skipped_bytes: int


def segments(log_dir: Path, stream: str) -> list[Segment]:
    """The stream's files in order of offset; empty if it has none. ValueError for a stream that does not exist."""
    if stream not in STREAMS:
        raise ValueError(f"no such stream: {stream}")
    found = []
    try:
        entries = list(os.scandir(log_dir))
    except FileNotFoundError:
        return []
    for entry in entries:
        name, _, offset = entry.name.partition(".")
        if name != stream or not (offset.isdigit() or entry.name == stream):
            continue
        try:
            size = entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
        start = int(offset or "0")
        found.append(Segment(entry.name, start, start + size))
    return sorted(found, key=lambda segment: segment.start)


def read_slice(log_dir: Path, stream: str, offset: int, limit_bytes: int) -> LogSlice:
    """Up to `limit_bytes` from the first byte at or behind `offset` that is still kept.

    Source: the files of `streams`. Raises ValueError for an unknown stream, FileNotFoundError never: logs
    that are gone read as empty.
    """
    for segment in segments(log_dir, stream):
        if segment.end <= offset:
            continue
        start = max(offset, segment.start)
        data = _read(log_dir / segment.name, start - segment.start, limit_bytes)
        if data:
            return LogSlice(start, data, start - offset)
    return LogSlice(offset, b"", 0)


def _read(path: Path, position: int, limit_bytes: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # the cap took it meanwhile: the next segment is the next thing kept
        return b""
    try:
        return os.pread(fd, limit_bytes, position)
    finally:
        os.close(fd)
