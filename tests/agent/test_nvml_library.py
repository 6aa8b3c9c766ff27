"""What the agent reads from NVML through the unmodified pynvml, trap by trap."""

from __future__ import annotations

import asyncio
import os
import pwd
import time
from pathlib import Path

import pytest
from standins.fake_nvml import FakeNvml, uuid_of

from gpushare_agent.gpus.nvml import MEASURE_EVERY_S, PCI_DEVICES, numa_domain
from gpushare_agent.gpus.nvml_client import NvmlLibrary
from gpushare_agent.gpus.owners import UserNames
from gpushare_agent.gpus.port import DriverState, GpuProcess, GpuSample, GpuSnapshot

ME = os.getpid()
NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, DRIVER_NOT_LOADED = 3, 4, 6, 9


def snapshots(fake: FakeNvml, count: int = 1) -> list[GpuSnapshot]:
    """So many snapshots in a row, after the state was put in force."""
    fake.write()

    async def take() -> list[GpuSnapshot]:
        library = NvmlLibrary(environ=fake.environ())
        try:
            return [await library.snapshot() for _ in range(count)]
        finally:
            await library.close()

    return asyncio.run(take())


def sample_of(fake: FakeNvml, card: int = 0) -> GpuSample:
    """The sample of one card of a healthy host."""
    (snapshot,) = snapshots(fake)
    assert snapshot.state is DriverState.OK, snapshot.detail
    return snapshot.samples[card]


@pytest.fixture
def one_card(tmp_path: Path) -> FakeNvml:
    return FakeNvml.with_cards(tmp_path, 1)


def test_identity_comes_from_the_driver_and_not_from_the_order(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 2)
    fake.cards.reverse()
    fake.cards[0].minor = 7
    fake.cards[0].mig = 1
    fake.cards[1].compute_mode = 3
    (snapshot,) = snapshots(fake)
    first, second = snapshot.infos
    assert (first.uuid, first.index, first.minor) == (uuid_of(1), 0, 7)
    assert first.mig_enabled
    assert second.compute_mode == "exclusive_process"
    assert snapshot.driver_version == "580.159.03"
    assert first.model == "NVIDIA H200"


def test_the_domain_of_a_card_is_its_processor(tmp_path: Path) -> None:
    for bus, node in (("0000:3b:00.0", "1\n"), ("0000:5e:00.0", "-1\n"), ("0000:86:00.0", "soon")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "numa_node").write_text(node)
    buses = ("00000000:3B:00.0", "00000000:5E:00.0", "00000000:86:00.0", "00000000:AF:00.0", "")
    assert [numa_domain(bus, str(tmp_path)) for bus in buses] == ["numa1", "", "", "", ""]


def test_a_card_whose_processor_the_kernel_does_not_name_has_no_domain(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 2)
    here = next(iter(sorted(Path(PCI_DEVICES).glob("*"))), Path("0000:00:00.0")).name
    fake.cards[0].bus = f"0000{here.upper()}"
    fake.cards[1].bus = "0000FFFF:FF:1F.7"
    fake.fault("nvmlDeviceGetPciInfo_v3", NOT_SUPPORTED, card=1)
    (snapshot,) = snapshots(fake)
    assert [info.domain for info in snapshot.infos] == [numa_domain(fake.cards[0].bus), ""]


def test_reserved_memory_is_neither_used_nor_free(one_card: FakeNvml) -> None:
    one_card.cards[0].used_mib = 1000
    (snapshot,) = snapshots(one_card)
    sample = snapshot.samples[0]
    assert (sample.used_mib, sample.free_mib) == (1000, 143771 - 600 - 1000)
    assert snapshot.infos[0].reserved_mib == 600


def test_an_old_driver_without_memory_v2_and_process_lists_v3_is_read_too(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 1, old_driver=True)
    fake.cards[0].used_mib = 1000
    fake.process(0, ME, 700, "compute", "mps")
    sample = sample_of(fake)
    assert (sample.used_mib, sample.free_mib) == (1600, 143771 - 1600)
    assert [(row.pid, row.memory_mib, row.mps) for row in sample.processes] == [(ME, 700, True)]
    assert sample.temperature_c == 30


