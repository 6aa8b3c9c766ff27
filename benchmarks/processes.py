"""Memory and CPU time of a daemon and its helpers, read from /proc. Imports psutil and the standard library.

A shim and what it runs belong to a job, not to the daemon, and are left out. Memory is PSS: a page shared by several
processes counts in parts, so that the sum over processes is true.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

#: What a shim calls itself.
SHIM_NAME = "gpushare-shim"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Member:
    """One process of a daemon's tree."""

    pid: int
    name: str
    pss_mib: float


def tree(pid: int) -> list[int]:
    """The daemon and its helpers, without shims and what lives below them."""
    found = []
    waiting = [psutil.Process(pid)]
    while waiting:
        process = waiting.pop()
        try:
            if process.name() == SHIM_NAME:
                continue
            waiting += process.children()
        except psutil.NoSuchProcess:
            continue
        found.append(process.pid)
    return found


def members(pids: Sequence[int]) -> list[Member]:
    """Each with its PSS now."""
    return [Member(pid, psutil.Process(pid).name(), _pss_mib(pid)) for pid in pids]


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time that these processes have used themselves, user and system."""
    total = 0
    for pid in pids:
        # The command's name may hold blanks: fields count from its last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no Pss")
