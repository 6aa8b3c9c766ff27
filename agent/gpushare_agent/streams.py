"""What a task prints, on disk: the writing half (the reading half is `logfiles`).

Imports os, time and nothing else; runs in the shim. A stream is a run of bytes with offsets from 0. Its
first half-cap bytes are the file `<stream>`; what follows goes to segments `<stream>.<offset, 20 digits>`,
each an eighth of the cap, of which the oldest are deleted so that head and tail together never pass the cap.
A byte's offset never changes, so a gap is simply the distance between the end of one file and the offset in
the next one's name: a reader computes how many bytes were skipped from names and sizes alone, and no record
of it can be torn. A full disk makes a gap of the same kind; it never stops the job.
"""

from __future__ import annotations

import os
import time

STREAMS = ("stdout", "stderr")
MIN_CAP_BYTES = 4096
SEGMENTS_IN_CAP = 8
RETRY_AFTER_ERROR_S = 1.0


def segment_name(stream: str, offset: int) -> str:
    """The file that begins at `offset`."""
    return stream if offset == 0 else f"{stream}.{offset:020d}"


class StreamLog:
    """One stream of one attempt; `offset` is how many bytes the task has printed, kept or not."""

    def __init__(self, dirfd: int, stream: str, cap_bytes: int) -> None:
        cap = max(cap_bytes, MIN_CAP_BYTES)
        self.offset = 0
        self.at_line_start = True
        self._dirfd = dirfd
        self._stream = stream
        self._segment_bytes = cap // SEGMENTS_IN_CAP
        self._head_bytes = cap // 2
        self._tail: list[int] = []
        self._retry_at = 0.0
        self._fd = -1
        self._room = 0

    @property
    def past_head(self) -> bool:
        """True once what is printed may be thrown away again."""
        return self.offset >= self._head_bytes

    def write(self, data: bytes) -> None:
        """Append; never raises, bytes that find no room on the disk become a gap."""
        view = memoryview(data)
        self.at_line_start = data[-1:] == b"\n"
        while view:
            try:
                if self._fd < 0:
                    self._open()
                written = os.write(self._fd, view[: self._room])
            except OSError:
                self._give_up(len(view))
                return
            view = view[written:]
            self.offset += written
            self._room -= written
            if self._room == 0:
                self.close()

    def close(self) -> None:
        """Close the segment at hand; a later write opens the next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if time.monotonic() < self._retry_at:
            raise BlockingIOError("the disk refused a moment ago")
        if self.offset:
            # before the new one, so that the sum stays under the cap
            while (len(self._tail) + 1) * self._segment_bytes > self._head_bytes:
                self._drop(self._tail.pop(0))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(segment_name(self._stream, self.offset), flags, 0o600, dir_fd=self._dirfd)
        self._room = self._segment_bytes if self.offset else self._head_bytes
        if self.offset:
            self._tail.append(self.offset)

    def _drop(self, offset: int) -> None:
        try:
            os.unlink(segment_name(self._stream, offset), dir_fd=self._dirfd)
        except OSError:
            return

    def _give_up(self, lost: int) -> None:
        self.close()
        self.offset += lost
        self._retry_at = time.monotonic() + RETRY_AFTER_ERROR_S
