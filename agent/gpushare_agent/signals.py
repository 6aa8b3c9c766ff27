"""Signals for the launcher and the shims, without the standard `signal` module: its enums cost each of them
most of a mebibyte.

Imports the C module below it alone. Numbers are plain integers.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from collections.abc import Iterable
    from typing import Any

_c: Any = _signal

SIGCHLD: int = _c.SIGCHLD
SIGCONT: int = _c.SIGCONT
SIGHUP: int = _c.SIGHUP
SIGINT: int = _c.SIGINT
SIGKILL: int = _c.SIGKILL
SIGPIPE: int = _c.SIGPIPE
SIGQUIT: int = _c.SIGQUIT
SIGSTOP: int = _c.SIGSTOP
SIGTERM: int = _c.SIGTERM
SIGTTOU: int = _c.SIGTTOU
SIGXFSZ: int = _c.SIGXFSZ

_NAMES: dict[int, str] = {
    int(getattr(_c, name)): name
    for name in dir(_c)
    if name.startswith("SIG") and not name.startswith(("SIG_", "SIGRT")) and name not in ("SIGCLD", "SIGPOLL")
}


def name_of(number: int) -> str:
    """SIGKILL for 9; "signal 35" for a real-time one."""
    return _NAMES.get(number, f"signal {number}")


def ignore(numbers: Iterable[int]) -> None:
    """The calling process is deaf to these."""
    for number in numbers:
        _c.signal(number, _c.SIG_IGN)


def restore(numbers: Iterable[int]) -> None:
    """The kernel's default for these, and none blocked."""
    for number in numbers:
        _c.signal(number, _c.SIG_DFL)
    _c.pthread_sigmask(_c.SIG_SETMASK, [])


def wake_on(number: int, descriptor: int) -> None:
    """A byte is written to the non-blocking `descriptor` whenever the signal arrives."""
    _c.signal(number, lambda *_: None)
    _c.set_wakeup_fd(descriptor, warn_on_full_buffer=False)


def send(pidfd: int, number: int) -> bool:
    """One signal through a pidfd; False if the process is gone."""
    try:
        _c.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True
