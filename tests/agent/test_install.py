"""Installing a daemon below a root of its own: what is written, what is kept, what is refused, and what undoes it."""

from __future__ import annotations

import os
import pty
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpushare.config import load_agent_config, load_scheduler_config
from gpushare.host import commands, places, templates
from gpushare.host.places import below
from gpushare.host.systemd import Systemd, UnitSettings, own_unit_warnings, unit_of, why_jobs_die
from gpushare.join import encode_join

JOIN = encode_join("127.0.0.1:7480", "gpj_" + "a" * 43, "")
UUID = "GPU-00000000-0000-0000-0000-000000000000"
LOGIN = encode_join("127.0.0.1:7480", "gps_" + "a" * 43, "")


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def agent(root: Path, *arguments: str, verb: str = "install") -> int:
    return commands.agent_host([verb, "--root", str(root), *arguments])


def test_an_agent_is_installed_once_and_then_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent(tmp_path, "--join", JOIN, "--managed-gpus", UUID) == 0
    said = capsys.readouterr().out
    assert "systemctl enable --now gpushare-agent" in said
    join = below(tmp_path, places.AGENT_JOIN)
    assert (join.read_text().strip(), stat.S_IMODE(join.stat().st_mode)) == (JOIN, 0o600)
    assert JOIN not in said
    assert stat.S_IMODE(below(tmp_path, places.AGENT_STATE).stat().st_mode) == 0o711
    environ = {"GPUSHARE_AGENT_JOIN_FILE": str(join)}
    config = load_agent_config(below(tmp_path, places.AGENT_CONFIG), environ=environ, uid=0)
    assert config.managed_gpus == (UUID,)

    before = tree(tmp_path)
    assert agent(tmp_path, "--join", JOIN) == 0
    assert tree(tmp_path) == before
    assert agent(tmp_path) == 0, "the join line is there already"
    assert "kept: " in capsys.readouterr().out


def test_a_configuration_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    config = below(tmp_path, places.AGENT_CONFIG)
    config.parent.mkdir(parents=True)
    config.write_text('join_file = "/etc/gpushare/other.join"\n')
    assert agent(tmp_path, "--join", JOIN) == 0
    assert config.read_text() == 'join_file = "/etc/gpushare/other.join"\n'
    assert below(tmp_path, "/etc/gpushare/other.join").read_text().strip() == JOIN


