"""Find out the facts of this host for `gpushare doctor`, as any user, without a scheduler.

Imports the standard library, the configuration and systemd's port. Reads /proc, /sys and /dev below `root`; the cards
are read by the agent's NVML child, which may hang without harm. Invariants: changes nothing that stays (a control group
is made and removed again); whatever cannot be read is left at its default, and no trouble is an exception.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from gpushare.config import AgentConfig, SchedulerConfig, load_agent_config, load_scheduler_config
from gpushare.errors import GpushareError
from gpushare.host.facts import CardFacts, CgroupFacts, DiskFacts, DriverFacts, HostFacts, PortFacts, UnitFacts
from gpushare.host.findings import GRPC_PORT, HTTP_PORT
from gpushare.host.places import AGENT_CONFIG, SCHEDULER_CONFIG, UNITS, below
from gpushare.host.systemd import Systemd, why_jobs_die

NVML_LIMIT_S = 30.0
KILLED_LIMIT_S = 1.0
KILL_FROM_KERNEL = (5, 14)
LIMITING = ("memory", "pids", "cpu")
_TIME_ERROR = 5
# As the kernel shows a program's name, which is cut to 15 characters.
_FOREIGN = {
    "slurmd": "slurmd",
    "kubelet": "kubelet",
    "nvidia-device-p": "nvidia-device-plugin",
    "k3s-server": "k3s",
    "k3s-agent": "k3s",
    "condor_startd": "condor_startd",
    "pbs_mom": "pbs_mom",
    "raylet": "raylet",
    "nomad": "nomad",
}
_LISTENING = "0A"


def gather(users: Collection[str] = (), root: Path = Path("/")) -> HostFacts:
    """Everything but the scheduler. Takes some seconds at most, a hanging driver included."""
    agent, scheduler, trouble = _configurations(root)
    programs = _programs(root)
    systemd = Systemd(root)
    path = os.environ.get("PATH", "") + ":/usr/bin:/usr/sbin"
    return HostFacts(
        root=os.geteuid() == 0,
        python=sys.version_info[:2],
        python_closed=_closed_above(Path(sys.executable).resolve()),
        driver=_driver(),
        config_trouble=tuple(trouble),
        managed_gpus=agent.managed_gpus if agent is not None else ("all",),
        params=_params(root),
        persistenced="nvidia-persiste" in programs,
        device_modes=_device_modes(root),
        mps_control=shutil.which("nvidia-cuda-mps-control", path=path) or "",
        mps_server=shutil.which("nvidia-cuda-mps-server", path=path) or "",
        cgroups=_cgroups(root),
        users={name: _user(name) for name in users},
        clock=_clock(),
        foreign=tuple(sorted({_FOREIGN[name] for name in programs if name in _FOREIGN})),
        systemd=systemd.runs,
        units=tuple(_units(systemd)),
        ports=tuple(_ports(root)),
        hidepid=_hidepid(_text(below(root, "/proc/mounts"))),
        disks=tuple(_disks(_directories(agent, scheduler))),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _configurations(root: Path) -> tuple[AgentConfig | None, SchedulerConfig | None, list[str]]:
    """What the daemons of this host are told, or this user's own; and what is wrong with it."""
    agent, scheduler, trouble = None, None, []
    file, uid = _of_host(root, AGENT_CONFIG)
    try:
        agent = load_agent_config(file, uid=uid)
    except (GpushareError, OSError) as err:
        trouble.append(str(err))
    file, uid = _of_host(root, SCHEDULER_CONFIG)
    try:
        scheduler = load_scheduler_config(file, uid=uid)
    except (GpushareError, OSError) as err:
        trouble.append(str(err))
    return agent, scheduler, trouble


def _of_host(root: Path, path: str) -> tuple[Path | None, int | None]:
    """The host's file is read as root would, whoever asks; without one it is the asking user's."""
    file = below(root, path)
    return (file, 0) if file.exists() else (None, None)


# -- cards


def _driver() -> DriverFacts:
    command = [sys.executable, "-P", "-m", "gpushare_agent.gpus.nvml", str(os.getpid())]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        output, _ = child.communicate(b"\n", timeout=NVML_LIMIT_S)
    except subprocess.TimeoutExpired:
        # Stuck in the driver it takes no signal, so nobody waits for its end for long.
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=KILLED_LIMIT_S)
        return DriverFacts(state="HUNG", detail=f"the driver does not answer within {NVML_LIMIT_S:g} s")
    try:
        said = json.loads(output.splitlines()[0])
    except (ValueError, IndexError):
        return DriverFacts(state="ERROR", detail=f"the NVIDIA library ended its process with {child.returncode}")
    if said.get("state", "OK") != "OK":
        return DriverFacts(state=said["state"], detail=said.get("detail", ""))
    keys = CardFacts.__struct_fields__
    cards = [CardFacts(**{key: info[key] for key in keys if key in info}) for info in said["infos"]]
    return DriverFacts(state="OK", version=said.get("driver_version", ""), cards=tuple(cards))


