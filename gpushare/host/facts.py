"""What `gpushare doctor` knows of a host: plain values, gathered in one place and judged in another.

Pure data; imports msgspec. A value that could not be found out has its default, which accuses nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class CardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One card as the driver describes it."""

    uuid: str
    index: int = 0
    model: str = ""
    compute_mode: str = "default"
    mig_enabled: bool = False


class DriverFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`state` is a word of the agent's NVML child: OK, NO_LIBRARY, NO_DRIVER, MISMATCH, HUNG, ERROR."""

    state: str = "NO_LIBRARY"
    detail: str = ""
    version: str = ""
    cards: tuple[CardFacts, ...] = ()


class CgroupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`v2` is where v2 is mounted ("": nowhere), the controllers are those that jobs could be limited by. `can_kill`:
    the kernel has cgroup.kill; `why_not` says why no group could be made there, "" where one could or nobody tried."""

    v2: str = ""
    v2_controllers: tuple[str, ...] = ()
    v1_controllers: tuple[str, ...] = ()
    can_kill: bool = False
    tried: bool = False
    why_not: str = ""


class UnitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A unit of ours that is installed; `warnings` are what it would do to jobs."""

    name: str
    active: bool = False
    warnings: tuple[str, ...] = ()


class PortFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A port on which something listens; `owner` is the program's name, "" where that cannot be seen."""

    number: int
    owner: str = ""


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The file system of a directory of ours."""

    path: str
    free_mib: int
    total_mib: int


class SchedulerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler that this user's settings name. `trouble` is why it does not answer; `node` is how it knows this
    host, with what it says of it."""

    address: str
    trouble: str = ""
    node: str = ""
    ready: bool = False
    clock_skew_ms: int = 0
    warnings: tuple[str, ...] = ()


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything. `python_closed` is a directory above this Python that only its owner may enter; `config_trouble` is
    why a daemon would refuse its file; `params` are the driver's own settings, `device_modes` the mode bits of each
    /dev/nvidia*; `users` maps an asked name to "root", "missing", or "uid N"; `clock` is "synchronised", "free" or ""
    (nobody can tell); `foreign` are running programs that hand out the same cards."""

    root: bool = False
    python: tuple[int, int] = (3, 11)
    python_closed: str = ""
    driver: DriverFacts = DriverFacts()
    config_trouble: tuple[str, ...] = ()
    managed_gpus: tuple[str, ...] = ("all",)
    params: Mapping[str, str] = {}
    persistenced: bool = False
    device_modes: Mapping[str, int] = {}
    mps_control: str = ""
    mps_server: str = ""
    cgroups: CgroupFacts = CgroupFacts()
    users: Mapping[str, str] = {}
    clock: str = ""
    foreign: tuple[str, ...] = ()
    systemd: bool = False
    units: tuple[UnitFacts, ...] = ()
    ports: tuple[PortFacts, ...] = ()
    hidepid: bool = False
    disks: tuple[DiskFacts, ...] = ()
    scheduler: SchedulerFacts | None = None
