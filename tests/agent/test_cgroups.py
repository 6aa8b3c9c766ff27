"""Control groups: where they are made on each kind of host, what is written for a limit, and the pair on this
kernel.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest
from executor_kit import needs_groups, needs_root, spec

from gpushare_agent import cgroupfs, cgroups, devices
from gpushare_agent.cgroups import Base

HYBRID = """\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
26 24 0:24 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
27 24 0:25 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
28 24 0:26 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw,nsdelegate
"""
PURE = "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
# a container without a cgroup namespace sees its own part of the tree mounted, and its whole path
CONTAINER = "31 1 0:24 /docker/abc /mnt/with\\040blank rw - cgroup cgroup rw,memory\n"


def test_hierarchies_of_a_hybrid_host() -> None:
    own = {"": "/a.slice/b", "cpu": "/x", "cpuacct": "/x", "memory": "/", "name=systemd": "/a.slice"}
    tops, ours = cgroups.hierarchies(HYBRID, own)
    assert tops[0] == Base("/sys/fs/cgroup/unified", "/", ("",))
    assert ours[0] == Base("/sys/fs/cgroup/unified/a.slice/b", "/a.slice/b", ("",))
    assert Base("/sys/fs/cgroup/cpu,cpuacct/x", "/x", ("cpu", "cpuacct")) in ours
    assert Base("/sys/fs/cgroup/memory", "/", ("memory",)) in ours


def test_hierarchies_of_a_pure_host_and_of_a_container() -> None:
    tops, ours = cgroups.hierarchies(PURE, {"": "/user.slice/s.scope"})
    assert tops == [Base("/sys/fs/cgroup", "/", ("",))]
    assert ours == [Base("/sys/fs/cgroup/user.slice/s.scope", "/user.slice/s.scope", ("",))]
    tops, ours = cgroups.hierarchies(CONTAINER, {"memory": "/docker/abc/job"})
    assert ours == [Base("/mnt/with blank/job", "/docker/abc/job", ("memory",))]
    # a mount that does not hold us is of no use, and another group with a longer name is not ours
    assert cgroups.hierarchies(CONTAINER, {"memory": "/docker/abcdef"}) == ([], [])
    assert cgroups.hierarchies(CONTAINER, {"memory": "/"}) == ([], [])


LIMITED = spec("t.1.0.1", "true", host_memory_mib=64, cpu_milli=2500, pids_max=100)


def test_limits_of_v2() -> None:
    task = Base("/x", "/x", ("",))
    assert cgroups.settings(task, ("memory", "pids", "cpu"), LIMITED) == [
        ("memory.max", "67108864", False),
        ("memory.swap.max", "0", True),
        ("memory.oom.group", "1", False),
        ("pids.max", "100", False),
        ("cpu.weight", "250", False),
    ]
    assert cgroups.settings(task, (), LIMITED) == []
    assert cgroups.settings(task, ("memory", "pids", "cpu"), spec("t.1.0.1", "true")) == []


def test_limits_of_v1_and_their_bounds() -> None:
    memory, cpu = Base("/m", "/m", ("memory",)), Base("/c", "/c", ("cpu", "cpuacct"))
    assert cgroups.settings(memory, ("cpu",), LIMITED) == [
        ("memory.limit_in_bytes", "67108864", False),
        ("memory.memsw.limit_in_bytes", "67108864", True),
    ]
    assert cgroups.settings(cpu, (), LIMITED) == [("cpu.shares", "2560", False)]
    unified = Base("/x", "/x", ("",))
    for milli, shares, weight in ((1, "2", "1"), (1000, "1024", "100"), (10**9, "262144", "10000")):
        tiny = spec("t.1.0.1", "true", cpu_milli=milli)
        assert cgroups.settings(cpu, (), tiny) == [("cpu.shares", shares, False)]
        assert cgroups.settings(unified, ("cpu",), tiny) == [("cpu.weight", weight, False)]


def test_one_set_of_names_for_each_kind_of_host() -> None:
    unified = Base("/sys/fs/cgroup/gpushare/i", "/gpushare/i", ("",))
    pure = cgroups.describe(cgroups.Layout(unified, (), ("memory", "pids", "cpu")), "t.1.0.1")
    assert pure.task_dir == "/sys/fs/cgroup/gpushare/i/t.1.0.1/task"
    assert pure.shim_dir == "/sys/fs/cgroup/gpushare/i/t.1.0.1/shim"
    assert [base.proc_path for base in pure.task] == ["/gpushare/i/t.1.0.1/task"]
    assert pure.memory_files.events == f"{pure.task_dir}/memory.events"
    legacy = Base("/cg/memory/own/gpushare/i", "/own/gpushare/i", ("memory",))
    hybrid = cgroups.describe(cgroups.Layout(unified, (legacy,), ()), "t.1.0.1")
    assert [base.directory for base in hybrid.task][1] == "/cg/memory/own/gpushare/i/t.1.0.1"
    assert hybrid.memory_files.events == "/cg/memory/own/gpushare/i/t.1.0.1/memory.oom_control"
    devices_base = Base("/cg/devices/gpushare/i", "/gpushare/i", ("devices",))
    both = cgroups.Layout(unified, (legacy, devices_base), ())
    for wanted, count in ((spec("t.1.0.1", "true"), 1), (LIMITED, 2)):
        assert len(cgroups.describe(both, "t.1.0.1", wanted).task) == count
    fenced = spec("t.1.0.1", "true", host_memory_mib=1, denied_devices=((195, 0),))
    assert len(cgroups.describe(both, "t.1.0.1", fenced).task) == 3
    assert cgroups.Layout(unified, (legacy,), ()).containment == "hybrid"
    assert cgroups.Layout(unified, (), ("memory", "pids")).containment == "cgroup-v2"


@needs_groups
def test_a_pair_is_made_limited_joined_killed_and_removed() -> None:
    instance = f"test-{uuid.uuid4().hex[:12]}"
    layout = cgroups.probe(instance)
    groups = cgroups.describe(layout, "t.1.0.1")
    try:
        cgroups.create(layout, groups, LIMITED)
        assert cgroups.attempts(layout) == ["t.1.0.1"]
        pids = next(base for base in groups.task if "pids" in (base.controllers or ("",)) or not layout.legacy)
        assert cgroupfs.get(f"{pids.directory}/pids.max").strip() == "100"
        assert not cgroupfs.populated(groups.attempt_dir)
        child = subprocess.Popen(["sleep", "600"])
        for base in groups.task:
            cgroupfs.put(f"{base.directory}/cgroup.procs", str(child.pid))
        assert cgroupfs.populated(groups.task_dir)
        assert cgroupfs.processes(groups.task_dir) == {child.pid}
        assert cgroups.remove(groups) is False
        cgroupfs.kill(groups.attempt_dir)
        assert child.wait(10) == -9
        assert not cgroupfs.populated(groups.task_dir)
    finally:
        cgroupfs.kill(groups.attempt_dir)
        assert cgroups.remove(groups) is True
        assert cgroups.remove(groups) is True
        cgroups.release(layout)
    assert not Path(layout.unified.directory).exists()
    assert cgroups.attempts(layout) == []
    # what is gone is empty, and nothing about it raises
    assert not cgroupfs.populated(groups.task_dir)
    assert cgroupfs.processes(groups.task_dir) == set()
    cgroupfs.kill(groups.task_dir)


@needs_groups
def test_a_limit_that_reads_back_as_another_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = cgroups.probe(f"test-{uuid.uuid4().hex[:12]}")
    groups = cgroups.describe(layout, "t.1.0.1")
    real = cgroupfs.put_and_read_back

    def limitless(path: str, value: str) -> str:
        shown = real(path, value)
        return "max\n" if path.endswith("pids.max") else shown

    monkeypatch.setattr(cgroupfs, "put_and_read_back", limitless)
    try:
        with pytest.raises(cgroups.LimitsRefused, match="reads max"):
            cgroups.create(layout, groups, LIMITED)
        assert not Path(groups.attempt_dir).exists()
    finally:
        cgroups.release(layout)


@needs_root
def test_no_place_for_groups_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read-only control groups, as in a container: the cause is named."""
    read_only = tmp_path / "ro"
    read_only.mkdir()
    (read_only / "cgroup.controllers").write_text("cpu memory pids\n")
    mountinfo = f"30 1 0:26 / {read_only} ro - cgroup2 cgroup2 ro\n"
    real = cgroupfs.get
    monkeypatch.setattr(cgroupfs, "get", lambda path: mountinfo if path.endswith("mountinfo") else real(path))
    monkeypatch.setattr(cgroupfs, "memberships", lambda: {"": "/"})
    subprocess.run(["mount", "--bind", str(read_only), str(read_only)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(read_only)], check=True)
        with pytest.raises(cgroups.CgroupsUnavailable, match="Read-only file system"):
            cgroups.probe("x")
    finally:
        subprocess.run(["umount", str(read_only)], check=True)
    with pytest.raises(cgroups.CgroupsUnavailable):
        cgroups.probe("x")
    mountinfo = ""
    with pytest.raises(cgroups.CgroupsUnavailable, match="no cgroup v2"):
        cgroups.probe("x")


