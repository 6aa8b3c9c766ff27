"""Memory and CPU time of a daemon and its helpers, read from /proc. Imports psutil and the standard library.

A shim and what it runs belong to a job, not to the daemon, and are left out. Memory is PSS: a page shared by several
processes counts in parts, so that the sum over processes is true.
"""

from __future__ import annotations

import os
import time
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
    return sum(_times(pid)[0] for pid in pids)


def reaped_cpu_s(pids: Sequence[int]) -> float:
    """CPU time of their children that have ended: for a launcher, its shims and what these ran."""
    return sum(_times(pid)[1] for pid in pids)


class Spent:
    """CPU time per operation of everybody who takes part, from its making to `note`. It tells what bounds a rate, and
    changes less than the rate itself when the machine is busy with other things."""

    def __init__(self, scheduler: int, agents: Sequence[int]) -> None:
        self._scheduler = scheduler
        self._agents = [pid for agent in agents for pid in tree(agent)]
        self._before = self._now()

    def note(self, operations: int) -> str:
        """ "CPU ms each: scheduler 0.9, client 0.3", without those that did nothing."""
        spent = {who: now - self._before[who] for who, now in self._now().items()}
        parts = [f"{who} {s / operations * 1e3:.2g}" for who, s in spent.items() if s / operations >= 5e-6]
        return f"CPU ms each: {', '.join(parts)}"

    def _now(self) -> dict[str, float]:
        return {
            "scheduler": cpu_s([self._scheduler]),
            "agents": cpu_s(self._agents),
            "shims and jobs": reaped_cpu_s(self._agents),
            "client": time.process_time(),
        }


def _times(pid: int) -> tuple[float, float]:
    """Its own CPU time, and that of its children that it has reaped."""
    # The command's name may hold blanks: fields count from its last bracket.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return own / _TICKS_PER_S, reaped / _TICKS_PER_S


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no Pss")