def _closed_above(program: Path) -> str:
    """The directory nearest to `program` that other users cannot enter."""
    with contextlib.suppress(OSError):
        return next((str(each) for each in program.parents if not each.stat().st_mode & 0o001), "")
    return ""


def _params(root: Path) -> dict[str, str]:
    lines = _text(below(root, "/proc/driver/nvidia/params")).splitlines()
    pairs = [line.partition(":") for line in lines]
    return {key.strip(): value.strip().strip('"') for key, colon, value in pairs if colon}


def _device_modes(root: Path) -> dict[str, int]:
    found = {}
    for path in sorted(below(root, "/dev").glob("nvidia*")):
        if re.fullmatch(r"nvidia(\d+|ctl|-uvm)", path.name):
            with contextlib.suppress(OSError):
                found[f"/dev/{path.name}"] = path.stat().st_mode & 0o7777
    return found


# -- the host


def _cgroups(root: Path) -> CgroupFacts:
    v2 = ""
    v1: set[str] = set()
    for line in _text(below(root, "/proc/self/mountinfo")).splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split(" ")
        if kind[0] == "cgroup2":
            v2 = v2 or left.split(" ")[4]
        elif kind[0] == "cgroup":
            v1.update(name for name in kind[2].split(",") if name in (*LIMITING, "devices"))
    if not v2:
        return CgroupFacts(v1_controllers=tuple(sorted(v1)))
    v2_names = _text(below(root, f"{v2}/cgroup.controllers")).split()
    tried = os.geteuid() == 0
    return CgroupFacts(
        v2=v2,
        v2_controllers=tuple(name for name in LIMITING if name in v2_names),
        v1_controllers=tuple(sorted(v1)),
        can_kill=_kernel() >= KILL_FROM_KERNEL,
        tried=tried,
        why_not=_why_no_group(below(root, v2)) if tried else "",
    )


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def _why_no_group(v2: Path) -> str:
    probe = v2 / f"gpushare-doctor-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as err:
        return err.strerror or str(err)
    return ""


def _user(name: str) -> str:
    try:
        uid = pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return "missing"
    return "root" if uid == 0 else f"uid {uid}"


def _clock() -> str:
    """What the kernel says of its own clock: something disciplines it, or nothing does."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return ""
    return "" if state < 0 else "free" if state == _TIME_ERROR else "synchronised"


def _programs(root: Path) -> set[str]:
    return {_text(path).strip() for path in below(root, "/proc").glob("[0-9]*/comm")}


def _units(systemd: Systemd) -> Iterable[UnitFacts]:
    for unit in UNITS:
        found = systemd.settings(unit) if systemd.is_installed(unit) else None
        if found is not None:
            warnings = tuple(why_jobs_die(found)) if unit.startswith("gpushare-agent") else ()
            yield UnitFacts(name=unit, active=systemd.is_active(unit), warnings=warnings)


def _hidepid(mounts: str) -> bool:
    options = [line.split(" ")[3] for line in mounts.splitlines() if line.split(" ")[1:3] == ["/proc", "proc"]]
    return bool(options) and re.search(r"hidepid=(?!0|off)", options[-1]) is not None


def _ports(root: Path) -> Iterable[PortFacts]:
    listening: dict[int, str] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _text(below(root, table)).splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING:
                listening[int(fields[1].rpartition(":")[2], 16)] = fields[9]
    for number in (GRPC_PORT, HTTP_PORT):
        if number in listening:
            yield PortFacts(number=number, owner=_owner(root, listening[number]))


def _owner(root: Path, inode: str) -> str:
    """The program that holds a socket; "" where this user may not see it."""
    for process in below(root, "/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) == f"socket:[{inode}]" for fd in (process / "fd").iterdir()):
                ours = re.search(r"gpushare[-.]scheduler", _text(process / "cmdline"))
                return "gpushare-scheduler" if ours else _text(process / "comm").strip()
    return ""


# -- disks


def _directories(agent: AgentConfig | None, scheduler: SchedulerConfig | None) -> list[Path]:
    found = [agent.state_dir, agent.log_dir] if agent is not None else []
    return found + ([scheduler.state_dir] if scheduler is not None else [])


def _disks(directories: Iterable[Path]) -> Iterable[DiskFacts]:
    """One for each file system; a directory that is not there yet will be where its nearest parent is."""
    seen: set[int] = set()
    for directory in directories:
        with contextlib.suppress(OSError):
            there = next(each for each in (directory, *directory.parents) if each.exists())
            device = there.stat().st_dev
            if device not in seen:
                seen.add(device)
                size = os.statvfs(there)
                block = size.f_frsize
                yield DiskFacts(
                    path=str(there), free_mib=size.f_bavail * block >> 20, total_mib=size.f_blocks * block >> 20
                )