@pytest.mark.parametrize(
    ("arguments", "config", "words"),
    [
        ((), None, "gpushare node join-token"),
        (("--join", LOGIN), None, "gpushare login"),
        (("--join", "rubbish"), None, "no join string"),
        (("--join", " "), None, "empty"),
        (("--join", JOIN), "tiers = ['exclusive']\n", "add join_file"),
        (("--join", JOIN, "--managed-gpus", UUID), "join_file = '/j'\n", "is kept"),
        (("--join", JOIN, "--managed-gpus", "0,1"), None, "nvidia-smi -L"),
        (("--join", JOIN), "join_file =\n", "no TOML"),
        (("--join", JOIN, "--now"), None, "systemd is not the init"),
    ],
)
def test_a_refusal_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], config: str | None, words: str
) -> None:
    if config is not None:
        below(tmp_path, places.CONFIG_DIR).mkdir(parents=True)
        below(tmp_path, places.AGENT_CONFIG).write_text(config)
    before = tree(tmp_path)
    assert agent(tmp_path, *arguments) == 1
    assert words in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_dry_run_shows_the_files_and_writes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent(tmp_path, "--join", JOIN, "--profile", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "KillMode=process" in said
    assert "agent.join mode 0600" in said
    assert JOIN not in said
    assert tree(tmp_path) == {}


def test_uninstalling_leaves_configuration_and_state_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agent(tmp_path, "--join", JOIN, "--profile") == 0
    kept = below(tmp_path, places.AGENT_STATE) / "identity"
    kept.write_text("{}")
    capsys.readouterr()
    for _ in range(2):
        assert agent(tmp_path, verb="uninstall") == 0
        assert f"left: {below(tmp_path, places.AGENT_CONFIG)}, {kept.parent}" in capsys.readouterr().out
    left = sorted(tree(tmp_path))
    assert left == ["etc/gpushare/agent.join", "etc/gpushare/agent.toml", "var/lib/gpushare/agent/identity"]


def test_a_scheduler_is_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    assert commands.scheduler_host(["install", *root, "--listen", "10.0.0.1:7480", "--advertise", "head:7480"]) == 0
    assert "useradd --system" in capsys.readouterr().out
    config = load_scheduler_config(below(tmp_path, places.SCHEDULER_CONFIG), environ={}, uid=0)
    assert (config.listen, config.advertise) == ("10.0.0.1:7480", "head:7480")
    assert str(config.state_dir) == places.SCHEDULER_STATE
    assert commands.scheduler_host(["install", *root, "--listen", "h:1"]) == 1, "scheduler.toml is kept"
    assert "is kept" in capsys.readouterr().err
    below(tmp_path, places.SCHEDULER_CONFIG).unlink()
    assert commands.scheduler_host(["install", *root, "--listen", "h:port"]) == 1
    assert "--listen" in capsys.readouterr().err


def test_only_root_installs_on_this_host(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert commands.scheduler_host(["install"]) == 1
    assert "Only root" in capsys.readouterr().err


# -- units


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (apt: systemd)")
@pytest.mark.parametrize("unit", [places.AGENT_UNIT, places.SCHEDULER_UNIT])
def test_systemd_accepts_the_units_as_they_are(tmp_path: Path, unit: str) -> None:
    program = tmp_path / "daemon"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    agent = unit == places.AGENT_UNIT
    text = templates.agent_unit(str(program)) if agent else templates.scheduler_unit(str(program), "root")
    (tmp_path / unit).write_text(text)

    def verified() -> str:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit)], capture_output=True, text=True, timeout=60
        )
        # It also reads the units of the machine that the tests run on.
        return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if unit in line)

    assert verified() == ""
    (tmp_path / unit).write_text(text.replace("Restart=always", "Restart=somtimes"))
    assert "somtimes" in verified(), "systemd-analyze would not notice"


def test_the_agents_unit_outlives_nothing_but_itself() -> None:
    lines = templates.agent_unit("/opt/gpushare/current/bin/gpushare-agent").splitlines()
    for wanted in ("KillMode=process", "Delegate=yes", "RuntimeDirectoryPreserve=yes", "OOMScoreAdjust=-999"):
        assert wanted in lines


CGROUPS = """
0::/system.slice/gpushare-agent.service                             => gpushare-agent.service
0::/system.slice/gpushare-agent.service/gpushare-agent              => gpushare-agent.service
1:name=systemd:/system.slice/a.service|0::/system.slice/a.service   => a.service
1:name=systemd:/system.slice/a.service|0::/                         => a.service
4:memory:/system.slice/b.service|0::/                               => -
0::/user.slice/user-7.slice/user@7.service/app.slice/a.service      => a.service user
0::/user.slice/user-7.slice/user@7.service/app.slice/app-x.scope    => -
0::/user.slice/user-7.slice/session-2.scope                         => -
0::/user.slice/user-7.slice/user@7.service/init.scope               => -
0::/                                                                => -
0::/docker/0123abcd                                                 => -
"""


@pytest.mark.parametrize("case", CGROUPS.strip().splitlines())
def test_the_unit_of_a_process(case: str) -> None:
    cgroups, expected = (part.strip() for part in case.split("=>"))
    found = unit_of(cgroups.replace("|", "\n"))
    assert ("-" if found is None else found[0] + (" user" if found[1] else "")) == expected


