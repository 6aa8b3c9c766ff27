"""The keys and known hosts of this side of `ssh`: who waits for whom, and for how long."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from gpushare.cli import sshsetup


def test_a_lock_that_another_never_gives_up_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sshsetup, "LOCK_TIMEOUT_S", 0.2)
    home = sshsetup.SshHome(tmp_path)
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(sshsetup.SetupError, match="another gpushare has held"):
            home.remember("alias", "ssh-ed25519 AAAA")
    home.remember("alias", "ssh-ed25519 AAAA")
    assert home.known_hosts.read_text() == "alias ssh-ed25519 AAAA\n"


def test_a_keygen_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh-keygen"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sshsetup, "KEYGEN_TIMEOUT_S", 0.2)
    with pytest.raises(sshsetup.SetupError, match="did not end within"):
        sshsetup.SshHome(tmp_path / "home").public_key()
