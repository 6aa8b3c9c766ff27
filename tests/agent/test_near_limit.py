"""A word in the job's own log when it has taken nearly all of its slice: from the shim's pen to the whole agent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from executor_kit import BOTH_KINDS, eventually, host, run, shell
from standins.agent_process import Scene, play

from gpushare_agent.launchspec import LaunchSpec

SIMWORK = (sys.executable, "-m", "gpushare_agent.gpus.simwork")


def said(log_dir: Path, stream: str = "stderr") -> bytes:
    path = log_dir / stream
    return path.read_bytes() if path.exists() else b""


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_line_of_ours_stands_among_the_jobs_own_and_alone(tmp_path: Path, weak: bool) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=weak) as here:
            log = here.executor.log_dir("t.1.0.1")
            code = f"printf half >&2; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo rest >&2"
            await here.executor.launch(shell("t.1.0.1", code))
            await eventually(lambda: said(log) == b"half")
            here.executor.tell("t.1.0.1", "nearly full")
            await eventually(lambda: said(log) == b"half\ngpushare: nearly full\n")
            (tmp_path / "go").touch()
            await here.ended("t.1.0.1")
            assert said(log) == b"half\ngpushare: nearly full\nrest\n"
            # Nobody hears it now, and nothing comes of it.
            here.executor.tell("t.1.0.1", "too late")
            here.executor.tell("t.9.0.1", "never was")

    run(body())


def test_on_a_terminal_it_is_a_line_of_the_terminal(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            log = here.executor.log_dir("t.1.0.1")
            launch: LaunchSpec = shell("t.1.0.1", f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done", pty=True)
            await here.executor.launch(launch)
            await eventually(lambda: here.executor.statuses()["t.1.0.1"].state == "RUNNING")
            here.executor.tell("t.1.0.1", "nearly full")
            await eventually(lambda: said(log, "stdout") == b"gpushare: nearly full\r\n")
            (tmp_path / "go").touch()
            await here.ended("t.1.0.1")

    run(body())


def test_a_job_at_96_percent_reads_the_figures_and_the_knob_and_goes_on(tmp_path: Path) -> None:
    async def act(scene: Scene) -> None:
        await scene.share("v.1.0.1", *SIMWORK, "--memory", "19200M", "--seconds", "60")
        await scene.share("v.2.0.1", *SIMWORK, "--memory", "18000M", "--seconds", "60")
        for attempt_id in ("v.1.0.1", "v.2.0.1"):
            await scene.scheduler.state(attempt_id, "RUNNING")
        logs = scene.agent.state_dir / "logs"
        await scene.scheduler.until(lambda: said(logs / "v.1.0.1") != b"")
        line = said(logs / "v.1.0.1").decode()
        assert line.startswith("gpushare: GPU memory: 19200 of the 20000 MiB"), line
        assert "(96 %)" in line
        assert "--gpu-memory" in line
        reports = scene.scheduler.session.gpu_reports
        seen = len(reports)
        # Some looks later it is still the only line, and the neighbour at 90 % has none.
        await scene.scheduler.until(lambda: len(reports) > seen + 1, within_s=30)
        assert said(logs / "v.1.0.1").decode() == line
        assert said(logs / "v.2.0.1") == b""

    play(tmp_path, act, watchdog_interval_ms=50)
