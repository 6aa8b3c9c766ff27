"""Cards fall off the bus, drivers hang, mismatch and die: the agent keeps its time and says what is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from standins.fake_nvml import FakeNvml, uuid_of

from gpushare_agent.gpus.nvml_client import NvmlLibrary
from gpushare_agent.gpus.port import DriverState, GpuSnapshot

GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH, UNKNOWN = 15, 16, 18, 999
FREEZER = Path("/sys/fs/cgroup/freezer")


def children() -> list[psutil.Process]:
    """Living processes of ours that read cards."""
    found = []
    for child in psutil.Process().children():
        try:
            if "gpushare_agent.gpus.nvml" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def library(fake: FakeNvml, **settings: float | Path) -> NvmlLibrary:
    """A library that loses its patience sooner than the shipped one."""
    fake.write()
    defaults: dict[str, float | Path] = {"deadline_s": 1.0, "backoff_first_s": 0.05, "backoff_max_s": 0.2}
    return NvmlLibrary(environ=fake.environ(), **(defaults | settings))  # type: ignore[arg-type]


async def until(take: Callable[[], Awaitable[GpuSnapshot]], state: DriverState, within_s: float = 10) -> GpuSnapshot:
    """Snapshots until one has that state."""
    deadline_s = time.monotonic() + within_s
    while True:
        snapshot = await take()
        if snapshot.state is state:
            return snapshot
        assert time.monotonic() < deadline_s, f"still {snapshot.state}: {snapshot.detail}"
        await asyncio.sleep(0.02)


class Heartbeat:
    """Notes the longest time for which the event loop was held up."""

    def __init__(self) -> None:
        self.longest_gap_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Heartbeat:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _beat(self) -> None:
        last_s = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now_s = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now_s - last_s)
            last_s = now_s


@pytest.fixture
def host(tmp_path: Path) -> FakeNvml:
    return FakeNvml.with_cards(tmp_path, 8)


@pytest.mark.parametrize("way", ["the driver says so", "the card is no longer listed"])
def test_one_card_of_eight_falls_off_the_bus_and_seven_go_on(host: FakeNvml, way: str) -> None:
    async def run() -> None:
        nvml = library(host)
        try:
            before = await nvml.snapshot()
            if way == "the driver says so":
                host.fault("*", GPU_IS_LOST, card=3)
            else:
                del host.cards[3]
            host.write()
            for _ in range(3):
                after = await nvml.snapshot()
                assert after.state is DriverState.OK
                assert {info.uuid for info in after.infos} == {info.uuid for info in before.infos}
                lost = [sample.uuid for sample in after.samples if sample.lost]
                assert lost == [uuid_of(3)]
                assert after.samples[3].error
                assert all(not s.error and s.free_mib > 0 for s in after.samples if s.uuid != uuid_of(3))
        finally:
            await nvml.close()

    asyncio.run(run())


def test_a_lost_card_does_not_make_the_library_reopen_at_every_look(host: FakeNvml) -> None:
    async def run() -> None:
        nvml = library(host)
        try:
            await nvml.snapshot()
            host.log = True
            host.fault("*", GPU_IS_LOST, card=3)
            host.write()
            for _ in range(5):
                await nvml.snapshot()
            assert host.calls().count("nvmlInitWithFlags") == 1
        finally:
            await nvml.close()

    asyncio.run(run())


def test_a_card_stays_lost_when_the_child_that_knew_it_is_gone(host: FakeNvml) -> None:
    async def run() -> None:
        nvml = library(host)
        try:
            await nvml.snapshot()
            del host.cards[7]
            host.write()
            children()[0].kill()
            after = await until(nvml.snapshot, DriverState.OK)
            assert [sample.uuid for sample in after.samples if sample.lost] == [uuid_of(7)]
            assert len(after.infos) == 8
        finally:
            await nvml.close()

    asyncio.run(run())


@pytest.mark.parametrize("code", [RESET_REQUIRED, UNKNOWN])
def test_a_card_in_trouble_is_named_with_the_error_and_returns_when_it_answers(host: FakeNvml, code: int) -> None:
    async def run() -> None:
        nvml = library(host)
        try:
            await nvml.snapshot()
            host.fault("nvmlDeviceGetMemoryInfo_v2", code, card=2)
            host.write()
            bad = await nvml.snapshot()
            assert [sample.uuid for sample in bad.samples if sample.error] == [uuid_of(2)]
            assert not bad.samples[2].lost
            assert f"NVML error {code}" in bad.samples[2].error
            host.faults.clear()
            host.write()
            good = await nvml.snapshot()
            assert not any(sample.error for sample in good.samples)
        finally:
            await nvml.close()

    asyncio.run(run())


def test_a_card_that_cannot_even_be_identified_is_named_in_the_detail(host: FakeNvml) -> None:
    host.fault("nvmlDeviceGetMemoryInfo_v2", UNKNOWN, card=1)

    async def run() -> None:
        nvml = library(host)
        try:
            snapshot = await nvml.snapshot()
            assert snapshot.state is DriverState.OK
            assert len(snapshot.infos) == len(snapshot.samples) == 7
            assert uuid_of(1) in snapshot.detail
        finally:
            await nvml.close()

    asyncio.run(run())


def hang_and_recover(host: FakeNvml, *, seconds: int, deadline_s: float) -> None:
    """A call hangs, deaf to signals: every snapshot ends in time, one child at most, recovery by itself."""

    async def run() -> None:
        nvml = library(host, deadline_s=deadline_s, start_deadline_s=deadline_s)
        try:
            assert (await nvml.snapshot()).state is DriverState.OK
            host.hang("nvmlDeviceGetMemoryInfo_v2", 3600, card=5)
            host.write()
            hung_until_s = time.monotonic() + seconds
            async with Heartbeat() as heartbeat:
                while time.monotonic() < hung_until_s:
                    began_s = time.monotonic()
                    snapshot = await nvml.snapshot()
                    assert snapshot.state is DriverState.HUNG
                    assert snapshot.detail
                    assert time.monotonic() - began_s < deadline_s + 1
                    assert len(children()) <= 1
            assert heartbeat.longest_gap_s < 1.0
            host.faults.clear()
            host.write()
            await until(nvml.snapshot, DriverState.OK)
        finally:
            await nvml.close()
        assert children() == []

    asyncio.run(run())


def test_a_hanging_driver_delays_no_heartbeat_and_is_left_behind_when_it_recovers(host: FakeNvml) -> None:
    hang_and_recover(host, seconds=2, deadline_s=0.6)


@pytest.mark.prove
@pytest.mark.timeout(180)
def test_a_driver_that_hangs_for_a_minute(host: FakeNvml) -> None:
    hang_and_recover(host, seconds=60, deadline_s=5.0)


def test_closing_does_not_wait_for_a_hanging_driver(host: FakeNvml) -> None:
    async def run() -> None:
        nvml = library(host, deadline_s=30)
        assert (await nvml.snapshot()).state is DriverState.OK
        host.hang("nvmlDeviceGetMemoryInfo_v2", 3600)
        host.write()
        waiting = asyncio.create_task(nvml.snapshot())
        await asyncio.sleep(0.1)
        began_s = time.monotonic()
        await nvml.close()
        assert time.monotonic() - began_s < 1
        assert (await waiting).state is DriverState.ERROR
        assert children() == []

    asyncio.run(run())


def test_a_driver_that_takes_its_time_to_start_is_given_it(host: FakeNvml) -> None:
    host.hang("nvmlInitWithFlags", 2)

    async def run() -> None:
        nvml = library(host, deadline_s=0.6, start_deadline_s=20)
        try:
            first = await nvml.snapshot()
            assert first.state is DriverState.HUNG
            assert "still opening" in first.detail
            (child,) = children()
            await until(nvml.snapshot, DriverState.OK)
            assert children() == [child]
        finally:
            await nvml.close()

    asyncio.run(run())


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Put a process where not even SIGKILL reaches it, as a call stuck in the kernel does."""
    group = FREEZER / f"gpushare-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "tasks").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        deadline_s = time.monotonic() + 5
        while (group / "freezer.state").read_text().strip() != "FROZEN":
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        deadline_s = time.monotonic() + 5
        while (group / "tasks").read_text() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        group.rmdir()


