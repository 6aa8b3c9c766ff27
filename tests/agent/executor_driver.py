"""A process that plays an agent to the executor, made to be killed: it works a list of jobs off, across its own
deaths.

`executor_driver.py DIR [--weak] [--uid N]`: DIR holds `jobs` (lines of JSON {job, argv}) and gets `reports`,
one line of JSON per order and per status, as a scheduler's journal would. An attempt that was ordered and is
unknown after a restart is sealed; one that provably never started, or that the host's fault ended, is
followed by the next. Ends when every job is over.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

RETRIED = ("NOT_STARTED", "INFRA")
AT_ONCE = 4


class Driver:
    def __init__(self, root: Path, weak: bool) -> None:
        from gpushare_agent.executor import Executor, ExecutorConfig

        self.root = root
        self.journal = os.open(root / "reports", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.changed = asyncio.Event()
        self.last: dict[str, dict] = {}
        instance = (root / "instance").read_text()
        config = ExecutorConfig(root / "state", instance, weak=weak, run_as_self=True)
        self.executor = Executor(config, self.report)

    def report(self, status: object) -> None:
        import msgspec

        self.note(msgspec.to_builtins(status))
        self.changed.set()

    def note(self, line: dict) -> None:
        self.last[line["attempt_id"]] = line
        os.write(self.journal, (json.dumps(line) + "\n").encode())

    async def start(self) -> None:
        for line in (self.root / "reports").read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the line that the last one died over
                continue
            self.last[record["attempt_id"]] = record
        os.write(self.journal, b"\n")
        self.executor.start_launcher()
        ordered = {
            name: line for name, line in self.last.items() if line["state"] not in ("SUCCEEDED", "FAILED", "STOPPED")
        }
        for status in await self.executor.recover():
            self.report(status)
            ordered.pop(status.attempt_id, None)
        for attempt_id in ordered:
            self.report(await self.executor.seal(attempt_id))

    async def work(self, job: str, argv: list[str], slots: asyncio.Semaphore) -> None:
        from gpushare_agent.launchspec import LaunchRefused, LaunchSpec

        for number in range(1, 12):
            attempt_id = f"t.{job}.0.{number}"
            async with slots:
                if attempt_id not in self.last:
                    self.note({"attempt_id": attempt_id, "state": "ORDERED"})
                    spec = LaunchSpec(
                        attempt_id=attempt_id,
                        argv=tuple(argv),
                        env={"PATH": "/usr/bin:/bin", "ATTEMPT": attempt_id},
                        cwd="/",
                        log_cap_bytes=65536,
                        grace_ms=1000,
                    )
                    try:
                        await self.executor.launch(spec)
                    except LaunchRefused as refused:
                        line = {
                            "attempt_id": attempt_id,
                            "state": "STOPPED",
                            "reason": "NOT_STARTED",
                            "detail": str(refused),
                        }
                        self.note(line)
                while self.last[attempt_id]["state"] not in ("SUCCEEDED", "FAILED", "STOPPED"):
                    self.changed.clear()
                    await asyncio.wait_for(self.changed.wait(), 60)
                if attempt_id in self.executor.statuses():
                    await self.executor.forget(attempt_id)
            if self.last[attempt_id]["reason"] not in RETRIED or os.environ.get("GPUSHARE_FAILPOINT"):
                return
        raise SystemExit(f"job {job} never got through")

    async def main(self) -> None:
        await self.start()
        jobs = [json.loads(line) for line in (self.root / "jobs").read_text().splitlines()]
        slots = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self.work(job["job"], job["argv"], slots) for job in jobs))
        await self.executor.close()


async def main(root: Path, weak: bool) -> None:
    await Driver(root, weak).main()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), "--weak" in sys.argv))
