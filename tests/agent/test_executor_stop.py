"""How attempts are ended: stops, limits, leases, and what a dead or hung shim leaves. Real shims and processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
import uuid
from pathlib import Path

import pytest
from executor_kit import BOTH_KINDS, alive, eventually, host, needs_groups, needs_root, python, run, shell, spec

from gpushare.reasons import Reason
from gpushare_agent import attempttable, cgroups, procscan, work
from gpushare_agent import executor as executor_module
from gpushare_agent.executor import lease_needed_ms
from gpushare_agent.launchspec import LaunchRefused

# ignores SIGTERM, forks, daemonizes with a session of its own, and so does its child
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for name in ("stdin", "stdout", "stderr"):
            getattr(sys, name).flush()
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
os.wait()
print(os.getpid(), flush=True)
time.sleep(600)
"""

# how late a busy machine may run a process that is due
TOLERANCE_MS = 500


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


async def two_pids(here: object, attempt_id: str) -> list[int]:
    """The numbers that STUBBORN prints."""
    await eventually(lambda: here.stdout(attempt_id).count("\n") == 2)
    return [int(word) for word in here.stdout(attempt_id).split()]


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_what_forks_daemonizes_and_ignores_sigterm_is_gone_after_its_grace(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            await here.executor.launch(python("t.1.0.1", STUBBORN))
            pids = await two_pids(here, "t.1.0.1")
            began = time.monotonic()
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 500, "cancelled by ann")
            assert here.status("t.1.0.1").state in ("RUNNING", "STOPPING")
            await eventually(lambda: here.status("t.1.0.1").state == "STOPPING")
            assert all(alive(pid) for pid in pids)
            found = await here.ended("t.1.0.1")
            assert 0.5 <= time.monotonic() - began < 5
            assert (found.state, found.reason) == ("STOPPED", Reason.CANCELLED)
            assert (found.exit_code, found.signal, found.stop_signal) == (None, signal.SIGKILL, signal.SIGKILL)
            assert re.match(r"cancelled by ann; SIGTERM at 0\.0 s, SIGKILL at \d\.\d s, ended by SIGKILL", found.detail)
            assert not any(alive(pid) for pid in pids)

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_sigterm_reaches_every_process_even_a_stopped_one_and_is_told(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            code = "trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.05; done"
            await here.executor.launch(shell("t.1.0.1", f'(setsid sh -c "{code}") & kill -STOP $$; wait'))
            await eventually(lambda: here.stdout("t.1.0.1") == "ready\n")
            await eventually(lambda: _state(here, "t.1.0.1") == "T")
            await here.executor.stop("t.1.0.1", Reason.PREEMPTED, 20_000)
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason, found.signal) == ("STOPPED", Reason.PREEMPTED, signal.SIGTERM)
            assert found.stop_signal == signal.SIGTERM

    run(body())


@needs_root
@needs_groups
def test_a_job_in_groups_of_its_own_making_is_listed_and_hears_sigterm_and_leaves_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path) as here:
            task = cgroups.describe(here.executor._files.layout, "t.1.0.1").task_dir
            code = f"mkdir -p {task}/x/y; echo $$ > {task}/x/y/cgroup.procs; trap 'echo saved; exit 7' TERM; "
            await here.executor.launch(shell("t.1.0.1", f"{code} echo $$; while :; do sleep 0.05; done"))
            await eventually(lambda: here.stdout("t.1.0.1").endswith("\n"))
            assert int(here.stdout("t.1.0.1")) in here.executor.pids("t.1.0.1")
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 20_000)
            found = await here.ended("t.1.0.1")
            assert (found.exit_code, found.stop_signal) == (7, signal.SIGTERM)
            await here.executor.forget("t.1.0.1")
            assert not Path(task).exists()

    run(body())


