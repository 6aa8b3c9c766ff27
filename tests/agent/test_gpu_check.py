"""The GPU check without a card: what it decides, reads and writes, and one whole run over the stand-ins."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standins.fake_cuda import FakeCuda
from standins.fake_mps import FakeMps
from standins.fake_nvml import FakeNvml, uuid_of

from benchmarks import gpu_check
from benchmarks.gpucheck import answers, bench, report, steps_mps, steps_plain
from benchmarks.gpucheck.report import AbsentError, Findings, Heading, Outcome

ROOT = Path(__file__).resolve().parents[2]


def card(**changes: object) -> dict[str, Any]:
    """A card as `nvmlread` shows an idle one."""
    idle = {"uuid": "GPU-1", "mig": False, "compute_mode": 0, "free_mib": 100, "used_mib": 0}
    return {**idle, "compute": [], "graphics": [], "mps": [], **changes}


def row(pid: int, mib: int | None = 10) -> dict[str, int | None]:
    return {"pid": pid, "mib": mib}


def test_a_card_that_is_ours_alone_may_be_disturbed() -> None:
    assert report.others_on_card(card(), {1, 2}) is None
    assert report.others_on_card(card(compute=[row(1)], mps=[row(1), row(2)], used_mib=9000), {1, 2}) is None
    assert report.others_on_card(card(mps=None, graphics=None), {1}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compute": [row(1), row(7, 4000)]}, "pid 7 with 4000 MiB"),
        ({"graphics": [row(7)]}, "pid 7"),
        ({"mps": [row(7, None)]}, "an unknown amount"),
        ({"compute": None}, "no list of processes"),
        ({"used_mib": report.HIDDEN_MIB_MAX + 1}, "does not show"),
    ],
)
def test_anybody_else_on_the_card_keeps_harmful_steps_away(changes: dict[str, object], words: str) -> None:
    reason = report.others_on_card(card(**changes), {1})
    assert reason is not None
    assert words in reason


def test_a_step_runs_unless_something_speaks_against_it() -> None:
    assert report.why_not(30, 31, "") is None
    assert "out of time" in (report.why_not(30, 29, "") or "")
    assert report.why_not(30, 29, "no MPS") == "no MPS"


def test_the_emptiest_card_is_chosen_and_none_is_changed() -> None:
    busy, full, best = card(compute=[row(1)], free_mib=900), card(free_mib=5), card(uuid="GPU-2", free_mib=50)
    assert bench.choose([busy, full, best], None) is best
    assert bench.choose([busy, best], "GPU-1") is busy
    for cards, wanted in (([], None), ([best], "GPU-9"), ([card(mig=True)], None), ([card(compute_mode=3)], None)):
        with pytest.raises(AbsentError):
            bench.choose(cards, wanted)


def test_the_control_programs_answers_are_read() -> None:
    assert answers.pids(["4711", "Server not found", "", "12"]) == [4711, 12]
    assert [answers.size_mib(text) for text in ("2G", " 900M ", "1G", "8", "", "limit removed")] == [
        2048,
        900,
        1024,
        0,
        None,
        None,
    ]
    assert answers.error_name(2) == "2 OUT_OF_MEMORY"
    assert answers.error_name(4321) == "4321"
    assert answers.percent_sms(132, 25) == 33
    assert answers.percent_sms(132, 10) == 13


def test_the_servers_log_is_read() -> None:
    log = (
        "[2026-01-01 00:00:00.000 Server 4] Active Threads Percentage set to 33.0\n"
        "[2026-01-01 00:00:00.000 Server 4] Device pinned memory limit for device 0 set to 0x140000000 bytes\n"
        "[2026-01-01 00:00:01.000 Server 4] Volta MPS: Server is handling a fatal GPU error.\n"
        "[2026-01-01 00:00:01.000 Server 4] Volta MPS: status of client {11641, 1} is INACTIVE\n"
    )
    assert answers.logged_limits_mib(log) == [5120]
    assert answers.logged_percentages(log) == [33.0]
    assert answers.fault_lines(log).splitlines() == [
        "Volta MPS: Server is handling a fatal GPU error.",
        "Volta MPS: status of client {11641, 1} is INACTIVE",
    ]
    assert answers.rows_of(card(compute=[row(3, 7)], mps=[row(3, None), row(4)]), 3) == {"compute": 7, "mps": None}


def test_the_result_file_tells_what_was_measured_what_was_absent_and_what_differs() -> None:
    measured = Findings()
    measured.figure("context_mib", 512)
    measured.figure("seconds", 0.123456)
    measured.figure("nothing", None)
    measured.claim("one holds", True, "so it was")
    measured.claim("one does not | hold", False, 7)
    outcomes = [
        Outcome("a", "the host", "measured", "", 1.25, measured),
        Outcome("b", "the daemon", "absent", "no\nMPS", 0.0, Findings()),
        Outcome("c", "the limit", "failed", "pid 7 did not answer", 3.0, Findings()),
    ]
    heading = Heading("2026-11-22", "python gpu_check.py", "NVIDIA H200", "GPU-1", "580.1", "13000", "Linux")
    text = report.markdown(heading, outcomes)
    assert "# GPU check: NVIDIA H200, driver 580.1" in text
    assert "| a) the host | measured, 1 of 2 expectations hold | 1.2 |" in text
    assert "| b) the daemon | absent: no MPS | 0.0 |" in text
    assert "| c) the limit | failed: pid 7 did not answer | 3.0 |" in text
    assert "- a) one does not | hold: seen 7" in text
    assert "- context_mib: 512\n- seconds: 0.1235\n- nothing: none\n- holds: one holds (seen: so it was)" in text
    assert "Nothing." in report.markdown(heading, outcomes[1:])
    assert report.file_name("20261122-1530", "NVIDIA H200 (SXM)") == "gpu-check-20261122-1530-nvidia-h200-sxm.md"


def test_a_step_that_hangs_is_cut_off_and_told() -> None:
    def hang() -> None:
        with gpu_check.at_most(0.05):
            time.sleep(30)

    with pytest.raises(gpu_check.TooLongError, match="did not end"):
        hang()
    with gpu_check.at_most(600):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "no alarm is left behind"


@pytest.mark.parametrize("driver", ["absent", "without a card"])
def test_without_a_card_the_check_says_so_in_one_line_and_ends_well(tmp_path: Path, driver: str) -> None:
    nvml = FakeNvml.with_cards(tmp_path, 0)
    if driver == "absent":
        (tmp_path / "lib" / "libnvidia-ml.so.1").write_bytes(b"")  # hides the driver of the host, if it has one
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "results")]
    ran = subprocess.run(command, cwd=ROOT, env=nvml.environ(), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 1
    assert ran.stdout.startswith("no NVIDIA card to check on this machine: ")
    assert ran.stderr == ""
    assert not (tmp_path / "results").exists()


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Both drivers as stand-ins, in the environment of this process; short kernels and few clients."""
    monkeypatch.setattr(steps_plain, "FIND_TIMEOUT_S", 0.01)  # what is on PATH is found without a search
    monkeypatch.setattr(steps_plain, "BURN_TARGET_S", 0.02)
    monkeypatch.setattr(steps_plain, "LISTED_WITHIN_S", 2.0)
    monkeypatch.setattr(steps_plain, "SUSPEND_SIZES_MIB", (1024,))
    monkeypatch.setattr(steps_mps, "CLIENTS_TRIED", 4)
    monkeypatch.setattr(bench, "SETTLE_PAUSE_S", 0.03)
    monkeypatch.setattr("benchmarks.gpucheck.steps_faults.SETTLE_S", 0.1)
    monkeypatch.setattr("benchmarks.gpucheck.steps_faults.KERNEL_ROUNDS", 100_000)
    with FakeCuda(FakeNvml.with_cards(tmp_path, 2)) as fake:
        for key, value in fake.environ().items():
            monkeypatch.setenv(key, value)
        yield fake


