"""From submit to a running process on an idle system: 100 jobs, one at a time.

The clock starts before CreateJob and stops when the job's own process writes the time (CLOCK_REALTIME, ns) into a
witness file; that includes the start of a shell and of `date`.

Run: python -m benchmarks.start
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

from benchmarks.cluster import Cluster, quarter_card, running
from benchmarks.figures import Figure, Reference, number, percentile
from benchmarks.session import Session, command

JOBS = 100
WARM_UP_JOBS = 5
#: Between a job's end and the next submit, so that the system is idle again.
PAUSE_S = 0.2
NS_PER_MS = 1e6


def witness_argv(witness: Path) -> list[str]:
    """A command that writes when it started."""
    return ["/bin/sh", "-c", 'date +%s%N > "$0"', str(witness)]


async def one_start_ms(cluster: Cluster, witness: Path) -> float:
    spec = quarter_card(witness_argv(witness))
    began_ns = time.time_ns()
    answer = await cluster.client.create_job(spec)
    job = await cluster.wait_ended(answer.jobs[0].name, poll_s=0.1, timeout_s=60)
    if job.exit_code != 0:
        raise RuntimeError(f"{job.name} failed: {job.reason} {job.detail}")
    return (int(witness.read_text()) - began_ns) / NS_PER_MS


async def measure_cluster(session: Session) -> tuple[list[float], str]:
    room = session.room("start")
    samples = []
    async with running(room) as cluster:
        for place in range(WARM_UP_JOBS + JOBS):
            sample = await one_start_ms(cluster, room / f"witness-{place}")
            if place >= WARM_UP_JOBS:
                samples.append(sample)
            await asyncio.sleep(PAUSE_S)
        containment = await cluster.containment()
    return samples, containment


def bare_start_ms(session: Session) -> float:
    """The same command started by hand, p50."""
    room = session.room("start-references")
    room.mkdir()
    samples = []
    for place in range(JOBS):
        witness = room / f"witness-{place}"
        began_ns = time.time_ns()
        subprocess.run(witness_argv(witness), check=True, timeout=60)
        samples.append((int(witness.read_text()) - began_ns) / NS_PER_MS)
    return percentile(samples, 50)


def measure(session: Session) -> list[Figure]:
    bare = bare_start_ms(session)
    samples, containment = asyncio.run(measure_cluster(session))
    note = f"{JOBS} jobs one at a time, containment {containment}; greatest {number(max(samples))} ms"
    references = (Reference("the same command started directly", bare),)
    return [
        Figure("start_p50", "submit -> process start, idle, p50", percentile(samples, 50), "ms", references, note),
        Figure("start_p99", "submit -> process start, idle, p99", percentile(samples, 99), "ms"),
    ]


if __name__ == "__main__":
    command(__doc__, [measure])
