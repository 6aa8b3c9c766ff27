"""Simulated cards behind the same port as real ones: real processes, pretended memory.

Imports msgspec and the standard library. A process "uses" a card by a usage file in its attempt's private directory
(see `simwork.py`); it counts while that very process lives. Faults come from a script file that is read again
whenever it changes. Invariants: usage files and script are foreign text, read with a size limit and never trusted to be
well-formed; nothing here waits.

The script is a JSON list, one object a fault, active from `after_s` for `for_s` seconds (absent: from the start, for
good) of the library's life: {"fault": "lost", "gpu": 1}, {"fault": "stranger", "gpu": 0, "pid": 42, "user": "eve",
"memory_mib": 2048}, {"fault": "hang"}, {"fault": "mismatch"}, {"fault": "recovery", "gpu": 2, "action": "gpu_reset"}.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from gpushare_agent.gpus.catalogue import SimulatedNode, card_uuid
from gpushare_agent.gpus.owners import UserNames
from gpushare_agent.gpus.port import (
    DriverState,
    GpuInfo,
    GpuProcess,
    GpuSample,
    GpuSnapshot,
    RecoveryAction,
)
from gpushare_agent.gpus.simwork import start_ticks

DRIVER_VERSION = "simulated"
USAGE_MAX_BYTES = 4096
USAGE_FILES_MAX = 256
SCRIPT_MAX_BYTES = 1 << 20


class Usage(msgspec.Struct, frozen=True):
    """What one process says that it uses of each of `cards`."""

    pid: int
    start_ticks: int
    cards: tuple[str, ...]
    memory_mib: int
    sm_percent: int = 0


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the script; `gpu` is a card's index."""

    fault: Literal["lost", "stranger", "hang", "mismatch", "recovery"]
    gpu: int = 0
    after_s: float = 0.0
    for_s: float | None = None
    pid: int = 0
    user: str = ""
    memory_mib: int = 0
    action: RecoveryAction = "none"

    def is_active(self, age_s: float) -> bool:
        """Whether it shows at that age of the library."""
        return self.after_s <= age_s and (self.for_s is None or age_s < self.after_s + self.for_s)


class UsageDir(NamedTuple):
    """The private directory of one live attempt. `moved`: the cards that its processes know -> those it has by now."""

    path: Path
    moved: Mapping[str, str] = MappingProxyType({})


class FaultScriptError(ValueError):
    """The script is not what this module's first lines describe; the message names the file and what is wrong."""


