"""Runs a program that is told to stop when its parent dies: `python -m gpushare.cli.tether COMMAND ARG...`.

Imports the standard library alone. `up` starts its daemons through it, so that a killed `up` leaves no daemon behind
that the next one would collide with. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Never returns; `argv[0]` is the parent's pid as it was when this was started."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != int(argv[0]):
        # It died before we could ask to be told.
        sys.exit(0)
    os.execv(argv[1], argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