def test_missing_controllers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    mountinfo = f"30 1 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    real = cgroupfs.get
    monkeypatch.setattr(cgroupfs, "get", lambda path: mountinfo if path.endswith("mountinfo") else real(path))
    monkeypatch.setattr(cgroupfs, "memberships", lambda: {"": "/"})
    with pytest.raises(cgroups.CgroupsUnavailable, match="memory, pids"):
        cgroups.probe("x")


# -- the device filter of v2


def opens(directory: str, device: str) -> bool:
    code = f"echo $$ > {directory}/cgroup.procs; : < {device}"
    return subprocess.run(["sh", "-c", code], stderr=subprocess.DEVNULL, check=False).returncode == 0


@needs_root
@needs_groups
def test_the_kernel_refuses_what_the_filter_lists_and_nothing_else() -> None:
    layout = cgroups.probe(f"test-{uuid.uuid4().hex[:12]}")
    directory = f"{layout.unified.directory}/filtered"
    os.mkdir(directory)
    try:
        devices.deny(directory, [(195, 3), (1, 7), (1, 8)])
        assert not opens(directory, "/dev/full")
        assert not opens(directory, "/dev/random")
        assert opens(directory, "/dev/zero")
        assert opens(directory, "/dev/urandom")
        # a second filter on the same group adds to the first
        devices.deny(directory, [(1, 5)])
        assert not opens(directory, "/dev/zero")
        assert not opens(directory, "/dev/full")
        assert opens(directory, "/dev/urandom")
        assert opens("/sys/fs/cgroup/unified" if layout.legacy else layout.unified.directory, "/dev/full")
    finally:
        os.rmdir(directory)
        cgroups.release(layout)


