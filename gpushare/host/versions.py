"""Installed versions side by side, and the link that says which one the host runs.

`/opt/gpushare/versions/NAME` is a virtual environment each, `/opt/gpushare/current` a link to one of them, `previous` a
link to the one before. Imports the standard library, the configuration and the places. Invariants: a version that is
run is never changed, only another is put beside it; the link is switched by one rename; a version that has not shown
that it runs on this host is never switched to; where a daemon does not come back the link is what it was before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpushare.config import AGENT_ENV_PREFIX
from gpushare.configfile import read_toml
from gpushare.errors import FailedPreconditionError, GpushareError, PermissionDeniedError, invalid_field
from gpushare.host.places import INSTALL_DIR, UNITS, below
from gpushare.host.systemd import Systemd
from gpushare.reasons import Reason

DISTRIBUTION = "gpushare-cluster"
KEPT = 3
BUILD_LIMIT_S = 1800.0
SMOKE_LIMIT_S = 60.0
RESTART_LIMIT_S = 120.0
MARK = "gpushare-version.json"
# What both daemons are made of; one that cannot be imported here would not start.
_IMPORTS = "import gpushare.cli.main, gpushare.client.aio, gpushare.scheduler.server, gpushare_agent.daemon"
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!+-]*")
_WHEEL = re.compile(r"gpushare_cluster-([^-]+)-.*\.whl")
_TAIL_LINES = 4
# -P: root may stand in a directory of somebody else, whose modules are not pip's.
_PIP = ("-P", "-m", "pip", "--disable-pip-version-check")

Say = Callable[[str], None]


class Installed(NamedTuple):
    """One version that is complete. `name` is its directory's, `version` the program's own word."""

    name: str
    version: str
    installed_s: float
    path: Path


class Versions:
    """Those of one host, below `root`."""

    def __init__(self, root: Path, say: Say) -> None:
        self._root = root
        self._base = below(root, INSTALL_DIR)
        self._say = say
        self._systemd = Systemd(root)

    # -- looking

    def all(self) -> list[Installed]:
        """Oldest first."""
        found = []
        for mark in self._base.glob(f"versions/*/{MARK}"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                said = json.loads(mark.read_text())
                found.append(Installed(mark.parent.name, said["version"], said["installed_s"], mark.parent))
        return sorted(found, key=lambda each: (each.installed_s, each.name))

    def current(self) -> str:
        """The name of the version that the host runs; "" before the first."""
        return self._target("current")

    def previous(self) -> str:
        """The name of the version to go back to; "" where there is none."""
        return self._target("previous")

    def _target(self, link: str) -> str:
        try:
            return Path(os.readlink(self._base / link)).name
        except OSError:
            return ""

    # -- changing

    def upgrade(self, source: str, pip_arguments: Sequence[str], restart: bool) -> None:
        """Install `source` (a wheel, a directory, a version, or "" for the newest) beside the others, and run it."""
        with self._locked():
            installed = self._install(source, pip_arguments)
            try:
                self._try(installed)
            except GpushareError:
                shutil.rmtree(installed.path, ignore_errors=True)
                raise
            self._run(installed, restart)
            self.prune()

    def rollback(self, name: str, restart: bool) -> None:
        """Run the version before this one, or the one of that name."""
        with self._locked():
            wanted = name or self.previous()
            found = next((each for each in self.all() if each.name == wanted), None)
            if found is None or found.name == self.current():
                have = ", ".join(each.name for each in self.all() if each.name != self.current())
                raise FailedPreconditionError(
                    Reason.UPGRADE_FAILED,
                    f"There is no version {wanted!r} to go back to." if wanted else "There is no earlier version here.",
                    what_to_do=f"Name one of {have}." if have else "Install one with `gpushare host upgrade VERSION`.",
                )
            self._try(found)
            self._run(found, restart)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time, and every user of the host may run what it makes."""
        if self._root == Path("/") and os.geteuid() != 0:
            raise PermissionDeniedError(
                Reason.PERMISSION_DENIED, "Only root changes the version of this host.", what_to_do="Use sudo."
            )
        os.umask(0o022)
        (self._base / "versions").mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self._base / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _failed("another upgrade is under way on this host", "Wait for its end.") from None
            yield

    def _install(self, source: str, pip_arguments: Sequence[str]) -> Installed:
        with tempfile.TemporaryDirectory(prefix="gpushare-") as scratch:
            wheel = _wheel_of(source, pip_arguments, Path(scratch))
            match = _WHEEL.fullmatch(wheel.name)
            if match is None:
                raise invalid_field("source", f"{wheel.name} is no wheel of {DISTRIBUTION}")
            path = self._free_path(match[1])
            self._say(f"installing {match[1]} in {path}")
            try:
                _build([os.path.realpath(sys.executable), "-P", "-m", "venv", str(path)])
                pip = [str(path / "bin" / "python"), *_PIP, "install", "--quiet"]
                _build([*pip, *pip_arguments, f"{wheel}[all]"])
                installed = Installed(path.name, match[1], time.time(), path)
                mark = {"version": installed.version, "installed_s": installed.installed_s}
                (path / MARK).write_text(json.dumps(mark) + "\n")
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
        return installed

    def _free_path(self, version: str) -> Path:
        """A second build of one version gets a number, since the first may be what runs."""
        path, number = self._base / "versions" / version, 1
        while path.exists():
            number += 1
            path = self._base / "versions" / f"{version}-{number}"
        return path

    def _try(self, installed: Installed) -> None:
        """It starts here, everything it is made of can be imported, and it takes this host's configuration."""
        bin_dir = installed.path / "bin"
        said = _smoke([str(bin_dir / "gpushare"), "--version"], installed.name)
        if said.split()[-1:] != [installed.version]:
            raise _failed(f"version {installed.name} says that it is {said!r}", "Install it anew.")
        _smoke([str(bin_dir / "python"), "-P", "-c", _IMPORTS], installed.name)
        for unit, (program, config) in UNITS.items():
            if self._systemd.is_installed(unit):
                file = below(self._root, config)
                _smoke([str(bin_dir / program), "--check", "--config", str(file)], installed.name, self._moved(file))

    def _moved(self, config: Path) -> dict[str, str]:
        """Below another root, the join file that an agent's configuration names is there too; as the environment says
        it, versions of any age take it."""
        try:
            said = read_toml(config).get("join_file")
        except GpushareError:
            return {}  # for the version itself to find, and to say
        if said is None or not isinstance(said.value, str) or self._root == Path("/"):
            return {}
        return {f"{AGENT_ENV_PREFIX}JOIN_FILE": str(below(self._root, said.value))}

    def _run(self, installed: Installed, restart: bool) -> None:
        """Switch to it and restart what runs; back where a daemon does not come up."""
        before, before_that = self.current(), self.previous()
        units = [unit for unit in UNITS if self._systemd.is_active(unit)]
        # In this order, so that whatever ends us in between leaves no way back to the version before the last.
        self._point("previous", before)
        self._point("current", installed.name)
        self._say(f"current is {installed.name}" + (f", was {before}" if before else ""))
        if not restart or not units:
            here = [UNITS[unit][0] for unit in UNITS if self._systemd.is_installed(unit)]
            if here:
                self._say(f"next: restart {' and '.join(here)}, e.g. systemctl restart {' '.join(here)}")
            return
        trouble = self._restart(units)
        if not trouble:
            return
        if not before:
            raise _failed(trouble, "Look at `journalctl -e -u UNIT`.")
        self._point("current", before)
        self._point("previous", before_that)
        self._say(f"current is {before} again")
        still = self._restart(units)
        raise _failed(
            f"{trouble}; {before} is back" + (f", and {still}" if still else ""),
            "Running jobs were left alone; the log of the unit says what the new version found wrong.",
        )

    def _restart(self, units: Sequence[str]) -> str:
        """Why one of them did not come up; "" where all did. A unit is up when its daemon says that it is ready."""
        for unit in units:
            self._say(f"restarting {unit}")
            code, said = self._systemd.call("restart", unit, limit_s=RESTART_LIMIT_S)
            if code != 0:
                return f"{unit} did not come up ({said or f'systemctl ended with {code}'})"
        return ""

    def _point(self, link: str, name: str) -> None:
        """In one step; "" takes the link away."""
        if not name:
            (self._base / link).unlink(missing_ok=True)
            return
        beside = self._base / f".{link}.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(f"versions/{name}")
        os.replace(beside, self._base / link)

    def prune(self) -> None:
        """The last few stay, and those that something runs from or goes back to."""
        keep = {self.current(), self.previous()}
        for installed in self.all()[:-KEPT]:
            if installed.name not in keep and not _in_use(installed.path):
                shutil.rmtree(installed.path, ignore_errors=True)
                self._say(f"removed {installed.name}")


