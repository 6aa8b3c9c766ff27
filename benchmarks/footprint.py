"""Memory and idle CPU of the daemons with 1,000 jobs queued behind 32 that run.

One scheduler, and one agent with 8 cards. The agent has its launcher, and where a C compiler is at hand the child that
reads the cards through NVML from the stand-in library of the tests; without one the cards are simulated and there is no
such child. Shims belong to jobs and are not counted (their own size is printed).

Run: python -m benchmarks.footprint
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from benchmarks import processes, references
from benchmarks.cluster import Cluster, quarter_card, running
from benchmarks.figures import Figure, Reference, number
from benchmarks.session import Session, command
from gpushare.client.messages import JobState

CARDS = 8
RUNNING_JOBS = 32
QUEUED_JOBS = 1_000
SETTLE_S = 10.0
IDLE_S = 30.0
_TESTS = Path(__file__).parent.parent / "tests"


def stand_in(room: Path) -> Mapping[str, str] | None:
    """The environment that leads an agent to 8 cards of the NVML stand-in; None where there is no compiler."""
    if shutil.which("cc") is None:
        return None
    if str(_TESTS) not in sys.path:
        sys.path.insert(0, str(_TESTS))
    from standins.fake_nvml import FakeNvml

    room.mkdir()
    fake = FakeNvml.with_cards(room, CARDS).environ()
    return {name: fake[name] for name in ("LD_LIBRARY_PATH", "GPUSHARE_FAKE_NVML_STATE")}


async def load(cluster: Cluster) -> None:
    """Fill the cards, then the queue."""
    await cluster.client.batch_create_jobs([quarter_card(["/bin/sleep", "600"])] * RUNNING_JOBS)
    async with asyncio.timeout(60):
        while sum(job.state == JobState.JOB_STATE_RUNNING for job in await cluster.jobs()) < RUNNING_JOBS:
            await asyncio.sleep(0.2)
    await cluster.client.batch_create_jobs([quarter_card(["/bin/true"])] * QUEUED_JOBS)


async def measure_cluster(session: Session) -> list[Figure]:
    environ = stand_in(session.room("footprint-cards"))
    nodes = ("",) if environ is not None else (f"{CARDS}xH100-80GB",)
    async with running(session.room("footprint"), nodes=nodes, environ=environ) as cluster:
        await load(cluster)
        await asyncio.sleep(SETTLE_S)
        trees = {"scheduler": processes.tree(cluster.scheduler.pid), "agent": processes.tree(cluster.agents[0].pid)}
        before = {name: processes.cpu_s(pids) for name, pids in trees.items()}
        await asyncio.sleep(IDLE_S)
        percent = {name: (processes.cpu_s(pids) - before[name]) / IDLE_S * 100 for name, pids in trees.items()}
        members = {name: processes.members(pids) for name, pids in trees.items()}
        shims = [p.pid for p in psutil.Process(cluster.agents[0].pid).children(recursive=True)]
        shim_mib = [m.pss_mib for m in processes.members(shims) if m.name == processes.SHIM_NAME]
    bare_mib = python_pss_mib()
    cards = "NVML stand-in" if environ is not None else "simulated"
    figures = []
    for name in trees:
        parts = ", ".join(f"{m.name} {number(m.pss_mib)}" for m in members[name])
        note = f"{QUEUED_JOBS:,} queued, {RUNNING_JOBS} running, {CARDS} cards ({cards}); {parts} MiB"
        if name == "agent" and shim_mib:
            note += f"; not counted: {len(shim_mib)} shims of {number(sum(shim_mib) / len(shim_mib))} MiB"
        pss = sum(member.pss_mib for member in members[name])
        bare = (Reference("an interpreter that imported grpc.aio and nothing else", bare_mib),)
        figures.append(Figure(f"pss_{name}", f"memory of the {name} (PSS)", pss, "MiB", bare, note))
    for name in trees:
        note = f"of one core, over {IDLE_S:g} s"
        figures.append(Figure(f"cpu_{name}", f"idle CPU of the {name}", percent[name], "%", (), note))
    return figures


def python_pss_mib() -> float:
    """What Python and grpc weigh by themselves."""
    script = "import grpc.aio; print(next(l.split()[1] for l in open('/proc/self/smaps_rollup') if l[:4] == 'Pss:'))"
    return float(references.output_of([sys.executable, "-c", script])) / 1024


def measure(session: Session) -> list[Figure]:
    return asyncio.run(measure_cluster(session))


if __name__ == "__main__":
    command(__doc__, [measure])
