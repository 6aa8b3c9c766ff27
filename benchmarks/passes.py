"""How long the scheduler thinks: passes over a long queue, decisions, whole simulations, and what a question costs.

Run: python -m benchmarks.passes [--traces DIR] [--parts PART,PART] [--policy P]

The parts are pass, question, drain, decision and trace. Each line shows CPU time beside wall time: on a machine that
does other work the first is the one to compare. Before each part stands what a plain loop takes just then: machines
whose speed is lent change it within minutes, and only figures beside like loops can be compared. `--traces` names the
directory with the public trace, as for `benchmarks.simulate`; without it the last part is left out.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import mixes, place, simulate
from gpushare.core.cycle import schedule
from gpushare.core.explain import Question
from gpushare.core.preview import QuotaQuestion
from gpushare.core.repack import RepackQuestion
from gpushare.sim import cluster, outcome, traces
from gpushare.sim.driver import Simulation
from gpushare.sim.measure import percentile
from gpushare.sim.traces import TraceJob
from gpushare.sim.workloads import inflate, node_order

PARTS = ("pass", "question", "drain", "decision", "trace")
PASS_P99_MS, PLACEMENTS_MIN, DECISION_MAX_US, TRACE_MAX_S, PAUSE_MAX_MS = 100, 1500, {6_000: 100, 50_000: 250}, 10, 100
DRAIN_JOBS = 100_000
LOOP_STEPS = 1_000_000


class Spent:
    wall_s = cpu_s = 0.0


@contextmanager
def timed() -> Iterator[Spent]:
    spent, wall, cpu = Spent(), time.perf_counter(), time.process_time()
    yield spent
    spent.wall_s, spent.cpu_s = time.perf_counter() - wall, time.process_time() - cpu


def loop(part: str) -> None:
    with timed() as spent:
        total = 0
        for number in range(LOOP_STEPS):
            total += number
    print(f"-- {part}; {LOOP_STEPS:,} additions in a plain loop take {1000 * spent.cpu_s:.0f} ms", flush=True)


def full(policy: str) -> Simulation:
    """1,000 nodes x 8 cards, 10,000 jobs running and 100,000 waiting."""
    made = Simulation(node_order(mixes.alike(simulate.QUEUE_NODES), 0), simulate.queue_jobs(), policy=policy)
    made.run(until_ms=1)
    gc.collect()
    gc.freeze()
    return made


def one_pass(loaded: Simulation) -> None:
    """A pass after each of the first ends; the simulation's own passes are left to it, these change nothing."""
    wall, cpu = [], []
    for second in range(1, 101):
        loaded.run(until_ms=1000 * second)
        state = loaded.state
        state.touched.update(sorted(state.nodes)[second : second + 1])
        with timed() as spent:
            schedule(state, loaded.now_ms, loaded.settings, loaded.brain)
        wall.append(1000 * spent.wall_s)
        cpu.append(1000 * spent.cpu_s)
    running = sum(bool(run.round) for run in loaded.runs)
    print(
        f"a pass after one change, {running:,} running, {len(loaded.runs) - running:,} waiting: "
        f"CPU p50 {percentile(sorted(cpu), 50):.1f} ms, p99 {percentile(sorted(cpu), 99):.1f} ms; "
        f"wall p50 {percentile(sorted(wall), 50):.1f} ms, p99 {percentile(sorted(wall), 99):.1f} ms "
        f"(wanted: p99 under {PASS_P99_MS} ms)",
        flush=True,
    )


