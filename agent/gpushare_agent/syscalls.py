"""prctl, the one system call the shims need that the standard library does not offer.

Imports the C module below ctypes, since the Python part of that and its many types would only be copied with each fork,
and looks the symbol up at import, so that nothing is loaded after the launcher's start.
"""

from __future__ import annotations

import os
from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, dlopen, dlsym, get_errno

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38


class _Int(_SimpleCData):  # type: ignore[type-arg]  # not subscriptable when it runs
    _type_ = "i"


class _UnsignedLong(_SimpleCData):  # type: ignore[type-arg]  # as above
    _type_ = "L"


class _Prctl(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int
    _argtypes_ = (_Int, _UnsignedLong, _UnsignedLong, _UnsignedLong, _UnsignedLong)


_prctl = _Prctl(dlsym(dlopen(None, os.RTLD_NOW), "prctl"))  # type: ignore[arg-type]  # None: what is loaded


def _call(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        number = get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent() -> None:
    """SIGKILL to the caller when the thread that forked it dies; a change of user clears it."""
    _call(PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Orphaned descendants become children of the caller instead of pid 1's."""
    _call(PR_SET_CHILD_SUBREAPER, 1)


def no_new_privileges() -> None:
    """Set-user-id files and file capabilities give the caller and its children nothing from now on."""
    _call(PR_SET_NO_NEW_PRIVS, 1)


def set_name(name: str) -> None:
    """The name that ps and top show, at most 15 bytes."""
    fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, name.encode()[:15])
    finally:
        os.close(fd)
