"""What the executor's tests share: a host that runs real shims and real processes, and ways to wait for what
they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpushare_agent import cgroupfs, cgroups
from gpushare_agent.executor import Executor, ExecutorConfig
from gpushare_agent.launchspec import AttemptStatus, LaunchSpec, UnixUser

PATIENCE_S = 30.0
STEP_S = 0.01
NOBODY = UnixUser(65534, 65534, (65534,), "nobody", "/", "/bin/sh")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="needs root: it changes users, groups or mounts")


def _groups_missing() -> str:
    try:
        layout = cgroups.probe(f"look-{uuid.uuid4().hex[:8]}")
    except cgroups.CgroupsUnavailable as error:
        return str(error)
    cgroups.release(layout)
    return ""


GROUPS_MISSING = _groups_missing()
needs_groups = pytest.mark.skipif(bool(GROUPS_MISSING), reason=f"no control groups here: {GROUPS_MISSING}")
BOTH_KINDS = [pytest.param(False, marks=needs_groups, id="groups"), pytest.param(True, id="weak")]


def run(work: Coroutine[Any, Any, None]) -> None:
    """One test's body in a loop of its own; an exception that nobody caught in the loop fails the test too."""
    lost: list[dict[str, Any]] = []

    async def body() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        await work

    asyncio.run(body())
    assert not lost, lost


def until(condition: Callable[[], Any], what: str = "", patience_s: float = PATIENCE_S) -> Any:
    """Poll until the condition holds; its value."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what or condition}"
        time.sleep(STEP_S)


async def eventually(condition: Callable[[], Any], what: str = "", patience_s: float = PATIENCE_S) -> Any:
    """The same inside the loop."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what or condition}"
        await asyncio.sleep(STEP_S)


def alive(pid: int) -> bool:
    """True if the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def spec(attempt_id: str, *argv: str, **more: Any) -> LaunchSpec:
    """A small attempt; `env` given is added to a minimal one."""
    values: dict[str, Any] = {"cwd": "/", "log_cap_bytes": 1 << 20, "grace_ms": 5000}
    values.update(more)
    values["env"] = {**ENVIRONMENT, **more.get("env", {})}
    return LaunchSpec(attempt_id=attempt_id, argv=argv, **values)


def shell(attempt_id: str, code: str, **more: Any) -> LaunchSpec:
    """An attempt that runs a line of shell."""
    return spec(attempt_id, "sh", "-c", code, **more)


def python(attempt_id: str, code: str, **more: Any) -> LaunchSpec:
    """An attempt that runs Python code."""
    return spec(attempt_id, sys.executable, "-I", "-S", "-c", code, **more)


class Host:
    """A state directory and the executors that come and go on it."""

    def __init__(self, state_dir: Path, weak: bool, run_as_self: bool = True) -> None:
        self.state_dir = state_dir
        self.instance = f"test-{uuid.uuid4().hex[:12]}"
        self.weak = weak
        self.run_as_self = run_as_self
        self.seen: list[AttemptStatus] = []
        self.executor: Executor = self._make()

    def _make(self) -> Executor:
        config = ExecutorConfig(self.state_dir, self.instance, weak=self.weak, run_as_self=self.run_as_self)
        return Executor(config, self.seen.append)

    async def start(self) -> list[AttemptStatus]:
        """A new executor on the same state; what it recovered."""
        self.executor = self._make()
        self.executor.start_launcher()
        return await self.executor.recover()

    async def restart(self) -> dict[str, AttemptStatus]:
        """Let go of everything and start again, as an agent that was replaced does."""
        await self.executor.close()
        return {status.attempt_id: status for status in await self.start()}

    def status(self, attempt_id: str) -> AttemptStatus:
        """How the executor sees it."""
        return self.executor.statuses()[attempt_id]

    async def running(self, attempt_id: str) -> AttemptStatus:
        """Wait for RUNNING."""
        await eventually(lambda: self.status(attempt_id).state == "RUNNING", f"{attempt_id} running")
        return self.status(attempt_id)

    async def ended(self, attempt_id: str) -> AttemptStatus:
        """Wait for the end."""
        await eventually(lambda: self.status(attempt_id).final, f"{attempt_id} over")
        return self.status(attempt_id)

    async def result(self, launch: LaunchSpec) -> AttemptStatus:
        """Launch and wait for the end."""
        await self.executor.launch(launch)
        return await self.ended(launch.attempt_id)

    def stdout(self, attempt_id: str) -> str:
        """The first segment of what it printed."""
        path = self.executor.log_dir(attempt_id) / "stdout"
        return path.read_bytes().decode() if path.exists() else ""

    def stderr(self, attempt_id: str) -> str:
        """The same of its standard error."""
        path = self.executor.log_dir(attempt_id) / "stderr"
        return path.read_bytes().decode() if path.exists() else ""

    def shim_pid(self, attempt_id: str) -> int:
        """From the exec record."""
        import json

        record = json.loads((self.state_dir / "attempts" / attempt_id / "exec").read_text())
        return int(record["shim_pid"])

    async def sweep(self) -> None:
        """End what the test left, and look that nothing stays: no process, no group."""
        from gpushare.reasons import Reason

        for attempt_id, status in self.executor.statuses().items():
            if not status.final:
                await self.executor.stop(attempt_id, Reason.CANCELLED, 0)
        for attempt_id in list(self.executor.statuses()):
            await self.ended(attempt_id)
            await self.executor.forget(attempt_id)
        layout = self.executor._files.layout
        await self.executor.close()
        if layout is not None:
            for base in (layout.unified, *layout.legacy):
                assert not os.path.exists(base.directory), f"left: {base.directory}"


@contextlib.asynccontextmanager
async def host(state_dir: Path, weak: bool = False, run_as_self: bool = True) -> AsyncIterator[Host]:
    """A started host that is swept clean."""
    found = Host(state_dir, weak, run_as_self)
    await found.start()
    try:
        yield found
    finally:
        await found.sweep()


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="gpushare-test-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def kill_group(directory: str) -> None:
    """Last resort of a test that failed."""
    with contextlib.suppress(OSError):
        cgroupfs.kill(directory)
