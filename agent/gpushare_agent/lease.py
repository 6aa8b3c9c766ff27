"""The node's lease as a file of eight bytes that every shim holds open: the deadline, in nanoseconds of
CLOCK_BOOTTIME.

Imports the standard library alone. The file is never replaced, only overwritten in place; behind the
deadline stands the boot it was written in, because a deadline of another boot means nothing.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

_DEADLINE = struct.Struct("<q")
_MAX_MARK_BYTES = 4096
_NS_PER_MS = 1_000_000


class LeaseFile:
    """Opened by the agent, inherited by the launcher and its shims through `fd`. OSError if it cannot be opened."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        mark = boot_id.encode()
        if os.pread(self.fd, _MAX_MARK_BYTES, _DEADLINE.size) != mark:
            os.pwrite(self.fd, _DEADLINE.pack(0) + mark, 0)
            os.ftruncate(self.fd, _DEADLINE.size + len(mark))

    def renew(self, deadline_boot_ns: int) -> None:
        """One write of eight bytes: a reader sees the old deadline or the new one."""
        os.pwrite(self.fd, _DEADLINE.pack(deadline_boot_ns), 0)

    def left_ms(self) -> int:
        """Milliseconds to the deadline, 0 if it has passed or none was ever written."""
        (deadline,) = _DEADLINE.unpack(os.pread(self.fd, _DEADLINE.size, 0))
        return max(0, (int(deadline) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // _NS_PER_MS)

    def close(self) -> None:
        """The shims keep theirs."""
        os.close(self.fd)
