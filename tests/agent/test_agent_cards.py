"""The whole agent over the stand-ins of NVIDIA's library and MPS programs: strangers, lost cards, fences read back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from standins.agent_process import Scene, play
from standins.fake_mps import FakeMps, short_folder
from standins.fake_nvml import FakeNvml, uuid_of
from standins.fake_scheduler import Switches

from gpushare.v1 import job_pb2, node_pb2
from gpushare_agent.sharing.mps_daemon import find_daemon, short_name

GPU_IS_LOST, VERSION_MISMATCH = 15, 18
RUNNING = job_pb2.ATTEMPT_STATE_RUNNING


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that belongs to no job."""
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def test_eight_cards_with_a_stranger_on_one_and_another_falling_off_the_bus(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    fake = FakeNvml.with_cards(tmp_path, 8)
    fake.cards[1].used_mib = 9000
    fake.process(1, stranger.pid, 9000)
    fake.write()

    async def act(scene: Scene) -> None:
        scheduler = scene.scheduler
        condition = await scheduler.condition(uuid_of(1), lambda c: c.strangers)
        assert condition.state == node_pb2.GPU_STATE_HEALTHY
        (found,) = condition.strangers
        assert (found.pid, found.memory_mib) == (stranger.pid, 9000)
        assert found.user
        whole = {"whole": True, "gpu_milli": 1000, "gpu_memory_mib": 140_000, "tier": "exclusive"}
        await scene.share("v.1.0.1", "true", gpu_uuids=[uuid_of(1)], **whole)
        report = await scheduler.state("v.1.0.1", "STOPPED")
        assert report.reason == "OCCUPIED"
        assert f"pid {stranger.pid} of {found.user} holds 9000 MiB" in report.detail
        # A share beside the stranger fits, and so does a job on several other cards.
        await scene.share("v.2.0.1", "sleep", "60", gpu_uuids=[uuid_of(1)])
        await scene.share("v.3.0.1", "sleep", "60", gpu_uuids=[uuid_of(2), uuid_of(3)], **whole)
        await scene.share("v.4.0.1", "sleep", "60", gpu_uuids=[uuid_of(4)])
        for attempt_id in ("v.2.0.1", "v.3.0.1", "v.4.0.1"):
            await scheduler.state(attempt_id, "RUNNING")
        fake.fault("*", GPU_IS_LOST, card=3)
        fake.write()
        report = await scheduler.state("v.3.0.1", "FAILED")
        assert report.reason == "GPU_LOST"
        assert uuid_of(3) in report.detail
        condition = await scheduler.condition(uuid_of(3), lambda c: c.reason == "GPU_LOST")
        assert condition.state == node_pb2.GPU_STATE_LOST
        await scene.share("v.5.0.1", "true", gpu_uuids=[uuid_of(3)])
        assert (await scheduler.state("v.5.0.1", "STOPPED")).reason == "NOT_STARTED"
        await scene.share("v.6.0.1", "true", gpu_uuids=[uuid_of(2)])
        await scheduler.state("v.6.0.1", "SUCCEEDED")
        assert {scheduler.last_report(a).state for a in ("v.2.0.1", "v.4.0.1")} == {RUNNING}  # type: ignore[union-attr]

    play(tmp_path, act, simulate="", environ=fake.environ(), tiers=["timeslice", "exclusive"])
    assert fake.setters() == []


@pytest.mark.parametrize("absent", [(7,), (6, 7)], ids=["one of two", "both"])
def test_a_managed_card_that_the_driver_does_not_have_is_named(tmp_path: Path, absent: tuple[int, ...]) -> None:
    fake = FakeNvml.with_cards(tmp_path, 2)
    named = [uuid_of(0), uuid_of(7)] if len(absent) == 1 else [uuid_of(each) for each in absent]

    async def act(scene: Scene) -> None:
        text = f"managed_gpus names cards that the driver does not have: {', '.join(uuid_of(each) for each in absent)}"
        session = scene.scheduler.session
        await scene.scheduler.until(lambda: session.sync is not None)
        assert session.sync is not None
        assert text in session.sync.warnings
        assert text in scene.agent.log()

    play(tmp_path, act, simulate="", environ=fake.environ(), managed_gpus=named)


def test_a_driver_that_was_replaced_under_the_agent_is_a_clear_state_and_passes(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 2)

    async def act(scene: Scene) -> None:
        await scene.share("v.1.0.1", "sleep", "60", gpu_uuids=[uuid_of(0)])
        await scene.scheduler.state("v.1.0.1", "RUNNING")
        fake.fault("*", VERSION_MISMATCH)
        fake.write()
        condition = await scene.scheduler.condition(uuid_of(0), lambda c: c.reason == "DRIVER_MISMATCH")
        assert condition.state == node_pb2.GPU_STATE_DRAINED
        assert condition.detail
        fake.faults.clear()
        fake.write()
        await scene.scheduler.condition(uuid_of(0), lambda c: c.state == node_pb2.GPU_STATE_HEALTHY)
        last = scene.scheduler.last_report("v.1.0.1")
        assert last is not None
        assert last.state == RUNNING

    play(tmp_path, act, simulate="", environ=fake.environ(), tiers=["timeslice", "exclusive"])


class TestMps:
    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        """Short enough for a pipe directory."""
        folder = short_folder()
        yield folder
        shutil.rmtree(folder)

    @staticmethod
    def daemon(folder: Path, card: int) -> int | None:
        return find_daemon(folder / "run" / "mps" / short_name(uuid_of(card)), uuid_of(card))

    def end_daemons(self, folder: Path) -> None:
        """They outlive their agent by design."""
        for card in range(2):
            pid = self.daemon(folder, card)
            if pid is not None:
                subprocess.run(["kill", "-9", str(pid)], check=False)
                deadline_s = time.monotonic() + 5
                while self.daemon(folder, card) is not None and time.monotonic() < deadline_s:
                    time.sleep(0.02)

    def test_a_share_runs_behind_a_limit_that_was_read_back_or_not_at_all(self, folder: Path) -> None:
        nvml = FakeNvml.with_cards(folder, 2)
        mps = FakeMps.installed(folder)
        script = "echo $CUDA_VISIBLE_DEVICES $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE $CUDA_MPS_PINNED_DEVICE_MEM_LIMIT;"
        script += "echo $CUDA_MPS_PIPE_DIRECTORY"

        async def act(scene: Scene) -> None:
            scheduler = scene.scheduler
            sync = scheduler.session.sync
            assert sync is not None
            offers = {tier.tier: tier for tier in sync.gpus[0].tiers}
            assert offers["mps-v2"].absent_because == ""
            assert offers["mps-v2"].enforcement == job_pb2.ENFORCEMENT_SERVER
            share = {"gpu_uuids": [uuid_of(0)], "tier": "mps-v2"}
            await scene.share("v.1.0.1", "sh", "-c", script, **share)
            report = await scheduler.state("v.1.0.1", "SUCCEEDED", "FAILED", "STOPPED")
            assert report.state == job_pb2.ATTEMPT_STATE_SUCCEEDED, report
            said = (await scheduler.read_logs("v.1.0.1")).decode().split()
            assert said[:3] == [uuid_of(0), "25", "0=20000M"]
            assert said[3] == str(folder / "run" / "mps" / short_name(uuid_of(0)))
            daemons = [self.daemon(folder, card) for card in range(2)]
            assert None not in daemons
            assert len(set(daemons)) == 2

            await scene.share("v.2.0.1", "sleep", "60", **share)
            await scheduler.state("v.2.0.1", "RUNNING")
            await scene.agent.kill()
            await scene.agent.start(mps.environ() | nvml_environ)
            await scheduler.synced(2)
            assert [self.daemon(folder, card) for card in range(2)] == daemons

            # A job that was placed for this tier gets it, or nothing; and who runs behind a server goes on.
            os.kill(daemons[0] or 0, signal.SIGKILL)
            witness = folder / "ran"
            await scene.share("v.3.0.1", "touch", str(witness), **share)
            report = await scheduler.state("v.3.0.1", "FAILED", "STOPPED")
            assert report.reason == "FENCE_FAILED"
            assert "MPS control daemon" in report.detail
            assert not witness.exists()
            condition = await scheduler.condition(uuid_of(0), lambda c: c.reason == "MPS_UNHEALTHY")
            assert condition.state == node_pb2.GPU_STATE_DIRTY
            last = scheduler.last_report("v.2.0.1")
            assert last is not None
            assert last.state == RUNNING
            await scene.stop("v.2.0.1", grace_ms=3000)
            assert (await scheduler.state("v.2.0.1", "STOPPED")).reason == "CANCELLED"

        keys = ("LD_LIBRARY_PATH", "GPUSHARE_FAKE_NVML_STATE")
        nvml_environ = {key: nvml.environ()[key] for key in keys}
        try:
            play(folder, act, simulate="", environ=mps.environ() | nvml_environ, switches=Switches())
        finally:
            self.end_daemons(folder)