@needs_root
def test_a_filter_that_cannot_be_attached_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="bpf"):
        devices.deny(str(tmp_path), [(1, 7)])
    with pytest.raises(FileNotFoundError):
        devices.deny(str(tmp_path / "gone"), [(1, 7)])


def test_filter_programs_decide_as_written() -> None:
    """Against a small interpreter of the six instructions, far more devices than a machine has."""
    denied = [(195, minor) for minor in range(0, 64, 3)]
    program = devices.filter_program(denied)
    for kind, major, minor in [(2, 195, m) for m in range(70)] + [(1, 195, 0), (2, 194, 0), (2, 0, 195), (2, 195, 255)]:
        expected = 0 if kind == 2 and (major, minor) in denied else 1
        assert interpret(program, kind | 6 << 16, major, minor) == expected, (kind, major, minor)


def interpret(program: bytes, access: int, major: int, minor: int) -> int:
    import struct

    context = {0: access, 4: major, 8: minor}
    registers = [0] * 11
    at = 0
    for _ in range(10_000):
        code, both, offset, immediate = struct.unpack_from("<BBhi", program, at * 8)
        target = both & 15
        at += 1
        if code == 0x61:
            registers[target] = context[offset]
        elif code == 0x57:
            registers[target] &= immediate
        elif code == 0xB7:
            registers[target] = immediate
        elif code == 0x05:
            at += offset
        elif code == 0x55:
            at += offset if registers[target] != immediate else 0
        elif code == 0x95:
            return registers[0]
        else:
            raise AssertionError(hex(code))
    raise AssertionError("no end") @ needs_root


def test_parents_that_another_agents_end_took_away_are_made_again() -> None:
    layout = cgroups.probe(f"test-{uuid.uuid4().hex[:12]}")
    groups = cgroups.describe(layout, "t.1.0.1")
    try:
        for base in (layout.unified, *layout.legacy):
            Path(base.directory).rmdir()
        cgroups.create(layout, groups, LIMITED)
        assert all(Path(base.directory).exists() for base in groups.task)
        assert cgroups.remove(groups)
    finally:
        cgroups.release(layout)
