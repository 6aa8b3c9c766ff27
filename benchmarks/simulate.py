"""How well and how fast jobs are placed: the production core on a trace, on unseen mixes, and with a long queue.

Run: python -m benchmarks.simulate [--traces DIR] [--seeds N] [--policies P,P] [--parts PART,PART] [--workers N]

The parts are fill, departures, mixes, speed and queue.

`--traces` names the directory with the public trace (openb_node_list_gpu_node.csv, openb_pod_list_default.csv); without
it the parts that need it are left out. Every placement is checked against the constraints by arithmetic of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from benchmarks import mixes
from gpushare.sim import cluster, outcome, traces
from gpushare.sim.checkers import violations
from gpushare.sim.driver import Simulation
from gpushare.sim.measure import percentile
from gpushare.sim.outcome import Summary
from gpushare.sim.traces import TraceJob, TraceNode
from gpushare.sim.workloads import departures, inflate, node_order

PARTS = ("fill", "departures", "mixes", "speed", "queue")
FILL = Fraction("1.3")
LOAD = Fraction("1.2")
ARRIVALS = 42_000
MIX_NODES = 150
MIX_ARRIVALS = 6_000

# An independent implementation, on the public trace: GPU allocated in percent at 100 % of arrived demand.
REFERENCE_FILL = {
    "random": 86.2,
    "dot product": 90.7,
    "best fit": 92.9,
    "first fit, fixed node order": 94.4,
    "FGD": 95.2,
    "ceiling": 96.3,
}
REFERENCE_DEPARTURES = {"FGD": 95.0}

QUEUE_NODES, QUEUE_RUNNING, QUEUE_WAITING, QUEUE_CHANGES = 1000, 10_000, 100_000, 300


class Case(NamedTuple):
    """One run. `traces_dir` None: a mix by name."""

    part: str
    policy: str
    seed: int
    traces_dir: Path | None
    mix: str = ""
    is_steady: bool = False


def run_case(case: Case) -> Summary:
    """Simulate and check; runs in a process of its own."""
    nodes, jobs = _input(case)
    capacity = traces.capacity_milli(nodes)
    if case.is_steady:
        drawn = departures(jobs, capacity, LOAD, MIX_ARRIVALS if case.mix else ARRIVALS, case.seed)
    else:
        drawn = inflate(jobs, capacity, FILL, case.seed)
    simulation = _simulated(nodes, drawn, case.policy, case.seed)
    faults = violations(nodes, drawn, outcome.placements(simulation))
    if faults:
        raise SystemExit(f"{case}: {len(faults)} broken constraints; the first: {faults[0]}")
    return outcome.summarise(simulation, seed=case.seed, is_steady=case.is_steady)


def _input(case: Case) -> tuple[list[TraceNode], list[TraceJob]]:
    if case.traces_dir is None:
        return mixes.cluster(MIX_NODES), mixes.MIXES[case.mix]
    return (
        traces.read_openb_nodes(case.traces_dir / "openb_node_list_gpu_node.csv"),
        traces.read_openb_jobs(case.traces_dir / "openb_pod_list_default.csv"),
    )


def _simulated(nodes: Sequence[TraceNode], jobs: Sequence[TraceJob], policy: str, seed: int) -> Simulation:
    simulation = Simulation(node_order(nodes, seed), jobs, policy=policy, once=True)
    simulation.run()
    return simulation


# -- how well


def quality(cases: Sequence[Case], workers: int) -> None:
    """One line a policy and workload: mean, least and greatest over the seeds."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        found = list(zip(cases, pool.imap(run_case, cases), strict=True))
    for key in dict.fromkeys((case.part, case.mix, case.is_steady, case.policy) for case in cases):
        part, mix, is_steady, policy = key
        own = [s for c, s in found if (c.part, c.mix, c.is_steady, c.policy) == key]
        figures = [100 * (summary.allocation or 0) for summary in own]
        wall = statistics.mean(summary.wall_s for summary in own)
        rate = statistics.mean(summary.placements_per_second for summary in own)
        what = f"{part}{' ' + mix if mix else ''}{', departures' if mix and is_steady else ''}"
        print(
            f"{what:<36}{policy:<14}{statistics.mean(figures):7.2f} %  ({min(figures):.2f} to {max(figures):.2f}, "
            f"{len(figures)} seeds)  {wall:.1f} s, {rate:,.0f} placements/s",
            flush=True,
        )