def written(folder: Path) -> str:
    [result] = (folder / "results").glob("gpu-check-*-nvidia-h200.md")
    return result.read_text()


def check(folder: Path) -> int:
    return gpu_check.main(["--out", str(folder / "results"), "--skip-tests", "--gpu", uuid_of(0)])


def test_the_whole_check_over_the_stand_ins(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mps = FakeMps.installed(tmp_path)
    for key, value in mps.environ().items():
        monkeypatch.setenv(key, value)
    code = check(tmp_path)
    text = written(tmp_path)
    assert code == 0, text
    assert "failed" not in text
    steps = {step.key for step in gpu_check.STEPS}
    measured = {line.split(")")[0][2:] for line in text.splitlines() if ") " in line and "| measured" in line}
    assert measured == steps, capsys.readouterr().out
    for figure in (
        "- sms at 50 %: 66",
        "- allocatable_mib under 4096 MiB: 3776",
        "- holds: a client of the daemon says so (attribute 133 is 1) (seen: 1)",
        "- holds: who left MPS is in the compute list and not in the MPS list",
        "- holds: 1.5G is misread (never send fractions)",
        "- alone_s at 50 %: ",
        "- holds: the terminated client meets the sticky error 810",
        "- holds: its 1024 MiB come back as they were",
        "- holds: the memory of a program killed while busy comes back",
        "- holds: an unknown UUID shows no card at all (seen: 100 NO_DEVICE)",
    ):
        assert figure in text
    assert "- j) a device takes 48 or 60 clients" in text.partition("contradicts")[2]
    assert cuda.nvml.setters() == []


def test_with_a_stranger_on_the_card_nothing_harmful_runs(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_plain, "_find_mps", list)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    cuda.strangers.append((1, 2000))
    assert check(tmp_path) == 0
    text = written(tmp_path)
    for title in ("3) how much of a card is usable", "4) fault and SIGKILL outside MPS"):
        assert f"| {title} | absent: 1 foreign process(es) on the card, such as pid 1 with 2000 MiB |" in text
    assert "| b) daemon, server, other users | absent: nvidia-cuda-mps-control is not on this machine |" in text
    assert "| 1) a program outside MPS | measured" in text


def test_a_check_out_of_time_runs_nothing_and_says_so(cuda: FakeCuda, tmp_path: Path) -> None:
    out = str(tmp_path / "results")
    assert gpu_check.main(["--out", out, "--skip-tests", "--minutes", "0.1"]) == 0
    assert written(tmp_path).count("out of time") >= 3


def test_only_programs_in_their_usual_places_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_plain, "PROGRAM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert steps_plain.usable_mps([]) == (None, "nvidia-cuda-mps-control is not on this machine")
    program, why = steps_plain.usable_mps(["/tmp/planted/nvidia-cuda-mps-control"])
    assert program is None
    assert "/tmp/planted/nvidia-cuda-mps-control, which is not on PATH" in why
    mps = FakeMps.installed(tmp_path)
    monkeypatch.setenv("PATH", str(mps.bin))
    assert steps_plain.usable_mps([]) == (f"{mps.bin}/nvidia-cuda-mps-control", "")
    (mps.bin / "nvidia-cuda-mps-server").unlink()
    assert "nvidia-cuda-mps-server is not" in steps_plain.usable_mps([])[1]
