"""What `gpushare doctor` finds out about a host: from the driver's stand-in, and from a tree of files."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from standins.agent_process import AgentProcess
from standins.fake_nvml import FakeNvml, uuid_of
from standins.fake_scheduler import FakeScheduler

from gpushare.host import gather as gathering
from gpushare.host.gather import gather
from gpushare.host.places import LOGIN_CARDS


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml.with_cards(tmp_path, 2)
    for name, value in fake.environ().items():
        monkeypatch.setenv(name, value)
    return fake


def files(root: Path, **texts: str) -> None:
    """Their names have `__` for `/`."""
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_driver_and_its_cards_are_read_like_the_agent_reads_them(driver: FakeNvml) -> None:
    found = gather().driver
    assert (found.state, found.version) == ("OK", driver.driver)
    assert [card.uuid for card in found.cards] == [uuid_of(0), uuid_of(1)]


def test_a_driver_of_another_version_is_told(driver: FakeNvml) -> None:
    driver.fault("nvmlInitWithFlags", 18)
    driver.write()
    found = gather().driver
    assert found.state == "MISMATCH"
    assert "reboot" in found.detail


def test_a_driver_that_hangs_does_not_hang_the_doctor(driver: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.hang("nvmlInitWithFlags", 60)
    driver.write()
    monkeypatch.setattr(gathering, "NVML_LIMIT_S", 1.5)
    assert gather().driver.state == "HUNG"


def test_a_child_that_cannot_be_killed_is_not_waited_for(driver: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.hang("nvmlInitWithFlags", 60)
    driver.write()
    monkeypatch.setattr(gathering, "NVML_LIMIT_S", 1.0)
    stuck: list[subprocess.Popen[bytes]] = []
    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "kill", lambda child: stuck.append(child))
        began_s = time.monotonic()
        state = gather().driver.state
        took_s = time.monotonic() - began_s
    for child in stuck:
        child.kill()
        child.communicate()
    assert (state, len(stuck)) == ("HUNG", 1)
    assert took_s < 30


def test_what_files_say(tmp_path: Path) -> None:
    tcp = "  sl  local_address rem_address   st\n   0: 00000000:{port} 00000000:0000 {state} 0:0 0:0 0 0 0 77 1\n"
    files(
        tmp_path,
        proc__driver__nvidia__params='RmProfilingAdminOnly: 1\nRegistryDwords: "RMDisableScrubOnFree=1"\n',
        proc__mounts="proc /proc proc rw,hidepid=invisible 0 0\n",
        proc__5__comm="slurmd\n",
        proc__6__comm="nvidia-persiste\n",
        proc__7__comm="python3\n",
        proc__7__cmdline="/opt/python\0-m\0gpushare.scheduler.main\0",
        proc__net__tcp=tcp.format(port="1D38", state="0A"),
        proc__net__tcp6=tcp.format(port="1D39", state="01"),
        dev__nvidia0="",
        dev__nvidiactl="",
    )
    (tmp_path / "dev/nvidia0").chmod(0o600)
    (tmp_path / "dev/nvidiactl").chmod(0o666)
    (tmp_path / "proc/7/fd").mkdir()
    (tmp_path / "proc/7/fd/3").symlink_to("socket:[77]")
    config = tmp_path / "etc/gpushare/agent.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'managed_gpus = ["{uuid_of(7)}"]\n')
    unit = tmp_path / "etc/systemd/system/gpushare-agent.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nDelegate=yes\n")
    found = gather(["root", "no-such-user"], tmp_path)
    assert found.params["RegistryDwords"] == "RMDisableScrubOnFree=1"
    assert (found.managed_gpus, found.config_trouble) == ((uuid_of(7),), ())
    assert found.hidepid
    assert found.foreign == ("slurmd",)
    assert found.persistenced
    assert found.device_modes == {"/dev/nvidia0": 0o600, "/dev/nvidiactl": 0o666}
    assert [(port.number, port.owner) for port in found.ports] == [(7480, "gpushare-scheduler")]
    assert found.users == {"root": "root", "no-such-user": "missing"}
    config.write_text("managed = 1\n")
    (trouble,) = gather(root=tmp_path).config_trouble
    assert "agent.toml:1: managed" in trouble
    (agent,) = found.units
    assert (agent.active, len(agent.warnings)) == (False, 1)


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ("rw", False),
        ("rw,hidepid=0", False),
        ("rw,hidepid=off", False),
        ("rw,hidepid=2", True),
        ("hidepid=noaccess", True),
    ],
)
def test_hidden_processes(tmp_path: Path, options: str, hidden: bool) -> None:
    files(tmp_path, proc__mounts=f"proc /proc proc {options} 0 0\n")
    assert gather(root=tmp_path).hidepid is hidden


def test_the_command_works_without_a_scheduler_and_fails_where_something_does(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GPUSHARE_")}
    environ |= {"GPUSHARE_CONFIG": str(tmp_path / "none.toml"), "LD_LIBRARY_PATH": ""}
    command = [sys.executable, "-m", "gpushare.cli.main", "doctor", "--unix-user", "no-such-user", "-o", "json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90)
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["user"]["level"] == "FAIL"
    assert "getent passwd no-such-user" in found["user"]["mend"]
    assert "scheduler" not in found
    assert done.returncode == 1


def test_login_shells_are_told_which_cards_are_not_managed(tmp_path: Path) -> None:
    fake = FakeNvml.with_cards(tmp_path, 3)

    async def scene() -> None:
        async with FakeScheduler() as scheduler:
            agent = AgentProcess(tmp_path, scheduler.address, managed_gpus=[uuid_of(1)])
            await agent.start(fake.environ())
            try:
                await scheduler.synced()
                file = tmp_path / "run" / LOGIN_CARDS
                assert file.read_text() == f"{uuid_of(0)},{uuid_of(2)}\n"
                assert file.stat().st_mode & 0o777 == 0o644
            finally:
                await agent.clean_up()

    asyncio.run(scene())
