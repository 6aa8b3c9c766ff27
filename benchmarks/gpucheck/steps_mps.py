"""Steps under a private MPS daemon of the check: limits, shares, what NVML shows, the control channel.

Each step takes the bench and the findings it adds to; where it cannot go on it raises AbsentError, ChildError or
MpsError.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import Any

from benchmarks.gpucheck.answers import (
    error_name,
    logged_limits_mib,
    logged_percentages,
    percent_sms,
    rows_of,
    size_mib,
)
from benchmarks.gpucheck.bench import Bench
from benchmarks.gpucheck.clients import OTHER_UID, Child, ChildError
from benchmarks.gpucheck.mps import SENTINEL, Daemon, MpsError, session
from benchmarks.gpucheck.report import AbsentError, Findings
from benchmarks.gpucheck.steps_plain import overlap

LIMIT_MIB = 4096
CEILING_MIB = 2048
PERCENTAGES = (10, 25, 50, 75)
CLIENTS_TRIED = 64
#: Contexts of one device that the driver's own documents allow, before CUDA 13.1 and from then on.
CLIENTS_ALLOWED = (48, 60)
#: Managed memory beyond what a card has free can hang it: the step wants several times what it asks for.
MANAGED_MIB = 5120
MANAGED_NEEDS_FREE_MIB = 4 * MANAGED_MIB
MANY_NEED_FREE_MIB = 40960


def limit_variable(mib: int) -> dict[str, str]:
    """The variable that limits a client's memory, in the form the driver takes."""
    return {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={mib}M"}


def percent_variable(percent: int) -> dict[str, str]:
    return {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percent)}


def daemon_and_server(bench: Bench, found: Findings) -> None:
    """b) A private daemon: its server, a client, another user, the flags it knows."""
    with bench.daemon() as daemon:
        _, seconds = bench.server(daemon)
        found.figure("server_active_after_s", seconds)
        _, said = bench.opened(bench.mps_environ(daemon))
        found.claim("a client of the daemon says so (attribute 133 is 1)", said["mps"] == 1, said["mps"])
        found.figure("context_s of a client", said["context_s"])
        lines = daemon.text("server.log").splitlines()
        found.figure("server.log starts with", lines[0] if lines else None)
        if os.geteuid() == 0:
            _other_user(bench, found, daemon, "single-user daemon")
    for flag in ("-multiuser-server", "-S"):
        try:
            with bench.daemon(flag) as daemon:
                found.figure(f"daemon with {flag}", "starts")
                if flag == "-multiuser-server" and os.geteuid() == 0:
                    bench.server(daemon)
                    bench.opened(bench.mps_environ(daemon))
                    _other_user(bench, found, daemon, "multi-user daemon")
        except MpsError as failure:
            found.figure(f"daemon with {flag}", f"refused: {failure}")


def _other_user(bench: Bench, found: Findings, daemon: Daemon, name: str) -> None:
    """What a client under another uid meets while one of ours is connected."""
    try:
        child = bench.start(bench.mps_environ(daemon), user=OTHER_UID)
        said = child.ask("init", timeout_s=10)
        seen = f"{error_name(said['code'])}, attribute 133 is {said.get('mps')}"
    except ChildError as failure:
        seen = str(failure)
    found.figure(f"uid {OTHER_UID} on the {name}", seen)


def memory_limit(bench: Bench, found: Findings) -> None:
    """c) The memory limit of a client: what it sees, what it gets, what escapes it."""
    with bench.daemon() as daemon:
        bench.server(daemon)
        environ = bench.mps_environ(daemon, **limit_variable(LIMIT_MIB))
        before_mib = bench.used_mib()
        first, said = bench.opened(environ)
        found.figure("client_context_mib", bench.used_mib() - before_mib)
        for name in ("free_mib", "total_mib", "device_total_mib"):
            found.figure(f"{name} seen under {LIMIT_MIB} MiB", said[name])
        over = first.ask("alloc", mib=LIMIT_MIB + 102, fill=False)
        found.claim("one block above the limit is refused with error 2", over["code"] == 2, error_name(over["code"]))
        got = first.ask("fill_up", chunk_mib=32, max_mib=2 * LIMIT_MIB, timeout_s=60)
        found.figure(f"allocatable_mib under {LIMIT_MIB} MiB", got["mib"])
        found.claim("a client's context counts inside its limit", got["mib"] < LIMIT_MIB, f"{got['mib']} MiB")
        found.claim("the limit ends the allocation with error 2", got["code"] == 2, error_name(got["code"]))
        second, _ = bench.opened(environ)
        again = second.ask("fill_up", chunk_mib=32, max_mib=2 * LIMIT_MIB, timeout_s=60)
        found.claim(
            "the limit is of each process: a second one gets as much again",
            abs(again["mib"] - got["mib"]) <= 64,
            f"{again['mib']} MiB",
        )
        found.figure("limits in server.log", str(logged_limits_mib(daemon.text("server.log"))))
        _managed(bench, found, environ)
        wrong, _ = bench.opened(bench.mps_environ(daemon, CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=f"{CEILING_MIB}M"))
        unlimited = wrong.ask("alloc", mib=CEILING_MIB + 102, fill=False)
        found.claim("a limit without `0=` has no effect", unlimited["code"] == 0, error_name(unlimited["code"]))
    _ceiling(bench, found)


