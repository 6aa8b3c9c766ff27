"""`--visible-devices index` over the stand-ins of NVIDIA's library and MPS programs: the card that CUDA would count."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from standins.agent_process import Scene, play
from standins.fake_mps import FakeMps, short_folder
from standins.fake_nvml import FakeNvml, uuid_of

from gpushare.v1 import job_pb2
from gpushare_agent.sharing.mps_daemon import find_daemon, short_name

INDEX = job_pb2.VISIBLE_DEVICES_INDEX
SAY = ("sh", "-c", "echo $CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER")
WHOLE = {"whole": True, "gpu_milli": 1000, "gpu_memory_mib": 140_000, "tier": "exclusive"}


async def said(scene: Scene, attempt_id: str) -> list[str]:
    report = await scene.scheduler.state(attempt_id, "SUCCEEDED", "FAILED", "STOPPED")
    assert report.state == job_pb2.ATTEMPT_STATE_SUCCEEDED, report
    return (await scene.scheduler.read_logs(attempt_id)).decode().split()


def test_the_drivers_own_count_at_the_moment_of_the_launch(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 4)

    async def act(scene: Scene) -> None:
        await scene.share("v.1.0.1", *SAY, gpu_uuids=[uuid_of(2)], visible_devices=INDEX)
        assert await said(scene, "v.1.0.1") == ["2", "PCI_BUS_ID"]
        await scene.share("v.2.0.1", *SAY, gpu_uuids=[uuid_of(3), uuid_of(1)], visible_devices=INDEX, **WHOLE)
        assert await said(scene, "v.2.0.1") == ["1,3", "PCI_BUS_ID"]
        # A card was swapped for its neighbour, as after a driver's restart.
        fake.cards.reverse()
        fake.write()
        await scene.share("v.3.0.1", *SAY, gpu_uuids=[uuid_of(3)], visible_devices=INDEX)
        assert await said(scene, "v.3.0.1") == ["0", "PCI_BUS_ID"]
        await scene.share("v.4.0.1", *SAY, gpu_uuids=[uuid_of(3)])
        assert await said(scene, "v.4.0.1") == [uuid_of(3), "PCI_BUS_ID"]

    play(tmp_path, act, simulate="", environ=fake.environ(), tiers=["timeslice", "exclusive"])


def test_a_card_in_mig_mode_elsewhere_leaves_a_doubt_and_nothing_is_started(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 2)
    fake.cards[1].mig = 1
    fake.write()

    async def act(scene: Scene) -> None:
        await scene.share("v.1.0.1", *SAY, gpu_uuids=[uuid_of(0)], visible_devices=INDEX)
        report = await scene.scheduler.state("v.1.0.1", "FAILED")
        assert report.reason == "FENCE_FAILED"
        assert f"MIG mode is on for {uuid_of(1)}" in report.detail
        assert not (scene.agent.state_dir / "logs" / "v.1.0.1" / "stdout").exists()

    play(tmp_path, act, simulate="", environ=fake.environ(), tiers=["timeslice", "exclusive"])


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a pipe directory."""
    folder = short_folder()
    yield folder
    shutil.rmtree(folder)


def test_behind_a_daemon_of_one_card_it_is_0(folder: Path) -> None:
    nvml = FakeNvml.with_cards(folder, 2)
    mps = FakeMps.installed(folder)

    async def act(scene: Scene) -> None:
        await scene.share("v.1.0.1", *SAY, gpu_uuids=[uuid_of(1)], tier="mps-v2", visible_devices=INDEX)
        assert await said(scene, "v.1.0.1") == ["0", "PCI_BUS_ID"]

    names = ("LD_LIBRARY_PATH", "GPUSHARE_FAKE_NVML_STATE")
    environ = mps.environ() | {name: nvml.environ()[name] for name in names}
    try:
        play(folder, act, simulate="", environ=environ)
    finally:
        end_daemons(folder)


def end_daemons(folder: Path) -> None:
    """They outlive their agent by design."""
    for card in range(2):
        pipe = folder / "run" / "mps" / short_name(uuid_of(card))
        pid = find_daemon(pipe, uuid_of(card))
        if pid is not None:
            subprocess.run(["kill", "-9", str(pid)], check=False)
            deadline_s = time.monotonic() + 5
            while find_daemon(pipe, uuid_of(card)) is not None and time.monotonic() < deadline_s:
                time.sleep(0.02)
