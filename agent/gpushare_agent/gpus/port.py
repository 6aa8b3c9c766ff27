"""What the agent may ask of the cards of its host, and the values it gets back.

Pure data and one Protocol: imports msgspec and the standard library's typing alone, never a driver. Real
cards (`nvml_client.py`) and simulated ones (`simulated.py`) implement the same `GpuLibrary` and pass one
conformance suite. Invariants: a card is named by its UUID and nothing else across restarts; memory is in
MiB (what is used is rounded up, what is free or total is rounded down); a figure the driver does not give
is None and never a made-up 0.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Protocol

import msgspec

ComputeMode = Literal["default", "exclusive_process", "prohibited"]
ProcessKind = Literal["compute", "graphics"]
RecoveryAction = Literal["none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset", "unknown"]


class GpuInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a card is. `index` is this boot's order and `minor` the N of /dev/nvidiaN (None where unknown). Cards of one
    `domain` talk to each other faster than to others; "" where that is not known.
    """

    uuid: str
    index: int
    minor: int | None
    model: str
    total_mib: int
    reserved_mib: int
    compute_mode: ComputeMode = "default"
    mig_enabled: bool = False
    simulated: bool = False
    domain: str = ""


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process that holds memory of a card.

    `memory_mib` is None where the driver does not say. `kind` is "graphics" only for a process without a
    compute context. `mps` is true for a client of an MPS server. `sm_percent` is an estimate over the last
    second or so. `user` is the Unix user's name, "uid N" where the name service does not know it, "" where
    the pid is not visible from here (another PID namespace, or it has just ended).
    """

    pid: int
    memory_mib: int | None
    kind: ProcessKind = "compute"
    mps: bool = False
    sm_percent: int | None = None
    user: str = ""


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """What a card does now.

    Where `error` is not empty the card did not answer: the sentence says what it said, the figures are 0 or
    None, and `lost` tells a card that fell off the bus (or vanished since it was first seen) from a passing
    trouble. `processes` means nothing unless `processes_known`; nobody can be said to have left MPS unless
    `mps_known`. `energy_mj` counts since the driver was loaded and may fall back to 0. `recovery_action` is
    what the driver asks for.
    """

    uuid: str
    used_mib: int = 0
    free_mib: int = 0
    sm_percent: int | None = None
    power_mw: int | None = None
    energy_mj: int | None = None
    temperature_c: int | None = None
    recovery_action: RecoveryAction | None = None
    error: str = ""
    lost: bool = False
    processes: tuple[GpuProcess, ...] = ()
    processes_known: bool = True
    mps_known: bool = True


class DriverState(StrEnum):
    """OK, or why no card can be read at all. None of these says anything about running jobs: they are left
    alone.
    """

    OK = "OK"
    NO_LIBRARY = "NO_LIBRARY"
    NO_DRIVER = "NO_DRIVER"
    MISMATCH = "MISMATCH"
    HUNG = "HUNG"
    ERROR = "ERROR"


class GpuSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All cards at one moment (CLOCK_BOOTTIME, ns). `infos` and `samples` hold the same UUIDs in the same
    order.

    With any state but OK, `infos` and `samples` are empty, `detail` is a sentence for a person, and the
    caller keeps what it knew before. With OK, `detail` may still name a card that could not be opened.
    """

    state: DriverState
    detail: str = ""
    driver_version: str = ""
    taken_boot_ns: int = 0
    infos: tuple[GpuInfo, ...] = ()
    samples: tuple[GpuSample, ...] = ()


class GpuLibrary(Protocol):
    """The cards of this host."""

    @property
    def name(self) -> str:
        """ "nvml" or "simulated"."""

    async def snapshot(self) -> GpuSnapshot:
        """Read every card. Never raises for trouble with driver or card, never outlasts the library's
        deadline.
        """

    async def close(self) -> None:
        """Let go of the driver. Returns within a second whatever the driver does; never joins a stuck
        child.
        """
