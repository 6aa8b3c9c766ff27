"""How the tests call the command line: in this process with its output captured, or as a process of its own.

The fixtures reach the tests through conftest; `cluster` is a scheduler of threads (`cli_fake`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_fake import FakeCluster, serving

from gpushare.cli import main as cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with serving(FakeCluster()) as started:
        yield started


@pytest.fixture
def environment(cluster: FakeCluster, tmp_path: Path) -> dict[str, str]:
    config = tmp_path / "config.toml"
    config.write_text(
        f'current = "here"\n[contexts.here]\nserver = "{cluster.address}"\ntoken = "gps_x"\n'
        f'tenant = "{cluster.tenant}"\nuser = "{cluster.user}"\n'
    )
    return {"GPUSHARE_CONFIG": str(config)}


@pytest.fixture
def gpushare(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("GPUSHARE_SERVER", "GPUSHARE_TOKEN", "GPUSHARE_CA"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capfd.readouterr())

    return call


def as_process(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpushare.cli.main", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