def quality_cases(parts: Iterable[str], policies: Sequence[str], seeds: int, traces_dir: Path | None) -> list[Case]:
    cases = []
    for policy in policies:
        for seed in range(seeds):
            if traces_dir is not None and "fill" in parts:
                cases.append(Case("fill", policy, seed, traces_dir))
            if traces_dir is not None and "departures" in parts:
                cases.append(Case("departures", policy, seed, traces_dir, is_steady=True))
            if "mixes" in parts:
                cases += [
                    Case("mix", policy, seed, None, mix, steady) for mix in mixes.MIXES for steady in (False, True)
                ]
    return sorted(cases, key=lambda case: (case.part != "fill", case.part, case.mix, case.is_steady))


# -- how fast


def speed(policy: str) -> None:
    """Decisions at 6,000 and 50,000 cards: time in the passes alone, and all of a job's way through the core."""
    shapes = mixes.MIXES["small_shares"] + mixes.MIXES["whole_cards"]
    for nodes_count in (750, 6250):
        nodes = mixes.alike(nodes_count)
        cards = 8 * nodes_count
        jobs = inflate(shapes, 1000 * cards, FILL, seed=0)[:20_000]
        simulation = _simulated(nodes, jobs, policy, seed=0)
        micros = sorted(1e6 * s for s in simulation.pass_s)
        placements = outcome.summarise(simulation, seed=0).placements_per_second
        print(
            f"{cards:,} cards, {policy}: a decision takes {statistics.mean(micros):.0f} us (p50 "
            f"{percentile(micros, 50):.0f} us, p99 {percentile(micros, 99):.0f} us), {placements:,.0f} placements/s",
            flush=True,
        )


def queue(policy: str) -> None:
    """A pass after one change, with many jobs running and ten times as many waiting."""
    nodes = mixes.alike(QUEUE_NODES)
    simulation = Simulation(node_order(nodes, 0), queue_jobs(), policy=policy)
    simulation.run(until_ms=1)
    filled = len(simulation.pass_s)
    fill_s = simulation.wall_s
    running = sum(bool(run.round) for run in simulation.runs)
    simulation.run(until_ms=1000 * QUEUE_CHANGES)
    millis = sorted(1000 * s for s in simulation.pass_s[filled:])
    print(
        f"{QUEUE_NODES:,} nodes x 8 cards, {running:,} running, {len(simulation.runs) - running:,} waiting, {policy}: "
        f"a pass after one change p50 {percentile(millis, 50):.1f} ms, p99 {percentile(millis, 99):.1f} ms "
        f"({len(millis)} passes; filled in {fill_s:.0f} s)",
        flush=True,
    )


def queue_jobs() -> list[TraceJob]:
    """6,000 whole cards and 4,000 halves fill the cluster; one of them ends each second. What waits has many shapes."""
    jobs = []
    for number in range(QUEUE_RUNNING):
        whole = number % 5 < 3
        ends_ms = 1000 * (number + 1) if number < QUEUE_CHANGES else None
        tenant = f"t{number % 8}"
        jobs.append(
            TraceJob(f"r{number}", 0, 2000, 4096, 1, 1000 if whole else 500, (), ends_ms, tenant, f"u{number % 40}")
        )
    for number in range(QUEUE_WAITING):
        milli = (100, 250, 500, 1000, 1000)[number % 5]
        cards = 1 if milli < 1000 else (1, 2, 4, 8)[number // 5 % 4]
        cpu_milli = 1000 * (1 + number // 20 % 5)
        tenant = f"t{number % 8}"
        jobs.append(TraceJob(f"w{number}", 1, cpu_milli, 2048, cards, milli, (), 3_600_000, tenant, f"u{number % 40}"))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    parser.add_argument("--policies", default=",".join(cluster.policies()), metavar="P,P")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="PART,PART")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    arguments = parser.parse_args()
    parts, policies = arguments.parts.split(","), arguments.policies.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    cases = quality_cases(parts, policies, arguments.seeds, arguments.traces)
    if cases:
        print("references, measured elsewhere, on the public trace:")
        print("  filling up: " + ", ".join(f"{name} {value} %" for name, value in REFERENCE_FILL.items()))
        print("  departures: " + ", ".join(f"{name} {value} %" for name, value in REFERENCE_DEPARTURES.items()))
        quality(cases, arguments.workers)
    timed: dict[str, Callable[[str], None]] = {"speed": speed, "queue": queue}
    for part in (part for part in parts if part in timed):
        timed[part](policies[0])


if __name__ == "__main__":
    main()
