"""The daemons' programs in an installation that lacks what they need."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules[{missing!r}] = None
from gpushare import entry
sys.argv = ["{program}", "--help"]
sys.exit(entry.{function}())
"""


@pytest.mark.parametrize(
    ("program", "function", "missing", "extra"),
    [
        ("gpushare-scheduler", "scheduler", "structlog", "scheduler"),
        ("gpushare-scheduler", "scheduler", "sqlalchemy", "scheduler"),
        ("gpushare-agent", "agent", "structlog", "agent"),
    ],
)
def test_a_daemon_without_its_libraries_says_what_to_install(
    program: str, function: str, missing: str, extra: str
) -> None:
    text = WITHOUT.format(missing=missing, program=program, function=function)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {program} needs {missing}")
    assert f"pip install 'gpushare-cluster[{extra}]'" in done.stderr
