"""The programs: a daemon's in an installation that lacks what it needs, and the command line's first moment."""

from __future__ import annotations

import signal
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


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.{found})
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "{while_importing}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from gpushare import entry
sys.argv = ["gpushare", "jobs"]
entry.command_line()
"""


@pytest.mark.parametrize(
    ("found", "while_importing", "code"),
    [
        ("default_int_handler", "gpushare.cli.main", -signal.SIGINT),
        ("default_int_handler", "gpushare.cli.jobs", 128 + signal.SIGINT),
        ("SIG_IGN", "gpushare.cli.main", 1),
    ],
)
def test_an_early_ctrl_c_ends_the_command_without_a_word(
    tmp_path: Path, found: str, while_importing: str, code: int
) -> None:
    """One that is ignored, as under `nohup`, stays so: the command goes on, and finds no cluster to ask."""
    text = INTERRUPTED.format(found=found, while_importing=while_importing)
    environ = {"PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", text], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert (done.stderr.strip() == "") is (found != "SIG_IGN")
