"""Real Unix accounts for a test: made with `useradd`, removed with all that they own and run."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]


class Account(NamedTuple):
    """A user with a home of mode 0700, in a group of its own and in one that it shares."""

    name: str
    uid: int
    gid: int
    shared_gid: int
    home: Path

    @property
    def groups(self) -> set[int]:
        return {self.gid, self.shared_gid}

    def run(self, line: str, environ: Mapping[str, str], timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """A line of bash, typed by this user at home."""
        return subprocess.run(
            ["bash", "-c", line],
            user=self.uid,
            group=self.gid,
            extra_groups=sorted(self.groups),
            cwd=self.home,
            env={"HOME": str(self.home), "USER": self.name, "LANG": "C.UTF-8", **environ},
            umask=0o022,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """A file of this user, below home."""
        path = self.home / name
        for folder in reversed([p for p in path.parents if p.is_relative_to(self.home) and p != self.home]):
            if not folder.exists():
                folder.mkdir(mode=0o700)
                os.chown(folder, self.uid, self.gid)
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, self.uid, self.gid)
        return path


def why_no_accounts() -> str:
    """What is missing here to make them; "" where nothing is."""
    if os.geteuid() != 0:
        return "only root makes accounts"
    missing = [tool for tool in ("useradd", "userdel", "groupadd", "groupdel", "bash") if shutil.which(tool) is None]
    return f"there is no {', '.join(missing)} here" if missing else ""


def everybodys_python() -> str:
    """A Python of our version that every user may run; "" where this host has none."""
    ours = Path(sys.executable).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (ours, Path("/usr/local/bin") / version, Path("/usr/bin") / version):
        if path.exists() and all(p.stat().st_mode & 0o001 for p in (path.resolve(), *path.resolve().parents)):
            return str(path)
    return ""


def everybodys_path() -> str:
    """PYTHONPATH with which that Python finds what this one finds."""
    found = [str(CHECKOUT), str(CHECKOUT / "agent"), *(path for path in sys.path if path.endswith("site-packages"))]
    return ":".join(found)


@contextmanager
def two_accounts() -> Iterator[tuple[Account, Account, Path]]:
    """Two users, and a directory that everybody may pass and nobody else has."""
    tag = uuid.uuid4().hex[:8]
    place = Path(tempfile.mkdtemp(prefix="gps-", dir="/tmp"))
    place.chmod(0o711)
    shared, names = f"gps{tag}", [f"gps{tag}{letter}" for letter in "ab"]
    _call("groupadd", shared)
    made: list[str] = []
    try:
        for name in names:
            home = place / name
            _call(
                "useradd", "--no-log-init", "--create-home", "--home-dir", str(home), "--user-group", "-G", shared, name
            )
            made.append(name)
            home.chmod(0o700)
        yield _account(names[0], shared), _account(names[1], shared), place
    finally:
        for name in made:
            _end_processes_of(pwd.getpwnam(name).pw_uid)
            _call("userdel", "--force", name)
        _call("groupdel", shared)
        shutil.rmtree(place, ignore_errors=True)


def _account(name: str, shared: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(name, entry.pw_uid, entry.pw_gid, grp.getgrnam(shared).gr_gid, Path(entry.pw_dir))


def _call(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60, capture_output=True)


def _end_processes_of(uid: int) -> None:
    """The account is this test's own, so whatever it runs is, too."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid == uid:
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