def test_one_process_in_several_lists_is_one_row(one_card: FakeNvml) -> None:
    one_card.process(0, ME, 700, "compute", "mps")
    one_card.process(0, 1, 20, "graphics")
    one_card.process(0, os.getppid(), 30, "graphics", "compute")
    rows = {row.pid: row for row in sample_of(one_card).processes}
    assert (rows[ME].kind, rows[ME].mps, rows[ME].memory_mib) == ("compute", True, 700)
    assert (rows[1].kind, rows[1].mps) == ("graphics", False)
    assert rows[os.getppid()].kind == "compute"
    assert len(rows) == 3


def test_a_client_that_is_only_in_the_mps_list_counts_as_compute(one_card: FakeNvml) -> None:
    one_card.process(0, ME, 700, "mps")
    (row,) = sample_of(one_card).processes
    assert (row.kind, row.mps) == ("compute", True)


@pytest.mark.parametrize("mib", [None, 143772, 1 << 40])
def test_memory_that_is_unknown_or_larger_than_the_card_is_none(one_card: FakeNvml, mib: int | None) -> None:
    one_card.process(0, ME, mib)
    assert sample_of(one_card).processes[0].memory_mib is None


def test_a_broken_row_with_pid_0_is_dropped(one_card: FakeNvml) -> None:
    one_card.process(0, 0, 100)
    one_card.process(0, ME, 100)
    assert [row.pid for row in sample_of(one_card).processes] == [ME]


def test_many_processes_arrive(one_card: FakeNvml) -> None:
    for pid in range(100_001, 100_301):
        one_card.process(0, pid, 1)
    assert len(sample_of(one_card).processes) == 300


def test_lists_that_the_driver_does_not_give_are_said_to_be_unknown(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 2)
    fake.process(0, ME, 10)
    fake.fault("nvmlDeviceGetMPSComputeRunningProcesses_v3", NOT_SUPPORTED, card=0)
    fake.fault("nvmlDeviceGetComputeRunningProcesses_v3", NO_PERMISSION, card=1)
    (snapshot,) = snapshots(fake)
    assert [(s.processes_known, s.mps_known) for s in snapshot.samples] == [(True, False), (False, True)]


def test_sm_percent_per_process(one_card: FakeNvml) -> None:
    for pid, lists in ((101, ["compute"]), (102, ["compute"]), (103, ["compute", "mps"]), (104, ["compute"])):
        one_card.process(0, pid, 10, *lists)
    one_card.utilization(0, 101, 40)
    one_card.utilization(0, 102, 250)  # rubbish that drivers return with zombie contexts
    one_card.utilization(0, 104, 90, age_ms=-60_000)  # a stamp from the future
    one_card.utilization(0, 9999, 50)  # no such process on the card
    rows = {row.pid: row.sm_percent for row in sample_of(one_card).processes}
    assert rows == {101: 40, 102: 0, 103: None, 104: 0}


def test_old_utilization_samples_are_not_shown_as_present(one_card: FakeNvml) -> None:
    one_card.process(0, ME, 10)
    one_card.utilization(0, ME, 80, age_ms=10_000)
    assert sample_of(one_card).processes[0].sm_percent == 0


@pytest.mark.parametrize("answer", [0, NOT_FOUND])
def test_no_samples_is_idle_and_no_error(one_card: FakeNvml, answer: int) -> None:
    one_card.empty_utilization = answer
    one_card.process(0, ME, 10)
    assert sample_of(one_card).processes == (
        GpuProcess(pid=ME, memory_mib=10, sm_percent=0, user=pwd.getpwuid(os.getuid()).pw_name),
    )


OPTIONAL_CALLS = {
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetProcessUtilization",
}


@pytest.mark.parametrize("code", [3, 4, 10, 13, 25])
def test_a_card_that_supports_nothing_optional_is_still_a_card(one_card: FakeNvml, code: int) -> None:
    for call in sorted(OPTIONAL_CALLS):
        one_card.fault(call, code)
    first, second = snapshots(one_card, 2)
    for snapshot in (first, second):
        assert snapshot.state is DriverState.OK
        sample = snapshot.samples[0]
        assert sample.error == ""
        assert sample.used_mib + sample.free_mib == 143771
        assert (sample.power_mw, sample.energy_mj, sample.recovery_action) == (None, None, None)
        # A missing function (13) has an older form to fall back on, a refusal has not.
        assert sample.processes_known == (code == 13)