@pytest.mark.root
@pytest.mark.skipif(
    not os.access(FREEZER / "tasks", os.W_OK), reason="needs root and a cgroup v1 freezer to make a process unkillable"
)
def test_a_child_that_cannot_be_killed_is_abandoned_and_has_no_second_beside_it(host: FakeNvml, tmp_path: Path) -> None:
    async def run() -> None:
        stuck_file = tmp_path / "stuck"
        nvml = library(host, stuck_file=stuck_file)
        assert (await nvml.snapshot()).state is DriverState.OK
        (child,) = children()
        with frozen(child.pid):
            assert (await nvml.snapshot()).state is DriverState.HUNG
            for _ in range(20):
                began_s = time.monotonic()
                snapshot = await nvml.snapshot()
                assert snapshot.state is DriverState.HUNG
                assert f"pid {child.pid} cannot be killed" in snapshot.detail
                assert time.monotonic() - began_s < 0.3
                assert [other.pid for other in children()] == [child.pid]
            # The agent can be stopped and started meanwhile; its successor knows of the stuck one.
            began_s = time.monotonic()
            await nvml.close()
            assert time.monotonic() - began_s < 1
            successor = library(host, stuck_file=stuck_file)
            assert "cannot be killed" in (await successor.snapshot()).detail
            assert [other.pid for other in children()] == [child.pid]
        await until(successor.snapshot, DriverState.OK)
        assert not stuck_file.exists()
        await successor.close()

    asyncio.run(run())


