"""Versions side by side: which one runs, the way back, what is kept. The versions here are small shell scripts."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

from gpushare.errors import GpushareError
from gpushare.host.versions import KEPT, MARK, Versions


class Host:
    """A host below `root` with versions that say what they are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = root / "opt/gpushare"
        self.said: list[str] = []
        self.versions = Versions(root, self.said.append)

    def add(self, name: str, version: str = "", installed_s: float = 1.0) -> Path:
        path = self.base / "versions" / name
        (path / "bin").mkdir(parents=True)
        for program in ("gpushare", "python"):
            script = path / "bin" / program
            script.write_text(f"#!/bin/sh\necho gpushare {version or name}\n")
            script.chmod(0o755)
        (path / MARK).write_text(json.dumps({"version": name, "installed_s": installed_s}))
        return path

    def point(self, link: str, name: str) -> None:
        (self.base / link).unlink(missing_ok=True)
        (self.base / link).symlink_to(f"versions/{name}")

    def names(self) -> list[str]:
        return [each.name for each in self.versions.all()]

    def refused(self, name: str) -> str:
        with pytest.raises(GpushareError) as caught:
            self.versions.rollback(name, restart=True)
        return str(caught.value)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_rolling_back_goes_to_and_fro(host: Host) -> None:
    host.add("1.0", installed_s=1)
    host.add("2.0", installed_s=2)
    host.point("current", "2.0")
    host.point("previous", "1.0")
    for current, previous in (("1.0", "2.0"), ("2.0", "1.0")):
        host.versions.rollback("", restart=True)
        assert (host.versions.current(), host.versions.previous()) == (current, previous)
        assert os.readlink(host.base / "current") == f"versions/{current}", "a link that a copy of the tree keeps"


def test_an_end_half_way_leaves_no_way_back_to_the_version_before_the_last(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.0", "2.0", "3.0"):
        host.add(name)
    host.point("current", "2.0")
    host.point("previous", "1.0")
    real = os.replace

    def once(source: Path, target: Path) -> None:
        real(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        host.versions.rollback("3.0", restart=True)
    assert (host.versions.current(), host.versions.previous()) == ("2.0", "2.0")
    assert "no version '2.0' to go back to" in host.refused("")


def test_a_version_is_named_among_those_that_are_complete(host: Host) -> None:
    host.add("1.0")
    (host.add("2.0") / MARK).unlink()
    host.add("3.0")
    host.point("current", "3.0")
    assert host.names() == ["1.0", "3.0"]
    for name in ("2.0", "3.0", "9.9", "../1.0"):
        assert "Name one of 1.0" in host.refused(name), name
    assert "no earlier version" in host.refused("")
    assert host.versions.current() == "3.0"


def test_a_version_that_does_not_run_here_is_never_current(host: Host) -> None:
    host.add("2.0")
    host.point("current", "2.0")
    host.add("1.0", version="0.9")
    assert "says that it is 'gpushare 0.9'" in host.refused("1.0")
    (host.base / "versions/1.0/bin/gpushare").write_text("#!/bin/sh\necho no libfoo.so >&2\nexit 127\n")
    assert "no libfoo.so" in host.refused("1.0")
    (host.base / "versions/1.0/bin/gpushare").unlink()
    assert "does not run on this host" in host.refused("1.0")
    assert host.versions.current() == "2.0"
    assert host.said == []


def test_the_configuration_below_the_root_is_tried_with_the_join_file_below_it(host: Host) -> None:
    """The file is written for the host that it will be on."""
    unit = host.root / "etc/systemd/system/gpushare-agent.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    config = host.root / "etc/gpushare/agent.toml"
    config.parent.mkdir()
    config.write_text('join_file = "/etc/gpushare/agent.join"\n')
    agent = host.add("1.0") / "bin/gpushare-agent"
    agent.write_text('#!/bin/sh\necho "$* $GPUSHARE_AGENT_JOIN_FILE" > "$(dirname "$0")/tried"\n')
    agent.chmod(0o755)
    host.add("2.0")
    host.point("current", "2.0")
    host.versions.rollback("1.0", restart=True)
    tried = (agent.parent / "tried").read_text()
    assert tried == f"--check --config {config} {host.root}/etc/gpushare/agent.join\n"


def test_one_change_at_a_time(host: Host) -> None:
    host.add("1.0")
    with (host.base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another upgrade is under way" in host.refused("1.0")


def test_the_last_few_are_kept_and_what_is_used(host: Host) -> None:
    for number in range(1, 9):
        host.add(f"{number}.0", installed_s=number)
    host.point("current", "1.0")
    host.point("previous", "2.0")
    busy = host.base / "versions/3.0/bin/python"
    busy.write_text("#!/bin/sh\necho up\nread line\n")
    with subprocess.Popen([str(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        host.versions.prune()
        assert host.names() == ["1.0", "2.0", "3.0", *(f"{number}.0" for number in range(9 - KEPT, 9))]
        process.communicate(b"\n")
    host.versions.prune()
    assert "3.0" not in host.names()


@pytest.mark.parametrize(
    ("source", "words"),
    [("no-such.whl", "there is no file"), ("no/such/dir", "neither a wheel"), ("latest", "neither a wheel")],
)
def test_a_source_that_is_none_changes_nothing(host: Host, source: str, words: str) -> None:
    with pytest.raises(GpushareError, match=words):
        host.versions.upgrade(source, (), restart=True)
    assert host.names() == []
    assert host.versions.current() == ""


def test_a_wheel_of_something_else_is_refused(host: Host, tmp_path: Path) -> None:
    wheel = tmp_path / "requests-2.0-py3-none-any.whl"
    wheel.touch()
    with pytest.raises(GpushareError, match="no wheel of gpushare-cluster"):
        host.versions.upgrade(str(wheel), (), restart=True)


def test_only_root_changes_the_host_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(GpushareError, match="Only root"):
        Versions(Path("/"), print).rollback("1.0", restart=False)
