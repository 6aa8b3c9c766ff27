"""Notice at once that a directory's files have grown, by inotify; the standard library has no door to it.

Imports asyncio and ctypes. It only ever wakes: whoever waits looks again by itself, and looks now and then where the
kernel grants no watch. The descriptor exists while something is watched.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

_IN_MODIFY = 0x2
_IN_CREATE = 0x100
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class LogWatch:
    """`wake(key)` is called in the loop when a file in the directory of `key` has grown."""

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake
        self._fd = -1
        self._keys: dict[int, str] = {}
        self._watches: dict[str, int] = {}

    def add(self, key: str, directory: Path) -> None:
        """Watch it from now on; does nothing where it is watched, is not there yet, or cannot be watched."""
        if key in self._watches or not self._open():
            return
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_MODIFY | _IN_CREATE)
        if watch < 0:
            self._close_if_idle()
            return
        self._keys[watch], self._watches[key] = key, watch

    def remove(self, key: str) -> None:
        """Watch it no longer."""
        watch = self._watches.pop(key, None)
        if watch is not None:
            self._keys.pop(watch, None)
            _libc.inotify_rm_watch(self._fd, watch)
            self._close_if_idle()

    def _open(self) -> bool:
        if self._fd < 0:
            self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._fd >= 0:
                asyncio.get_running_loop().add_reader(self._fd, self._readable)
        return self._fd >= 0

    def _close_if_idle(self) -> None:
        if not self._watches and self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        events = b""
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._fd, _READ_BYTES)
        grown, at = set(), 0
        while at < len(events):
            watch, _, _, name_bytes = _EVENT.unpack_from(events, at)
            at += _EVENT.size + name_bytes
            grown.add(self._keys.get(watch, ""))
        # An overflow of the queue has no watch: then anything may have grown.
        for key in list(self._watches) if "" in grown else grown:
            self._wake(key)
