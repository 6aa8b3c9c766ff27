"""The rules of `gpushare doctor`: what a host's facts mean, and the command that mends what is amiss.

Pure: facts in, findings out. FAIL is what no job, or no job on a card, can run with; WARN is what will surprise
somebody. Invariant: every finding that is not OK says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from gpushare.host.facts import HostFacts

OUR_PROGRAM = "gpushare-scheduler"
CRITICAL_FREE_MIB = 128
MIN_FREE_MIB = 1024
MIN_FREE_PERCENT = 5
MIN_DRIVER = 535
MULTIUSER_DRIVER = 555
REQUIRED_CONTROLLERS = ("memory", "pids")
GRPC_PORT, HTTP_PORT = 7480, 7481


class Level(StrEnum):
    """How bad it is."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(NamedTuple):
    """`check` is the stable short name of what was looked at; `mend` is a command or one thing to do."""

    check: str
    level: Level
    found: str
    mend: str = ""


def findings(facts: HostFacts) -> list[Finding]:
    """All of them, in the order in which one would mend them."""
    return [finding for rule in _RULES for finding in rule(facts)]


def _ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def _warn(check: str, found: str, mend: str) -> Finding:
    return Finding(check, Level.WARN, found, mend)


def _fail(check: str, found: str, mend: str) -> Finding:
    return Finding(check, Level.FAIL, found, mend)


def _python(facts: HostFacts) -> Iterable[Finding]:
    found = ".".join(map(str, facts.python))
    if facts.python < (3, 11):
        yield _fail("python", found, "install Python 3.11 or newer")
    elif facts.root and facts.python_closed:
        yield _warn(
            "python",
            f"{found} lies below {facts.python_closed}, which other users cannot enter: gpushare does not run for them",
            "PYTHON=/usr/bin/python3 sh deploy/install.sh WHEEL",
        )
    else:
        yield _ok("python", found)


def _config(facts: HostFacts) -> Iterable[Finding]:
    for trouble in facts.config_trouble:
        yield _fail("config", trouble, "correct it; gpushare-agent --check, gpushare-scheduler --check")


def _driver(facts: HostFacts) -> Iterable[Finding]:
    driver = facts.driver
    mend = {
        "NO_LIBRARY": "install the NVIDIA driver (Ubuntu: apt install nvidia-driver-580-server), or gpushare's [agent]",
        "NO_DRIVER": "modprobe nvidia",
        "MISMATCH": "reboot (or: rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && modprobe nvidia)",
        "HUNG": "dmesg | grep -i xid; a driver that hangs needs a reboot",
    }
    if driver.state != "OK":
        yield _fail("driver", driver.detail or driver.state, mend.get(driver.state, "dmesg | grep -i nvrm"))
    elif not driver.cards:
        yield _fail("driver", f"{driver.version}, and it shows no card", "nvidia-smi -L; dmesg | grep -i nvrm")
    elif _major(driver.version) < MIN_DRIVER:
        yield _warn("driver", f"{driver.version} is older than {MIN_DRIVER}", "upgrade the NVIDIA driver")
    else:
        models = sorted({card.model for card in driver.cards})
        yield _ok("driver", f"{driver.version}, {len(driver.cards)} x {', '.join(models)}")


def _cards(facts: HostFacts) -> Iterable[Finding]:
    for card in facts.driver.cards:
        if card.mig_enabled:
            yield _warn(
                "mig", f"card {card.index} is in MIG mode and is not shared", f"nvidia-smi -i {card.index} -mig 0"
            )
        if card.compute_mode != "default":
            yield _warn(
                "compute mode",
                f"card {card.index} is in mode {card.compute_mode}: shares without MPS cannot start there",
                f"nvidia-smi -i {card.index} -c DEFAULT",
            )


def _managed(facts: HostFacts) -> Iterable[Finding]:
    here = {card.uuid for card in facts.driver.cards}
    gone = [uuid for uuid in facts.managed_gpus if uuid != "all" and uuid not in here]
    if gone and facts.driver.state == "OK":
        mend = "nvidia-smi -L; then correct managed_gpus in /etc/gpushare/agent.toml"
        yield _fail("managed_gpus", f"there is no card {', '.join(gone)} here", mend)


