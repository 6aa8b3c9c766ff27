"""The check's child processes: programs that answer one line of JSON for each they are sent, within a time.

Standard library alone. Invariant: a child is ended with its `Children`, however the check ends, and no call waits
longer than its timeout.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
ASK_TIMEOUT_S = 30.0
END_WAIT_S = 5.0
OTHER_UID = 65534


class ChildError(Exception):
    """A child ended, hung or spoke rubbish."""


class Child:
    """One program of this package; `user` runs it as another uid."""

    def __init__(self, module: str, environ: Mapping[str, str], *, user: int | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the child)
        # The CUDA program is standard library alone and starts several times as fast without site-packages.
        flags = ["-S"] if module == "workload" else []
        try:
            self.process = subprocess.Popen(
                [sys.executable, *flags, "-m", f"benchmarks.gpucheck.{module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                cwd="/",
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        except BaseException:
            self._stderr.close()
            raise
        self._waiting = b""
        self.greeting: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    def greet(self) -> None:
        """Wait for the program's first line."""
        self.greeting = self._answer(time.monotonic() + START_TIMEOUT_S)

    def ask(self, do: str, timeout_s: float = ASK_TIMEOUT_S, **arguments: object) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises ChildError."""
        self.send(do, **arguments)
        return self._answer(time.monotonic() + timeout_s)

    def send(self, do: str, **arguments: object) -> None:
        """Send a command; `receive` gets the answer, so that several children can work at once."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as failure:
            raise ChildError(f"pid {self.pid} has ended: {self._last_words()}") from failure

    def receive(self, timeout_s: float = ASK_TIMEOUT_S) -> dict[str, Any]:
        """The answer to an earlier `send`. Raises ChildError."""
        return self._answer(time.monotonic() + timeout_s)

    def _answer(self, deadline: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while b"\n" not in self._waiting:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ChildError(f"pid {self.pid} did not answer in time")
            data = os.read(fd, 1 << 16)
            if not data:
                raise ChildError(f"pid {self.pid} has ended: {self._last_words()}")
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as failure:
            raise ChildError(f"pid {self.pid} said {line[:200]!r}") from failure
        if not isinstance(answer, dict):
            raise ChildError(f"pid {self.pid} said {line[:200]!r}")
        return answer

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1)
        self._stderr.seek(0)
        lines = self._stderr.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return f"code {self.process.poll()}, {lines[-1] if lines else 'nothing on stderr'}"

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=END_WAIT_S)

    def close(self) -> None:
        """Let the program end by itself, by force where it does not."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=END_WAIT_S)
        if self.alive():
            self.kill()
        self._stderr.close()


class Children:
    """All children of the check. `pids` are ours for good: the driver may list one for a moment after its end."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self._running: list[Child] = []

    def start(self, module: str, environ: Mapping[str, str], *, user: int | None = None) -> Child:
        """A new child that has greeted. Raises ChildError."""
        try:
            child = Child(module, environ, user=user)
        except (OSError, subprocess.SubprocessError) as failure:
            raise ChildError(f"{sys.executable} cannot be started as uid {user}: {failure}") from failure
        self.pids.add(child.pid)
        self._running.append(child)
        child.greet()
        return child

    def close(self) -> None:
        """End them all, the last first."""
        while self._running:
            self._running.pop().close()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
