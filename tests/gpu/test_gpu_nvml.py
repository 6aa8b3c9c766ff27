"""The agent's view of a real card, through the real NVML, against CUDA programs of our own."""

from __future__ import annotations

import asyncio
import os
import pwd
import time
from collections.abc import Callable

import pytest
from standins.gpu_library_conformance import GpuLibraryConformance

from benchmarks.gpucheck.bench import Bench
from gpushare_agent.gpus.nvml_client import NvmlLibrary
from gpushare_agent.gpus.port import GpuLibrary, GpuProcess, GpuSample, GpuSnapshot

pytestmark = pytest.mark.gpu

HELD_MIB = 512
#: The watchdog looks every second; a process that shows later than this would escape it for too long.
SEEN_WITHIN_S = 3.0
SETTINGS = ("compute_mode", "mig", "persistence")


class TestRealCards(GpuLibraryConformance):
    """The promises of the port, on this machine's cards."""

    @pytest.fixture
    def open_library(self, bench: Bench) -> Callable[[], GpuLibrary]:
        assert bench.uuid
        return NvmlLibrary


def sample_of(snapshot: GpuSnapshot, uuid: str) -> GpuSample:
    return next(sample for sample in snapshot.samples if sample.uuid == uuid)


def row_of(snapshot: GpuSnapshot, uuid: str, pid: int) -> GpuProcess | None:
    return next((row for row in sample_of(snapshot, uuid).processes if row.pid == pid), None)


async def until(library: GpuLibrary, condition: Callable[[GpuSnapshot], bool]) -> GpuSnapshot:
    """Snapshots until one fulfils the condition; fails after `SEEN_WITHIN_S`."""
    deadline_s = time.monotonic() + SEEN_WITHIN_S
    while True:
        snapshot = await library.snapshot()
        if condition(snapshot):
            return snapshot
        assert time.monotonic() < deadline_s, f"not seen in time: {snapshot}"
        await asyncio.sleep(0.1)


def test_what_a_program_holds_is_seen_with_its_pid_and_user_and_is_gone_after_it(bench: Bench) -> None:
    async def watch() -> None:
        library = NvmlLibrary()
        try:
            before = sample_of(await library.snapshot(), bench.uuid)
            program, _ = bench.opened()
            assert program.ask("alloc", mib=HELD_MIB)["code"] == 0

            def holds(snapshot: GpuSnapshot) -> bool:
                row = row_of(snapshot, bench.uuid, program.pid)
                return row is not None and (row.memory_mib or 0) >= HELD_MIB

            seen = await until(library, holds)
            row = row_of(seen, bench.uuid, program.pid)
            assert row is not None
            assert (row.kind, row.mps) == ("compute", False)
            assert row.user == pwd.getpwuid(os.geteuid()).pw_name
            assert sample_of(seen, bench.uuid).used_mib >= before.used_mib + HELD_MIB
            program.close()
            await until(library, lambda snapshot: row_of(snapshot, bench.uuid, program.pid) is None)
        finally:
            await library.close()

    asyncio.run(watch())


def test_a_program_sees_the_granted_card_alone(bench: Bench) -> None:
    _, said = bench.opened()
    assert said["devices"] == 1
    assert said["uuid"].lower() == bench.uuid.lower()


def test_nvml_and_cuda_agree_on_the_size_of_the_card(bench: Bench) -> None:
    async def look() -> GpuSnapshot:
        library = NvmlLibrary()
        try:
            return await library.snapshot()
        finally:
            await library.close()

    info = next(info for info in asyncio.run(look()).infos if info.uuid == bench.uuid)
    _, said = bench.opened()
    # What CUDA offers is the whole less what the driver keeps; more would make slices that no card can hold.
    assert info.total_mib - info.reserved_mib - 1024 <= said["device_total_mib"] <= info.total_mib


def test_reading_a_card_changes_no_setting_of_it(bench: Bench) -> None:
    async def read() -> None:
        library = NvmlLibrary()
        try:
            for _ in range(5):
                await library.snapshot()
        finally:
            await library.close()

    before = {name: bench.look()[name] for name in SETTINGS}
    asyncio.run(read())
    assert {name: bench.look()[name] for name in SETTINGS} == before
