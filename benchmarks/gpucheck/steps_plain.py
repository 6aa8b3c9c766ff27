"""Steps that need no MPS: the host, a program on the card, sharing by time, suspending.

Each step takes the bench and the findings it adds to; it raises AbsentError or ChildError where it cannot go on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import Any

from benchmarks.gpucheck.answers import error_name, rows_of
from benchmarks.gpucheck.bench import Bench
from benchmarks.gpucheck.clients import Child
from benchmarks.gpucheck.mps import PROGRAM, SERVER_PROGRAM, session
from benchmarks.gpucheck.report import AbsentError, Findings

HELD_MIB = 1024
#: A process's figure in NVML may differ from what it asked for by rounding to the card's pages.
TOLERANCE_MIB = 64
LISTED_WITHIN_S = 5.0
BURN_TARGET_S = 0.3
BURN_TIMES = 4
SUSPEND_SIZES_MIB = (1024, 8192, 32768)
FIND_TIMEOUT_S = 20
#: Where drivers put their programs; looked into after PATH.
PROGRAM_FOLDERS = ("/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/opt/bin", "/run/nvidia/driver/usr/bin")
#: What the design keeps back of each card that is shared, for the driver and what programs hold outside their slices.
RESERVE_MIB = 512


def host(bench: Bench, found: Findings) -> None:
    """a) What is here: kernel, user, MPS programs, how the card is set."""
    kernel = os.uname()
    found.figure("kernel", f"{kernel.sysname} {kernel.release} {kernel.machine}")
    found.figure("uid", os.geteuid())
    for name in ("total_mib", "reserved_mib", "used_mib", "free_mib", "compute_mode", "persistence", "minor"):
        found.figure(name, bench.card[name])
    nodes = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))
    found.figure("device nodes", ", ".join(f"{name} {os.stat(f'/dev/{name}').st_mode & 0o777:o}" for name in nodes))
    found.figure("cgroup v2 controllers", _first_line("/sys/fs/cgroup/cgroup.controllers"))
    programs = _find_mps()
    found.figure("MPS programs", ", ".join(programs) or None)
    bench.mps_program, bench.mps_missing = usable_mps(programs)
    if bench.mps_program is not None:
        code, said = session(bench.mps_program, bench.environ(), timeout_s=3)
        found.figure("control program without a daemon", f"code {code}: {said[0] if said else 'nothing'}")


def _first_line(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return None


def _find_mps() -> list[str]:
    """Every file by these names, wherever it lies: to be told, not to be run."""
    command = ["find", "/", "(", "-path", "/proc", "-o", "-path", "/sys", ")", "-prune", "-o"]
    command += ["-name", "nvidia-cuda-mps*", "-type", "f", "-print"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=FIND_TIMEOUT_S, check=False)
        paths = set(ran.stdout.split("\n")) - {""}
    except (OSError, subprocess.TimeoutExpired):
        paths = set()
    paths |= {path for name in (PROGRAM, SERVER_PROGRAM) if (path := shutil.which(name)) is not None}
    return sorted(paths)


def usable_mps(found: list[str]) -> tuple[str | None, str]:
    """The control program to run and "", or None and why not. Nothing is run from just anywhere on the disk."""
    folders = [*os.get_exec_path(), *PROGRAM_FOLDERS]
    folder = next((folder for folder in folders if os.access(f"{folder}/{PROGRAM}", os.X_OK)), None)
    if folder is None:
        elsewhere = f" (only {found[0]}, which is not on PATH)" if found else ""
        return None, f"{PROGRAM} is not on this machine{elsewhere}"
    if not any(os.access(f"{place}/{SERVER_PROGRAM}", os.X_OK) for place in folders):
        return None, f"{folder}/{PROGRAM} is here, {SERVER_PROGRAM} is not"
    return f"{folder}/{PROGRAM}", ""


def program(bench: Bench, found: Findings) -> None:
    """1) One program outside MPS: what it costs, what it sees, what NVML shows of it."""
    before_mib = bench.used_mib()
    child, said = bench.opened()
    for name in ("name", "capability", "sms", "device_total_mib", "free_mib", "init_s", "context_s"):
        found.figure(name, said[name])
    found.claim("a UUID in CUDA_VISIBLE_DEVICES shows exactly that card", _sees_only(bench, said), said["devices"])
    found.claim("a program outside MPS says so (attribute 133 is 0)", said["mps"] == 0, said["mps"])
    context_mib = bench.used_mib() - before_mib
    found.figure("context_mib", context_mib)
    allocated = child.ask("alloc", mib=HELD_MIB)
    found.claim(f"{HELD_MIB} MiB can be allocated", allocated["code"] == 0, error_name(allocated["code"]))

    listed_s = bench.seconds_until(lambda: bool(rows_of(bench.look(), child.pid)), LISTED_WITHIN_S)
    found.figure("listed_after_s", listed_s)
    found.figure("device_used_delta_mib", bench.used_mib() - before_mib)
    now = bench.look()
    rows = rows_of(now, child.pid)
    found.claim("NVML lists a program under the pid that we know", "compute" in rows, rows or _lists(now))
    if "compute" in rows:
        found.figure("process_mib", rows["compute"])
        expected = HELD_MIB + context_mib
        found.claim(
            "NVML's figure of a process is its context and what it allocated",
            rows["compute"] is not None and abs(rows["compute"] - expected) <= TOLERANCE_MIB,
            f"{rows['compute']} MiB, expected about {expected}",
        )
        found.claim("a program outside MPS is not in the MPS list", "mps" not in rows, rows)
    _utilisation(bench, child, found)
    for name, cost_us in bench.nvml().ask("cost", uuid=bench.uuid).items():
        found.figure(f"NVML {name} µs", cost_us)
    child.close()
    gone_s = bench.seconds_until(lambda: not rows_of(bench.look(), child.pid), LISTED_WITHIN_S)
    found.figure("unlisted_after_end_s", gone_s)

    stranger = bench.start({**bench.environ(), "CUDA_VISIBLE_DEVICES": "GPU-00000000-0000-0000-0000-000000000000"})
    code = stranger.ask("init", timeout_s=60)["code"]
    found.claim("an unknown UUID shows no card at all", code == 100, error_name(code))


def _sees_only(bench: Bench, said: dict[str, Any]) -> bool:
    return said["devices"] == 1 and str(said["uuid"]).lower() == bench.uuid.lower()


def _lists(card: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {card[name]}" for name in ("compute", "graphics", "mps"))


def _utilisation(bench: Bench, child: Child, found: Findings) -> None:
    """Per-process SM use while the program is busy."""
    since_us = int(time.time() * 1e6)
    child.ask("burn", rounds=_calibrated(child), times=5, timeout_s=60)
    said = bench.nvml().ask("utilisation", uuid=bench.uuid, since_us=since_us)
    mine = [row["sm"] for row in said["rows"] if row["pid"] == child.pid]
    found.figure("utilisation rows of a busy program", len(mine))
    found.figure("its SM %", max(mine, default=None))
    found.figure("error of the call", said["error"])


def _calibrated(child: Child) -> int:
    """Rounds of the busy kernel that take about `BURN_TARGET_S` on this card."""
    rounds = 1 << 16
    child.ask("burn", rounds=rounds)  # the first launch also loads the kernel
    for _ in range(6):
        taken = float(child.ask("burn", rounds=rounds, timeout_s=60)["seconds"])
        if taken > BURN_TARGET_S / 4:
            return max(1, min(1 << 31, int(rounds * BURN_TARGET_S / taken)))
        rounds = min(1 << 30, rounds * max(2, int(BURN_TARGET_S / 4 / max(taken, 1e-6))))
    return rounds


def overlap(first: Child, second: Child) -> tuple[float, float]:
    """Seconds that one program's kernels take alone, and the slower of two at the same time."""
    rounds = _calibrated(first)
    _calibrated(second)  # loads its kernel
    alone = first.ask("burn", rounds=rounds, times=BURN_TIMES, timeout_s=60)
    for child in (first, second):
        child.send("burn", rounds=rounds, times=BURN_TIMES)
    together = [child.receive(timeout_s=60) for child in (first, second)]
    if any(said["code"] != 0 for said in (alone, *together)):
        raise AbsentError(f"a kernel failed: {[said['code'] for said in (alone, *together)]}")
    return float(alone["seconds"]), max(float(said["seconds"]) for said in together)