def _managed(bench: Bench, found: Findings, environ: dict[str, str]) -> None:
    """Managed memory beyond the limit."""
    free_mib = bench.look()["free_mib"]
    if free_mib < MANAGED_NEEDS_FREE_MIB:
        found.figure("managed memory", f"absent: {free_mib} MiB are free")
        return
    child, _ = bench.opened(environ)
    said = child.ask("alloc", mib=MANAGED_MIB, managed=True, timeout_s=60)
    found.figure(f"managed {MANAGED_MIB} MiB under {LIMIT_MIB} MiB", f"{error_name(said['code'])} {said.get('at', '')}")


def _ceiling(bench: Bench, found: Findings) -> None:
    """The ceiling of a server, which a client cannot lift."""
    with bench.daemon() as daemon:
        shown = daemon.ask(
            f"set_default_device_pinned_mem_limit 0 {CEILING_MIB}M", "get_default_device_pinned_mem_limit 0", SENTINEL
        )
        found.figure("ceiling read back", " | ".join(shown))
        bench.server(daemon)
        for text, variables in (("unsets its limit", {}), ("asks for more", limit_variable(LIMIT_MIB))):
            child, _ = bench.opened(bench.mps_environ(daemon, **variables))
            got = child.ask("fill_up", chunk_mib=32, max_mib=2 * LIMIT_MIB, timeout_s=60)
            found.claim(
                f"a client that {text} meets the server's ceiling", got["mib"] < CEILING_MIB, f"{got['mib']} MiB"
            )
            child.close()
        logged = logged_limits_mib(daemon.text("server.log"))
        found.claim("server.log tells the ceiling exactly", CEILING_MIB in logged, logged)


def shares(bench: Bench, found: Findings) -> None:
    """d) Thread percentages: the multiprocessors a client sees, and two halves at once."""
    with bench.daemon() as daemon:
        bench.server(daemon)
        _, whole = bench.opened(bench.mps_environ(daemon))
        found.figure("sms without a percentage", whole["sms"])
        for percent in PERCENTAGES:
            child, said = bench.opened(bench.mps_environ(daemon, **percent_variable(percent)))
            expected = percent_sms(whole["sms"], percent)
            found.figure(f"sms at {percent} %", said["sms"])
            found.claim(
                f"{percent} % shows no more than its part of the multiprocessors, within one group of 2",
                expected - 2 <= said["sms"] <= expected + 1,
                f"{said['sms']}, expected {expected}",
            )
            child.close()
        found.figure("percentages in server.log", str(logged_percentages(daemon.text("server.log"))))
        halves = [bench.opened(bench.mps_environ(daemon, **percent_variable(50)))[0] for _ in range(2)]
        alone_s, together_s = overlap(*halves)
        found.figure("alone_s at 50 %", alone_s)
        found.figure("together_s at 50 %", together_s)
        ratio = together_s / alone_s
        found.claim("two clients of 50 % run at the same time", ratio < 1.5, f"{ratio:.2f} x alone")


def seen_by_nvml(bench: Bench, found: Findings) -> None:
    """e, i) What NVML shows of server, client and a program that left MPS."""
    with bench.daemon() as daemon:
        server, _ = bench.server(daemon)
        before_mib = bench.used_mib()
        client, _ = bench.opened(bench.mps_environ(daemon))
        client.ask("alloc", mib=1024)
        bypass, said = bench.opened()
        bypass.ask("alloc", mib=512)
        found.claim("without a pipe directory a program runs outside MPS, unasked", said["mps"] == 0, said["mps"])
        bench.seconds_until(lambda: bool(rows_of(bench.look(), bypass.pid)), 5)
        card = bench.look()
        for name, pid in (("server", server), ("client", client.pid), ("bypass", bypass.pid)):
            found.figure(f"{name} in lists", str(rows_of(card, pid)))
        rows = rows_of(card, client.pid)
        found.claim("NVML's MPS list holds the client", "mps" in rows, rows)
        found.claim("NVML's compute list holds the client too", "compute" in rows, rows)
        left = rows_of(card, bypass.pid)
        found.claim("who left MPS is in the compute list and not in the MPS list", set(left) == {"compute"}, left)
        listed = {row["pid"]: row["mib"] or 0 for name in ("compute", "mps") for row in card[name] or ()}
        found.figure("sum of the processes MiB", sum(listed.values()))
        found.figure("device_used_delta_mib", bench.used_mib() - before_mib)
        since_us = int(time.time() * 1e6)
        client.ask("burn", rounds=1 << 22, times=20, timeout_s=60)
        usage = bench.nvml().ask("utilisation", uuid=bench.uuid, since_us=since_us)
        pids = sorted({row["pid"] for row in usage["rows"]})
        name_of = {server: "server", client.pid: "client", bypass.pid: "bypass"}
        found.figure("utilisation rows are of", ", ".join(name_of.get(pid, str(pid)) for pid in pids) or None)
        for name, cost_us in bench.nvml().ask("cost", uuid=bench.uuid).items():
            found.figure(f"NVML {name} µs", cost_us)


