"""The daemons' programs in an installation that lacks what they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys
sys.modules[{missing!r}] = None
from gpushare import entry
sys.argv = ["{program}", "--config", {config!r}]
sys.exit(entry.{function}())
"""


@pytest.mark.parametrize(
    ("program", "function", "missing", "extra"),
    [
        ("gpushare-scheduler", "scheduler", "cryptography", "scheduler"),
        ("gpushare-scheduler", "scheduler", "sqlalchemy", "scheduler"),
        ("gpushare-agent", "agent", "psutil", "agent"),
    ],
)
def test_a_daemon_without_its_libraries_says_what_to_install(
    tmp_path: Path, program: str, function: str, missing: str, extra: str
) -> None:
    config = tmp_path / "daemon.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\n')
    text = WITHOUT.format(missing=missing, program=program, function=function, config=str(config))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {program} needs {missing}")
    assert f"pip install 'gpushare-cluster[{extra}]'" in done.stderr
