"""What the demo stands on: a directory of its own, `up` as a child, one login a person, and waits that fail loudly.

Imports the standard library and `table`. Invariants: everything goes through the real command line in processes of
its own; nothing is read or written outside the directory; every wait has a deadline, and what it waited for is in the
error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_COMMAND_LIMIT_S = 60.0
_UP_LIMIT_S = 120.0
_STOP_LIMIT_S = 60.0
_POLL_S = 0.2
_MARK = "made-by-gpushare-demo"


class DemoFailed(Exception):
    """Something did not happen as it should: `expected`, and what there was in its place."""

    def __init__(self, expected: str, found: str) -> None:
        self.expected = expected
        self.found = found
        super().__init__(f"expected {expected}; found {found}")


class Stage:
    """The cluster of the demo in `directory`, which must be the demo's own; `admin` is who started it."""

    def __init__(self, directory: Path, shape: str) -> None:
        self.directory = directory
        self._shape = shape
        self._up: subprocess.Popen[bytes] | None = None

    # -- its beginning and end

    def begin(self) -> None:
        """Clears what an earlier demo left, and starts `up`."""
        self._clear()
        for name in ("home", "tmp", "work"):
            (self.directory / name).mkdir(mode=0o700, parents=True)
        log = (self.directory / "up.log").open("wb")
        with log:
            self._up = subprocess.Popen(
                [
                    *[sys.executable, "-m", "gpushare.cli.tether", str(os.getpid())],
                    *self._command("up", "--simulate", self._shape, "--state-dir", str(self.directory / "up")),
                    *["--listen", "127.0.0.1:0", "--stop-jobs"],
                ],
                env=self.environment("admin"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_for("`gpushare up` to be ready", self._up_is_ready, self._up_said, _UP_LIMIT_S)
        print(_indented(self._up_said()))

    def end(self) -> None:
        """Stops `up`, which ends what still runs, and looks for anything that was left behind."""
        up, self._up = self._up, None
        if up is None:
            return
        up.send_signal(signal.SIGINT)
        try:
            code = up.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            up.kill()
            up.wait()
            raise DemoFailed(f"`gpushare up` to stop within {_STOP_LIMIT_S:.0f} s", "it runs on") from None
        if code != 0:
            raise DemoFailed("`gpushare up` to end with code 0", f"code {code}: {self._up_said()}")
        self.wait_for("no process to be left", lambda: not self._processes(), lambda: str(self._processes()))
        left = self._cgroups()
        if left:
            raise DemoFailed("no control group to be left", ", ".join(left))

    def _up_is_ready(self) -> bool:
        assert self._up is not None
        if self._up.poll() is not None:
            raise DemoFailed("`gpushare up` to start", self._up_said())
        return "\nready; " in self._up_said()

    def _up_said(self) -> str:
        return (self.directory / "up.log").read_text(errors="replace").strip()

    # -- people

    def environment(self, person: str) -> dict[str, str]:
        """Of a command that `person` runs: their own context file, and no directory but the demo's."""
        home = self.directory / "home"
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TERM", "USER", "LOGNAME") if name in os.environ}
        return kept | {
            # Where this program was installed, its companions are.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "TMPDIR": str(self.directory / "tmp"),
            "GPUSHARE_CONFIG": str(self.directory / f"{person}.toml"),
            **_bytecode(self.directory / "pycache"),
        }

    def call(self, person: str, *words: str, codes: Sequence[int] = (0,), show: bool = True) -> str:
        """Runs `gpushare WORDS` as `person` and returns what it printed; fails unless it ends with one of `codes`."""
        if show:
            print(f"  {person}$ {shlex.join(['gpushare', *words])}", flush=True)
        done = subprocess.run(
            self._command(*words),
            env=self.environment(person),
            cwd=self.directory / "work",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_LIMIT_S,
        )
        if done.returncode not in codes:
            wanted = " or ".join(str(code) for code in codes)
            found = f"code {done.returncode}: {(done.stderr or done.stdout).strip()}"
            raise DemoFailed(f"`gpushare {' '.join(words)}` to end with code {wanted}", found)
        if show and (done.stdout or done.stderr).strip():
            print(_indented((done.stdout + done.stderr).strip()), flush=True)
        return done.stdout

    def ask(self, person: str, *words: str) -> Any:
        """The JSON that a command prints; the command itself is not shown."""
        return json.loads(self.call(person, *words, "-o", "json", show=False))

    def log_in(self, person: str, join: str) -> None:
        """Hands `person` the line that an admin made; it holds a secret, so it goes through standard input."""
        print(f"  {person}$ gpushare login -", flush=True)
        done = subprocess.run(
            self._command("login", "-"),
            env=self.environment(person),
            input=join + "\n",
            capture_output=True,
            text=True,
            timeout=_COMMAND_LIMIT_S,
        )
        if done.returncode != 0:
            raise DemoFailed(f"{person} to log in", done.stderr.strip())

    def follow(self, person: str, *words: str) -> str:
        """Runs a command whose output is shown line by line as it comes; what it printed on stdout."""
        print(f"  {person}$ {shlex.join(['gpushare', *words])}", flush=True)
        process = subprocess.Popen(
            self._command(*words),
            env=self.environment(person),
            cwd=self.directory / "work",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        deadline_s = time.monotonic() + _COMMAND_LIMIT_S
        lines: list[str] = []
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                print(_indented(line.rstrip("\n")), flush=True)
                if time.monotonic() > deadline_s:
                    raise DemoFailed(f"`gpushare {' '.join(words)}` to end", "it goes on")
            code = process.wait(_COMMAND_LIMIT_S)
        finally:
            process.stdout.close()
            if process.poll() is None:
                process.kill()
                process.wait()
        if code != 0:
            raise DemoFailed(f"`gpushare {' '.join(words)}` to end with code 0", f"code {code}")
        return "".join(lines)

    def wait_for(
        self, what: str, holds: Callable[[], bool], found: Callable[[], str], limit_s: float = _COMMAND_LIMIT_S
    ) -> None:
        """Until `holds()`; fails with what there was, when it does not in time."""
        deadline_s = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"{what} within {limit_s:.0f} s", found())
            time.sleep(_POLL_S)

    def wait_for_job(self, person: str, job: str, *states: str) -> Any:
        """The job as soon as it is in one of `states`."""
        seen: list[Any] = []

        def holds() -> bool:
            seen[:] = [self.ask(person, "job", job)]
            return seen[0]["state"].removeprefix("JOB_STATE_") in states

        def found() -> str:
            return f"{seen[0]['state']} {seen[0]['reason']} {seen[0]['detail']}".strip() if seen else "nothing"

        self.wait_for(f"job {job} to be {' or '.join(states)}", holds, found)
        return seen[0]

    # -- what is there before, and what could be left

    def _clear(self) -> None:
        """Removes what an earlier demo left, and nothing that no demo has made."""
        running = self._processes()
        if running:
            raise DemoFailed("no other demo to run here", ", ".join(running.values()))
        if self.directory.exists() and any(self.directory.iterdir()) and not (self.directory / _MARK).exists():
            raise DemoFailed(f"{self.directory} to be empty or an earlier demo's", "other files (choose another --dir)")
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(mode=0o700, parents=True)
        (self.directory / _MARK).touch()

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "gpushare.cli.main", *words]

    def _processes(self) -> dict[int, str]:
        """Processes whose command line or environment names the demo's directory, ourselves apart."""
        mark = os.fsencode(str(self.directory)) + b"/"
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if command and (mark in command or mark in (entry / "environ").read_bytes()):
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()[:80]
        return found

    def _cgroups(self) -> list[str]:
        """Control groups of the demo's agents, which are named by their instances."""
        instances = set()
        for identity in self.directory.glob("up/nodes/*/state/identity"):
            instances.add(json.loads(identity.read_text())["instance_id"])
        root = "/sys/fs/cgroup"
        return [
            os.path.join(parent, name)
            for parent, names, _ in os.walk(root, onerror=None)
            for name in names
            if name in instances
        ]


def _bytecode(directory: Path) -> dict[str, str]:
    """Nothing is written outside the demo's directory, bytecode neither. Where this program was installed with its own,
    that is used; else the demo's programs share what the first of them makes in `directory`."""
    if Path(importlib.util.cache_from_source(__file__)).exists():
        return {"PYTHONDONTWRITEBYTECODE": "1"}
    return {"PYTHONPYCACHEPREFIX": str(directory)}


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
