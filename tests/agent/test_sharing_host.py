"""A whole host at library level: eight cards through NVML, their fences, strangers and jobs on them."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from standins.fake_mps import FakeMps, short_folder, wait_for
from standins.fake_nvml import FakeNvml, uuid_of

from gpushare.reasons import Reason
from gpushare_agent.gpus.nvml_client import NvmlLibrary
from gpushare_agent.gpus.port import GpuSnapshot
from gpushare_agent.sharing.choose import CardFences
from gpushare_agent.sharing.mps_daemon import find_daemon, short_name
from gpushare_agent.sharing.port import CardTiers, SliceSpec, Tier
from gpushare_agent.sharing.watchdog import Findings, Held, WatchSettings, WatchState, launch_obstacle, watch

ME = pwd.getpwuid(os.getuid()).pw_name
AT_ONCE = WatchSettings(looks=1)


class Host:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nvml = FakeNvml.with_cards(folder, 8)
        self.mps = FakeMps.installed(folder)

    def snapshot(self) -> GpuSnapshot:
        self.nvml.write()

        async def take() -> GpuSnapshot:
            library = NvmlLibrary(environ=self.nvml.environ())
            try:
                return await library.snapshot()
            finally:
                await library.close()

        return asyncio.run(take())


@pytest.fixture
def host() -> Iterator[Host]:
    folder = short_folder()
    yield Host(folder)
    for card in range(8):
        pipe = folder / "run" / "mps" / short_name(uuid_of(card))
        pid = find_daemon(pipe, uuid_of(card))
        if pid is not None:
            os.kill(pid, 9)
            wait_for(lambda pipe=pipe, card=card: find_daemon(pipe, uuid_of(card)) is None)
    shutil.rmtree(folder)


@pytest.fixture
def stranger() -> Iterator[int]:
    """A living process that is none of ours."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process.pid
        process.kill()


def look(snapshot: GpuSnapshot, attempt_of_pid: dict[int, str], held: dict[str, Held]) -> Findings:
    return watch(WatchState(), snapshot, attempt_of_pid, held, settings=AT_ONCE)[1]


def test_at_start_every_card_is_listed_with_what_it_can_fence(host: Host) -> None:
    host.nvml.cards[1].mig = 1
    host.nvml.cards[2].compute_mode = 2
    host.nvml.cards[3].compute_mode = 3
    snapshot = host.snapshot()
    timeouts = {"control_timeout_s": 5.0, "server_timeout_s": 5.0}

    def sentence(card: CardTiers) -> str:
        can = ", ".join(f"{offer.tier} ({offer.enforcement})" for offer in card.offers if offer.available)
        not_so = "; ".join(f"no {offer.tier}: {offer.detail}" for offer in card.offers if not offer.available)
        return f"{card.uuid} can fence {can or 'nothing'}{f'; {not_so}' if not_so else ''}"

    async def probe() -> list[str]:
        fences = CardFences(host.folder / "run", single_user=True, environ=host.mps.environ(), timeouts=timeouts)
        report = await fences.probe(snapshot)
        await fences.close()
        return [sentence(card) for card in report.cards]

    lines = asyncio.run(probe())
    assert len(lines) == 8
    everything = "can fence exclusive (hard), mps-v2 (server), timeslice (soft)"
    assert lines[0] == f"{uuid_of(0)} {everything}"
    assert "can fence nothing; no exclusive: MIG mode is on" in lines[1]
    assert "its compute mode is PROHIBITED" in lines[2]
    assert (
        "can fence exclusive (hard), mps-v2 (server); no timeslice: its compute mode is EXCLUSIVE_PROCESS" in lines[3]
    )
    assert all(everything in line for line in lines[4:])


def test_a_stranger_shrinks_its_card_and_stands_in_the_way_of_whole_cards_there_alone(
    host: Host, stranger: int
) -> None:
    host.nvml.cards[4].used_mib = 20_000
    host.nvml.process(4, stranger, 20_000)
    snapshot = host.snapshot()
    findings = look(snapshot, {}, {})
    uses = {use.uuid: use for use in findings.cards}
    assert [use.stranger_mib for use in findings.cards] == [0, 0, 0, 0, 20_000, 0, 0, 0]
    assert uses[uuid_of(4)].sentence() == f"pid {stranger} of {ME} holds 20000 MiB"
    whole = SliceSpec(
        attempt_id="t.1.0.1", gpu_uuids=(uuid_of(4),), gpu_milli=1000, gpu_memory_mib=1, whole=True, uid=0
    )
    assert f"pid {stranger} of {ME}" in launch_obstacle(whole, snapshot, uses)
    elsewhere = msgspec.structs.replace(whole, gpu_uuids=(uuid_of(5),))
    assert launch_obstacle(elsewhere, snapshot, uses) == ""


def test_jobs_are_seen_through_nvml_and_judged(host: Host, stranger: int) -> None:
    job = stranger  # any living process will do
    held = {}
    for number, tier in ((0, Tier.MPS_V2), (1, Tier.TIMESLICE)):
        spec = SliceSpec(
            attempt_id=f"t.{number}.0.1",
            gpu_uuids=(uuid_of(number),),
            gpu_milli=250,
            gpu_memory_mib=4000,
            whole=False,
            uid=0,
        )
        held[spec.attempt_id] = Held(spec=spec, tier=tier)
    host.nvml.process(0, job, 4000, "compute", "mps")
    host.nvml.process(1, os.getpid(), 4001, "compute")
    host.nvml.utilization(1, os.getpid(), 55)
    attempts = {job: "t.0.0.1", os.getpid(): "t.1.0.1"}
    findings = look(host.snapshot(), attempts, held)
    assert [(one.attempt_id, one.reason) for one in findings.verdicts] == [("t.1.0.1", Reason.MEMORY_LIMIT)]
    assert [(use.used_mib, use.sm_percent) for use in findings.jobs] == [(4000, None), (4001, 55)]
    # The client drops out of MPS: the driver still shows it on the card, but no longer among the clients.
    host.nvml.rows = [row for row in host.nvml.rows if "list=mps" not in row]
    findings = look(host.snapshot(), attempts, held)
    assert {(one.attempt_id, one.reason) for one in findings.verdicts} == {
        ("t.0.0.1", Reason.LIMIT_BYPASS),
        ("t.1.0.1", Reason.MEMORY_LIMIT),
    }


def test_a_lost_card_accuses_nobody_and_the_others_are_judged_on(host: Host) -> None:
    host.nvml.process(6, os.getpid(), 9000)
    host.nvml.fault("nvmlDeviceGetMemoryInfo_v2", 15, card=5)
    spec = SliceSpec(
        attempt_id="t.1.0.1", gpu_uuids=(uuid_of(6),), gpu_milli=250, gpu_memory_mib=4000, whole=False, uid=0
    )
    lost = msgspec.structs.replace(spec, attempt_id="t.2.0.1", gpu_uuids=(uuid_of(5),))
    held = {one.attempt_id: Held(spec=one, tier=Tier.TIMESLICE) for one in (spec, lost)}
    findings = look(host.snapshot(), {os.getpid(): "t.1.0.1"}, held)
    assert [one.attempt_id for one in findings.verdicts] == ["t.1.0.1"]
