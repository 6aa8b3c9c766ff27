"""prctl, the one system call the shims need that the standard library does not offer.

Imports ctypes alone and looks the symbol up at import, so that nothing is loaded after the launcher's start.
"""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_prctl.restype = ctypes.c_int


def _call(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
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
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _call(PR_SET_NAME, ctypes.addressof(buffer))
