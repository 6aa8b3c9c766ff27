"""The agent as a process of its own, on a state directory of its own, told to join a fake scheduler.

`start` may be called again on the same directory, as a restart would; `kill` is SIGKILL, `stop` is SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from gpushare.join import encode_join
from gpushare.v1 import agent_pb2, job_pb2
from gpushare_agent.gpus.catalogue import card_uuid
from standins.fake_scheduler import JOIN_SECRET, NODE, FakeScheduler, Switches, start_order
from standins.nursery import Forked, Nursery

CARD = card_uuid(NODE, 0)


class AgentProcess:
    """One agent. Everything it keeps lies below `root`."""

    def __init__(self, root: Path, address: str, *, simulate: str = "", **settings: Any) -> None:
        self.root = root
        self.state_dir = root / "state"
        self.config_file = root / "agent.toml"
        self.log_file = root / "agent.log"
        self.join = encode_join(address, JOIN_SECRET, "")
        values = {
            "state_dir": str(self.state_dir),
            "run_dir": str(root / "run"),
            "simulate": simulate,
            "containment": "weak",
            "single_user": True,
            **settings,
        }
        (root / "run").mkdir(exist_ok=True)
        self.config_file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        self.process: asyncio.subprocess.Process | Forked | None = None

    async def start(
        self, environ: Mapping[str, str] | None = None, join: bool = True, *, is_forked: bool = False
    ) -> None:
        """Returns when the process exists. What `environ` has for the loader needs an exec: not `is_forked`."""
        arguments = ["--config", str(self.config_file), *(["--join", self.join] if join else [])]
        with self.log_file.open("ab") as log:
            if is_forked:
                self.process = Nursery.start("gpushare_agent.main", arguments, os.environ, log.fileno())
                return
            arguments = ["-m", "gpushare_agent.main", *arguments]
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, stderr=log, stdout=log, env={**os.environ, **(environ or {})}
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def kill(self) -> None:
        """As `kill -9`."""
        await self._end(signal.SIGKILL, 10)

    async def stop(self, within_s: float = 10) -> float:
        """SIGTERM; how long it took in seconds."""
        began_s = time.monotonic()
        await self._end(signal.SIGTERM, within_s)
        return time.monotonic() - began_s

    async def _end(self, number: int, within_s: float) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.send_signal(number)
        if isinstance(process, Forked):
            await asyncio.to_thread(process.wait, within_s)
        else:
            await asyncio.wait_for(process.wait(), within_s)

    async def clean_up(self) -> None:
        """Kill the agent and whatever of its jobs a failed test has left, and remove their control groups."""
        await self.kill()
        for record in self.state_dir.glob("attempts/*/exec"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                os.kill(json.loads(record.read_bytes())["shim_pid"], signal.SIGKILL)
        try:
            instance = json.loads((self.state_dir / "identity").read_bytes())["instance_id"]
        except (OSError, ValueError):
            return
        roots = [*Path("/sys/fs/cgroup").glob(f"*/gpushare/{instance}"), Path(f"/sys/fs/cgroup/gpushare/{instance}")]
        for root in roots:
            with contextlib.suppress(OSError):
                (root / "cgroup.kill").write_text("1")
        deadline_s = time.monotonic() + 5
        while (left := [root for root in roots if root.exists()]) and time.monotonic() < deadline_s:
            for root in left:
                for path in (*sorted(root.rglob("*/"), reverse=True), root):
                    with contextlib.suppress(OSError):
                        path.rmdir()
            await asyncio.sleep(0.02)

    def log(self) -> str:
        """What it has said so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


class Scene:
    """A fake scheduler and one agent; orders go to the newest session."""

    def __init__(self, scheduler: FakeScheduler, agent: AgentProcess) -> None:
        self.scheduler = scheduler
        self.agent = agent

    async def start(self, attempt_id: str, *argv: str, **fields: Any) -> None:
        await self.scheduler.session.order(start_attempt=start_order(attempt_id, *argv, **fields))

    async def share(self, attempt_id: str, *argv: str, **fields: Any) -> None:
        slice_fields = {"gpu_uuids": [CARD], "gpu_milli": 250, "gpu_memory_mib": 20_000, "tier": "timeslice"}
        await self.start(attempt_id, *argv, **{**slice_fields, **fields})

    async def stop(self, attempt_id: str, grace_ms: int = 1000, reason: str = "CANCELLED", term: int = 1) -> None:
        stop = agent_pb2.StopAttempt(attempt_id=attempt_id, term=term, reason=reason, grace_ms=grace_ms)
        await self.scheduler.session.order(stop_attempt=stop)

    async def end_all(self) -> None:
        """No job outlives its test: stop what the agent says is alive, through whatever agent there is."""
        for report in list(self.scheduler.session.reports):
            last = self.scheduler.last_report(report.attempt_id)
            if last is not None and last.state <= job_pb2.ATTEMPT_STATE_UNKNOWN:
                await self.stop(report.attempt_id, grace_ms=0, term=self.scheduler.switches.term)
                await self.scheduler.state(report.attempt_id, "STOPPED", "FAILED", "SUCCEEDED")


Act = Callable[[Scene], Awaitable[None]]


def play(
    root: Path,
    act: Act,
    *,
    simulate: str = "2xH100-80GB",
    switches: Switches | None = None,
    environ: dict[str, str] | None = None,
    **settings: Any,
) -> None:
    """Run `act` with an agent that has synced once."""

    async def run() -> None:
        async with FakeScheduler(switches) as scheduler:
            agent = AgentProcess(root, scheduler.address, simulate=simulate, **settings)
            await agent.start(environ, is_forked=environ is None)
            scene = Scene(scheduler, agent)
            try:
                await scheduler.synced()
                await act(scene)
                await scene.end_all()
            except BaseException:
                print(agent.log())
                raise
            finally:
                await agent.clean_up()

    asyncio.run(run())
