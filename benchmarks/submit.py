"""Durable submits a second: 32 concurrent callers of CreateJob, and one caller of BatchCreateJobs with 1,000 jobs.

Every answer means that the job is on the disk. The nodes are cordoned, so that the cores serve the submits and not the
jobs; the queue grows throughout, up to some 25,000 jobs.

Run: python -m benchmarks.submit
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import NamedTuple

from benchmarks import references
from benchmarks.cluster import Cluster, quarter_card, running
from benchmarks.figures import Figure, Reference, number, percentile, spread
from benchmarks.session import Session, command

CALLERS = 32
ROUNDS = 5
CALLS_PER_ROUND = 2_000
BATCHES = 10
BATCH_JOBS = 1_000


async def round_of_creates(cluster: Cluster, calls: int) -> tuple[float, list[float]]:
    """Calls a second, and how long each took in ms."""
    spec = quarter_card(["/bin/true"])
    left = iter(range(calls))
    took_ms: list[float] = []

    async def caller() -> None:
        for _ in left:
            began = time.perf_counter()
            await cluster.client.create_job(spec)
            took_ms.append((time.perf_counter() - began) * 1e3)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return calls / (time.perf_counter() - began), took_ms


async def round_of_batches(cluster: Cluster, batches: int) -> list[float]:
    """Jobs a second of each batch."""
    specs = [quarter_card(["/bin/true"])] * BATCH_JOBS
    rates = []
    for _ in range(batches):
        began = time.perf_counter()
        answer = await cluster.client.batch_create_jobs(specs)
        rates.append(len(answer.names) / (time.perf_counter() - began))
    return rates


class Measured(NamedTuple):
    """Of each round, or of each call."""

    rates: list[float]
    took_ms: list[float]
    spent: str
    batch_rates: list[float]
    batch_spent: str


async def measure_cluster(session: Session) -> Measured:
    async with running(session.room("submit")) as cluster:
        await cluster.cordon()
        await round_of_creates(cluster, CALLS_PER_ROUND // 4)  # connections, caches
        rates, took_ms = [], []
        spent = cluster.spent()
        for _ in range(ROUNDS):
            rate, took = await round_of_creates(cluster, CALLS_PER_ROUND)
            rates.append(rate)
            took_ms += took
        note = spent.note(ROUNDS * CALLS_PER_ROUND)
        spent = cluster.spent()
        batch_rates = await round_of_batches(cluster, BATCHES)
        return Measured(rates, took_ms, note, batch_rates, spent.note(BATCHES * BATCH_JOBS))


def measure(session: Session) -> list[Figure]:
    directory = session.room("submit-references")
    directory.mkdir()
    commits = references.commits_per_s(directory)
    grouped = references.commits_per_s(directory, BATCH_JOBS)
    empty = references.empty_calls_per_s(directory, CALLERS)
    measured = asyncio.run(measure_cluster(session))
    rates, took_ms, batch_rates = measured.rates, measured.took_ms, measured.batch_rates
    return [
        Figure(
            "submit",
            f"CreateJob, {CALLERS} concurrent callers, durable",
            statistics.median(rates),
            "jobs/s",
            (
                Reference(f"empty TLS calls by {CALLERS} callers", empty),
                Reference("bare SQLite commits of one row (fsync each)", commits),
            ),
            f"{spread(rates, 'jobs/s')}; a call: p50 {number(percentile(took_ms, 50))} ms, "
            f"p99 {number(percentile(took_ms, 99))} ms; {measured.spent}",
        ),
        Figure(
            "submit_batch",
            f"BatchCreateJobs of {BATCH_JOBS:,}, one caller, durable",
            statistics.median(batch_rates),
            "jobs/s",
            (Reference(f"bare SQLite rows in commits of {BATCH_JOBS:,}", grouped),),
            f"{spread(batch_rates, 'jobs/s')}; {measured.batch_spent}",
        ),
    ]


if __name__ == "__main__":
    command(__doc__, [measure])