def _wheel_of(source: str, pip_arguments: Sequence[str], scratch: Path) -> Path:
    """The wheel that `source` is, or that pip makes or fetches of it."""
    path = Path(source)
    if source.endswith(".whl"):
        if not path.is_file():
            raise invalid_field("source", f"there is no file {source}")
        return path.resolve()
    if source and path.exists():
        wanted = str(path.resolve())
    elif not source or _VERSION.fullmatch(source):
        wanted = f"{DISTRIBUTION}=={source}" if source else DISTRIBUTION
    else:
        raise invalid_field("source", f"{source} is neither a wheel, nor a directory, nor a version")
    pip = [sys.executable, *_PIP, "wheel", "--quiet", "--no-deps"]
    _build([*pip, "--wheel-dir", str(scratch), *pip_arguments, wanted])
    return next(scratch.glob("*.whl"))


def _build(command: Sequence[str]) -> None:
    code, said = _output(command, BUILD_LIMIT_S)
    if code != 0:
        raise _failed(f"the new version cannot be installed: {said}", "Nothing was changed.")


def _smoke(command: Sequence[str], name: str, environ: Mapping[str, str] = {}) -> str:
    code, said = _output(command, SMOKE_LIMIT_S, environ)
    if code != 0:
        raise _failed(f"version {name} does not run on this host: {said}", "Nothing was changed.")
    return said


def _output(command: Sequence[str], limit_s: float, environ: Mapping[str, str] = {}) -> tuple[int, str]:
    """The code, and the last lines of what it said; `environ` goes before our own."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not end within {limit_s:g} s"
    except OSError as err:
        return 127, f"{command[0]}: {err.strerror}"
    return done.returncode, " / ".join((done.stdout + done.stderr).strip().splitlines()[-_TAIL_LINES:])


def _in_use(path: Path) -> bool:
    """A process was started from there: shims of long jobs, a `gpushare run` that follows one."""
    wanted = os.fsencode(f"{path}/")
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if wanted in command.read_bytes():
                return True
    return False


def _failed(what: str, what_to_do: str) -> GpushareError:
    return FailedPreconditionError(Reason.UPGRADE_FAILED, what, what_to_do=what_to_do)
