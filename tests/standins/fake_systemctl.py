"""systemd's part in the life of one unit, for hosts without it: `python fake_systemctl.py ROOT COMMAND ...`.

Knows `show`, `is-active`, `daemon-reload`, `enable --now`, `disable --now`, `start`, `stop` and `restart` of the units
in ROOT/etc/systemd/system, whose absolute paths it looks for below ROOT. A unit runs in a control group of its own and
is up when its process says READY=1; stopping it does what KillMode says: `process` ends the main process alone,
`control-group` everything in the group. `install` puts it on PATH as `systemctl`.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0


def install(root: Path) -> Path:
    """The directory to put first on PATH; `root` then looks like a host that systemd runs."""
    (root / "run/systemd/system").mkdir(parents=True)
    folder = root / "standins"
    folder.mkdir()
    program = folder / "systemctl"
    # Its own Python, so that what the tested programs find on PYTHONPATH is not for it.
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P {__file__} {root} "$@"\n')
    program.chmod(0o755)
    return folder


def v2_mount() -> Path:
    """Where cgroup v2 is."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split(" ")[4])
    raise SystemExit("no cgroup v2 here")


class Unit:
    """One unit of `root`."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name if "." in name else f"{name}.service"
        self.file = root / "etc/systemd/system" / self.name
        self.pid_file = root / "run/systemd" / f"{self.name}.pid"
        self.log_file = root / f"{self.name}.log"
        self.slice = v2_mount() / f"standin-{hashlib.sha256(str(root).encode()).hexdigest()[:12]}"
        self.group = self.slice / self.name

    @property
    def service(self) -> dict[str, str]:
        parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
        parser.optionxform = str  # type: ignore[method-assign,assignment]
        parser.read_string(self.file.read_text())
        return {"KillMode": "control-group", "Delegate": "no", **parser["Service"]}

    @property
    def pid(self) -> int:
        """Of its main process; 0 while it does not run."""
        try:
            pid = int(self.pid_file.read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return 0
        return 0 if state in "ZX" else pid

    def start(self) -> int:
        if self.pid:
            return 0
        self.group.mkdir(parents=True, exist_ok=True)
        words = [self._found(word) for word in self.service["ExecStart"].split()]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self.log_file.open("ab") as log:
            address = f"standin-{os.getpid()}-{self.name}"
            ready.bind("\0" + address)
            ready.settimeout(0.05)
            process = subprocess.Popen(
                ["/bin/sh", "-c", f'echo 0 > {self.group}/cgroup.procs && exec "$@"', "sh", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env={**os.environ, "NOTIFY_SOCKET": "@" + address},
            )  # fmt: skip
            self.pid_file.write_text(f"{process.pid}\n")
            deadline_s = time.monotonic() + START_LIMIT_S
            while time.monotonic() < deadline_s and process.poll() is None:
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in ready.recv(4096):
                        return 0
        print(f"Job for {self.name} failed because its process ended with {process.poll()}.", file=sys.stderr)
        return 1

    def _found(self, word: str) -> str:
        below = f"{self.root}{word}"
        return below if word.startswith("/") and os.path.lexists(below) else word

    def stop(self) -> int:
        pid = self.pid
        alone = self.service["KillMode"] == "process"
        members = [pid] if alone else [int(line) for line in (self.group / "cgroup.procs").read_text().split()]
        for member in filter(None, members):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_LIMIT_S
        while self.pid and time.monotonic() < deadline_s:
            time.sleep(0.02)
        if self.pid:
            os.kill(pid, signal.SIGKILL)
        if not alone:
            (self.group / "cgroup.kill").write_text("1")
        return 0

    def remove_groups(self) -> None:
        """After a test, once nothing is in them."""
        for group in (self.group, self.slice):
            with contextlib.suppress(OSError):
                group.rmdir()


def main(root: Path, arguments: list[str]) -> int:
    """The exit code."""
    verb, *rest = arguments
    if verb == "daemon-reload":
        return 0
    unit = Unit(root, rest[-1])
    if verb == "show":
        loaded = unit.file.exists()
        values = {"LoadState": "loaded" if loaded else "not-found", **(unit.service if loaded else {})}
        for key in re.findall(r"-p (\w+)", " ".join(rest)):
            print(f"{key}={values.get(key, '')}")
        return 0
    if verb == "is-active":
        print("active" if unit.pid else "inactive")
        return 0 if unit.pid else 3
    if verb in ("start", "enable"):
        return unit.start()
    if verb in ("stop", "disable"):
        return unit.stop()
    assert verb == "restart", arguments
    return unit.stop() or unit.start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