UNIT_FILES = """
                                     => control-group no   KillMode= Delegate=
KillMode=process                     => process no         Delegate=
Delegate=yes                         => control-group yes  KillMode=
KillMode=mixed|Delegate=yes          => mixed yes          KillMode=
KillMode=process|Delegate=cpu memory => process yes
KillMode=process|Delegate=yes        => process yes
"""


@pytest.mark.parametrize("case", UNIT_FILES.strip("\n").splitlines())
def test_a_unit_file_that_would_harm_jobs_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Where systemctl says nothing, the file does."""
    monkeypatch.setenv("PATH", str(tmp_path))
    lines, expected = case.split("=>")
    file = below(tmp_path, places.UNIT_DIR) / "gpushare-agent.service"
    file.parent.mkdir(parents=True)
    file.write_text("[Unit]\nDescription=%i %n\n[Service]\nExecStart=/x\n" + lines.strip().replace("|", "\n") + "\n")
    kill_mode, delegate, *about = expected.split()
    found = Systemd(tmp_path).settings("gpushare-agent.service")
    assert found == UnitSettings("gpushare-agent.service", kill_mode, delegate == "yes")
    warnings = own_unit_warnings("0::/system.slice/gpushare-agent.service", Systemd(tmp_path))
    assert len(warnings) == len(about)
    for warning, word in zip(warnings, about, strict=True):
        assert word in warning


def test_a_drop_in_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    units = below(tmp_path, places.UNIT_DIR)
    (units / "a.service.d").mkdir(parents=True)
    (units / "a.service").write_text("[Service]\nKillMode=control-group\nDelegate=yes\n")
    (units / "a.service.d" / "jobs.conf").write_text("[Service]\nKillMode=process\n")
    found = Systemd(tmp_path).settings("a.service")
    assert found is not None
    assert list(why_jobs_die(found)) == []


# -- login shells

CARDS = "GPU-aaaa,GPU-bbbb"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize(
    ("environ", "cards", "interactive", "uid", "expected"),
    [
        ({}, CARDS, True, 65534, CARDS),
        ({}, "", True, 65534, ""),
        ({}, CARDS, False, 65534, "unset"),
        ({}, None, True, 65534, "unset"),
        ({}, CARDS, True, 0, "unset"),
        ({"GPUSHARE_JOB_ID": "vision/42"}, CARDS, True, 65534, "unset"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, CARDS, True, 65534, "3"),
    ],
)
def test_an_interactive_login_sees_the_cards_that_are_not_managed(
    tmp_path: Path, environ: dict[str, str], cards: str | None, interactive: bool, uid: int, expected: str
) -> None:
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    file = tmp_path / "login-cards"
    if cards is not None:
        file.write_text(cards + "\n")
    snippet = tmp_path / "gpushare.sh"
    snippet.write_text(templates.profile().replace("/run/gpushare/login-cards", str(file)))
    script = f'. {snippet}; echo "<${{CUDA_VISIBLE_DEVICES-unset}}>"'
    command = ["sh", *(["-i"] if interactive else []), "-c", script]
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command, stdin=theirs, capture_output=True, text=True, timeout=20, user=uid, cwd="/",
            env={"PATH": os.environ["PATH"], "ENV": "", **environ},
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    assert f"<{expected}>" in done.stdout, done
    assert ("gpushare run --gpus" in done.stdout) == (expected == cards)


def test_a_python_that_other_users_cannot_reach_is_not_installed_on(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    subprocess.run([sys.executable, "-m", "venv", "--copies", "--without-pip", closed], check=True)
    closed.chmod(0o700)
    script = Path(__file__).parents[2] / "deploy" / "install.sh"
    environ = {key: value for key, value in os.environ.items() if key != "GPUSHARE_ROOT"}
    done = subprocess.run(
        ["sh", str(script), "no-such.whl"],
        env={**environ, "PYTHON": str(closed / "bin/python")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"lies below {closed}, which other users cannot enter" in done.stderr
    assert "PYTHON=/usr/bin/python3" in done.stderr
