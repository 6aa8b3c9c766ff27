"""The demo shows what it promises, fails when something is missing, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from leaks import processes_of
from upcluster import CLI


@pytest.mark.timeout(300)
def test_the_demo_runs_to_its_end_and_leaves_only_its_directory(tmp_path: Path) -> None:
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environment = os.environ | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("GPUSHARE_CONFIG", None)
    command = [*CLI, "demo", "--dir", str(tmp_path / "demo")]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    slices = re.findall(r"^(vision|nlp) .*(GPU-[0-9a-f-]{36}) +(\d+) +(\d+) +(\S+) +(\S+)$", done.stdout, re.M)
    assert {slice_[0] for slice_ in slices[:2]} == {"vision", "nlp"}
    assert slices[0][1] == slices[1][1], "one card"
    assert "MEMORY_LIMIT" in done.stdout
    assert "61440 MiB and its slice has 20389 MiB" in done.stdout
    assert "NO_CAPACITY" in done.stdout
    assert re.search(r"tenant vision: \d+\.\d{3} charge-seconds", done.stdout)
    assert re.search(r"tenant nlp: \d+\.\d{3} charge-seconds", done.stdout)
    assert processes_of(tmp_path) == []
    assert list(home.iterdir()) == []
    assert list(work.iterdir()) == []


def test_the_demo_touches_no_directory_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    done = subprocess.run([*CLI, "demo", "--dir", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "other files" in done.stderr
    assert (tmp_path / "precious").read_text() == "data"
