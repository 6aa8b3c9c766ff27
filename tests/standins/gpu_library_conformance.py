"""What every `GpuLibrary` keeps: subclass it in a test module and give it `open_library`.

The same suite runs on NVML over the stand-in, on the simulated cards and, marked `gpu`, on real hardware.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import pytest

from gpushare_agent.gpus.port import DriverState, GpuLibrary, GpuSnapshot

T = TypeVar("T")


class GpuLibraryConformance:
    """Override the fixture `open_library` with a callable that gives a fresh library of the same host each time."""

    @pytest.fixture
    def open_library(self) -> Callable[[], GpuLibrary]:
        """A new library; called inside a running loop."""
        pytest.fail("a conformance suite is run by a subclass that overrides this fixture")

    @staticmethod
    def use(open_library: Callable[[], GpuLibrary], work: Callable[[GpuLibrary], Awaitable[T]]) -> T:
        """Run `work` on an open library and close it."""

        async def run() -> T:
            library = open_library()
            try:
                return await work(library)
            finally:
                await library.close()

        return asyncio.run(run())

    def take(self, open_library: Callable[[], GpuLibrary]) -> GpuSnapshot:
        """One snapshot of a fresh library."""
        return self.use(open_library, lambda library: library.snapshot())

    def test_every_card_has_one_info_and_one_sample_in_the_same_order(
        self, open_library: Callable[[], GpuLibrary]
    ) -> None:
        snapshot = self.take(open_library)
        assert snapshot.state is DriverState.OK, snapshot.detail
        uuids = [info.uuid for info in snapshot.infos]
        assert uuids, "a host without a card tests nothing"
        assert [sample.uuid for sample in snapshot.samples] == uuids
        assert len(set(uuids)) == len(uuids)
        assert all(uuid.startswith("GPU-") for uuid in uuids)
        assert [info.index for info in snapshot.infos] == sorted(info.index for info in snapshot.infos)

    def test_memory_figures_fit_into_the_card(self, open_library: Callable[[], GpuLibrary]) -> None:
        snapshot = self.take(open_library)
        for info, sample in zip(snapshot.infos, snapshot.samples, strict=True):
            assert info.total_mib > 0
            assert 0 <= info.reserved_mib < info.total_mib
            assert sample.used_mib >= 0
            assert sample.free_mib > 0
            assert sample.used_mib + sample.free_mib <= info.total_mib + 1  # one is rounded up, one down

    def test_processes_are_named_once_and_make_sense(self, open_library: Callable[[], GpuLibrary]) -> None:
        snapshot = self.take(open_library)
        for info, sample in zip(snapshot.infos, snapshot.samples, strict=True):
            pids = [row.pid for row in sample.processes]
            assert len(set(pids)) == len(pids)
            for row in sample.processes:
                assert row.pid > 0
                assert row.memory_mib is None or 0 <= row.memory_mib <= info.total_mib
                assert row.sm_percent is None or 0 <= row.sm_percent <= 100

    def test_percentages_and_power_are_sane_or_absent(self, open_library: Callable[[], GpuLibrary]) -> None:
        snapshot = self.take(open_library)
        for sample in snapshot.samples:
            assert sample.sm_percent is None or 0 <= sample.sm_percent <= 100
            assert sample.power_mw is None or 0 <= sample.power_mw < 5_000_000
            assert sample.energy_mj is None or sample.energy_mj >= 0

    def test_snapshots_carry_the_boot_clock_and_move_on(self, open_library: Callable[[], GpuLibrary]) -> None:
        async def twice(library: GpuLibrary) -> tuple[GpuSnapshot, GpuSnapshot]:
            return await library.snapshot(), await library.snapshot()

        before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        first, second = self.use(open_library, twice)
        after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert before_ns <= first.taken_boot_ns < second.taken_boot_ns <= after_ns

    def test_identity_is_the_same_after_reopening(self, open_library: Callable[[], GpuLibrary]) -> None:
        assert self.take(open_library).infos == self.take(open_library).infos

    def test_many_callers_at_once_are_all_answered(self, open_library: Callable[[], GpuLibrary]) -> None:
        async def many(library: GpuLibrary) -> list[GpuSnapshot]:
            return list(await asyncio.gather(*(library.snapshot() for _ in range(20))))

        assert {snapshot.state for snapshot in self.use(open_library, many)} == {DriverState.OK}

    def test_a_snapshot_survives_the_wire(self, open_library: Callable[[], GpuLibrary]) -> None:
        snapshot = self.take(open_library)
        assert msgspec.json.decode(msgspec.json.encode(snapshot), type=GpuSnapshot) == snapshot

    def test_after_close_it_answers_with_a_state_and_closing_again_is_harmless(
        self, open_library: Callable[[], GpuLibrary]
    ) -> None:
        async def closed(library: GpuLibrary) -> GpuSnapshot:
            await library.snapshot()
            await library.close()
            return await library.snapshot()

        snapshot = self.use(open_library, closed)
        assert snapshot.state is not DriverState.OK
        assert snapshot.detail
        assert snapshot.infos == ()
