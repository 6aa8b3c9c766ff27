"""What a restarted agent finds and makes of it: adoption, judgement from disk, damaged records, reboots, dead
launchers.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from executor_kit import BOTH_KINDS, PATIENCE_S, Host, alive, eventually, host, needs_groups, run, shell, spec

from gpushare.reasons import Reason
from gpushare_agent import cgroups, launcherlink
from gpushare_agent import executor as executor_module
from gpushare_agent.launchspec import LaunchRefused
from gpushare_agent.work import Work


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_running_jobs_do_not_notice_a_new_agent(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak) as here:
            gate = tmp_path / "gate"
            code = f"echo $$ >> {tmp_path}/witness; until [ -e {gate} ]; do sleep 0.02; done; exit 6"
            for number in range(3):
                await here.executor.launch(shell(f"t.{number}.0.1", code, run_limit_ms=60_000))
            for number in range(3):
                await here.running(f"t.{number}.0.1")
            before = here.executor.statuses()
            for _ in range(3):
                assert await here.restart() == before
            pids = [int(line) for line in (tmp_path / "witness").read_text().split()]
            assert len(pids) == 3
            assert all(alive(pid) for pid in pids)
            assert here.executor.pids("t.0.0.1") & set(pids)
            gate.touch()
            for number in range(3):
                assert (await here.ended(f"t.{number}.0.1")).exit_code == 6

    run(body())


def test_what_ended_while_nobody_watched_is_told_truly(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell("t.1.0.1", "sleep 0.2; exit 9"))
            await here.executor.launch(shell("t.2.0.1", "sleep 0.2; kill -ABRT $$"))
            await here.executor.close()
            for number in (1, 2):
                path = tmp_path / f"attempts/t.{number}.0.1/exit"
                await eventually(path.exists)
            recovered = {status.attempt_id: status for status in await here.start()}
            assert (recovered["t.1.0.1"].reason, recovered["t.1.0.1"].exit_code) == (Reason.EXIT_CODE, 9)
            assert (recovered["t.2.0.1"].reason, recovered["t.2.0.1"].signal) == (Reason.SIGNALLED, signal.SIGABRT)

    run(body())


def test_a_grace_that_began_is_not_begun_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            code = "trap 'echo told' TERM; echo up; while :; do sleep 0.02; done"
            await here.executor.launch(shell("t.1.0.1", code))
            await eventually(lambda: here.stdout("t.1.0.1") == "up\n")
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 1500)
            await eventually(lambda: here.stdout("t.1.0.1") == "up\ntold\n")
            assert (await here.restart())["t.1.0.1"].state == "STOPPING"
            found = await here.ended("t.1.0.1")
            assert found.reason is Reason.CANCELLED
            assert here.stdout("t.1.0.1") == "up\ntold\n"
            assert re.search(r"SIGKILL at 1\.[5-9] s|SIGKILL at 2", found.detail)

    run(body())


def test_a_stop_that_was_recorded_but_not_sent_goes_out_after_the_restart(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec("t.1.0.1", "sleep", "600"))
            await here.running("t.1.0.1")
            await here.executor.close()
            stop = {"reason": "CANCELLED", "final_state": "STOPPED", "detail": "by ann", "grace_ms": 5000}
            (tmp_path / "attempts/t.1.0.1/stop").write_text(json.dumps(stop))
            await here.start()
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason, found.signal) == ("STOPPED", Reason.CANCELLED, signal.SIGTERM)

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_agent_and_shim_both_dead(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            await here.executor.launch(shell("t.1.0.1", "sleep 600 & setsid sleep 600 & echo $! $$; wait"))
            text = await eventually(lambda: here.stdout("t.1.0.1"))
            await here.executor.close()
            os.kill(here.shim_pid("t.1.0.1"), signal.SIGKILL)
            recovered = {status.attempt_id: status for status in await here.start()}
            assert (recovered["t.1.0.1"].state, recovered["t.1.0.1"].reason) == ("FAILED", Reason.INFRA)
            assert not any(alive(int(word)) for word in text.split())

    run(body())


def test_another_boot(tmp_path: Path) -> None:
    """An exit record is read whatever the boot; what had none was ended by the reboot, also where a power cut may
    have taken the exec record with it.
    """

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            attempts = tmp_path / "attempts"
            await here.result(shell("t.1.0.1", "exit 4"))
            for number in range(2, 6):
                await here.executor.launch(spec(f"t.{number}.0.1", "sleep", "600"))
                await here.running(f"t.{number}.0.1")
            pids = set.union(*(here.executor.pids(f"t.{number}.0.1") for number in range(2, 6)))
            await here.executor.close()
            for number in range(2, 6):
                os.kill(here.shim_pid(f"t.{number}.0.1"), signal.SIGKILL)
            await eventually(lambda: not any(alive(pid) for pid in pids))
            for path in (*attempts.glob("*/intent"), *attempts.glob("*/exec")):
                path.write_text(path.read_text().replace(here.executor.boot_id, "the-boot-before"))
            (attempts / "t.3.0.1/exec").unlink()
            stop = {"reason": "CANCELLED", "final_state": "STOPPED", "detail": "by ann"}
            (attempts / "t.4.0.1/stop").write_text(json.dumps(stop))
            # the pid of the dead task may be anybody's by now: nothing may be killed by it
            innocent = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
            (attempts / "t.5.0.1/task").write_text(json.dumps({"pid": innocent.pid, "start": 0}))
            found = {status.attempt_id: status for status in await here.start()}
            assert (found["t.1.0.1"].reason, found["t.1.0.1"].exit_code) == (Reason.EXIT_CODE, 4)
            assert (found["t.2.0.1"].state, found["t.2.0.1"].reason) == ("FAILED", Reason.NODE_REBOOTED)
            assert found["t.2.0.1"].boot_id == "the-boot-before"
            assert (found["t.3.0.1"].state, found["t.3.0.1"].reason) == ("FAILED", Reason.NODE_REBOOTED)
            assert (found["t.4.0.1"].state, found["t.4.0.1"].reason) == ("STOPPED", Reason.CANCELLED)
            assert found["t.5.0.1"].reason is Reason.NODE_REBOOTED
            assert innocent.returncode is None
            innocent.kill()
            await innocent.wait()

    run(body())


# -- seals


def test_a_sealed_attempt_never_runs(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak=True) as here:
            found = await here.executor.seal("t.1.0.1")
            assert (found.state, found.reason) == ("STOPPED", Reason.NOT_STARTED)
            await here.executor.launch(shell("t.1.0.1", f"touch {tmp_path}/ran"))
            assert await here.executor.seal("t.1.0.1") == found
            assert (await here.restart())["t.1.0.1"] == found
            await here.executor.forget("t.1.0.1")
            assert here.executor.statuses() == {}
            assert not (tmp_path / "ran").exists()

    run(body())


def test_sealing_what_runs_changes_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell("t.1.0.1", "sleep 0.3; exit 2"))
            assert (await here.executor.seal("t.1.0.1")).state in ("LAUNCHING", "RUNNING")
            assert (await here.ended("t.1.0.1")).exit_code == 2
            assert (await here.executor.seal("t.1.0.1")).exit_code == 2
            with pytest.raises(ValueError, match="cannot name"):
                await here.executor.seal("../x")

    run(body())


def test_a_shim_that_finds_the_seal_exits(tmp_path: Path) -> None:
    """The seal comes between the order and the exec record; whoever is second loses."""

    async def body() -> None:
        async with host(tmp_path / "state", weak=True) as here:

            async def seal_first() -> None:
                (tmp_path / "state/attempts/t.1.0.1/exec").write_bytes(b'{"void":true}')

            with pytest.raises(Exception, match="sealed"):
                await here.executor.launch(shell("t.1.0.1", f"touch {tmp_path}/ran"), seal_first)
            assert not (tmp_path / "ran").exists()

    run(body())


# -- damage

GARBAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "other json": lambda path: path.write_text('[1, {"a": null}]'),
    "wrong types": lambda path: path.write_text('{"attempt_id": 7, "boot_id": [], "state": "DANCING", "spec": {}}'),
    "of another attempt": lambda path: path.write_text(path.read_text().replace("t.1.0.1", "t.2.0.1")),
    "symbolic link": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "huge": lambda path: os.truncate(path, 1 << 30),
}


@pytest.mark.parametrize("damage", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_damaged_exit_record_is_never_taken_for_success(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.result(spec("t.1.0.1", "true"))
            damage(tmp_path / "attempts/t.1.0.1/exit")
            found = (await here.restart())["t.1.0.1"]
            assert (found.state, found.reason) == ("FAILED", Reason.INFRA)
            assert (await here.restart())["t.1.0.1"] == found
            assert "root:" in Path("/etc/passwd").read_text()

    run(body())


@pytest.mark.parametrize("damage", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_damaged_intent_or_exec_record_harms_no_job_that_a_shim_holds(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            for number in (1, 2):
                await here.executor.launch(shell(f"t.{number}.0.1", "until [ -e gate ]; do sleep 0.02; done; exit 3"))
                await here.running(f"t.{number}.0.1")
            damage(tmp_path / "attempts/t.1.0.1/intent")
            damage(tmp_path / "attempts/t.1.0.1/exec")
            recovered = await here.restart()
            assert recovered["t.1.0.1"].state == recovered["t.2.0.1"].state == "RUNNING"
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 1000)
            assert (await here.ended("t.1.0.1")).state == "STOPPED"

    run(body())


@pytest.mark.parametrize("weak", BOTH_KINDS)
@pytest.mark.parametrize("damage", ["empty", "torn", "symbolic link"])
def test_a_damaged_record_of_a_dead_shim_ends_the_job(tmp_path: Path, weak: bool, damage: str) -> None:
    async def body() -> None:
        async with host(tmp_path, weak) as here:
            await here.executor.launch(shell("t.1.0.1", "setsid sleep 600 & echo $!; wait"))
            pid = int(await eventually(lambda: here.stdout("t.1.0.1")))
            await here.executor.close()
            os.kill(here.shim_pid("t.1.0.1"), signal.SIGKILL)
            for name in ("intent", "exec"):
                GARBAGE[damage](tmp_path / "attempts/t.1.0.1" / name)
            found = {status.attempt_id: status for status in await here.start()}["t.1.0.1"]
            assert (found.state, found.reason) == ("FAILED", Reason.INFRA)
            assert not alive(pid)

    run(body())


@needs_groups
def test_a_state_directory_that_vanished_leaves_no_job_behind(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path / "state") as here:
            await here.executor.launch(spec("t.1.0.1", "sleep", "600"))
            await here.running("t.1.0.1")
            pids = here.executor.pids("t.1.0.1")
            await here.executor.close()
            shutil.rmtree(tmp_path / "state")
            found = {status.attempt_id: status for status in await here.start()}["t.1.0.1"]
            assert (found.state, found.reason) == ("FAILED", Reason.INFRA)
            assert not any(alive(pid) for pid in pids)

    run(body())


def test_things_that_are_no_attempts_are_left_alone(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            (tmp_path / "attempts/a.file").write_text("x")
            (tmp_path / "attempts/BAD NAME").mkdir()
            (tmp_path / "attempts/link").symlink_to("/etc")
            assert await here.restart() == {}
            assert (tmp_path / "attempts/a.file").read_text() == "x"
            shutil.rmtree(tmp_path / "attempts/BAD NAME")

    run(body())


# -- forgetting


def test_forgetting_keeps_the_logs_and_the_id(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell("t.1.0.1", "echo kept; sleep 0.2"))
            with pytest.raises(ValueError, match="cannot be forgotten"):
                await here.executor.forget("t.1.0.1")
            await here.ended("t.1.0.1")
            for _ in range(2):
                await here.executor.forget("t.1.0.1")
            assert here.stdout("t.1.0.1") == "kept\n"
            assert await here.restart() == {}
            await eventually(lambda: not list((tmp_path / "forgotten").iterdir()), "what was forgotten is deleted")

    run(body())


@needs_groups
def test_forgetting_removes_the_control_groups(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path) as here:
            layout = here.executor._files.layout
            assert layout is not None
            for number in range(5):
                await here.result(spec(f"t.{number}.0.1", "true", host_memory_mib=64, pids_max=10, cpu_milli=100))
            assert len(cgroups.attempts(layout)) == 5
            for number in range(5):
                await here.executor.forget(f"t.{number}.0.1")
            assert cgroups.attempts(layout) == []
            for base in layout.legacy:
                assert not [entry for entry in os.scandir(base.directory) if entry.is_dir()]

    run(body())


# -- the launcher


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_shim_that_hangs_before_it_takes_the_attempt_never_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    monkeypatch.setenv("GPUSHARE_FAILPOINT", f"shim.bound:hang:{gate}")
    monkeypatch.setattr(executor_module, "OWN_TIMEOUT_S", 0.5)

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            with pytest.raises(LaunchRefused, match="did not take it") as refused:
                await here.executor.launch(shell("t.1.0.1", f"touch {tmp_path}/ran"))
            assert refused.value.reason is Reason.INFRA
            (shim,) = _children(here.executor.launcher_pid)
            assert alive(shim)
            # it wakes up late, and what it was to run is gone
            gate.unlink()
            await eventually(lambda: not alive(shim))
            assert not (tmp_path / "ran").exists()
            assert here.executor.statuses() == {}

    run(body())


def test_a_shim_that_hangs_with_the_attempt_in_its_hands_counts_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    monkeypatch.setenv("GPUSHARE_FAILPOINT", f"shim.exec_recorded:hang:{gate}")
    monkeypatch.setattr(executor_module, "OWN_TIMEOUT_S", 0.5)
    monkeypatch.setattr(executor_module, "SILENT_SHIM_S", 0.2)

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(spec("t.1.0.1", "true"))
            assert here.status("t.1.0.1").state == "LAUNCHING"
            assert (await here.executor.seal("t.1.0.1")).state == "LAUNCHING"
            assert (await here.restart())["t.1.0.1"].state == "RUNNING"
            await here.executor.stop("t.1.0.1", Reason.CANCELLED, 100)
            found = await here.ended("t.1.0.1")
            assert (found.state, found.reason, found.exit_code) == ("STOPPED", Reason.CANCELLED, None)

    run(body())


async def _kill_launcher(here: Host) -> None:
    pid = here.executor.launcher_pid
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: here.executor.launcher_pid == 0)


def test_a_dead_launcher_harms_no_job_and_is_replaced(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            await here.executor.launch(shell("t.1.0.1", "sleep 0.5; exit 8"))
            await _kill_launcher(here)
            assert (await here.result(shell("t.2.0.1", "exit 9"))).exit_code == 9
            os.kill(here.executor.launcher_pid, signal.SIGKILL)
            assert (await here.result(shell("t.3.0.1", "exit 10"))).exit_code == 10
            assert (await here.ended("t.1.0.1")).exit_code == 8

    run(body())


def test_many_launches_that_find_the_launcher_gone_replace_it_once_and_wait_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the one that hangs is let go of in the background: nothing here waits this long
    monkeypatch.setattr(launcherlink, "EXIT_TIMEOUT_S", 600.0)
    order = launcherlink.LauncherProcess.order

    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            first = here.executor.launcher_pid
            pids = {first}

            async def hung(self: launcherlink.LauncherProcess, directory: str, channel: socket.socket) -> None:
                pids.add(self.pid)
                if self.pid == first:
                    if directory.endswith("t.2.0.1"):
                        await eventually(lambda: here.status("t.1.0.1").state == "RUNNING")
                    raise launcherlink.LauncherGone("it takes no orders")
                await order(self, directory, channel)

            monkeypatch.setattr(launcherlink.LauncherProcess, "order", hung)
            os.kill(first, signal.SIGSTOP)
            try:
                launches = [here.executor.launch(shell(f"t.{job}.0.1", "sleep 600")) for job in (1, 2)]
                await asyncio.wait_for(asyncio.gather(*launches), PATIENCE_S)
                await here.running("t.2.0.1")
                assert len(pids) == 2
                assert here.executor.launcher_pid in pids - {first}
            finally:
                os.kill(first, signal.SIGCONT)

    run(body())


def test_an_attempt_whose_seal_the_disk_refuses_is_not_taken_for_a_launch_and_is_sealed_later(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            (tmp_path / "attempts").rename(tmp_path / "away")
            for _ in range(2):
                with pytest.raises(OSError, match="No such file"):
                    await here.executor.seal("t.1.0.1")
                assert here.executor.statuses() == {}
            (tmp_path / "away").rename(tmp_path / "attempts")
            assert (await here.executor.seal("t.1.0.1")).reason is Reason.NOT_STARTED

    run(body())


def test_a_call_that_hangs_does_not_stop_the_loop_that_is_being_left() -> None:
    hanging = threading.Event()

    async def body() -> None:
        work = Work()
        call = asyncio.ensure_future(work.in_thread(hanging.wait))
        closing = asyncio.ensure_future(work.close())
        # the loop turns while a thread hangs, and the end of the call ends the wait
        assert not (await asyncio.wait([closing], timeout=0.05))[0]
        hanging.set()
        await asyncio.wait_for(closing, PATIENCE_S)
        assert await call

    run(body())


def test_the_launcher_ends_with_its_agent_and_not_by_a_signal_to_the_terminal(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            assert (await here.result(spec("t.0.0.1", "true"))).state == "SUCCEEDED"
            pid = here.executor.launcher_pid
            assert os.getsid(pid) == pid
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
            assert (await here.result(spec("t.1.0.1", "true"))).state == "SUCCEEDED"
            assert here.executor.launcher_pid == pid
            await here.executor.close()
            assert not alive(pid)
            await here.start()

    run(body())