def test_one_scan_reads_each_process_once_however_many_attempts_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = procscan._tags_of

    def counted(pid: int) -> tuple[bytes, ...]:
        read.append(pid)
        return real(pid)

    monkeypatch.setattr(procscan, "_tags_of", counted)
    monkeypatch.setattr(executor_module, "SCAN_REUSE_S", 600.0)

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            names = [f"t.{job}.0.1" for job in range(4)]
            for name in names:
                await here.executor.launch(python(name, STUBBORN))
            printed = {name: set(await two_pids(here, name)) for name in names}
            here.executor._scan = (0.0, None)
            for name in names:
                assert printed[name] == here.executor.pids(name) & set.union(*printed.values())
            assert len(read) == len(set(read)) > 0

    run(body())


def _state(here: object, attempt_id: str) -> str:
    states = {pid: procscan.stat_of(pid) for pid in here.executor.pids(attempt_id)}
    return "T" if any(found is not None and found.state == "T" for found in states.values()) else ""


def test_a_job_that_ends_by_itself_in_its_grace_is_stopped_with_its_own_code(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            code = "trap 'echo saved; exit 7' TERM; echo up; while :; do sleep 0.02; done"
            await here.executor.launch(shell("t.1.0.1", code))
            await eventually(lambda: here.stdout("t.1.0.1") == "up\n")
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 20_000)
            found = await here.ended("t.1.0.1")
            assert (found.state, found.exit_code, found.signal, found.stop_signal) == ("STOPPED", 7, None, 15)
            assert here.stdout("t.1.0.1") == "up\nsaved\n"

    run(body())


def test_the_first_cause_wins_and_a_later_stop_only_shortens(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(python("t.1.0.1", STUBBORN))
            await two_pids(here, "t.1.0.1")
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 60_000)
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 90_000)
            await eventually(lambda: here.status("t.1.0.1").state == "STOPPING")
            await here.executor.stop("t.1.0.1", Reason.MEMORY_LIMIT, 200, "7 of 6 GiB", final_state="FAILED")
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason) == ("STOPPED", Reason.CANCELLED)

    run(body())


def test_the_watchdogs_stop_is_a_failure_with_its_figures(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec("t.1.0.1", "sleep", "60"))
            await here.executor.stop("t.1.0.1", Reason.MEMORY_LIMIT, 0, "used 7 GiB of 6 GiB", final_state="FAILED")
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason, found.signal) == ("FAILED", Reason.MEMORY_LIMIT, signal.SIGKILL)
            assert "used 7 GiB of 6 GiB" in found.detail

    run(body())


