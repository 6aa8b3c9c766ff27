"""What comes out of a simulation: the lines of placements.csv and the summary. Imports the package's own modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from gpushare.sim import cluster
from gpushare.sim.driver import Run, Simulation
from gpushare.sim.measure import Spread, jain, percentile, spread_s
from gpushare.sim.observe import held_milli
from gpushare.sim.placements import Placement
from gpushare.sim.traces import TraceNode


class Summary(msgspec.Struct, frozen=True):
    """Fractions are of the cluster's GPU capacity unless said otherwise; None: there is no such figure here."""

    policy: str
    seed: int
    nodes: int
    gpus: int
    jobs: int
    placed: int
    unplaced: int
    # Of the unplaced: refused when they came, because no empty cluster of these nodes holds them.
    refused: int
    preemptions: int
    # The one figure that fits the workload, and which one it is.
    allocation: float | None
    allocation_is: str
    # Over the whole of the virtual time.
    allocation_mean: float | None
    allocation_peak: float | None
    allocation_final: float | None
    # When the GPUs that all arrived jobs ask for first reach the capacity; only where no job leaves.
    allocation_at_full_demand: float | None
    # Mean over the last 35 % of the arrivals.
    allocation_tail: float | None
    # Idle GPU that a task drawn from the trace's GPU jobs cannot use, at full demand or else at the last arrival.
    fragmentation: float | None
    # The same, of the idle GPU alone.
    fragmentation_of_idle: float | None
    # From arrival to the first start, and from arrival to the end.
    wait_s: Spread | None
    jct_s: Spread | None
    # Jain's index over the tenants' GPU time by weight: 1 is even.
    fairness: float | None
    # Starts, refusals and, where every job is tried once, the ones that did not fit.
    decisions: int
    # By the time that the passes took alone, and by all of it.
    decisions_per_second: float
    placements_per_second: float
    passes: int
    pass_ms_p50: float
    pass_ms_p99: float
    wall_s: float
    virtual_s: float


def placements(simulation: Simulation) -> Iterator[Placement]:
    """One a task, in the order of the jobs; one for a job that has no place."""
    for run in simulation.runs:
        yield from _of_run(run, simulation.nodes)


def _of_run(run: Run, nodes: Sequence[TraceNode]) -> Iterator[Placement]:
    if run.start_ms is None:
        yield Placement(run.job.id)
        return
    for piece in run.slices:
        node = nodes[cluster.node_place(piece.node)].name
        start_ms = run.start_ms - cluster.EPOCH_MS
        yield Placement(run.job.id, node, cluster.card_indexes(piece), piece.gpu_milli, start_ms)


def summarise(simulation: Simulation, *, seed: int, is_steady: bool = False) -> Summary:
    """`is_steady`: the workload is a steady stream, so the figure is that of its tail."""
    runs, seen = simulation.runs, simulation.observer
    now_ms = simulation.now_ms
    placed = sum(run.start_ms is not None for run in runs)
    figure, what = _allocation(simulation, is_steady)
    capacity = seen.allocation.capacity_milli
    stranded, idle = seen.stranded or (0.0, 0)
    pass_ms = sorted(1000 * s for s in simulation.pass_s) or [0.0]
    begun_ms = min((run.arrival_ms for run in runs), default=now_ms)
    return Summary(
        policy=simulation.settings.policy,
        seed=seed,
        nodes=len(simulation.nodes),
        gpus=capacity // 1000,
        jobs=len(runs),
        placed=placed,
        unplaced=len(runs) - placed,
        refused=simulation.refused,
        preemptions=simulation.preemptions,
        allocation=figure,
        allocation_is=what,
        allocation_mean=seen.allocation.mean(now_ms),
        allocation_peak=seen.allocation.peak(),
        allocation_final=seen.allocation.now(),
        allocation_at_full_demand=seen.at_full_demand,
        allocation_tail=seen.tail,
        fragmentation=stranded / capacity if capacity else None,
        fragmentation_of_idle=stranded / idle if idle else None,
        wait_s=spread_s(r.first_start_ms - r.arrival_ms for r in runs if r.first_start_ms is not None),
        jct_s=spread_s(r.ended_ms - r.arrival_ms for r in runs if r.ended_ms is not None),
        fairness=_fairness(simulation),
        decisions=simulation.decisions,
        decisions_per_second=_rate(simulation.decisions, sum(simulation.pass_s)),
        placements_per_second=_rate(placed, simulation.wall_s),
        passes=len(simulation.pass_s),
        pass_ms_p50=percentile(pass_ms, 50),
        pass_ms_p99=percentile(pass_ms, 99),
        wall_s=simulation.wall_s,
        virtual_s=(now_ms - begun_ms) / 1000,
    )


def _allocation(simulation: Simulation, is_steady: bool) -> tuple[float | None, str]:
    seen = simulation.observer
    if is_steady:
        return seen.tail, "mean over the last 35 % of the arrivals"
    if seen.at_full_demand is not None and simulation.once:
        return seen.at_full_demand, "when arrived demand reached the capacity"
    if seen.nothing_leaves:
        return seen.allocation.now(), "at the end"
    return seen.allocation.mean(simulation.now_ms), "mean over the whole time"


def _fairness(simulation: Simulation) -> float | None:
    """GPU time of what has ended and of what still runs, by weight, among the tenants that asked for anything."""
    held = dict(simulation.observer.held_milli_ms)
    for run in simulation.runs:
        if run.round and run.start_ms is not None:
            held[run.job.tenant] += held_milli(run.slices) * (simulation.now_ms - run.start_ms)
    asked = {run.job.tenant for run in simulation.runs if run.job.num_gpu}
    return jain([held[tenant.name] / tenant.weight for tenant in simulation.tenants if tenant.name in asked])


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0
