"""Every command of every page is typed, in order, and prints what the page says."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from fleet import fleet, why_no_fleet
from pages import Console, read_page, run_page
from stage import ROOT, Stage
from standins import wheels
from standins.fake_nvml import FakeNvml
from tmux_seat import needs_tmux, seat

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
FLEET = ROOT / "docs" / "guides" / "eight-servers-on-monday.md"
WHY_NO_FLEET = why_no_fleet()
# Pages elsewhere that show commands with their output.
OTHERS = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```console" in path.read_text()
]
# Blocks that a page may leave to its reader, all pages together.
MAX_NOT_RUN = 2


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def why_not(path: Path) -> str:
    """What is missing here that the page's reader has; "" where nothing is."""
    needed = ("curl", "scp", "ssh", "sshd") if path.name == "notebook-and-vscode.md" else ()
    missing = [name for name in needed if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"there is no {', '.join(missing)} here" if missing else ""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", [path for path in (*GUIDES, *OTHERS) if path != FLEET], ids=name_of)
def test_page(path: Path, stage: Stage, tmp_path: Path) -> None:
    if why := why_not(path):
        pytest.skip(why)
    # The README's reader has a program to run.
    (tmp_path / "train.py").write_text('print("epoch 1: loss 0.25")\n')
    assert stage.run(path, tmp_path), "a page that shows no command"


@needs_tmux
@pytest.mark.timeout(300)
def test_what_takes_the_terminal_is_typed_into_one(stage: Stage, tmp_path: Path) -> None:
    """As its page says: a shell, left by `~.`, to which one comes back, and which ends with `exit`."""
    steps = read_page(ROOT / "docs" / "guides" / "notebook-and-vscode.md").steps
    blocks = [step for step in steps if isinstance(step, Console) and "takes the terminal" in step.why_not]
    begin, come_back = (command.text for block in blocks for command in block.commands)
    with seat(tmp_path, stage.newcomer("zoology", "zoe")) as terminal:
        # On the page it is the second job.
        terminal.run("gpushare submit --gpus 0 --cpus 1 -- true")
        terminal.run(begin)
        job = terminal.sees(r"^job (\d+); to come back: gpushare attach \1")[1]
        assert come_back == f"gpushare attach {job}"
        terminal.run("PS1='in-job> '")
        terminal.sees(r"^in-job> *$")
        terminal.run("")
        terminal.type("~.")
        terminal.sees(rf"^note: left; job {job} goes on")
        terminal.run(come_back)
        terminal.run("echo of $GPUSHARE_JOB_ID again")
        terminal.sees(rf"^of {job} again$")
        terminal.run("exit")
        assert stage.cluster.ok("wait", job, person="zoe").code == 0


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(WHY_NO_FLEET), reason=WHY_NO_FLEET)
def test_eight_servers(tmp_path: Path) -> None:
    """The one page with a cluster of its own, from bare hosts on."""
    work = tmp_path / "work"
    work.mkdir()
    # Agents simulate their cards; the doctor looks for a driver.
    nvml = FakeNvml.with_cards(tmp_path, 8).environ()
    driver = {name: nvml[name] for name in ("LD_LIBRARY_PATH", "GPUSHARE_FAKE_NVML_STATE")}
    # Its people are other accounts than the one that runs this.
    with tempfile.TemporaryDirectory(prefix="fleet-") as place:
        Path(place).chmod(0o755)
        with fleet(Path(place) / "fleet", driver) as seat:
            assert run_page(read_page(FLEET), work, lambda options: seat)


@pytest.mark.prove
@pytest.mark.root
@pytest.mark.timeout(1600)
@pytest.mark.skipif(bool(WHY_NO_FLEET), reason=WHY_NO_FLEET)
def test_nine_bare_hosts_are_installed(tmp_path: Path) -> None:
    """The first blocks of that page on hosts that have nothing; what pip would fetch lies on PYTHONPATH."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "install.sh", tmp_path / "deploy")
    wheels.make_wheel(tmp_path, "1.0.0")
    more = {
        "GPUSHARE_ROOT": "$root",
        "PATH": "$root/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(wheels.dependencies(tmp_path / "deps")),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
    }
    page = read_page(FLEET)
    hosts, install = [step for step in page.steps if isinstance(step, Console)][:2]
    assert install.why_not
    page = page._replace(steps=(hosts, install._replace(why_not="")))
    with tempfile.TemporaryDirectory(prefix="fleet-") as place:
        Path(place).chmod(0o755)
        with fleet(Path(place) / "fleet", more, is_bare=True) as seat:
            typed = run_page(page, tmp_path, lambda options: seat, 1500.0)
    assert typed[-1].output.strip() == "gpushare 1.0.0"


def test_what_is_not_run_says_why_and_is_rare() -> None:
    examples = (ROOT / "examples").glob("*/README.md")
    steps = [(path, step) for path in (*GUIDES, *OTHERS, *examples) for step in read_page(path).steps]
    left_out = [(path, step) for path, step in steps if isinstance(step, Console) and step.why_not]
    assert all(len(step.why_not) > 10 for _, step in left_out)
    assert len(left_out) <= MAX_NOT_RUN, [f"{path}:{step.line}" for path, step in left_out]


def test_each_page_has_a_tenant_of_its_own() -> None:
    """Pages share a cluster, and their jobs are numbered from 1."""
    examples = sorted((ROOT / "examples").glob("*/README.md"))
    tenants = [tenant for path in (*GUIDES, *OTHERS, *examples) if (tenant := read_page(path).options.get("tenant"))]
    assert len(tenants) == len(set(tenants)), tenants


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES, *sorted((ROOT / "docs").glob("*.md"))], ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    targets = [link.partition("#")[0] for link in links_of(path.read_text()) if "://" not in link]
    assert not [target for target in targets if target and not (path.parent / target).exists()]


def links_of(text: str) -> list[str]:
    return [part.partition(")")[0] for part in text.split("](")[1:]]