def timeslice(bench: Bench, found: Findings) -> None:
    """2) Two programs outside MPS at once: the driver's time slices."""
    (first, _), (second, _) = bench.opened(), bench.opened()
    alone_s, together_s = overlap(first, second)
    found.figure("alone_s", alone_s)
    found.figure("together_s", together_s)
    ratio = together_s / alone_s
    found.claim("kernels of two programs outside MPS never run at the same time", ratio > 1.6, f"{ratio:.2f} x alone")


def usable(bench: Bench, found: Findings) -> None:
    """3) How much of an empty card one program can have."""
    before_mib = bench.used_mib()
    child, said = bench.opened()
    context_mib = bench.used_mib() - before_mib
    free_mib = int(said["free_mib"])
    got = child.ask("fill_up", chunk_mib=1024, max_mib=free_mib, timeout_s=90)
    rest = child.ask("fill_up", chunk_mib=32, max_mib=4096, timeout_s=60)
    allocated_mib = int(got["mib"]) + int(rest["mib"])
    found.figure("allocatable_mib", allocated_mib)
    found.figure("context_mib", context_mib)
    found.figure("error at the end", error_name(rest["code"]))
    offered_mib = bench.card["total_mib"] - bench.card["reserved_mib"]
    found.figure("total_minus_reserved_mib", offered_mib)
    lost_mib = offered_mib - before_mib - allocated_mib - context_mib
    found.figure("unaccounted_mib", lost_mib)
    found.claim(
        f"a reserve of {RESERVE_MIB} MiB covers what is neither a context nor allocated",
        lost_mib <= RESERVE_MIB,
        f"{lost_mib} MiB",
    )
    found.claim("more than the card has is refused with out of memory", rest["code"] == 2, error_name(rest["code"]))