def _params(facts: HostFacts) -> Iterable[Finding]:
    if facts.driver.state != "OK":
        return
    words = facts.params.get("RegistryDwords", "")
    if re.search(r"disablescrub\w*\s*=\s*(0x)?0*[1-9a-f]", words, re.IGNORECASE):
        yield _fail(
            "scrub",
            "the driver is told not to clear card memory that is freed: the next job can read it",
            "take RMDisableScrubOnFree out of NVreg_RegistryDwords in /etc/modprobe.d, and reboot",
        )
    else:
        yield _ok("scrub", "freed card memory is cleared")
    if facts.params.get("RmProfilingAdminOnly") == "0":
        yield _warn(
            "profiling",
            "every user may read the cards' performance counters, other jobs' included",
            "echo 'options nvidia NVreg_RestrictProfilingToAdminUsers=1' > /etc/modprobe.d/nvidia-profiling.conf",
        )
    if not facts.persistenced:
        yield _warn(
            "persistence", "nvidia-persistenced does not run: an idle card takes seconds to open", "nvidia-smi -pm 1"
        )


def _devices(facts: HostFacts) -> Iterable[Finding]:
    narrow = [path for path, mode in facts.device_modes.items() if mode & 0o666 != 0o666]
    if narrow:
        yield _warn(
            "devices",
            f"{', '.join(sorted(narrow))} cannot be opened by every user: their jobs would fail",
            f"chmod 0666 {' '.join(sorted(narrow))} (for good: NVreg_DeviceFileMode=0666 in /etc/modprobe.d)",
        )
    elif facts.device_modes:
        yield _ok("devices", f"{len(facts.device_modes)} device files, open to jobs")


def _mps(facts: HostFacts) -> Iterable[Finding]:
    if facts.driver.state != "OK":
        return
    missing = [
        name
        for name, path in (("nvidia-cuda-mps-control", facts.mps_control), ("nvidia-cuda-mps-server", facts.mps_server))
        if not path
    ]
    if missing:
        yield _warn(
            "mps",
            f"{' and '.join(missing)} not found: shares get the timeslice tier",
            "install the driver's compute utilities (Ubuntu: apt install nvidia-compute-utils-580-server)",
        )
    elif _major(facts.driver.version) < MULTIUSER_DRIVER:
        yield _warn(
            "mps",
            f"driver {facts.driver.version} has no MPS for several users at once: their shares get the timeslice tier",
            f"upgrade the NVIDIA driver to {MULTIUSER_DRIVER} or newer",
        )
    else:
        yield _ok("mps", facts.mps_control)