class FaultScript:
    """The faults of one file, followed as it changes. A file that is gone means no faults."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._faults: tuple[Fault, ...] = ()

    def active(self, age_s: float) -> tuple[Fault, ...]:
        """The faults that show now. Raises FaultScriptError."""
        if self._path is None:
            return ()
        self._refresh(self._path)
        return tuple(fault for fault in self._faults if fault.is_active(age_s))

    def _refresh(self, path: Path) -> None:
        try:
            stat = path.stat()
        except FileNotFoundError:
            self._stamp, self._faults = None, ()
            return
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return
        try:
            self._faults = msgspec.json.decode(_head(path, SCRIPT_MAX_BYTES), type=tuple[Fault, ...])
        except (OSError, ValueError) as err:
            raise FaultScriptError(f"{path}: {err}") from err
        self._stamp = stamp


class SimulatedLibrary:
    """The cards of one simulated node. `usage_dirs` gives the directories of the attempts that are on cards now."""

    def __init__(
        self,
        node: str,
        shape: SimulatedNode,
        usage_dirs: Callable[[], Iterable[UsageDir]],
        script: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._usage_dirs = usage_dirs
        self._script = FaultScript(script)
        self._clock = clock
        self._opened_s = clock()
        self._names = UserNames()
        self._closed = False
        self._infos = tuple(
            GpuInfo(
                uuid=card_uuid(node, index),
                index=index,
                minor=None,
                model=shape.model.name,
                total_mib=shape.model.memory_mib,
                reserved_mib=0,
                simulated=True,
                domain=shape.domain(index),
            )
            for index in range(shape.count)
        )

    @property
    def name(self) -> str:
        return "simulated"

    async def snapshot(self) -> GpuSnapshot:
        """Reads usage files and script; waits only for a user's name."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if self._closed:
            return GpuSnapshot(state=DriverState.ERROR, detail="the library was closed", taken_boot_ns=now_ns)
        try:
            faults = self._script.active(self._clock() - self._opened_s)
        except FaultScriptError as err:
            return GpuSnapshot(state=DriverState.ERROR, detail=str(err), taken_boot_ns=now_ns)
        for fault in faults:
            if fault.fault == "hang":
                detail = "the simulated driver does not answer"
                return GpuSnapshot(state=DriverState.HUNG, detail=detail, taken_boot_ns=now_ns)
            if fault.fault == "mismatch":
                detail = "the simulated driver was changed under the running one"
                return GpuSnapshot(state=DriverState.MISMATCH, detail=detail, taken_boot_ns=now_ns)
        usages = {u.pid: u for directory in self._usage_dirs() for u in _present(directory)}
        uids = {pid: _uid_of(pid) for pid in usages}
        names = await self._names.of(uid for uid in uids.values() if uid is not None)
        users = {pid: names[uid] for pid, uid in uids.items() if uid is not None}
        return GpuSnapshot(
            state=DriverState.OK,
            driver_version=DRIVER_VERSION,
            taken_boot_ns=now_ns,
            infos=self._infos,
            samples=tuple(_sample(info, list(usages.values()), users, faults) for info in self._infos),
        )

    async def close(self) -> None:
        """Nothing is held."""
        self._closed = True


def _sample(info: GpuInfo, usages: list[Usage], users: dict[int, str], faults: tuple[Fault, ...]) -> GpuSample:
    mine = [fault for fault in faults if fault.gpu == info.index]
    if any(fault.fault == "lost" for fault in mine):
        return GpuSample(uuid=info.uuid, error="GPU is lost: it has fallen off the bus", lost=True)
    processes = [
        GpuProcess(
            pid=u.pid,
            memory_mib=min(u.memory_mib, info.total_mib),
            sm_percent=u.sm_percent,
            user=users.get(u.pid, ""),
        )
        for u in usages
        if info.uuid in u.cards
    ]
    processes += [GpuProcess(pid=f.pid, memory_mib=f.memory_mib, user=f.user) for f in mine if f.fault == "stranger"]
    used_mib = min(info.total_mib, sum(p.memory_mib or 0 for p in processes))
    actions = [f.action for f in mine if f.fault == "recovery"]
    return GpuSample(
        uuid=info.uuid,
        used_mib=used_mib,
        free_mib=info.total_mib - used_mib,
        sm_percent=min(100, sum(p.sm_percent or 0 for p in processes)),
        recovery_action=actions[0] if actions else "none",
        processes=tuple(processes),
    )


def _present(directory: UsageDir) -> list[Usage]:
    """What is used where it is used now: a process that was suspended may have been given another card since."""
    usages = read_usages(directory.path)
    if not directory.moved:
        return usages
    moved = directory.moved
    return [msgspec.structs.replace(u, cards=tuple(moved.get(card, card) for card in u.cards)) for u in usages]


def read_usages(directory: Path) -> list[Usage]:
    """The usage files of live processes in one directory; what is malformed, foreign or stale is passed over."""
    usages: list[Usage] = []
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    except OSError:
        return usages
    for name in names[:USAGE_FILES_MAX]:
        try:
            usage = msgspec.json.decode(_head(directory / name, USAGE_MAX_BYTES), type=Usage)
        except (OSError, ValueError):
            continue
        sane = 0 <= usage.memory_mib < 1 << 30 and 0 <= usage.sm_percent <= 100
        if sane and start_ticks(usage.pid) == usage.start_ticks:
            usages.append(usage)
    return usages


def _uid_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _head(path: Path, size_bytes: int) -> bytes:
    # The file is a job's: no link is followed, and a FIFO must not stop us.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, size_bytes)
    finally:
        os.close(descriptor)