def test_a_stuck_file_of_a_process_that_is_gone_is_forgotten(host: FakeNvml, tmp_path: Path) -> None:
    stuck_file = tmp_path / "stuck"
    for content in (f"{os.getpid()} 1", "4000000 5", "rubbish", ""):
        stuck_file.write_text(content)

        async def run() -> None:
            nvml = library(host, stuck_file=stuck_file)
            assert (await nvml.snapshot()).state is DriverState.OK
            await nvml.close()

        asyncio.run(run())
        assert not stuck_file.exists()


@pytest.mark.parametrize("call", ["nvmlInitWithFlags", "nvmlDeviceGetPowerUsage"])
def test_a_driver_mismatch_is_a_state_of_its_own_and_passes_without_a_restart(host: FakeNvml, call: str) -> None:
    async def run() -> None:
        nvml = library(host)
        try:
            before = await nvml.snapshot()
            children()[0].kill()  # as after an upgrade: the next child meets the new library
            host.fault(call, VERSION_MISMATCH)
            host.write()
            mismatch = await until(nvml.snapshot, DriverState.MISMATCH)
            assert "different versions" in mismatch.detail or "mismatch" in mismatch.detail
            assert (await nvml.snapshot()).state is DriverState.MISMATCH
            host.faults.clear()
            host.write()
            assert (await until(nvml.snapshot, DriverState.OK)).infos == before.infos
        finally:
            await nvml.close()

    asyncio.run(run())


def test_trouble_is_asked_about_less_and_less_often(host: FakeNvml) -> None:
    host.fault("nvmlInitWithFlags", VERSION_MISMATCH)
    host.log = True

    async def run() -> None:
        nvml = library(host, backoff_first_s=0.2, backoff_max_s=60)
        try:
            deadline_s = time.monotonic() + 1.3
            while time.monotonic() < deadline_s:
                assert (await nvml.snapshot()).state is DriverState.MISMATCH
                await asyncio.sleep(0.01)
        finally:
            await nvml.close()
        # At 0, 0.2 and 0.6 s; the next would come at 1.4 s and more.
        assert 2 <= host.calls().count("nvmlInitWithFlags") <= 3

    asyncio.run(run())


def test_a_child_that_dies_is_replaced(host: FakeNvml) -> None:
    async def run() -> None:
        nvml = library(host)
        try:
            await nvml.snapshot()
            children()[0].kill()
            snapshot = await nvml.snapshot()
            assert snapshot.state is DriverState.ERROR
            assert "the process that reads the cards failed" in snapshot.detail
            assert (await until(nvml.snapshot, DriverState.OK)).infos
        finally:
            await nvml.close()

    asyncio.run(run())


def test_kill_9_of_the_agent_leaves_no_child_behind(host: FakeNvml) -> None:
    host.hang("nvmlDeviceGetMemoryInfo_v2", 3600)
    host.write()
    program = (
        "import asyncio\n"
        "from gpushare_agent.gpus.nvml_client import NvmlLibrary\n"
        "async def run():\n"
        "    nvml = NvmlLibrary()\n"
        "    await nvml.snapshot()\n"
        "asyncio.run(run())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], env=host.environ()) as agent:
        deadline_s = time.monotonic() + 10
        readers: list[psutil.Process] = []
        while not readers and time.monotonic() < deadline_s:
            readers = psutil.Process(agent.pid).children()
            time.sleep(0.02)
        (reader,) = readers
        # Killed before it asked the kernel to die with its parent, it would notice the other parent by itself.
        agent.send_signal(signal.SIGKILL)
        agent.wait(10)
    _, alive = psutil.wait_procs([reader], timeout=5)
    assert alive == []