def _cgroups(facts: HostFacts) -> Iterable[Finding]:
    groups = facts.cgroups
    if not groups.v2:
        yield _fail(
            "cgroups",
            "no cgroup v2 is mounted: jobs cannot be confined or ended for certain",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
        return
    if not groups.can_kill:
        yield _fail("cgroups", f"{groups.v2} has no cgroup.kill", "boot a kernel of 5.14 or newer")
    every = {*groups.v2_controllers, *groups.v1_controllers}
    missing = [name for name in REQUIRED_CONTROLLERS if name not in every]
    if missing:
        yield _fail(
            "cgroups",
            f"no controller for {' and '.join(missing)}",
            f"boot without cgroup_disable={','.join(missing)}, and with systemd.unified_cgroup_hierarchy=1",
        )
    if groups.why_not:
        yield _fail(
            "cgroups",
            f"no group can be made in {groups.v2}: {groups.why_not}",
            "run the agent on the host itself, not in a container",
        )
    if not missing and groups.can_kill and not groups.why_not:
        kind = "hybrid" if groups.v1_controllers else "v2"
        tried = "" if groups.tried else "; not tried, as only root makes groups there"
        yield _ok("cgroups", f"{kind} at {groups.v2}, controllers {', '.join(sorted(every))}{tried}")


def _users(facts: HostFacts) -> Iterable[Finding]:
    for name, found in facts.users.items():
        if found == "missing":
            yield _fail(
                "user",
                f"the name service knows no user {name}: jobs mapped to it end with UNIX_USER_UNMAPPED",
                f"getent passwd {name}; then useradd {name}, or mend sssd or nsswitch.conf",
            )
        elif found == "root":
            yield _fail("user", f"{name} is root, and no job runs as root", "map tokens to an account: --unix-user")
        else:
            yield _ok("user", f"{name} is {found}")


def _clock(facts: HostFacts) -> Iterable[Finding]:
    if facts.clock == "free":
        yield _warn("clock", "nothing keeps the clock right; times shown will differ", "timedatectl set-ntp true")
    elif facts.clock:
        yield _ok("clock", facts.clock)


def _foreign(facts: HostFacts) -> Iterable[Finding]:
    for name in facts.foreign:
        if facts.managed_gpus != ("all",):
            yield _ok("others", f"{name} runs here too; gpushare keeps to {len(facts.managed_gpus)} cards")
            continue
        yield _warn(
            "others",
            f"{name} runs here and may give out the same cards",
            f"keep its cards apart: managed_gpus in /etc/gpushare/agent.toml, or stop {name}",
        )
    if not facts.foreign:
        yield _ok("others", "no other scheduler of cards runs here")


def _units(facts: HostFacts) -> Iterable[Finding]:
    for unit in facts.units:
        for warning in unit.warnings:
            yield _warn("unit", warning, "gpushare-agent install && systemctl restart gpushare-agent")
        if not unit.active:
            yield _warn("unit", f"{unit.name} is installed and does not run", f"systemctl enable --now {unit.name}")
        elif not unit.warnings:
            yield _ok("unit", f"{unit.name} runs")
    if facts.systemd and not facts.units:
        yield _warn("unit", "gpushare is no service of this host", "gpushare-agent install --join -")


def _ports(facts: HostFacts) -> Iterable[Finding]:
    for port in facts.ports:
        what = "the scheduler's API" if port.number == GRPC_PORT else "its page and figures"
        if port.owner == OUR_PROGRAM:
            yield _ok("port", f"{port.number} is served by {port.owner}")
        elif port.owner:
            yield _warn(
                "port",
                f"{port.number} ({what}) is taken by {port.owner}",
                "a scheduler here needs another `listen` in /etc/gpushare/scheduler.toml",
            )
        else:
            yield _warn(
                "port",
                f"{port.number} ({what}) is taken by an unknown program",
                f"sudo ss -ltnp sport = :{port.number}",
            )
    if not facts.ports:
        yield _ok("port", f"{GRPC_PORT} and {HTTP_PORT} are free")


def _scheduler(facts: HostFacts) -> Iterable[Finding]:
    known = facts.scheduler
    if known is None:
        return
    if known.trouble:
        yield _fail(
            "scheduler",
            f"{known.address}: {known.trouble}",
            f"open its port in the firewall; nc -vz {known.address.replace(':', ' ')}",
        )
        return
    yield _ok("scheduler", f"{known.address} answers" + (f" and knows this host as {known.node}" if known.node else ""))
    if not known.node:
        return
    if not known.ready:
        yield _warn(
            "node", f"{known.node} is not ready", "systemctl status gpushare-agent; journalctl -e -u gpushare-agent"
        )
    if known.clock_skew_ms:
        direction = "ahead of" if known.clock_skew_ms > 0 else "behind"
        yield _warn(
            "clock", f"{abs(known.clock_skew_ms) // 1000} s {direction} the scheduler's", "timedatectl set-ntp true"
        )
    for warning in known.warnings:
        yield _warn("node", warning, "see `gpushare nodes -o wide`")


def _processes(facts: HostFacts) -> Iterable[Finding]:
    if facts.hidepid:
        yield _ok("hidepid", "users see their own processes alone")
    else:
        yield _warn(
            "hidepid",
            "every user sees the command lines of all jobs in /proc",
            "mount -o remount,hidepid=2 /proc (and in /etc/fstab)",
        )


def _disks(facts: HostFacts) -> Iterable[Finding]:
    for disk in facts.disks:
        percent = 100 * disk.free_mib // max(1, disk.total_mib)
        free = f"{disk.path} has {disk.free_mib} of {disk.total_mib} MiB free"
        if disk.free_mib < CRITICAL_FREE_MIB:
            yield _fail(
                "disk", f"{free}: jobs cannot start, nothing can be recorded", f"du -xh --max-depth=2 {disk.path}"
            )
        elif disk.free_mib < MIN_FREE_MIB or percent < MIN_FREE_PERCENT:
            yield _warn("disk", free, f"du -xh --max-depth=2 {disk.path}; log_keep_s and log_cap_mib bound the output")
        else:
            yield _ok("disk", free)


def _major(version: str) -> int:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0


_RULES: tuple[Callable[[HostFacts], Iterable[Finding]], ...] = (
    _python,
    _config,
    _driver,
    _cards,
    _managed,
    _params,
    _devices,
    _mps,
    _cgroups,
    _users,
    _clock,
    _foreign,
    _units,
    _ports,
    _scheduler,
    _processes,
    _disks,
)