def suspend(bench: Bench, found: Findings) -> None:
    """h) Suspend and resume a program outside MPS, by size."""
    helper = bench.start()
    code = helper.ask("cuinit", timeout_s=60)["code"]
    if code != 0:
        raise AbsentError(f"cuInit of the helper: {error_name(code)}")
    for mib in SUSPEND_SIZES_MIB:
        room = _room_for(bench, mib)
        if room is not None:
            found.figure(f"{mib} MiB", f"absent: {room}")
            continue
        target, _ = bench.opened()
        if not _suspended(bench, found, helper, target, mib):
            return
        target.close()


def _room_for(bench: Bench, mib: int) -> str | None:
    """Why that size is not tried, or None: the host takes a whole copy, and the card needs it free."""
    host_mib = _available_mib()
    if host_mib < mib * 3 // 2 + 8192:
        return f"{host_mib} MiB of host memory are available"
    card = bench.look()
    if card["free_mib"] < mib + 4096:
        return f"{card['free_mib']} MiB of the card are free"
    if bench.left_s < 30 + mib / 512:
        return "out of time"
    return None


def _available_mib() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) // 1024
    return 0


def _suspended(bench: Bench, found: Findings, helper: Child, target: Child, mib: int) -> bool:
    """One trip to host memory and back; False where the driver does not do it."""
    allocated = target.ask("alloc", mib=mib, timeout_s=60)
    if allocated["code"] != 0:
        raise AbsentError(f"{mib} MiB cannot be allocated: {error_name(allocated['code'])}")
    used_mib = bench.used_mib()
    for act in ("lock", "checkpoint"):
        said = helper.ask("process", act=act, pid=target.pid, timeout_s=120)
        found.figure(f"{mib} MiB {act}_s", said["seconds"])
        found.claim(f"{act} of a program with {mib} MiB works", said["code"] == 0, error_name(said["code"]))
        if said["code"] != 0:
            return False
    freed_mib = used_mib - bench.used_mib()
    now = bench.look()
    found.claim(f"suspending frees the {mib} MiB of the card", freed_mib >= mib, f"{freed_mib} MiB freed")
    found.claim(
        f"a suspended program ({mib} MiB) leaves NVML's list", not rows_of(now, target.pid), rows_of(now, target.pid)
    )
    for act in ("restore", "unlock"):
        said = helper.ask("process", act=act, pid=target.pid, timeout_s=120)
        found.figure(f"{mib} MiB {act}_s", said["seconds"])
        found.claim(f"{act} of a program with {mib} MiB works", said["code"] == 0, error_name(said["code"]))
        if said["code"] != 0:
            return False
    intact = target.ask("verify", timeout_s=60)
    found.claim(f"its {mib} MiB come back as they were", bool(intact.get("intact")), intact)
    return True


def faults(bench: Bench, found: Findings) -> None:
    """4) Outside MPS a fault and a SIGKILL stay with the program they happen to."""
    (culprit, _), (neighbour, _) = bench.opened(), bench.opened()
    rounds = max(1, _calibrated(neighbour) // 50)
    neighbour.ask("busy", rounds=rounds)
    code = culprit.ask("crash", timeout_s=60)["code"]
    found.claim("a write to no address is error 700", code == 700, error_name(code))
    _unharmed(found, neighbour, "a neighbour outside MPS goes on after a fault")
    culprit.close()

    before_mib = bench.used_mib()
    victim, _ = bench.opened()
    victim.ask("alloc", mib=HELD_MIB)
    victim.ask("busy", rounds=rounds)
    found.figure("memory of the victim MiB", bench.used_mib() - before_mib)
    victim.kill()
    back_s = bench.seconds_until(lambda: bench.look()["used_mib"] <= before_mib + TOLERANCE_MIB, 10)
    found.figure("memory_back_after_sigkill_s", back_s)
    found.claim("the memory of a program killed while busy comes back", back_s is not None, f"{back_s} s")
    _unharmed(found, neighbour, "a neighbour outside MPS goes on after a SIGKILL")


def _unharmed(found: Findings, neighbour: Child, text: str) -> None:
    """Claim that a busy program still finishes kernels."""
    first = neighbour.ask("busy_report")
    time.sleep(0.5)
    second = neighbour.ask("busy_report")
    done = second["done"] - first["done"]
    found.claim(text, second["code"] == 0 and done > 0, f"{done} more kernels, {error_name(second['code'])}")
