"""A hint to ext4: what is below different directories of this one has nothing to do with each other.

Imports the standard library alone. Without it the attempts' files are put into the inode groups in which everybody else
of that part of the file system makes and deletes theirs, and where ext4 has no journal it passes over each inode that
was freed in the last minutes: a file system that is busy with deleting made a launch twice as dear. Other file systems
know no such hint, and where it cannot be given nothing but time is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path

_GET_FLAGS = 0x8008_6601
_SET_FLAGS = 0x4008_6602
_TOP_OF_HIERARCHIES = 0x0002_0000
# The call is declared with a long and writes an int.
_LONG_BYTES = 8
_INT_BYTES = 4


def put_far_apart(directory: Path) -> None:
    """From now on for each directory that is made in `directory`."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = int.from_bytes(fcntl.ioctl(fd, _GET_FLAGS, bytes(_LONG_BYTES))[:_INT_BYTES], sys.byteorder)
            wanted = (flags | _TOP_OF_HIERARCHIES).to_bytes(_INT_BYTES, sys.byteorder)
            fcntl.ioctl(fd, _SET_FLAGS, wanted.ljust(_LONG_BYTES, b"\0"))
        finally:
            os.close(fd)