def test_what_is_not_supported_is_asked_for_once(one_card: FakeNvml) -> None:
    one_card.fault("nvmlDeviceGetUtilizationRates", 3)
    one_card.log = True
    taken = snapshots(one_card, 4)
    assert [snapshot.samples[0].sm_percent for snapshot in taken] == [None] * 4
    assert one_card.calls().count("nvmlDeviceGetUtilizationRates") == 1
    assert one_card.calls().count("nvmlDeviceGetMemoryInfo_v2") >= 4


def test_what_no_limit_depends_on_is_read_now_and_then(one_card: FakeNvml) -> None:
    one_card.cards[0].energy_mj = 5
    one_card.log = True
    began_s = time.monotonic()
    taken = snapshots(one_card, 4)
    elapsed_s = time.monotonic() - began_s
    assert [snapshot.samples[0].energy_mj for snapshot in taken] == [5] * 4
    assert 1 <= one_card.calls().count("nvmlDeviceGetTotalEnergyConsumption") <= 1 + elapsed_s / MEASURE_EVERY_S


def test_process_lists_are_read_at_most_once_a_second(one_card: FakeNvml) -> None:
    one_card.log = True
    began_s = time.monotonic()
    snapshots(one_card, 30)
    elapsed_s = time.monotonic() - began_s
    # An empty list takes one call: the size query answers it.
    assert 1 <= one_card.calls().count("nvmlDeviceGetComputeRunningProcesses_v3") <= 1 + elapsed_s
    assert one_card.calls().count("nvmlDeviceGetMemoryInfo_v2") >= 30


@pytest.mark.parametrize(
    ("code", "action"),
    [(0, "none"), (1, "gpu_reset"), (2, "node_reboot"), (3, "drain_p2p"), (4, "drain_and_reset"), (77, "unknown")],
)
def test_the_recovery_action_is_passed_on(one_card: FakeNvml, code: int, action: str) -> None:
    one_card.cards[0].action = code
    assert sample_of(one_card).recovery_action == action


def test_a_pid_that_is_not_visible_here_has_no_user(one_card: FakeNvml) -> None:
    one_card.process(0, 4_000_000, 10)  # above the kernel's largest pid
    assert sample_of(one_card).processes[0].user == ""


def test_a_card_that_may_not_be_opened_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 3)
    fake.fault("nvmlDeviceGetHandleByIndex_v2", NO_PERMISSION, card=1)
    (snapshot,) = snapshots(fake)
    assert [info.uuid for info in snapshot.infos] == [uuid_of(0), uuid_of(2)]
    assert "index 1 cannot be opened" in snapshot.detail
    assert "Insufficient Permissions" in snapshot.detail


def test_nothing_is_ever_set_on_a_card(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 2)
    snapshots(fake, 3)
    assert fake.setters() == []


def test_a_host_without_the_library_or_without_the_driver_says_so(one_card: FakeNvml) -> None:
    async def state(environ: dict[str, str]) -> GpuSnapshot:
        library = NvmlLibrary(environ=environ)
        try:
            return await library.snapshot()
        finally:
            await library.close()

    bare = one_card.environ() | {"LD_LIBRARY_PATH": str(one_card.folder)}
    snapshot = asyncio.run(state(bare))
    assert snapshot.state is DriverState.NO_LIBRARY
    assert "libnvidia-ml.so.1" in snapshot.detail
    one_card.fault("nvmlInitWithFlags", DRIVER_NOT_LOADED)
    one_card.write()
    snapshot = asyncio.run(state(one_card.environ()))
    assert snapshot.state is DriverState.NO_DRIVER
    assert "not loaded" in snapshot.detail


def test_names_come_late_rather_than_holding_up_a_snapshot() -> None:
    answers = {1001: "ada"}

    def slow(uid: int) -> str:
        time.sleep(0.3)
        return answers[uid]

    async def run() -> tuple[dict[int, str], dict[int, str]]:
        names = UserNames(slow, patience_s=0.02)
        began_s = time.monotonic()
        first = await names.of({1001})
        assert time.monotonic() - began_s < 0.25
        deadline_s = time.monotonic() + 5
        while (second := await names.of({1001})) == first and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        return first, second

    first, second = asyncio.run(run())
    assert first == {1001: "uid 1001"}
    assert second == {1001: "ada"}
