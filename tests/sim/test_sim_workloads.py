"""Drawn workloads have the demand, the order and the rates that they are asked for, and follow from the seed alone."""

from __future__ import annotations

import itertools
import statistics
from fractions import Fraction

import pytest
from traces_made import random_jobs

from gpushare.sim.traces import TraceJob, TraceNode, capacity_milli
from gpushare.sim.workloads import WorkloadError, departures, inflate, node_order

JOBS = [TraceJob(f"j{n}", 0, 1000, 1, 1, milli) for n, milli in enumerate((100, 250, 500, 1000) * 25)]
CAPACITY_MILLI = 50_000


def test_inflating_takes_every_job_once_and_then_draws_on() -> None:
    drawn = inflate(JOBS, CAPACITY_MILLI, Fraction("1.3"), seed=4)
    asked = [job.demand_milli for job in drawn]
    assert sum(asked) >= 65_000 > sum(asked[:-1])
    assert sorted(job.id for job in drawn[: len(JOBS)]) == sorted(job.id for job in JOBS)
    assert [job.id for job in drawn[: len(JOBS)]] != [job.id for job in JOBS]
    assert len({job.id for job in drawn}) == len(drawn), "a second draw of a job has an id of its own"
    assert all(job.duration_ms is None for job in drawn)
    arrivals = [job.arrival_ms for job in drawn]
    assert arrivals == sorted(set(arrivals)), "one at a time"
    short = inflate(JOBS, CAPACITY_MILLI, Fraction("0.2"), seed=4)
    assert short == drawn[: len(short)]


def test_an_id_that_looks_like_a_second_draw_is_kept_apart() -> None:
    jobs = [TraceJob("a", 0, 1, 1, 1, 1000), TraceJob("a#2", 0, 1, 1, 1, 1000)]
    drawn = inflate(jobs, 20_000, Fraction(1), seed=0)
    assert len({job.id for job in drawn}) == len(drawn) == 20


def test_departures_offer_the_load() -> None:
    drawn = departures(JOBS, CAPACITY_MILLI, Fraction("1.2"), 20_000, seed=1)
    span_ms = drawn[-1].arrival_ms - drawn[0].arrival_ms
    offered = sum(job.demand_milli * (job.duration_ms or 0) for job in drawn) / span_ms / CAPACITY_MILLI
    assert offered == pytest.approx(1.2, rel=0.04)
    gaps = [b.arrival_ms - a.arrival_ms for a, b in itertools.pairwise(drawn)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05), "as an exponential's"
    durations = [job.duration_ms or 0 for job in drawn]
    assert statistics.stdev(durations) == pytest.approx(statistics.mean(durations), rel=0.05)


def test_a_seed_is_a_workload() -> None:
    jobs = random_jobs(7, 40)
    assert inflate(jobs, 9000, Fraction(2), 3) == inflate(jobs, 9000, Fraction(2), 3)
    assert inflate(jobs, 9000, Fraction(2), 3) != inflate(jobs, 9000, Fraction(2), 4)
    assert departures(jobs, 9000, Fraction(2), 50, 3) == departures(jobs, 9000, Fraction(2), 50, 3)
    nodes = [TraceNode(f"n{n}", 1, 1, 1, "T4") for n in range(50)]
    order = node_order(nodes, 3)
    assert order == node_order(nodes, 3)
    assert order != node_order(nodes, 4)
    assert sorted(order, key=lambda n: n.name) == sorted(nodes, key=lambda n: n.name)
    assert capacity_milli(nodes) == CAPACITY_MILLI


def test_a_list_without_gpu_demand_cannot_be_drawn_from() -> None:
    cpu = [TraceJob("c", 0, 1, 1, 0, 0)]
    with pytest.raises(WorkloadError, match="no job asks for a GPU"):
        inflate(cpu, CAPACITY_MILLI, Fraction(1), 0)
    with pytest.raises(WorkloadError, match="no node has a GPU"):
        departures(JOBS, 0, Fraction(1), 10, 0)