def control_channel(bench: Bench, found: Findings) -> None:
    """g) The control program: sizes it misreads, a UUID as device, one session at a time."""
    with bench.daemon() as daemon:
        for size, read_back in (("8G", 8192), ("1.5G", 1), ("900M", 900), ("0.5G", 0), ("1500M", 1024)):
            said = _set_and_get(daemon, "0", size)
            mib = size_mib(said)
            found.figure(f"{size} reads back as", said)
            if size in ("8G", "1500M"):
                found.claim(f"{size} reads back as {read_back >> 10}G", mib == read_back, said)
            if size == "1.5G":
                found.claim("1.5G is misread (never send fractions)", mib != 1536, said)
        _set_and_get(daemon, "0", "8G")
        daemon.ask(f"set_default_device_pinned_mem_limit {bench.uuid} 2G", SENTINEL)
        after = " ".join(daemon.ask("get_default_device_pinned_mem_limit 0"))
        found.figure("device 0 after a limit was set by UUID", after)
        found.claim("a UUID as device is not safe: device 0 no longer has its 8G", size_mib(after) != 8192, after)
        _second_session(daemon, found)
        long_folder = daemon.pipe.parent / ("x" * (88 - len(str(daemon.pipe.parent)) - 1))
        long_folder.mkdir()
        with contextlib.suppress(OSError):
            ran = _start_once(daemon, {**daemon.environ, "CUDA_MPS_PIPE_DIRECTORY": str(long_folder)})
            found.figure("pipe directory of 88 characters", ran)


def _set_and_get(daemon: Daemon, device: str, size: str) -> str:
    daemon.ask(f"set_default_device_pinned_mem_limit {device} {size}", SENTINEL)
    return " ".join(daemon.ask("get_default_device_pinned_mem_limit 0"))


def _start_once(daemon: Daemon, environ: dict[str, str]) -> str:
    """How a daemon that is to fail ends; it is killed where it does not."""
    try:
        ran = subprocess.run(
            [daemon.program, "-f"],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "runs"
    return f"ends with code {ran.returncode}: {(ran.stdout + ran.stderr).strip() or 'no word'}"


def _second_session(daemon: Daemon, found: Findings) -> None:
    """A session that is held open, and what a second one meets meanwhile."""
    holder = subprocess.Popen(
        [daemon.program],
        env=daemon.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    try:
        assert holder.stdin is not None
        holder.stdin.write(f"{SENTINEL}\n".encode())
        time.sleep(0.3)  # let it become the session that is being served
        code, said = session(daemon.program, daemon.environ, SENTINEL, timeout_s=3)
        seen = "blocked" if code is None else f"code {code}, {' | '.join(said) or 'no answer'}"
        found.figure("a second session meanwhile", seen)
        answered = code == 0 and any(line.replace(".", "").isdigit() for line in said)
        found.claim("a second session is not answered while one is held", not answered, seen)
    finally:
        holder.kill()
        holder.communicate(timeout=5)


def many_clients(bench: Bench, found: Findings) -> None:
    """j) The first client too many."""
    free_mib = bench.look()["free_mib"]
    if free_mib < MANY_NEED_FREE_MIB:
        raise AbsentError(f"{free_mib} MiB of the card are free, {MANY_NEED_FREE_MIB} are wanted")
    with bench.daemon() as daemon:
        bench.server(daemon)
        environ = bench.mps_environ(daemon, **percent_variable(10))
        connected: list[Child] = []
        refused: dict[str, Any] | None = None
        while refused is None and len(connected) < CLIENTS_TRIED and bench.left_s > 20:
            child = bench.start(environ)
            said = child.ask("init", timeout_s=30)
            if said["code"] == 0:
                connected.append(child)
            else:
                refused = said
        found.figure("clients connected", len(connected))
        found.figure("the next one", "none was refused" if refused is None else error_name(refused["code"]))
        found.claim(
            "a device takes 48 or 60 clients, and the next meets 808 or 809",
            refused is not None and refused["code"] in (808, 809) and len(connected) in CLIENTS_ALLOWED,
            f"{len(connected)} clients, then {error_name(refused['code']) if refused else 'no refusal'}",
        )


def suspend_client(bench: Bench, found: Findings) -> None:
    """h, under MPS) A client cannot be suspended."""
    with bench.daemon() as daemon:
        bench.server(daemon)
        client, _ = bench.opened(bench.mps_environ(daemon))
        helper = bench.start()
        helper.ask("cuinit", timeout_s=60)
        codes = []
        for act in ("lock", "checkpoint"):
            code = helper.ask("process", act=act, pid=client.pid, timeout_s=60)["code"]
            codes.append(f"{act} {error_name(code)}")
            if code != 0:
                break
        found.claim("a client of MPS cannot be suspended", code != 0, ", ".join(codes))
