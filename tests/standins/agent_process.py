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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpushare.join import encode_join
from standins.fake_scheduler import JOIN_SECRET


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
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, environ: Mapping[str, str] | None = None, join: bool = True) -> None:
        """Returns when the process exists."""
        arguments = ["-m", "gpushare_agent.main", "--config", str(self.config_file)]
        arguments += ["--join", self.join] if join else []
        with self.log_file.open("ab") as log:
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