def test_a_stop_never_changes_an_end(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.result(spec("t.1.0.1", "true"))
            before = here.status("t.1.0.1")
            for _ in range(2):
                await here.executor.stop("t.1.0.1", Reason.CANCELLED, 0)
            await here.executor.stop("t.9.0.1", Reason.CANCELLED, 0)
            await asyncio.sleep(0.1)
            assert here.status("t.1.0.1") == before
            assert (await here.restart())["t.1.0.1"] == before

    run(body())


def test_a_stop_against_an_exit_has_one_winner(tmp_path: Path) -> None:
    """Whichever it is, it is reported once and is what the disk says."""

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            ids = [f"t.{number}.0.1" for number in range(24)]
            for number, attempt_id in enumerate(ids):
                await here.executor.launch(shell(attempt_id, f"sleep 0.0{number % 10}"))
                await here.executor.stop(attempt_id, Reason.CANCELLED, 1000)
            for attempt_id in ids:
                found = await here.ended(attempt_id)
                if found.state == "SUCCEEDED":
                    assert (found.reason, found.exit_code) == (Reason.COMPLETED, 0)
                else:
                    assert (found.state, found.reason) == ("STOPPED", Reason.CANCELLED)
                assert sum(1 for status in here.seen if status.final and status.attempt_id == attempt_id) == 1
            before = here.executor.statuses()
            assert await here.restart() == before

    run(body())


def test_a_stop_during_the_launch_is_not_lost(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            gate = asyncio.Event()
            launching = asyncio.create_task(here.executor.launch(spec("t.1.0.1", "sleep", "60"), gate.wait))
            await eventually(lambda: "t.1.0.1" in here.executor.statuses())
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 100)
            gate.set()
            await launching
            assert (await here.ended("t.1.0.1")).reason is Reason.CANCELLED

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_children_do_not_outlive_a_parent_that_exits(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            gate = tmp_path / "gate"
            code = f"sleep 600 & echo $!; setsid sleep 600 & echo $!; until [ -e {gate} ]; do sleep 0.02; done"
            await here.executor.launch(shell("t.1.0.1", code))
            pids = await two_pids(here, "t.1.0.1")
            assert all(alive(pid) for pid in pids)
            gate.touch()
            found = await here.ended("t.1.0.1")
            assert (found.state, found.exit_code) == ("SUCCEEDED", 0)
            assert not any(alive(pid) for pid in pids)

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_the_time_limit_holds_for_a_job_that_stopped_itself(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            code = "trap '' TERM; kill -STOP $$; sleep 600"
            found = await here.result(shell("t.1.0.1", code, run_limit_ms=300, grace_ms=200))
            assert (found.state, found.reason, found.signal) == ("FAILED", Reason.TIME_LIMIT, signal.SIGKILL)
            assert found.started_ms is not None
            assert found.ended_ms is not None
            assert 500 <= found.ended_ms - found.started_ms < 5000
            assert "0.3 s" in found.detail

    run(body())


# -- the lease


def test_without_word_from_the_scheduler_only_the_job_that_asked_for_it_ends(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            wall_end = time.time_ns() // 1_000_000 + 2500
            here.executor.renew_lease(boot_ns() + 2_500_000_000)
            stubborn = python("t.1.0.1", STUBBORN, on_disconnect="stop_and_requeue", grace_ms=500)
            await here.executor.launch(stubborn)
            await here.executor.launch(spec("t.2.0.1", "sleep", "600", on_disconnect="keep"))
            pids = await two_pids(here, "t.1.0.1")
            found = await here.ended("t.1.0.1")
            assert found.ended_ms <= wall_end + TOLERANCE_MS
            assert not any(alive(pid) for pid in pids)
            assert (found.state, found.reason, found.signal) == ("STOPPED", Reason.LEASE_EXPIRED, signal.SIGKILL)
            assert here.status("t.2.0.1").state == "RUNNING"

    run(body())


def test_a_lease_that_is_renewed_ends_nothing_and_its_end_needs_no_agent(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            here.executor.renew_lease(boot_ns() + 1_500_000_000)
            await here.executor.launch(spec("t.1.0.1", "sleep", "600", on_disconnect="stop_and_requeue", grace_ms=100))
            pid = await eventually(lambda: here.executor.pids("t.1.0.1"))
            for _ in range(8):
                await asyncio.sleep(0.25)
                here.executor.renew_lease(boot_ns() + 1_500_000_000)
            assert here.status("t.1.0.1").state == "RUNNING"
            await here.executor.close()
            await eventually(lambda: not any(alive(one) for one in pid))
            recovered = {status.attempt_id: status for status in await here.start()}
            assert recovered["t.1.0.1"].reason is Reason.LEASE_EXPIRED

    run(body())


def test_a_stop_with_a_long_grace_ends_with_the_lease(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            wall_end = time.time_ns() // 1_000_000 + 2000
            here.executor.renew_lease(boot_ns() + 2_000_000_000)
            await here.executor.launch(python("t.1.0.1", STUBBORN, on_disconnect="stop_and_requeue", grace_ms=100))
            await two_pids(here, "t.1.0.1")
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 60_000)
            found = await here.ended("t.1.0.1")
            assert found.ended_ms <= wall_end + TOLERANCE_MS
            assert found.reason is Reason.CANCELLED

    run(body())


def test_a_lease_too_short_for_the_grace_refuses_the_launch(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            launch = spec("t.1.0.1", "true", on_disconnect="stop_and_requeue", grace_ms=10_000)
            for left_ms in (0, 9_000, lease_needed_ms(10_000) - 5):
                here.executor.renew_lease(boot_ns() + left_ms * 1_000_000)
                with pytest.raises(LaunchRefused) as refused:
                    await here.executor.launch(launch)
                assert refused.value.reason is Reason.LEASE_EXPIRED
            here.executor.renew_lease(boot_ns() + 15_000_000_000)
            assert (await here.result(launch)).state == "SUCCEEDED"

    run(body())


def test_a_lease_of_another_boot_is_none(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            here.executor.renew_lease(boot_ns() + 60_000_000_000)
            await here.restart()
            launch = spec("t.1.0.1", "true", on_disconnect="stop_and_requeue")
            assert (await here.result(launch)).state == "SUCCEEDED"
            await here.executor.close()
            lease = tmp_path / "lease"
            lease.write_bytes(lease.read_bytes()[:8] + b"another-boot")
            await here.start()
            with pytest.raises(LaunchRefused):
                await here.executor.launch(spec("t.2.0.1", "true", on_disconnect="stop_and_requeue"))

    run(body())


# -- shims that die or hang


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_shim_that_is_killed_takes_its_job_with_it(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            await here.executor.launch(python("t.1.0.1", STUBBORN))
            await here.executor.launch(spec("t.2.0.1", "sleep", "600"))
            pids = await two_pids(here, "t.1.0.1")
            await here.running("t.2.0.1")
            os.kill(here.shim_pid("t.1.0.1"), signal.SIGKILL)
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason, found.exit_code) == ("FAILED", Reason.INFRA, None)
            assert not any(alive(pid) for pid in pids)
            assert here.status("t.2.0.1").state == "RUNNING"
            assert (await here.restart())["t.1.0.1"] == found

    run(body())


def test_a_shim_that_is_killed_in_a_cancel_leaves_a_cancelled_attempt(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(python("t.1.0.1", STUBBORN))
            pids = await two_pids(here, "t.1.0.1")
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 60_000, "cancelled by ann")
            await eventually(lambda: here.status("t.1.0.1").state == "STOPPING")
            os.kill(here.shim_pid("t.1.0.1"), signal.SIGKILL)
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason, found.signal) == ("STOPPED", Reason.CANCELLED, signal.SIGKILL)
            assert "cancelled by ann" in found.detail
            assert not any(alive(pid) for pid in pids)

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_shim_that_hangs_does_not_keep_its_job_alive(
    tmp_path: Path, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "SILENT_SHIM_S", 0.3)

    async def body() -> None:
        async with host(tmp_path, weak) as here:
            await here.executor.launch(python("t.1.0.1", STUBBORN))
            pids = await two_pids(here, "t.1.0.1")
            os.kill(here.shim_pid("t.1.0.1"), signal.SIGSTOP)
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 100)
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason) == ("STOPPED", Reason.CANCELLED)
            assert not any(alive(pid) for pid in pids)

    run(body())


def test_a_shim_that_slept_finds_its_job_and_its_orders_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell("t.1.0.1", "sleep 0.3; exit 4"))
            await here.running("t.1.0.1")
            shim = here.shim_pid("t.1.0.1")
            os.kill(shim, signal.SIGSTOP)
            await asyncio.sleep(0.6)
            assert here.status("t.1.0.1").state == "RUNNING"
            # an agent that comes meanwhile adopts it in its sleep
            recovered = await here.restart()
            assert recovered["t.1.0.1"].state == "RUNNING"
            os.kill(shim, signal.SIGCONT)
            assert (await here.ended("t.1.0.1")).exit_code == 4

    run(body())


@needs_groups
def test_a_stranger_that_wrote_to_the_jobs_pipe_does_not_hold_its_end_up(tmp_path: Path) -> None:
    """A process outside the job got the write end of its stdout: the end waits for the job's processes, not for
    the pipe.
    """

    async def body() -> None:
        async with host(tmp_path) as here:
            await here.executor.launch(spec("t.1.0.1", "sleep", "600"))
            await here.running("t.1.0.1")
            (pid,) = here.executor.pids("t.1.0.1")
            held = os.open(f"/proc/{pid}/fd/1", os.O_WRONLY)
            try:
                os.write(held, b"from outside\n")
                await here.executor.stop("t.1.0.1", Reason.CANCELLED, 1000)
                assert (await here.ended("t.1.0.1")).state == "STOPPED"
                assert here.stdout("t.1.0.1") == "from outside\n"
            finally:
                os.close(held)

    run(body())


@needs_root
@needs_groups
@pytest.mark.skipif(not Path("/sys/fs/cgroup/freezer").is_dir(), reason="no v1 freezer to hold a process with")
def test_what_outlives_sigkill_is_never_called_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that the kernel does not let die (here: frozen) keeps its attempt alive, visibly, until it is
    gone.
    """
    monkeypatch.setattr(attempttable, "STUCK_AFTER_NS", 300_000_000)
    monkeypatch.setattr(attempttable, "KILL_SLICE_S", 0.1)
    freezer = Path(f"/sys/fs/cgroup/freezer/gpushare-test-{uuid.uuid4().hex[:12]}")

    async def body() -> None:
        async with host(tmp_path) as here:
            await here.executor.launch(spec("t.1.0.1", "sleep", "600"))
            await here.running("t.1.0.1")
            (pid,) = here.executor.pids("t.1.0.1")
            freezer.mkdir()
            try:
                (freezer / "cgroup.procs").write_text(str(pid))
                (freezer / "freezer.state").write_text("FROZEN")
                await eventually(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n")
                os.kill(here.shim_pid("t.1.0.1"), signal.SIGKILL)
                await eventually(lambda: here.status("t.1.0.1").stuck)
                assert here.status("t.1.0.1").state == "STOPPING"
                assert str(pid) in here.status("t.1.0.1").detail
                with pytest.raises(ValueError, match="cannot be forgotten"):
                    await here.executor.forget("t.1.0.1")
            finally:
                (freezer / "freezer.state").write_text("THAWED")
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason, found.stuck) == ("FAILED", Reason.INFRA, False)
            freezer.rmdir()

    run(body())


def test_nothing_leaks_from_attempt_to_attempt(tmp_path: Path) -> None:
    threads = threading.active_count()

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:

            async def one(number: int) -> None:
                attempt_id = f"t.{number}.0.1"
                await here.executor.launch(shell(attempt_id, "exit 1"))
                await here.ended(attempt_id)
                await here.executor.forget(attempt_id)

            await asyncio.gather(*(one(number) for number in range(10)))
            before = os.listdir("/proc/self/fd")
            await asyncio.gather(*(one(number) for number in range(10, 40)))
            assert os.listdir("/proc/self/fd") == before
            assert threading.active_count() <= threads + work.THREADS
            launcher = here.executor.launcher_pid
            children = Path(f"/proc/{launcher}/task/{launcher}/children")
            await eventually(lambda: children.read_text() == "")
            assert here.executor.statuses() == {}

    run(body())


def test_what_left_session_and_ancestry_behind_is_found_by_its_environment(tmp_path: Path) -> None:
    """Weak containment after a shim's death: only the tag is left to tell whose a daemon is."""

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(python("t.1.0.1", STUBBORN))
            pids = await two_pids(here, "t.1.0.1")
            stranger = await asyncio.create_subprocess_exec(
                "sleep", "600", env={**os.environ, procscan.TAG_NAME: f"{here.instance}/t.1.0.2"}
            )
            try:
                await here.executor.close()
                os.kill(here.shim_pid("t.1.0.1"), signal.SIGKILL)
                recovered = {status.attempt_id: status for status in await here.start()}
                assert recovered["t.1.0.1"].reason is Reason.INFRA
                assert not any(alive(pid) for pid in pids)
                assert stranger.returncode is None
            finally:
                stranger.kill()
                await stranger.wait()

    run(body())
