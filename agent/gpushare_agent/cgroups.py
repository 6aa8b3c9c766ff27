"""The agent's control groups: find where they can be made, make a pair per attempt with its limits, read them
back, remove them.

Imports msgspec and the standard library. Identity and killing are always cgroup v2; limits are v2 where it
has the controllers (cpu, memory, pids) and v1 elsewhere ("hybrid" hosts). Per attempt there are `shim/` and
`task/` under `<base>/gpushare/<instance>/<attempt>` in v2, and one group per needed v1 hierarchy that holds
the task alone. In v1 the base is the agent's own group, so that a limit around the agent binds its jobs; in
v2 it is the top of what is mounted for root (a unit's own group would have to be free of processes at its
next start), and the agent's own delegated group otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterable

import msgspec

from gpushare_agent import cgroupfs, devices
from gpushare_agent.launchspec import Containment, LaunchSpec

LIMITING = ("memory", "pids", "cpu")
REQUIRED = ("memory", "pids")
AGENT_LEAF = "gpushare-agent"
MIB = 1024 * 1024
MAKE_TRIES = 10
PROBE = ".probe"

# the locks that this process holds, by the instance's v2 directory
_claimed: dict[str, int] = {}


class CgroupsUnavailable(Exception):
    """This host lets us make no control groups that can identify, limit and kill; the text says what is missing."""


class InstanceInUse(Exception):
    """Another agent of this very instance runs on this host, and the jobs in these groups are its own."""


class LimitsRefused(Exception):
    """The kernel did not take a limit, or shows another one than was written."""


class Base(msgspec.Struct, frozen=True):
    """A group that exists: its directory, its path as /proc/<pid>/cgroup shows it, and the controllers that it
    serves ("" is v2).
    """

    directory: str
    proc_path: str
    controllers: tuple[str, ...]

    def below(self, name: str) -> Base:
        """The group `name` in this one."""
        return Base(f"{self.directory}/{name}", f"{self.proc_path.rstrip('/')}/{name}", self.controllers)


class Layout(msgspec.Struct, frozen=True):
    """Where one agent instance makes its groups: `unified` in v2, `legacy` one per v1 hierarchy, and which
    controllers v2 has.
    """

    unified: Base
    legacy: tuple[Base, ...]
    unified_controllers: tuple[str, ...]

    @property
    def containment(self) -> Containment:
        """What is published about this node."""
        return "hybrid" if self.legacy else "cgroup-v2"


class MemoryFiles(msgspec.Struct, frozen=True):
    """Where the shim reads what the memory killer did: a flat-keyed file with `oom_kill`, and the peak in bytes."""

    events: str
    peak: str


class Groups(msgspec.Struct, frozen=True):
    """The groups of one attempt, as the intent records them."""

    attempt_dir: str
    shim_dir: str
    task_dir: str
    task: tuple[Base, ...]
    memory_files: MemoryFiles
    pids_events: str


# -- finding a place


def hierarchies(mountinfo: str, own: dict[str, str]) -> tuple[list[Base], list[Base]]:
    """The v2 and v1 hierarchies in the text of /proc/self/mountinfo: (mounts' tops, our own group in each), v2
    first if there.

    `own` is `cgroupfs.memberships()`. A hierarchy whose mount does not contain our own group is left out.
    """
    tops, ours = [], []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, mount_point = fields[3], _unescape(fields[4])
        names = ("",) if kind[0] == "cgroup2" else tuple(name for name in kind[2].split(",") if name in own)
        path = own.get(names[0]) if names else None
        if path is None or not f"{path.rstrip('/')}/".startswith(f"{root.rstrip('/')}/"):
            continue
        inside = path[len(root.rstrip("/")) :].strip("/")
        top = Base(mount_point, root, names)
        tops.append(top)
        ours.append(top.below(inside) if inside else top)
    order = sorted(range(len(tops)), key=lambda index: tops[index].controllers != ("",))
    return [tops[index] for index in order], [ours[index] for index in order]


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def probe(instance_id: str) -> Layout:
    """Make this instance's groups, try them, and claim them for this process.

    CgroupsUnavailable says what stands in the way, and leaves nothing behind; InstanceInUse: they are
    another agent's.
    """
    tops, ours = hierarchies(cgroupfs.get("/proc/self/mountinfo"), cgroupfs.memberships())
    if not tops or tops[0].controllers != ("",):
        raise CgroupsUnavailable("no cgroup v2 hierarchy is mounted that holds this process")
    # root keeps out of its own unit's group: systemd could not start the next agent in it
    unified = tops[0] if os.geteuid() == 0 else _without_leaf(ours[0])
    try:
        available = cgroupfs.get(f"{unified.directory}/cgroup.controllers").split()
    except OSError as error:
        # mounted, and hidden under another mount: some containers do that
        raise CgroupsUnavailable(f"the cgroup v2 hierarchy cannot be read: {error}") from None
    in_v2 = tuple(name for name in LIMITING if name in available)
    wanted = [name for name in (*LIMITING, "devices") if name not in in_v2]
    legacy = [base for base in ours if any(name in base.controllers for name in wanted)]
    missing = [name for name in REQUIRED if name not in in_v2 and not any(name in base.controllers for base in legacy)]
    if missing:
        raise CgroupsUnavailable(f"no cgroup hierarchy here offers the controllers {', '.join(missing)}")
    layout = Layout(_instance(unified, instance_id), tuple(_instance(base, instance_id) for base in legacy), in_v2)
    try:
        _prepare(layout, unified)
        _claim(layout, instance_id)
        _try(layout)
    except OSError as error:
        release(layout)
        raise CgroupsUnavailable(f"control groups cannot be made here: {error}") from None
    return layout


def own_group() -> str:
    """The directory of the v2 group that holds this process; for hosts where `probe` succeeded."""
    return hierarchies(cgroupfs.get("/proc/self/mountinfo"), cgroupfs.memberships())[1][0].directory


def stir(own: str) -> None:
    """Make the moves that follow quick: a move of this process to `own`, where it is already. The kernel lets
    the first move after a pause wait for a grace period of all processors (about 10 ms), and those soon
    after it not. It runs beside the launch, whose shim would wait otherwise; that it fails costs that wait
    and nothing else.
    """
    with contextlib.suppress(OSError):
        cgroupfs.join(own)


def _without_leaf(own: Base) -> Base:
    """An agent that was started by one that had moved down meets the same base again."""
    if os.path.basename(own.directory) != AGENT_LEAF:
        return own
    return Base(os.path.dirname(own.directory), os.path.dirname(own.proc_path), own.controllers)


def _instance(base: Base, instance_id: str) -> Base:
    return base.below("gpushare").below(instance_id)


def _prepare(layout: Layout, unified: Base) -> None:
    for base in (layout.unified, *layout.legacy):
        _make_directory(base.directory)
    if not layout.unified_controllers:
        return
    enable = " ".join(f"+{name}" for name in layout.unified_controllers)
    try:
        cgroupfs.put(f"{unified.directory}/cgroup.subtree_control", enable)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # a group with controllers below it may hold no process of its own: ours moves one down
        leaf = f"{unified.directory}/{AGENT_LEAF}"
        os.makedirs(leaf, exist_ok=True)
        cgroupfs.join(leaf)
        cgroupfs.put(f"{unified.directory}/cgroup.subtree_control", enable)
    for directory in (os.path.dirname(layout.unified.directory), layout.unified.directory):
        cgroupfs.put(f"{directory}/cgroup.subtree_control", enable)


def _make_directory(path: str) -> None:
    """With its parents. Another agent that ends may take the shared parent away between two steps of this."""
    for _ in range(MAKE_TRIES - 1):
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(path, exist_ok=True)
            return
    os.makedirs(path, exist_ok=True)


def _claim(layout: Layout, instance_id: str) -> None:
    """Keep every other agent of this instance away while this process lives: it would take our jobs for its
    losses.
    """
    directory = layout.unified.directory
    if directory in _claimed:
        return
    if not os.path.exists(f"{directory}/cgroup.kill"):
        raise OSError(errno.ENOSYS, "cgroup.kill is missing (it needs Linux 5.14)")
    # the one file here that no job can open, and so none can hold the lock
    fd = os.open(f"{directory}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise InstanceInUse(
            f"another agent with this one's identity (instance {instance_id}) runs on this host: one of the two state "
            "directories is a copy; remove `identity` and `credentials` from the copy and enrol it as a node of its own"
        ) from None
    _claimed[directory] = fd


def _try(layout: Layout) -> None:
    """A pair like an attempt's, made and removed. The instance is claimed, so what is there is of one killed here."""
    groups = describe(layout, PROBE)
    remove(groups)
    try:
        _make(layout, groups)
        if not os.access(f"{groups.task_dir}/cgroup.procs", os.W_OK):
            raise OSError(errno.EACCES, f"{groups.task_dir} may not be joined")
    finally:
        remove(groups)


def release(layout: Layout) -> None:
    """Remove the instance's own groups if nothing is in them any more."""
    for base in (layout.unified, *layout.legacy):
        for directory in (base.directory, os.path.dirname(base.directory)):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
    claim = _claimed.pop(layout.unified.directory, None)
    if claim is not None:
        os.close(claim)


# -- one attempt's groups


def describe(layout: Layout, attempt_id: str, spec: LaunchSpec | None = None) -> Groups:
    """The names of an attempt's groups, whether they exist or not; with `spec`, only the v1 groups that it needs: a
    move into each costs a launch its time.
    """
    attempt = layout.unified.below(attempt_id)
    task = attempt.below("task")
    needed = (base for base in layout.legacy if spec is None or _limits_something(base, spec))
    legacy = tuple(base.below(attempt_id) for base in needed)
    memory = next((base.directory for base in legacy if "memory" in base.controllers), None)
    pids = next((base.directory for base in legacy if "pids" in base.controllers), task.directory)
    files = (
        MemoryFiles(f"{task.directory}/memory.events", f"{task.directory}/memory.peak")
        if memory is None
        else MemoryFiles(f"{memory}/memory.oom_control", f"{memory}/memory.max_usage_in_bytes")
    )
    return Groups(
        attempt_dir=attempt.directory,
        shim_dir=f"{attempt.directory}/shim",
        task_dir=task.directory,
        task=(task, *legacy),
        memory_files=files,
        pids_events=f"{pids}/pids.events",
    )


def _limits_something(base: Base, spec: LaunchSpec) -> bool:
    return bool(settings(base, (), spec)) or ("devices" in base.controllers and bool(spec.denied_devices))


def create(layout: Layout, groups: Groups, spec: LaunchSpec) -> None:
    """Make the attempt's groups with its limits and read them back.

    Raises LimitsRefused (the groups are removed again) if a limit could not be set or reads back as another.
    """
    try:
        _make(layout, groups)
        for base in groups.task:
            for name, value, optional in settings(base, layout.unified_controllers, spec):
                _set(f"{base.directory}/{name}", value, optional)
        _deny_devices(groups, spec.denied_devices or ())
    except OSError as error:
        remove(groups)
        raise LimitsRefused(f"the kernel refused a limit of the attempt's control group: {error}") from None
    except LimitsRefused:
        remove(groups)
        raise


def settings(base: Base, unified_controllers: Iterable[str], spec: LaunchSpec) -> list[tuple[str, str, bool]]:
    """(file, value, optional) in the order to write them, for one of the attempt's task groups.

    CPU is a weight, not a cap: a job always gets its part of a busy host and may use what is idle.
    """
    unified = base.controllers == ("",)
    served = tuple(unified_controllers) if unified else base.controllers
    found: list[tuple[str, str, bool]] = []
    if spec.host_memory_mib is not None and "memory" in served:
        limit = str(spec.host_memory_mib * MIB)
        if unified:
            found += [("memory.max", limit, False), ("memory.swap.max", "0", True), ("memory.oom.group", "1", False)]
        else:
            found += [("memory.limit_in_bytes", limit, False), ("memory.memsw.limit_in_bytes", limit, True)]
    if spec.pids_max is not None and "pids" in served:
        found.append(("pids.max", str(spec.pids_max), False))
    if spec.cpu_milli is not None and "cpu" in served:
        shares = max(2, min(262_144, spec.cpu_milli * 1024 // 1000))
        # v2 counts 1..10000 where v1 counts 2..262144; one CPU is 100 in the one and 1024 in the other
        weight = max(1, min(10_000, spec.cpu_milli // 10))
        found.append(("cpu.weight", str(weight), False) if unified else ("cpu.shares", str(shares), False))
    return found


def _make(layout: Layout, groups: Groups) -> None:
    try:
        _make_in_parents(layout, groups)
    except FileNotFoundError:
        # an agent that ended took the parents away while they were empty
        remove(groups)
        for parent in (layout.unified, *layout.legacy):
            _make_directory(parent.directory)
        _make_in_parents(layout, groups)


def _make_in_parents(layout: Layout, groups: Groups) -> None:
    os.mkdir(groups.attempt_dir)
    if layout.unified_controllers:
        enable = " ".join(f"+{name}" for name in layout.unified_controllers)
        cgroupfs.put(f"{groups.attempt_dir}/cgroup.subtree_control", enable)
    os.mkdir(groups.shim_dir)
    for base in groups.task:
        os.mkdir(base.directory)


def _set(path: str, value: str, optional: bool) -> None:
    try:
        shown = cgroupfs.put_and_read_back(path, value).strip()
    except FileNotFoundError:
        if optional:
            return
        raise
    if shown != value:
        raise LimitsRefused(f"{path} was set to {value} and reads {shown}")


def _deny_devices(groups: Groups, denied: tuple[tuple[int, int], ...]) -> None:
    """Fail closed: a filter that cannot be set is an error, never a launch without one."""
    if not denied:
        return
    legacy = next((base for base in groups.task if "devices" in base.controllers), None)
    if legacy is None:
        devices.deny(groups.task_dir, denied)
        return
    for major, minor in denied:
        cgroupfs.put(f"{legacy.directory}/devices.deny", f"c {major}:{minor} rwm")


def remove(groups: Groups) -> bool:
    """Remove what exists of the attempt's groups, those that a job made in its own included; False if the kernel
    says that one is still in use.
    """
    task = [base.directory for base in groups.task]
    directories = (*task, groups.shim_dir, groups.attempt_dir)
    if _removed(directories):
        return True
    _removed([path for directory in task for path, _, _ in os.walk(directory, topdown=False)])
    return _removed(directories)


def _removed(directories: Iterable[str]) -> bool:
    """Tries each of them; True if none is left."""
    done = True
    for directory in directories:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            done = False
    return done


def attempts(layout: Layout) -> list[str]:
    """The attempts that have a v2 group of this instance."""
    try:
        entries = list(os.scandir(layout.unified.directory))
    except FileNotFoundError:
        return []
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
