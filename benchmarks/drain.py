"""1,000 jobs of /bin/true, each with a quarter of a card, through 8 simulated cards on 2 nodes: at most 32 at a time.

The clock runs from the submit of the batch to the end of the last job; every job must have succeeded at its first
attempt.

Run: python -m benchmarks.drain
"""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks import references
from benchmarks.cluster import Cluster, quarter_card, running
from benchmarks.figures import Figure, Reference, spread
from benchmarks.session import Session, command

JOBS = 1_000
WARM_UP_JOBS = 32
ROUNDS = 3
POLL_S = 0.2


async def drained_per_s(cluster: Cluster, jobs: int) -> float:
    began_s = time.time()
    answer = await cluster.client.batch_create_jobs([quarter_card(["/bin/true"])] * jobs)
    # The queue is served in order, so the last one says when to look at all of them.
    await cluster.wait_ended(answer.names[-1], poll_s=POLL_S)
    wanted = set(answer.names)
    while True:
        ended = [job for job in await cluster.jobs() if job.name in wanted and job.HasField("end_time")]
        if len(ended) == len(wanted):
            break
        await asyncio.sleep(POLL_S)
    failed = [job for job in ended if job.exit_code != 0 or job.infra_retries]
    if failed:
        raise RuntimeError(f"{len(failed)} of {jobs} jobs did not succeed at once, e.g. {failed[0]}")
    last_s = max(job.end_time.ToNanoseconds() for job in ended) / 1e9
    return jobs / (last_s - began_s)


async def measure_cluster(session: Session) -> tuple[list[float], str]:
    async with running(session.room("drain")) as cluster:
        await drained_per_s(cluster, WARM_UP_JOBS)
        spent = cluster.spent()
        rates = [await drained_per_s(cluster, JOBS) for _ in range(ROUNDS)]
        return rates, f"containment {await cluster.containment()}; {spent.note(ROUNDS * JOBS)}"


def measure(session: Session) -> list[Figure]:
    bare = references.spawns_per_s()
    rates, note = asyncio.run(measure_cluster(session))
    return [
        Figure(
            "drain",
            f"{JOBS:,} x /bin/true at 0.25 on 8 simulated cards",
            statistics.median(rates),
            "jobs/s",
            (Reference("/bin/true started and reaped, one by one", bare),),
            f"{spread(rates, 'jobs/s')}; {note}",
        )
    ]


if __name__ == "__main__":
    command(__doc__, [measure])