def questions(loaded: Simulation) -> None:
    """What the scheduler stands still for, and what its thread thinks beside it."""
    state, brain, now_ms, settings = loaded.state, loaded.brain, loaded.now_ms, loaded.settings
    waiting = list(state.lines)
    some = {name: tenant.settings for name, tenant in list(state.tenants.items())[:1]}
    asked: dict[str, Callable[[], Question | QuotaQuestion | RepackQuestion]] = {
        "explain": lambda: Question(state, state.jobs[waiting[len(waiting) // 2]], now_ms, settings, brain),
        "quota preview": lambda: QuotaQuestion(state, some, now_ms, settings, brain),
        "repack --plan": lambda: RepackQuestion(state, now_ms, settings, brain),
    }
    for what, make in asked.items():
        with timed() as pause:
            question = make()
        with timed() as thought:
            question.answer()
        print(
            f"{what}: the scheduler pauses for {1000 * pause.cpu_s:.1f} ms of CPU ({1000 * pause.wall_s:.1f} ms wall; "
            f"wanted: under {PAUSE_MAX_MS} ms), the answer takes {thought.cpu_s:.2f} s of CPU beside it",
            flush=True,
        )


def drain(policy: str) -> None:
    """A queue that is there from the beginning, simulated to its end."""
    jobs = [
        TraceJob(
            f"j{n}", 0, 2000, 4096, 1, (250, 500, 1000)[n % 3], (), 600_000 + n % 997 * 1000, f"t{n % 8}", f"u{n % 40}"
        )
        for n in range(DRAIN_JOBS)
    ]
    simulation = Simulation(node_order(mixes.alike(simulate.QUEUE_NODES), 0), jobs, policy=policy)
    # As `gpushare simulate` does.
    gc.disable()
    with timed() as spent:
        simulation.run()
    gc.enable()
    placed = sum(run.first_start_ms is not None for run in simulation.runs)
    print(
        f"simulate, {DRAIN_JOBS:,} queued at once on {simulate.QUEUE_NODES:,} nodes, all {placed:,} placed and ended: "
        f"{placed / spent.cpu_s:,.0f} placements/s of CPU, {placed / spent.wall_s:,.0f}/s wall "
        f"(wanted: {PLACEMENTS_MIN:,}/s)",
        flush=True,
    )


def decisions(policy: str) -> None:
    for cards, most_us in DECISION_MAX_US.items():
        for kinds, what in (
            (1, "the same request again and again"),
            (place.SHAPES, f"{place.SHAPES} requests in turn"),
        ):
            load = place.Load(cards, kinds, policy)
            load.decide_us(place.DECISIONS // 4)
            # As the scheduler does at its start.
            gc.collect()
            gc.freeze()
            with timed() as spent:
                wall_us = load.decide_us(place.DECISIONS)
            cpu_us = wall_us * spent.cpu_s / spent.wall_s
            print(
                f"a decision among {cards:,} cards, {what}: {cpu_us:.0f} us of CPU, {wall_us:.0f} us wall "
                f"(wanted: under {most_us} us)",
                flush=True,
            )


def trace(policy: str, directory: Path) -> None:
    nodes = traces.read_openb_nodes(directory / "openb_node_list_gpu_node.csv")
    jobs = traces.read_openb_jobs(directory / "openb_pod_list_default.csv")
    drawn = inflate(jobs, traces.capacity_milli(nodes), simulate.FILL, seed=0)
    simulation = Simulation(node_order(nodes, 0), drawn, policy=policy, once=True)
    with timed() as spent:
        simulation.run()
    got = outcome.summarise(simulation, seed=0, is_steady=False).allocation or 0
    print(
        f"the public trace, filled up: {spent.cpu_s:.1f} s of CPU, {spent.wall_s:.1f} s wall, {100 * got:.2f} % "
        f"allocated (wanted: under {TRACE_MAX_S} s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, metavar="DIR")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="PART,PART")
    parser.add_argument("--policy", default=cluster.policies()[0], metavar="P")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    if {"pass", "question"} & set(parts):
        loop("pass, question")
        loaded = full(arguments.policy)
        if "pass" in parts:
            one_pass(loaded)
        if "question" in parts:
            questions(loaded)
    if "drain" in parts:
        loop("drain")
        drain(arguments.policy)
    if "decision" in parts:
        loop("decision")
        decisions(arguments.policy)
    if "trace" in parts and arguments.traces is not None:
        loop("trace")
        trace(arguments.policy, arguments.traces)


if __name__ == "__main__":
    main()
