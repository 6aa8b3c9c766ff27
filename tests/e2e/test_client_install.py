"""The client as a tool of its own: the wheel without extras in a fresh environment, against a live cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from shared_cluster import World

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements-dev.lock"
# What belongs to the daemons alone, by the modules' names.
FOREIGN = ("sqlalchemy", "numpy", "psutil", "pynvml", "cryptography", "structlog", "grpc_health")
LIMIT_S = 300.0


def pip(python: Path | str, *words: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if done.returncode and "Could not find a version" in done.stderr:
        pytest.skip("needs a package index that answers")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the programs of an environment that has the client alone."""
    home = tmp_path_factory.mktemp("tool")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(home), str(ROOT))
    (wheel,) = home.glob("gpushare_cluster-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(home / "venv")], check=True, timeout=LIMIT_S)
    pip(home / "venv" / "bin" / "python", "install", "--constraint", str(LOCK), str(wheel))
    return home / "venv" / "bin"


def run(tool: Path, *words: str, world: World | None = None) -> subprocess.CompletedProcess[str]:
    environment = world.cli_environment() if world else dict(os.environ)
    # Nothing of this checkout may be found in place of what was installed.
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(tool / words[0]), *words[1:]], env=environment, cwd=tool, capture_output=True, text=True, timeout=60
    )


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_plain_install_is_a_whole_client(tool: Path, world: World) -> None:
    helped = run(tool, "gpushare", "--help")
    assert (helped.returncode, "whoami" in helped.stdout) == (0, True)
    who = run(tool, "gpushare", "--context", "ann", "whoami", "-o", "json", world=world)
    assert (who.returncode, json.loads(who.stdout)["user"]) == (0, "ann"), who.stderr
    submitted = ("submit", "--parsable", "--gpus", "0.1", "--export", "none", "--chdir", "/", "--", "echo", "hello")
    job_id = run(tool, "gpushare", "--context", "ann", *submitted, world=world).stdout.strip()
    assert run(tool, "gpushare", "--context", "ann", "wait", job_id, world=world).returncode == 0
    assert run(tool, "gpushare", "--context", "ann", "logs", job_id, world=world).stdout == "hello\n"
    assert job_id in run(tool, "gpushare", "--context", "ann", "jobs", "-a", world=world).stdout.split()


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_nothing_of_the_daemons_is_there_and_whoever_wants_one_is_told(tool: Path, tmp_path: Path) -> None:
    listed = run(tool, "python", "-m", "pip", "list", "--format", "json")
    names = {each["name"].lower() for each in json.loads(listed.stdout)}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {line.partition(">")[0].lower() for extra in ("scheduler", "agent") for line in extras[extra]}
    assert not names & wanted
    assert "gpushare-cluster" in names
    done = run(tool, "gpushare", "up", "--state-dir", str(tmp_path), "--listen", "127.0.0.1:0")
    assert (done.returncode, "No module named" in done.stderr) == (1, True), done


def test_no_command_but_those_of_a_whole_installation_needs_a_daemons_package() -> None:
    """Imports every module of client and command line where these packages cannot be found."""
    code = f"""
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FOREIGN!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import gpushare.client, gpushare.cli
for package in (gpushare.client, gpushare.cli):
    for each in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(each.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
