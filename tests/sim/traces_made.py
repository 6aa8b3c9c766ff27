"""Small random clusters and traces, made from a seed, and simulations of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from gpushare.sim import outcome
from gpushare.sim.driver import Simulation
from gpushare.sim.placements import Placement
from gpushare.sim.traces import TraceJob, TraceNode, TraceTenant
from gpushare.sim.workloads import node_order

NODES_HEADER = "node,cpu_milli,memory_mib,gpu_count,model\n"
JOBS_HEADER = "job_id,arrival,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,duration\n"
_MODELS = ("T4", "V100", "H100")


def write_trace(directory: Path, nodes: str, jobs: str) -> tuple[Path, Path]:
    """Rows below the usual headers."""
    paths = directory / "nodes.csv", directory / "jobs.csv"
    paths[0].write_text(NODES_HEADER + nodes)
    paths[1].write_text(JOBS_HEADER + jobs)
    return paths


def random_nodes(seed: int) -> list[TraceNode]:
    draw = random.Random(f"{seed}/nodes")
    nodes = []
    for number in range(draw.randint(1, 6)):
        cards = draw.choice((0, 1, 2, 4, 8))
        model = draw.choice(_MODELS) if cards else ""
        nodes.append(TraceNode(f"host_{number}", draw.choice((4000, 16000, 64000)), 65536, cards, model))
    return nodes


def random_jobs(seed: int, count: int, *, leaving: bool = True, tasks_max: int = 1) -> list[TraceJob]:
    """Shares, whole cards, CPU jobs, some for one model, some that ask for no CPU or no memory."""
    draw = random.Random(f"{seed}/jobs")
    jobs = []
    clock_ms = 0
    for number in range(count):
        clock_ms += draw.choice((0, 0, 250, 1000, 4001))
        cards = draw.choice((0, 1, 1, 1, 1, 2, 4))
        milli = draw.choice((1, 100, 250, 333, 500, 999, 1000)) if cards == 1 else 1000 * min(cards, 1)
        jobs.append(
            TraceJob(
                id=f"job {number}",
                arrival_ms=clock_ms,
                cpu_milli=draw.choice((0, 500, 1000, 6000)),
                memory_mib=draw.choice((0, 128, 8192, 30000)),
                num_gpu=cards,
                gpu_milli=milli,
                models=(draw.choice(_MODELS),) if draw.random() < 0.2 else (),
                duration_ms=draw.choice((0, 1, 5000, 30_000)) if leaving and draw.random() < 0.9 else None,
                tenant=draw.choice(("ml", "nlp")),
                priority=draw.choice((0, 0, 5)),
                tasks=draw.randint(1, tasks_max),
                max_run_ms=draw.choice((None, 4000)) if leaving else None,
            )
        )
    return jobs


def simulated(
    nodes: Sequence[TraceNode],
    jobs: Sequence[TraceJob],
    tenants: Sequence[TraceTenant] | None = None,
    *,
    seed: int = 0,
    once: bool = False,
) -> tuple[Simulation, list[Placement]]:
    simulation = Simulation(node_order(nodes, seed), jobs, tenants, once=once)
    simulation.run()
    return simulation, list(outcome.placements(simulation))
