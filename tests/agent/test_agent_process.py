"""The whole agent as a process of its own: real jobs on simulated cards, ordered about by a fake scheduler."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standins.agent_process import CARD, AgentProcess, Scene, play
from standins.fake_nvml import FakeNvml, uuid_of
from standins.fake_scheduler import NODE, FakeScheduler, Session, Switches

from gpushare.errors import error_of
from gpushare.join import encode_join
from gpushare.reasons import Reason
from gpushare.v1 import agent_pb2, job_pb2, node_pb2
from gpushare_agent.gpus.catalogue import card_uuid

OTHER_CARD = card_uuid(NODE, 1)
LEASE_S = 2
SIMWORK = (sys.executable, "-m", "gpushare_agent.gpus.simwork")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


def test_enrolment_is_kept_and_the_join_secret_is_used_once(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        file = scene.agent.state_dir / "credentials"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        await scene.agent.stop()
        await scene.agent.start()
        second = await scene.scheduler.synced(2)
        assert len(scene.scheduler.enrolled) == 1
        first = scene.scheduler.sessions[0]
        assert second.hello.instance_id == first.hello.instance_id == scene.scheduler.enrolled[0].instance_id
        assert [first.hello.start_counter, second.hello.start_counter] == [1, 2]
        assert second.hello.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    play(tmp_path, act)


def test_a_simulated_node_says_what_it_has_and_what_each_card_can_fence(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        sync = scene.scheduler.session.sync
        assert sync is not None
        assert [gpu.uuid for gpu in sync.gpus] == [CARD, OTHER_CARD]
        assert {(gpu.model, gpu.total_mib, gpu.usable_mib, gpu.simulated) for gpu in sync.gpus} == {
            ("H100-80GB", 81559, 81559, True)
        }
        assert (sync.cpu_milli, sync.memory_mib) == (56_000, 2 * 256 * 1024)
        offers = {tier.tier: tier.absent_because for tier in sync.gpus[0].tiers}
        assert offers == {"exclusive": "", "timeslice": "", "mps-v2": "a simulated card has no MPS"}
        assert {condition.state for condition in sync.conditions} == {node_pb2.GPU_STATE_HEALTHY}
        assert scene.agent.log().count("fences exclusive (hard), timeslice (soft)") == 2

    play(tmp_path, act)


def test_a_share_runs_with_its_card_and_its_output_and_code_come_back(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        script = "echo $CUDA_VISIBLE_DEVICES $GPUSHARE_GPU_MEMORY_MIB $GPUSHARE_NODE; echo oops >&2; exit 3"
        await scene.share("v.1.0.1", "sh", "-c", script, env={"CUDA_VISIBLE_DEVICES": "mine"})
        report = await scene.scheduler.state("v.1.0.1", "FAILED", "SUCCEEDED")
        assert (report.reason, report.exit_code) == ("EXIT_CODE", 3)
        assert report.containment
        assert await scene.scheduler.read_logs("v.1.0.1") == f"{CARD} 20000 {NODE}\n".encode()
        assert await scene.scheduler.read_logs("v.1.0.1", "stderr") == b"oops\n"

    play(tmp_path, act)


def test_output_is_followed_while_it_is_printed_and_ends_with_the_job(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        go = tmp_path / "go"
        await scene.start("v.1.0.1", "sh", "-c", f"echo one; while [ ! -e {go} ]; do sleep 0.05; done; echo two")
        read = asyncio.create_task(scene.scheduler.read_logs("v.1.0.1"))
        await scene.scheduler.until(
            lambda: any(c.data == b"one\n" for cs in scene.scheduler.chunks.values() for c in cs)
        )
        assert not read.done()
        go.touch()
        assert await read == b"one\ntwo\n"
        await scene.scheduler.state("v.1.0.1", "SUCCEEDED", within_s=1)

    play(tmp_path, act)


def test_what_does_not_fit_the_agents_own_ledger_is_not_started(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        for number in (1, 2, 3):
            await scene.share(f"v.{number}.0.1", "sleep", "60", gpu_milli=400, gpu_memory_mib=1000)
        report = await scene.scheduler.state("v.3.0.1", "STOPPED")
        assert report.reason == "NOT_STARTED"
        assert "1200 of 1000 milli" in report.detail
        await scene.scheduler.state("v.2.0.1", "RUNNING")
        await scene.share("v.4.0.1", "true", gpu_uuids=["GPU-unknown"])
        assert "no card GPU-unknown" in (await scene.scheduler.state("v.4.0.1", "STOPPED")).detail

    play(tmp_path, act)


def test_a_job_over_its_slice_is_ended_within_two_seconds_with_both_figures(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.share("v.1.0.1", *SIMWORK, "--memory", "10G", "--seconds", "60")
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        await scene.share("v.2.0.1", *SIMWORK, "--memory", "30G", "--seconds", "60", "--ignore-limit")
        await scene.scheduler.state("v.2.0.1", "RUNNING")
        began_s = time.monotonic()
        report = await scene.scheduler.state("v.2.0.1", "FAILED")
        assert time.monotonic() - began_s < 4  # two for the watchdog, the rest for a slow machine
        assert report.reason == "MEMORY_LIMIT"
        assert "30720 MiB" in report.detail
        assert "20000 MiB" in report.detail
        last = scene.scheduler.last_report("v.1.0.1")
        assert last is not None
        assert last.state == job_pb2.ATTEMPT_STATE_RUNNING
        await scene.scheduler.until(
            lambda: any(r.attempt_use["v.1.0.1"].used_mib == 10240 for r in scene.scheduler.session.gpu_reports)
        )

    play(tmp_path, act)


def test_a_kill_of_the_agent_harms_no_job_and_the_next_one_has_its_ledger(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        witness = tmp_path / "witness"
        script = f"echo started >> {witness}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 7"
        await scene.share("v.1.0.1", "sh", "-c", script, gpu_milli=800)
        await scene.share("v.2.0.1", "sh", "-c", "exit 4", gpu_milli=100)
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        await scene.scheduler.state("v.2.0.1", "FAILED")
        await scene.agent.kill()
        await scene.agent.start()
        session = await scene.scheduler.synced(2)
        assert session.sync is not None
        said = {report.attempt_id: report for report in session.sync.attempts}
        assert said["v.1.0.1"].state == job_pb2.ATTEMPT_STATE_RUNNING
        assert said["v.2.0.1"].exit_code == 4
        await scene.share("v.1.0.1", "sh", "-c", f"echo twice >> {witness}", gpu_milli=800)
        await scene.share("v.3.0.1", "true", gpu_milli=300)
        assert (await scene.scheduler.state("v.3.0.1", "STOPPED")).reason == "NOT_STARTED"
        (tmp_path / "go").touch()
        assert (await scene.scheduler.state("v.1.0.1", "FAILED")).exit_code == 7
        assert witness.read_text() == "started\n"

    play(tmp_path, act)


def test_a_stop_before_its_start_and_a_late_order_start_nothing_even_after_a_restart(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.stop("v.1.0.1")
        assert (await scene.scheduler.state("v.1.0.1", "STOPPED")).reason == "NOT_STARTED"
        await scene.agent.kill()
        scene.scheduler.switches.term = 5
        await scene.agent.start()
        await scene.scheduler.synced(2)
        witness = tmp_path / "witness"
        await scene.start("v.1.0.1", "touch", str(witness), term=5)
        await scene.start("v.2.0.1", "touch", str(witness), term=4)
        await scene.start("v.3.0.1", "true", term=5)
        await scene.scheduler.state("v.3.0.1", "SUCCEEDED")
        assert not witness.exists()
        assert scene.scheduler.last_report("v.2.0.1") is None
        await scene.agent.kill()
        scene.scheduler.switches.term = 4
        await scene.agent.start()
        await until(lambda: "is not followed" in scene.agent.log())
        assert scene.scheduler.session.sync is None
        assert scene.scheduler.session.hello.highest_term == 5
        scene.scheduler.switches.term = 5
        await scene.scheduler.until(lambda: scene.scheduler.session.sync)

    play(tmp_path, act)


def test_ends_are_repeated_until_they_are_forgotten_and_output_outlives_that(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.share("v.1.0.1", "echo", "kept")
        await scene.scheduler.state("v.1.0.1", "SUCCEEDED")
        await scene.agent.kill()
        await scene.agent.start()
        second = await scene.scheduler.synced(2)
        assert second.sync is not None
        assert [report.attempt_id for report in second.sync.attempts] == ["v.1.0.1"]
        await second.order(forget_attempt=agent_pb2.ForgetAttempt(attempt_id="v.1.0.1", term=1))
        await until(lambda: not list((scene.agent.state_dir / "held").glob("*.json")))
        await scene.share("v.1.0.1", "touch", str(tmp_path / "twice"))
        await scene.agent.kill()
        await scene.agent.start()
        third = await scene.scheduler.synced(3)
        assert third.sync is not None
        assert list(third.sync.attempts) == []
        assert await scene.scheduler.read_logs("v.1.0.1") == b"kept\n"
        await scene.share("v.1.0.1", "touch", str(tmp_path / "twice"))
        assert (await scene.scheduler.state("v.1.0.1", "STOPPED")).reason == "STALE"
        assert not (tmp_path / "twice").exists()

    play(tmp_path, act)


def test_a_signal_leaves_the_jobs_and_ends_the_agent_within_two_seconds(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        pid_file = tmp_path / "pid"
        await scene.start("v.1.0.1", "sh", "-c", f"echo $$ > {pid_file}; exec sleep 60")
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        await until(lambda: pid_file.exists() and pid_file.read_text().strip())
        assert await scene.agent.stop() < 2
        assert scene.agent.process is not None
        assert scene.agent.process.returncode == 0
        assert alive(int(pid_file.read_text()))
        await scene.agent.start()
        await scene.scheduler.synced(2)
        await scene.stop("v.1.0.1", grace_ms=5000)
        report = await scene.scheduler.state("v.1.0.1", "STOPPED")
        assert (report.reason, report.signal) == ("CANCELLED", signal.SIGTERM)

    play(tmp_path, act)


def test_a_lease_keeps_a_job_alive_as_long_as_it_is_renewed_and_ends_it_before_it_ends(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        pids = {name: tmp_path / name for name in ("stops", "keeps")}
        for number, (name, file) in enumerate(pids.items(), start=1):
            wish = job_pb2.ON_DISCONNECT_STOP_AND_REQUEUE if name == "stops" else job_pb2.ON_DISCONNECT_KEEP
            script = f"echo $$ > {file}.part; mv {file}.part {file}; exec sleep 60"
            await scene.start(f"v.{number}.0.1", "sh", "-c", script, on_disconnect=wish, grace_ms=200)
        await until(lambda: all(file.exists() for file in pids.values()))
        await asyncio.sleep(2 * LEASE_S)
        stops, keeps = (int(file.read_text()) for file in pids.values())
        assert alive(stops)
        await scene.scheduler.stop()
        began_s = time.monotonic()
        await until(lambda: not alive(stops))
        assert time.monotonic() - began_s < LEASE_S + 0.5
        assert alive(keeps)
        await scene.scheduler.start()
        report = await scene.scheduler.state("v.1.0.1", "STOPPED", "FAILED")
        assert report.reason == "LEASE_EXPIRED"

    play(tmp_path, act, switches=Switches(lease_ttl_ms=LEASE_S * 1000))


def test_a_grace_that_leaves_little_of_the_lease_is_renewed_for_in_time(tmp_path: Path) -> None:
    """With renewals every third of the ttl alone, the job would stop itself between two of them."""

    async def act(scene: Scene) -> None:
        wish = job_pb2.ON_DISCONNECT_STOP_AND_REQUEUE
        await scene.start("v.1.0.1", "sleep", "6", on_disconnect=wish, grace_ms=4500)
        report = await scene.scheduler.state("v.1.0.1", "SUCCEEDED", "FAILED", "STOPPED", within_s=30)
        assert report.reason == "COMPLETED", report

    play(tmp_path, act, switches=Switches(lease_ttl_ms=6000))


def test_an_agent_that_waits_to_enrol_can_be_stopped(tmp_path: Path) -> None:
    async def run() -> None:
        async with FakeScheduler() as scheduler:
            address = scheduler.address
        agent = AgentProcess(tmp_path, address, simulate="1xL40S")
        await agent.start()
        try:
            await until(lambda: "cannot enrol yet" in agent.log())
            assert await agent.stop() < 2
            assert agent.process is not None
            assert agent.process.returncode == 0
            assert "Traceback" not in agent.log()
        finally:
            await agent.clean_up()

    asyncio.run(run())


def test_a_refused_agent_keeps_its_jobs_and_comes_back(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.start("v.1.0.1", "sleep", "60")
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        scene.scheduler.switches.refuse_session = error_of(Reason.UNAUTHENTICATED)
        await scene.scheduler.stop()
        await scene.scheduler.start()
        await until(lambda: "UNAUTHENTICATED" in scene.agent.log())
        scene.scheduler.switches.refuse_session = None
        session = await scene.scheduler.synced(2)
        assert session.sync is not None
        assert [r.state for r in session.sync.attempts] == [job_pb2.ATTEMPT_STATE_RUNNING]

    play(tmp_path, act)


def faults(root: Path, *found: dict[str, object]) -> Path:
    path = root / "faults.json"
    fresh = root / "faults.fresh"
    fresh.write_text(json.dumps(found))
    fresh.replace(path)
    return path


def test_faults_of_simulated_cards_stop_placement_and_only_a_lost_card_ends_its_jobs(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        scheduler = scene.scheduler
        await scene.share("v.1.0.1", "sleep", "60")
        await scene.share("v.2.0.1", "sleep", "60", gpu_uuids=[OTHER_CARD])
        await scheduler.state("v.2.0.1", "RUNNING")
        stranger = {"fault": "stranger", "gpu": 1, "pid": 1, "user": "eve", "memory_mib": 70_000}
        faults(tmp_path, stranger)
        condition = await scheduler.condition(OTHER_CARD, lambda c: c.strangers)
        assert [(s.pid, s.user, s.memory_mib) for s in condition.strangers] == [(1, "eve", 70_000)]
        assert condition.state == node_pb2.GPU_STATE_HEALTHY
        await scene.share("v.3.0.1", "true", gpu_uuids=[OTHER_CARD])
        report = await scheduler.state("v.3.0.1", "STOPPED")
        assert report.reason == "OCCUPIED"
        assert "pid 1 of eve holds 70000 MiB" in report.detail
        faults(tmp_path, {"fault": "hang"})
        condition = await scheduler.condition(CARD, lambda c: c.reason == "NVML_HUNG")
        assert condition.state == node_pb2.GPU_STATE_DRAINED
        faults(tmp_path, {"fault": "mismatch"})
        await scheduler.condition(CARD, lambda c: c.reason == "DRIVER_MISMATCH")
        faults(tmp_path, {"fault": "lost", "gpu": 0})
        report = await scheduler.state("v.1.0.1", "FAILED")
        assert report.reason == "GPU_LOST"
        assert (await scheduler.condition(CARD, lambda c: c.reason == "GPU_LOST")).state == node_pb2.GPU_STATE_LOST
        await scheduler.condition(OTHER_CARD, lambda c: c.state == node_pb2.GPU_STATE_HEALTHY and not c.strangers)
        last = scheduler.last_report("v.2.0.1")
        assert last is not None
        assert last.state == job_pb2.ATTEMPT_STATE_RUNNING

    play(tmp_path, act, simulate_faults=str(faults(tmp_path)))


def test_real_cards_are_registered_with_a_reserve_and_a_hang_delays_nothing_but_the_next_look(tmp_path: Path) -> None:
    """Over the stand-in library: eight cards; a hang that no signal ends; the agent is restarted meanwhile."""
    fake = FakeNvml.with_cards(tmp_path, 8)
    fake.write()

    def cards(session: Session) -> list[agent_pb2.GpuInventory]:
        assert session.sync is not None
        return list(session.sync.gpus)

    async def act(scene: Scene) -> None:
        scheduler = scene.scheduler
        # A slow first look lets the agent sync without its cards, and again with them.
        await scheduler.until(lambda: bool(cards(scheduler.session)), within_s=20)
        registered = cards(scheduler.session)
        assert [gpu.uuid for gpu in registered] == [uuid_of(index) for index in range(8)]
        assert {gpu.total_mib - gpu.usable_mib for gpu in registered} == {600 + 512}
        assert scene.agent.log().count("fences exclusive (hard)") == 8
        await scene.share("v.1.0.1", "sleep", "60", gpu_uuids=[uuid_of(0)])
        await scheduler.state("v.1.0.1", "RUNNING")
        fake.hang("nvmlDeviceGetMemoryInfo_v2", 60)
        fake.hang("nvmlDeviceGetMemoryInfo", 60)
        fake.write()
        await scheduler.condition(uuid_of(0), lambda c: c.reason == "NVML_HUNG", within_s=20)
        session = scheduler.session
        known = len(session.renewals)
        began_s = time.monotonic()
        await scheduler.until(lambda: len(session.renewals) >= known + 6)
        assert time.monotonic() - began_s < 3.5  # six renewals at half a second each
        assert await scene.agent.stop() < 2
        await scene.agent.start(fake.environ())
        second = await scheduler.synced(2)
        assert cards(second) == registered
        assert [r.state for r in second.sync.attempts] == [job_pb2.ATTEMPT_STATE_RUNNING]  # type: ignore[union-attr]

    play(
        tmp_path,
        act,
        simulate="",
        environ=fake.environ(),
        switches=Switches(lease_ttl_ms=1500),
        nvml_deadline_ms=1000,
        tiers=["timeslice", "exclusive"],
    )


class TestStart:
    def run_once(self, root: Path, **settings: Any) -> tuple[int, str]:
        """Start an agent that is expected to refuse; its exit code and words."""

        async def run() -> tuple[int, str]:
            async with FakeScheduler() as scheduler:
                agent = AgentProcess(root, scheduler.address, **settings)
                join = settings.get("simulate") != "none"
                if not join:
                    agent.config_file.write_text(agent.config_file.read_text().replace('"none"', '""'))
                await agent.start(join=join)
                assert agent.process is not None
                code = await asyncio.wait_for(agent.process.wait(), 15)
                return code, agent.log()

        return asyncio.run(run())

    def test_an_agent_that_never_joined_says_how_to(self, tmp_path: Path) -> None:
        code, said = self.run_once(tmp_path, simulate="none")
        assert code == 1
        assert "not enrolled" in said
        assert "join-token" in said
        assert "Traceback" not in said

    def test_unknown_simulated_cards_are_refused_by_name(self, tmp_path: Path) -> None:
        code, said = self.run_once(tmp_path, simulate="4xVOODOO2")
        assert code == 1
        assert "VOODOO2" in said
        assert "Traceback" not in said

    def test_a_wrong_configuration_is_refused_with_its_line(self, tmp_path: Path) -> None:
        code, said = self.run_once(tmp_path, simulate="1xL40S", no_such_key=1)
        assert code == 1
        assert "no_such_key" in said
        assert "agent.toml" in said
        assert "Traceback" not in said

    def checked(self, config: Path) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "gpushare_agent.main", "--check", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def test_a_check_says_what_a_start_would_refuse_and_notes_what_is_not_there_yet(self, tmp_path: Path) -> None:
        agent = AgentProcess(tmp_path, "127.0.0.1:1", simulate="1xL40S", join_file=str(tmp_path / "join"))
        config = agent.config_file
        code, out, err = self.checked(config)
        assert (code, out) == (0, f"{config} is right\n")
        assert f"there is no join_file {tmp_path / 'join'}" in err
        config.write_text(config.read_text().replace("1xL40S", "4xVOODOO2"))
        code, out, err = self.checked(config)
        assert (code, out) == (1, "")
        assert "simulate: no simulated card is called 'VOODOO2'" in err
        assert not agent.state_dir.exists()

    def test_a_join_file_is_needed_before_enrolment_and_not_after(self, tmp_path: Path) -> None:
        async def act() -> None:
            async with FakeScheduler() as scheduler:
                agent = AgentProcess(tmp_path, scheduler.address, simulate="1xL40S", join_file=str(tmp_path / "join"))
                try:
                    await agent.start(join=False)
                    assert agent.process is not None
                    assert await asyncio.wait_for(agent.process.wait(), 15) == 1
                    assert f"{tmp_path / 'join'}: join_file: this file cannot be read" in agent.log()
                    await agent.start()
                    await scheduler.synced(1)
                    await agent.stop()
                    await agent.start(join=False)
                    await scheduler.synced(2)
                    await agent.stop()
                    assert self.checked(agent.config_file)[2] == ""
                finally:
                    await agent.clean_up()

        asyncio.run(act())

    def test_a_persons_line_is_told_from_an_agents(self, tmp_path: Path) -> None:
        agent = AgentProcess(tmp_path, "127.0.0.1:1", simulate="1xL40S")
        agent.join = encode_join("127.0.0.1:1", "gps_" + "a" * 43, "")

        async def act() -> None:
            await agent.start()
            assert agent.process is not None
            assert await asyncio.wait_for(agent.process.wait(), 15) == 1

        asyncio.run(act())
        assert "this line is for `gpushare login`" in agent.log()

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
    def test_a_root_agent_that_cannot_make_control_groups_does_not_start(self, tmp_path: Path) -> None:
        config = tmp_path / "agent.toml"
        settings = {"state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run"), "simulate": "1xL40S"}
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        script = (
            "mount --make-rprivate / && for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do "
            "mount --bind $d $d && mount -o remount,ro,bind $d || exit 9; done; "
            f"exec {sys.executable} -m gpushare_agent.main --config {config}"
        )
        found = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
        if found.returncode == 9 or "unshare" in found.stderr:
            pytest.skip(f"no mount namespaces here: {found.stderr.strip()}")
        assert found.returncode == 1
        assert "jobs cannot be confined here" in found.stderr
        assert 'containment = "weak"' in found.stderr
        assert "Traceback" not in found.stderr

    def test_a_second_agent_on_one_state_directory_does_not_start(self, tmp_path: Path) -> None:
        async def act(scene: Scene) -> None:
            second = AgentProcess(tmp_path, scene.scheduler.address, simulate="2xH100-80GB")
            second.log_file = tmp_path / "second.log"
            await second.start()
            assert second.process is not None
            assert await asyncio.wait_for(second.process.wait(), 15) == 1
            assert f"another agent (pid {scene.agent.pid}) runs" in second.log()
            assert len(scene.scheduler.sessions) == 1

        play(tmp_path, act)


@pytest.mark.root
def test_output_may_lie_elsewhere(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.start("v.1.0.1", "echo", "there")
        await scene.scheduler.state("v.1.0.1", "SUCCEEDED")
        assert (tmp_path / "elsewhere" / "v.1.0.1" / "stdout").read_bytes() == b"there\n"
        assert await scene.scheduler.read_logs("v.1.0.1") == b"there\n"

    play(tmp_path, act, log_dir=str(tmp_path / "elsewhere"))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs jobs as other users")
def test_a_root_agent_runs_jobs_as_the_mapped_user_or_not_at_all() -> None:
    root = Path(tempfile.mkdtemp(prefix="gpushare-agent-"))  # pytest's own directories let no other user in
    root.chmod(0o711)

    async def act(scene: Scene) -> None:
        await scene.share("v.1.0.1", "sh", "-c", "id -un; id -u; echo $HOME", unix_user="nobody")
        await scene.scheduler.state("v.1.0.1", "SUCCEEDED")
        user, uid, _ = (await scene.scheduler.read_logs("v.1.0.1")).decode().splitlines()
        assert (user, uid != "0") == ("nobody", True)
        for number, name in enumerate(("", "root", "no-such-person"), start=2):
            await scene.share(f"v.{number}.0.1", "touch", str(root / "ran"), unix_user=name)
            report = await scene.scheduler.state(f"v.{number}.0.1", "FAILED", "STOPPED")
            assert report.reason == "UNIX_USER_UNMAPPED"
        assert not (root / "ran").exists()

    try:
        play(root, act, containment="require", single_user=False)
    finally:
        shutil.rmtree(root)
