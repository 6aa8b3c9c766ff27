"""Workloads drawn from a list of jobs: filling a cluster up, and keeping it full while jobs come and go.

Imports the standard library's generator, always seeded. Every purpose has its own: the order of the nodes does not
change with the number of jobs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import msgspec

from gpushare.sim.traces import TraceJob, TraceNode

# Virtual time between two arrivals of a drawn workload; the mean one where it is random.
ARRIVAL_MS = 10_000


class WorkloadError(Exception):
    """Nothing can be drawn from this list; the text says why."""


def _generator(seed: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{purpose}")


def node_order(nodes: Sequence[TraceNode], seed: int) -> list[TraceNode]:
    """The nodes in the one random order of `seed`, by which every tie goes."""
    return _generator(seed, "nodes").sample(list(nodes), len(nodes))


def inflate(jobs: Sequence[TraceJob], capacity_milli: int, factor: Fraction, seed: int) -> list[TraceJob]:
    """All jobs in random order, then drawn again at random from the list, until together they ask for `factor` times
    the cluster's GPUs. One arrives every `ARRIVAL_MS`; nothing leaves."""
    _check_demand(jobs, capacity_milli)
    random_jobs = _generator(seed, "jobs")
    order = random_jobs.sample(list(jobs), len(jobs))
    drawn: list[TraceJob] = []
    asked_milli, wanted_milli = 0, math.ceil(capacity_milli * factor)
    while asked_milli < wanted_milli:
        job = order[len(drawn)] if len(drawn) < len(order) else random_jobs.choice(order)
        asked_milli += job.demand_milli
        drawn.append(job)
    arrivals = [number * ARRIVAL_MS for number in range(len(drawn))]
    return _as_drawn(drawn, arrivals, [None] * len(drawn))


def departures(
    jobs: Sequence[TraceJob], capacity_milli: int, load: Fraction, arrivals: int, seed: int
) -> list[TraceJob]:
    """`arrivals` jobs drawn at random: Poisson arrivals and exponential durations of one mean for all, so that what
    arrives would hold `load` times the cluster's GPUs if everything fitted."""
    _check_demand(jobs, capacity_milli)
    draw = _generator(seed, "jobs")
    mean_demand_milli = sum(job.demand_milli for job in jobs) / len(jobs)
    mean_duration_ms = ARRIVAL_MS * float(load) * capacity_milli / mean_demand_milli
    drawn, times, durations = [], [], []
    clock_ms = 0.0
    for _ in range(arrivals):
        clock_ms += draw.expovariate(1 / ARRIVAL_MS)
        drawn.append(draw.choice(jobs))
        times.append(int(clock_ms))
        durations.append(max(1, round(draw.expovariate(1 / mean_duration_ms))))
    return _as_drawn(drawn, times, durations)


def _check_demand(jobs: Sequence[TraceJob], capacity_milli: int) -> None:
    if capacity_milli == 0:
        raise WorkloadError("no node has a GPU, so there is no GPU demand to draw for")
    if not any(job.demand_milli for job in jobs):
        raise WorkloadError("no job asks for a GPU, so no number of draws reaches a GPU demand")


def _as_drawn(
    drawn: Sequence[TraceJob], arrivals_ms: Sequence[int], durations_ms: Sequence[int | None]
) -> list[TraceJob]:
    """Each draw under an id of its own: the second time that "a" is drawn it is "a#2"."""
    times: dict[str, int] = {}
    taken = {job.id for job in drawn}
    jobs = []
    for job, arrival_ms, duration_ms in zip(drawn, arrivals_ms, durations_ms, strict=True):
        count = times.get(job.id, 0) + 1
        name = job.id
        while count > 1 and (name := f"{job.id}#{count}") in taken:
            count += 1
        times[job.id] = count
        jobs.append(
            msgspec.structs.replace(job, id=name, arrival_ms=arrival_ms, duration_ms=duration_ms, max_run_ms=None)
        )
    return jobs
