"""The person's own terminal: its size, raw mode and back, what is typed, and the escape that ends the sitting.

Imports the standard library. Invariants: whatever ends a command, the terminal is as it was before; bytes that are
typed reach the other end unchanged, the escape alone excepted: `~.` at the beginning of a line leaves, `~~` is one `~`.
"""

from __future__ import annotations

import asyncio
import os
import select
import termios
import threading
import tty
from typing import Any

STDIN_FD = 0
_READ_BYTES = 64 * 1024


def is_seat() -> bool:
    """Whether a person sits here: input and output are the terminal, and it is ours to use (no `&`, no pipe)."""
    try:
        return os.isatty(STDIN_FD) and os.isatty(1) and os.tcgetpgrp(STDIN_FD) == os.getpgrp()
    except OSError:
        return False


def window() -> tuple[int, int]:
    """(rows, columns) of the terminal, (0, 0) where there is none."""
    for fd in (1, STDIN_FD, 2):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        return size.lines, size.columns
    return 0, 0


class RawMode:
    """`enter` and `leave`, each as often as one likes."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def enter(self) -> None:
        if self._before is None:
            self._before = termios.tcgetattr(STDIN_FD)
            tty.setraw(STDIN_FD, termios.TCSADRAIN)

    def leave(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            try:
                termios.tcsetattr(STDIN_FD, termios.TCSADRAIN, before)
            except termios.error:
                return  # it is gone


class Escape:
    """Looks for the escape in what is typed."""

    def __init__(self) -> None:
        self._line_begins = True
        self._tilde = False

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what goes on, whether the person wants to leave)."""
        passed = bytearray()
        for byte in data:
            if self._tilde:
                self._tilde = False
                if byte == ord("."):
                    return bytes(passed), True
                if byte != ord("~"):
                    passed.append(ord("~"))
            elif self._line_begins and byte == ord("~"):
                self._tilde = True
                self._line_begins = False
                continue
            passed.append(byte)
            self._line_begins = byte in b"\r\n"
        return bytes(passed), False


class Keyboard:
    """Standard input in chunks, whatever it is: a thread waits for it, because a file cannot be waited for in a loop.
    Nothing is read before it is asked for, or after `close`: what is typed then is for who comes after us."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked = threading.Semaphore(0)
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._wake_read, self._wake_write = os.pipe()
        self._over = False
        threading.Thread(target=self._read_all, name="keyboard", daemon=True).start()

    async def next(self) -> bytes:
        """b"" at the end, and from then on."""
        if self._over:
            return b""
        self._asked.release()
        data = await self._chunks.get()
        self._over = not data
        return data

    def close(self) -> None:
        if self._wake_write >= 0:
            os.close(self._wake_write)
            self._wake_write = -1
            self._asked.release()

    def _read_all(self) -> None:
        data = b"first"
        while data:
            self._asked.acquire()
            ready = select.poll()
            ready.register(STDIN_FD, select.POLLIN)
            ready.register(self._wake_read, select.POLLIN)
            woken = {fd for fd, _ in ready.poll()}
            if self._wake_read in woken:
                break
            try:
                data = os.read(STDIN_FD, _READ_BYTES)
            except OSError:
                data = b""
            try:
                self._loop.call_soon_threadsafe(self._chunks.put_nowait, data)
            except RuntimeError:
                break  # the command is over
        os.close(self._wake_read)
