"""The command line starts fast, and every command is there with its help."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from gpushare.cli.main import COMMANDS, root
from gpushare.client.settings import ConnectionSettings, load_settings, read_contexts, save_context
from gpushare.errors import FailedPreconditionError


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom gpushare.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = ('grpc', 'google', 'msgspec', 'rich', 'asyncio', 'gpushare.client', 'gpushare.v1', 'gpushare.core')\n"
        "print([name for name in sys.modules if name.startswith(heavy)], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_list_is_there_with_its_help(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_later_settings_win(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    save_context(path, "a", ConnectionSettings("a.lab:7480", "gps_a", "-----BEGIN CERTIFICATE-----", "vision", "ada"))
    save_context(path, "b", ConnectionSettings("b.lab:7480", "gps_b"))
    environ = {"GPUSHARE_CONFIG": str(path)}
    assert load_settings(environ=environ).server == "b.lab:7480"
    assert load_settings(context="a", environ=environ).tenant == "vision"
    environ["GPUSHARE_TOKEN"] = "gps_env"
    by_environment = load_settings(context="a", environ=environ)
    assert (by_environment.token, by_environment.ca_pem) == ("gps_env", "-----BEGIN CERTIFICATE-----")
    assert by_environment.tenant == "", "another token is another caller"
    environ["GPUSHARE_SERVER"] = "c.lab:7480"
    assert load_settings(context="a", environ=environ).ca_pem == "", "another scheduler has another CA"
    assert load_settings(server="d.lab:1", token="gps_flag", environ=environ).token == "gps_flag"


def test_a_written_context_is_read_back_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.toml"
    strange = ConnectionSettings("[::1]:7480", 'gps_"\\\n\x7f', "-----BEGIN CERTIFICATE-----\nä\n", "vision", "ada")
    save_context(path, "x.y", strange)
    assert read_contexts(path).contexts["x.y"] == strange
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["config.toml"]


def test_a_context_that_cannot_be_written_leaves_no_token_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FailedPreconditionError, match="No space left"):
        save_context(tmp_path / "config.toml", "a", ConnectionSettings("a.lab:7480", "gps_a"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("current = ", "no TOML"),
        ('color = "red"', "'color'"),
        ('[contexts.a]\nserver = "h:1"\ntoken = "t"\nport = "1"', "'port'"),
        ('[contexts.a]\nserver = "h:1"', "token"),
        ('[contexts.a]\nserver = 5\ntoken = "t"', "text"),
        ('[contexts.a]\nserver = "h:1:2"\ntoken = "t"', "server"),
        ('current = "b"\n[contexts.a]\nserver = "h:1"\ntoken = "t"', "'b'"),
    ],
)
def test_a_broken_context_file_names_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(FailedPreconditionError) as caught:
        load_settings(environ={"GPUSHARE_CONFIG": str(path)})
    assert str(path) in caught.value.message
    assert says in caught.value.message
